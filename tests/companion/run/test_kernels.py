"""What a kernel finds when `igpt run` starts it, whatever the user and the site have set up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import WriteNotebook, igpt

from igpt.project import Project

LOOKS = """
import json, os, sys
from igpt.data.cards import data_home
from igpt.companion.run import open_stage
stage = open_stage("looks", seed=seed)
names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
seen = {"python": sys.executable, "data": str(data_home()), "started": "by a start-up file" if "started" in globals() else ""}
(stage.project.root / f"seen-{seed}.json").write_text(json.dumps({**seen, **{name: os.environ.get(name) for name in names}}))
stage.write_record(values={})
"""


@pytest.fixture
def hostile(tmp_path: Path) -> dict[str, str]:
    """The settings of a user whose Jupyter has another Python, whose IPython starts with files of theirs, whose home is none."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "The site's Python", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    start = tmp_path / "ipython" / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "00-mine.py").write_text("started = True")
    jupyter = {name: str(tmp_path / "jupyter") for name in ("JUPYTER_DATA_DIR", "JUPYTER_PATH")}
    return {**jupyter, "IPYTHONDIR": str(tmp_path / "ipython"), "HOME": "/dev/null"}


def seen(project: Project, *words: str, **environment: str) -> dict[str, str]:
    done = igpt("run", "looks", *words, root=project.root, **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(next(project.root.glob("seen-*.json")).read_text())
    return found


def test_a_kernel_is_this_python_and_has_what_its_run_was_given(
    project: Project, write_notebook: WriteNotebook, hostile: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notebook("looks", "seed = 0", LOOKS)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = seen(project, IGPT_DATA="mine", **hostile)  # the kernel works in another folder than the command
    assert (found["python"], found["started"]) == (sys.executable, "")
    assert found["data"] == str(project.root / "mine")
    assert found["OMP_WAIT_POLICY"] == "passive"


def test_a_users_own_settings_stand(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("looks", "seed = 0", LOOKS)
    found = seen(project, OMP_WAIT_POLICY="active", OMP_NUM_THREADS="1", IGPT_DATA="~/mine", HOME="/of/mine")
    assert (found["OMP_WAIT_POLICY"], found["OMP_NUM_THREADS"]) == ("active", "1")
    assert found["data"] == "/of/mine/mine"
