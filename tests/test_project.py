"""Folders that the environment names, and what igpt puts into it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, igpt_here

from igpt.data.cards import data_home
from igpt.errors import UsageError
from igpt.project import FOLDER_VARIABLES, Project, resolve_folders, whole_path
from igpt.weights.released import weights_home

HOMES: dict[str, Callable[[], Path]] = {"IGPT_DATA": data_home, "IGPT_WEIGHTS": weights_home}


@pytest.mark.parametrize(
    ("value", "means"),
    [
        ("mine", "{shell}/mine"),
        ("x/../mine/.", "{shell}/mine"),
        ("~/mine", "/users/me/mine"),
        ("$SCRATCH/mine", "/scratch/mine"),
        ("${SCRATCH}", "/scratch"),
        ("/a/c$/mine", "/a/c$/mine"),
        ("", "/users/me/.cache/igpt/"),
    ],
)
def test_a_folder_is_the_one_that_the_shell_meant(
    value: str, means: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.chdir(tmp_path)
    for name, home in HOMES.items():
        monkeypatch.setenv(name, value)
        expected = means.format(shell=tmp_path)
        assert str(home()) == (expected if value else f"{expected}{name[5:].lower()}")


@pytest.mark.parametrize("value", ["~nobody-of-this-name/x", "$NO_SUCH_VARIABLE/x", "${NO_SUCH_VARIABLE}"])
def test_an_unknown_user_or_variable_is_said(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, home in HOMES.items():
        monkeypatch.setenv(name, value)
        resolve_folders()  # says nothing: the command may not need the folder
        with pytest.raises(UsageError, match=f"^{name} is .*, which names an unknown variable or user: write the full path$"):
            home()
    done = igpt_here("data", "list", root=tmp_path, IGPT_DATA=value)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_folder_that_is_none_is_no_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IGPT_ROOT", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="IGPT_ROOT is .*none, and there is no such folder"):
        Project.here()


def test_a_path_may_start_elsewhere_than_here() -> None:
    assert whole_path("shared_folder", "../runs", Path("/checkout")) == Path("/runs")


SAYS = "import os, {module}; print(*(os.environ.get(name) for name in {names}), sep='\\n')"


@pytest.mark.parametrize(
    "module", ["igpt.companion.cli", "igpt.companion.slurm.job", "igpt.train.launch", "igpt.companion.bench.worker"]
)
def test_every_process_settles_its_environment_before_torch(module: str, tmp_path: Path) -> None:
    """The command, a job of SLURM's, a node of a group, a candidate."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"PYTHONPATH": str(ROOT)}
    code = "import sys\nclass Torch:\n def find_spec(self, name, *_):\n  "
    code += "if name == 'torch': import os; os.write(1, (os.environ.get('OMP_WAIT_POLICY', '') + ' before torch\\n').encode())\n"
    code += "sys.meta_path.insert(0, Torch())\n" + SAYS.format(module=module, names=("OMP_WAIT_POLICY", *FOLDER_VARIABLES))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | dict.fromkeys(FOLDER_VARIABLES, "mine"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    *before, policy, first, second, third, fourth = done.stdout.splitlines()
    assert policy == "passive" and set(before) <= {"passive before torch"}
    assert {first, second, third, fourth} == {str(tmp_path / "mine")}
    environment["OMP_WAIT_POLICY"] = "active"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "passive" not in done.stdout and "active" in done.stdout


def test_a_tilde_that_the_shell_passes_on_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (("--records=~/none",), ("--records", "~/none")):
        assert str(tmp_path / "none") in igpt_here("table", "headline", *words, root=ROOT).stderr
