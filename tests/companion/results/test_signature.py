from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from igpt.companion.results.signature import Signature, Signer, reached_libraries, reached_modules
from igpt.companion.stage import Stage
from igpt.data import DATASETS
from igpt.project import Project

PRETRAIN = Stage.of("pretrain", model="tiny-s", seed=0)
PROBE = Stage.of("linear_probe", model="tiny-s", seed=0)
PALETTE = Stage.of("palette", dataset="digits", colours=16)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=6), st.randoms())
def test_the_order_of_parts_is_irrelevant(parts: dict[str, str], random: object) -> None:
    items = list(parts.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert Signature(dict(items)).digest == Signature(parts).digest


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=6), st.data())
def test_a_changed_part_changes_the_digest_and_is_named(parts: dict[str, str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(parts)))
    changed = Signature({**parts, name: parts[name] + "x"})
    assert changed.digest != Signature(parts).digest
    assert changed.difference(parts) == [name]


def test_a_stage_reaches_what_it_imports_and_nothing_that_presents_or_carries_out(project: Project) -> None:
    signer = Signer(project.notebooks)
    probe = signer.sign(PROBE).parts
    reached = {name.removeprefix("module ") for name in probe if name.startswith("module ")}
    assert {"igpt.evaluate.linear_probe", "igpt.model", "igpt.palette", "igpt.data", "igpt.measure"} <= reached
    assert not {
        name
        for name in reached
        if name.startswith(("igpt.companion.report", "igpt.companion.run", "igpt.companion.cli", "igpt.companion.results"))
    }
    pretraining = {name for name in signer.sign(PRETRAIN).parts if name.startswith("module ")}
    assert "module igpt.train.loop" in pretraining
    assert "module igpt.evaluate.linear_probe" not in pretraining


def test_public_names_are_followed_to_their_modules() -> None:
    assert "igpt.model" in reached_modules(ast.parse("from igpt import ImageGPT"))
    assert "igpt.palette" not in reached_modules(ast.parse("from igpt.shape import SIZES"))


def test_a_parent_enters_by_its_signature(project: Project) -> None:
    before = {stage: Signer(project.notebooks).sign(stage) for stage in (PROBE, PRETRAIN, PALETTE)}
    path = project.notebooks / "palette.ipynb"
    path.write_text(path.read_text().replace("seed = 0", "seed = 1"))
    after = {stage: Signer(project.notebooks).sign(stage) for stage in (PROBE, PRETRAIN, PALETTE)}
    assert after[PALETTE].difference(before[PALETTE].parts) == ["notebook", "parameter seed"]
    changed = after[PRETRAIN].difference(before[PRETRAIN].parts)
    assert [name.partition(",")[0] for name in changed] == ["stage palette", "stage palette"]  # under its new name, and the old
    assert after[PROBE].difference(before[PROBE].parts) == ["stage pretrain,model=tiny-s,seed=0"]


def test_markdown_of_a_notebook_is_no_part_of_it(project: Project) -> None:
    before = Signer(project.notebooks).sign(PROBE).digest
    path = project.notebooks / "linear_probe.ipynb"
    notebook = json.loads(path.read_text())
    next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")["source"] = "other words"
    path.write_text(json.dumps(notebook))
    assert Signer(project.notebooks).sign(PROBE).digest == before


def test_a_default_said_aloud_is_the_same_stage(project: Project) -> None:
    signer = Signer(project.notebooks)
    said = Stage.of("linear_probe", model="tiny-s", seed=0, dataset="digits", objective="autoregressive", views=5)
    assert signer.canonical(said) == signer.canonical(PROBE)
    assert signer.canonical(said).name == "linear_probe,model=tiny-s,seed=0"
    assert signer.sign(said) == signer.sign(PROBE)


def test_only_libraries_that_code_reaches_are_part_of_it() -> None:
    reads = ast.parse("from igpt.data.resize import reduced")
    assert "pillow" in reached_libraries(reads, reached_modules(reads))
    counts = ast.parse("import numpy.linalg")
    assert reached_libraries(counts, reached_modules(counts)) == ["numpy"]


def test_imports_for_type_checkers_are_not_followed() -> None:
    assert "igpt.train.recipe" not in reached_modules(ast.parse("from igpt.data.splits import held_out"), "igpt.companion.stage")
    assert reached_modules(ast.parse("import igpt.companion.results.plan")) == []


def test_no_data_sets_reader_is_reached_by_the_modules_that_all_sets_share() -> None:
    shared = reached_modules(
        ast.parse("from igpt.data import labelled_tokens, load_split\nfrom igpt.data.tokens import make_store")
    )
    assert "igpt.data.splits" in shared and not {card.reader for card in DATASETS.values()} & {*shared}


def signed_in_a_copy(tmp_path: Path, edit: tuple[str, str, str]) -> dict[str, dict[str, str]]:
    """Parts of some stages in a copy of the package in which ``edit`` (file, old, new) was made."""
    shutil.copytree(ROOT / "igpt", tmp_path / "igpt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    name, old, new = edit
    path = tmp_path / "igpt" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    code = f"""
        import json
        from pathlib import Path
        from igpt.companion.results.signature import Signer
        from igpt.companion.stage import Stage
        signer = Signer(Path({str(tmp_path / "notebooks")!r}))
        stages = {{n: Stage.of(n, model="tiny-s", seed=0) for n in ("pretrain", "linear_probe", "fine_tune", "low_data")}}
        print(json.dumps({{n: signer.sign(s).parts for n, s in stages.items()}}))
    """
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def test_a_line_of_the_probe_stales_the_probes_and_not_the_pre_training(project: Project, tmp_path: Path) -> None:
    edit = ("evaluate/linear_probe.py", "(0.01, 0.1", "(0.02, 0.1")
    parts = signed_in_a_copy(tmp_path / "copy", edit)
    signer = Signer(project.notebooks)
    differ = {n: signer.sign(Stage.of(n, model="tiny-s", seed=0)).difference(found) for n, found in parts.items()}
    assert differ["pretrain"] == []
    assert differ["linear_probe"] == ["module igpt.evaluate.linear_probe"]
    assert differ["low_data"] == ["module igpt.evaluate.linear_probe", "stage linear_probe,model=tiny-s,seed=0"]
    assert differ["fine_tune"] == ["module igpt.evaluate.linear_probe"]  # it takes the vote from there


def test_a_recipe_stales_its_own_model_and_no_other(project: Project, tmp_path: Path) -> None:
    signer = Signer(project.notebooks)
    for copy, row, changed in (("one", '"tiny-s": Row(2, 16, 1, 0.02', True), ("other", '"tiny-m": Row(3, 24, 2, 0.01', False)):
        parts = signed_in_a_copy(tmp_path / copy, ("train/recipes.py", row, f"{row}5"))
        differ = signer.sign(PRETRAIN).difference(parts["pretrain"])
        assert differ == (["recipe tiny-s"] if changed else [])


def test_the_rate_that_a_search_is_for_is_no_part_of_it(project: Project) -> None:
    parts = Signer(project.notebooks).sign(Stage.of("rate_search", model="tiny-s")).parts
    assert json.loads(parts["recipe tiny-s"])["learning_rate"] == 0


SVHN = """TESTED = DataSet(
    name="svhn", title="SVHN", short="SVHN", terms="non-commercial use only", train=73_257, test=26_032, classes=10,
    height=32, channels=3, held_out=0.1, names=read_names, read=read_stl, split="00", subfolder="svhn",
)
STL10 = DataSet("""


@pytest.mark.parametrize(
    "edit",
    [
        ("evaluate/linear_probe.py", "# The first of equals:", "# The very first of equals:"),
        ("companion/report/figures.py", "def depth(", "def depth_of("),
        ("companion/cli.py", "parses the command line", "decides nothing at all"),
        ("companion/run/local.py", "timeout=0.5", "timeout=0.6"),
        ("data/splits.py", "training images, fewer than the", "images for training, less than the"),
        ("train/loop.py", "cannot be shared by {processes} devices: take", "does not go into {size} parts: give"),
        ("data/stl.py", "STL10 = DataSet(", SVHN),
        ("data/cards.py", "IMAGENET, IMAGENET_TOKENS)", "IMAGENET_TOKENS, IMAGENET)"),
        ("data/digits.py", "public, shipped inside scikit-learn", "free, shipped inside scikit-learn"),
        ("data/digits.py", "scikit-learn's handwritten digits\"", 'digits by hand"'),
        ("data/stl.py", "labels.astype(np.int64) - 1", "labels.astype(np.int64) - 2"),
        ("data/cifar.py", "import pickle", "import pickle\nimport json"),
        ("companion/stage.py", "import dataclass", "import dataclass, field"),
        ("companion/experiments/protocols.py", "spreads=True", "spreads=False"),
    ],
)
def test_what_cannot_change_a_number_stales_nothing(project: Project, tmp_path: Path, edit: tuple[str, str, str]) -> None:
    parts = signed_in_a_copy(tmp_path / "copy", edit)
    signer = Signer(project.notebooks)
    for name, found in parts.items():
        assert signer.sign(Stage.of(name, model="tiny-s", seed=0)).difference(found) == []


@pytest.mark.parametrize(("old", "count"), [("=1437", "=1437"), ("held_out=0.1", "held_out=0.2"), ("classes=10", "classes=11")])
def test_what_of_a_card_decides_its_images_and_splits_stales_its_stages(
    project: Project, tmp_path: Path, old: str, count: str
) -> None:
    parts = signed_in_a_copy(tmp_path / "copy", ("data/digits.py", old, count))
    signed = Signer(project.notebooks).sign(PALETTE.of("pretrain", model="tiny-s", seed=0))
    assert ("data digits" in signed.difference(parts["pretrain"])) == (count != old)


def test_a_reader_stales_the_stages_of_its_data_sets(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer(project.notebooks)
    readers = {
        "cifar10": ["igpt.data.cifar"],
        "tiny-imagenet": ["igpt.data.jpegs"],
        "stl10": ["igpt.data.stl"],
    }
    for name, expected in {**readers, "digits": []}.items():
        parts = signer.sign(Stage.of("linear_probe", model="laptop-s", dataset=name)).parts
        found = [part.removeprefix("module ") for part in parts if part.startswith("module igpt.data.")]
        assert [module for module in found if module in {"igpt.data.cifar", "igpt.data.jpegs", "igpt.data.stl"}] == expected
