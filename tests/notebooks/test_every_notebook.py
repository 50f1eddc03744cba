"""Every notebook as a user runs it: plain papermill with its defaults, and what a notebook may hold."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, igpt

from igpt.companion.results.notebooks import read_notebook
from igpt.companion.results.signature import Signer
from igpt.companion.run.folder import run_folder
from igpt.companion.stage import Stage
from igpt.project import Project

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SMALLER = {"speed": ["-p", "task", "tokenise", "-p", "rounds", "1", "-p", "toy", "True"]}  # its default takes half an hour


FINISHED = ("notebook.ipynb", "record.json")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One project for all notebooks, so that they share their parents; with what `make book` has run in this checkout."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (root / "book" / "records").mkdir(parents=True)
    (root / "runs").mkdir()
    for folder in (ROOT / "runs").glob("*-*"):
        if all((folder / name).exists() for name in FINISHED):
            (root / "runs" / folder.name).symlink_to(folder)
    return Project(root)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_with_its_defaults_and_shows_no_warning(project: Project, name: str, tmp_path: Path) -> None:
    if name in ("weights", "released_loss"):
        pytest.skip("the released weights and tokens are not here, and without a GPU their loss takes hours")
    signer = Signer(project.notebooks)
    folder = run_folder(project, signer.canonical(Stage.of(name)), signer.sign(Stage.of(name)))
    executed = folder / "notebook.ipynb"
    if not folder.exists():  # `make book` has run it otherwise, by the same papermill
        executed = tmp_path / "out.ipynb"
        done = subprocess.run(
            [sys.executable, "-m", "papermill", str(project.notebooks / f"{name}.ipynb"), executed.name, *SMALLER.get(name, [])],
            cwd=tmp_path,
            env={**os.environ, "IGPT_ROOT": str(project.root)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads(executed.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.get("name") == "stderr" and "expected" not in "".join(o["text"])], "a warning is shown"
    records = [*project.runs.glob(f"{name},*/record.json"), *project.runs.glob(f"{name}-*/record.json")]
    assert len(records) >= 1


@pytest.mark.slow
def test_papermill_takes_parameters_and_igpt_run_finds_the_same_stage_done(project: Project, tmp_path: Path) -> None:
    environment = {**os.environ, "IGPT_ROOT": str(project.root)}
    words = [str(project.notebooks / "palette.ipynb"), "out.ipynb", "-p", "colours", "8", "-p", "seed", "3"]
    subprocess.run([sys.executable, "-m", "papermill", *words], cwd=tmp_path, env=environment, capture_output=True, check=True)
    done = igpt("run", "palette", "-p", "colours=8", "-p", "seed=3", root=project.root)
    assert done.returncode == 0
    assert "nothing to run" in done.stdout
    folder = next(project.runs.glob("palette,colours=8,seed=3-*"))
    assert len(json.loads((folder / "record.json").read_text())["series"]["centres"]) == 8


def test_a_parameter_that_papermill_would_only_warn_of_is_refused(project: Project) -> None:
    done = igpt("run", "palette", "-p", "colors=8", root=project.root)
    assert done.returncode == 2
    assert "has no parameter 'colors'; did you mean colours?" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_thin(name: str) -> None:
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    cells = notebook["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert "".join(cells[0]["source"]).startswith("# ")
    tree = read_notebook(ROOT / "notebooks", name).tree
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ClassDef)
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 10
    for cell in cells:
        source = "".join(cell["source"])
        assert not cell.get("outputs")
        assert len(source.splitlines()) <= 40
        if cell["cell_type"] == "code":
            assert not any(line.startswith(("!", "%")) for line in source.splitlines())
    tagged = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    assert all("  # " in line for line in "".join(tagged["source"]).splitlines()), "a parameter without its comment"
