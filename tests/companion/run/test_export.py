"""An export is whole or not there, however it ends, and can be run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, random_model
from filelock import FileLock

from igpt import ImageGPT, Palette
from igpt.companion.run.samples import export_weights
from igpt.errors import UsageError
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.weights.own import save_weights

MAKES = pytest.mark.parametrize("make", ["ours", "huggingface", "onnx"])
FILES = {  # of each make, at least
    "ours": {"config.json", "model.safetensors", "palette.npy"},
    "huggingface": {"config.json", "model.safetensors", "palette.npy"},
    "onnx": {"config.json", "model.onnx", "weights.bin", "palette.npy"},
}
KILLED = """
import os, signal, sys
real, calls = os.fsync, []
def fsync(handle):
    calls.append(handle)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
sys.argv = {argv!r}
from igpt.companion.cli import main
main()
"""


@pytest.fixture
def weights(tmp_path: Path, greys: Palette) -> Path:
    """A model of ours of some megabytes, so that a limit on a file's size lies between its weights and the rest."""
    save_weights(tmp_path / "weights", random_model(ModelShape(2, 128, 2, 8, 9)), greys)
    return tmp_path / "weights"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that nothing but exports is written into."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def same(exported: Path, weights: Path, make: str) -> bool:
    """Whether an export is whole, and opens with the same numbers where we can open it."""
    if not FILES[make] <= {path.name for path in exported.iterdir()}:
        return False
    return make == "onnx" or torch.equal(*(ImageGPT.from_pretrained(path).wte for path in (exported, weights)))


@MAKES
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_killed_export_leaves_no_folder_and_is_run_again(
    make: str, at: int, weights: Path, out: Path, project: Project
) -> None:
    argv = ["igpt", "export", str(out / "e"), "--to", make, "--model", str(weights)]
    done = subprocess.run([sys.executable, "-c", KILLED.format(at=at, argv=argv)], capture_output=True, timeout=PATIENCE)
    assert done.returncode == -9, done.stderr
    assert not (out / "e").exists() and list(out.iterdir())  # what was written lies beside
    assert export_weights(str(weights), out / "e", to=make) == f"{weights} as {make}: {out / 'e'}"
    assert same(out / "e", weights, make)
    assert [path.name for path in out.iterdir()] == ["e"]


@MAKES
def test_an_export_that_does_not_fit_is_one_sentence_and_is_run_again(
    make: str, weights: Path, out: Path, project: Project
) -> None:
    words = [sys.executable, "-m", "igpt", "export", str(out / "e"), "--to", make, "--model", str(weights)]
    limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *words]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=PATIENCE, cwd=project.root)
    assert done.returncode == 1
    assert done.stderr == f"igpt: {out / 'e'}: File too large; earlier results are as they were\n"
    assert list(out.iterdir()) == []
    export_weights(str(weights), out / "e", to=make)
    assert same(out / "e", weights, make)


@MAKES
def test_two_exports_into_one_folder_do_not_meet(make: str, weights: Path, out: Path) -> None:
    with FileLock(out / ".e.lock"), pytest.raises(UsageError, match="another process is writing .*: wait for it"):
        export_weights(str(weights), out / "e", to=make)
    assert not (out / "e").exists()


@MAKES
def test_what_is_there_is_left_alone(make: str, weights: Path, out: Path) -> None:
    (out / "e").mkdir()
    (out / "e" / "mine").write_text("kept")
    with pytest.raises(UsageError, match="e is there already: name a folder that is not"):
        export_weights(str(weights), out / "e", to=make)
    assert [path.name for path in out.iterdir()] == ["e"] and (out / "e" / "mine").read_text() == "kept"


@pytest.mark.parametrize("make", ["huggingface", "onnx"])
def test_an_export_that_is_refused_leaves_nothing(make: str, out: Path, tmp_path: Path, greys: Palette) -> None:
    save_weights(tmp_path / "bert", random_model(ModelShape(1, 16, 2, 8, 9, "bert")), greys)
    with pytest.raises(UsageError, match="autoregressive"):
        export_weights(str(tmp_path / "bert"), out / "e", to=make)
    assert list(out.iterdir()) == []
