"""A model that cannot be compiled is trained as it is, and says so once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, ROOT
from torch import Tensor, nn

from igpt import fast
from igpt.companion.run.notebook import hardware
from igpt.fast import UNCOMPILED, compile_module, note_uncompiled, uncompiled

TRAINS = """
import sys
sys.path[:0] = {folders!r}
from test_loop import *
torch.set_num_threads(1)
from igpt.companion.run.notebook import hardware
for part in ("one", "two"):
    compiled = run(Path(sys.argv[1]) / part, Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None]), runtime=Runtime(compiled=True))
plain = run(Path(sys.argv[1]) / "plain", Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None]))
print(compiled == plain, hardware().endswith("; not compiled"))
"""
NO_HEADERS = """#!/bin/sh
case "$1" in --version|-v) echo "g++ 12.2.0"; exit;; esac
yes "a page of the compiler's output" | head -n 300 >&2
echo "header.hpp:1:10: fatal error: Python.h: No such file or directory" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("compiler", "says"),
    [
        (NO_HEADERS, "fatal error: Python.h: No such file or directory; install g++ and Python's headers"),
        ("#!/bin/sh\nkill -9 $$\n", "install g++ and Python's headers"),
        ("", "No working C++ compiler found"),
    ],
)
def test_a_compiler_that_does_not_work_costs_a_line_and_no_run(compiler: str, says: str, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    if compiler:
        (programs / "g++").write_text(compiler)
        (programs / "g++").chmod(0o755)
    for name in ("sh", "yes", "head"):
        (programs / name).symlink_to(shutil.which(name) or "")
    environment = {**os.environ, "PATH": str(programs), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    code = TRAINS.format(folders=[str(Path(__file__).parent), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True True\n"
    [said] = [line for line in done.stderr.splitlines() if line.startswith("igpt: ")]
    assert said.startswith(UNCOMPILED) and says in said
    assert "a page of" not in done.stderr


class Double(nn.Module):
    """Twice what it is given; without anything, an error."""

    def forward(self, x: Tensor) -> Tensor:
        if not len(x):
            raise ValueError("nothing was given")
        return 2 * x


@pytest.fixture
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_noted", [])


@pytest.mark.parametrize(
    "error", [RuntimeError("one\ntwo"), OSError(28, "No space left on device"), ImportError(), KeyError("x")]
)
def test_whatever_compiling_raises_the_plain_call_is_made(
    error: Exception, nothing_said: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def compiles(call: Callable[..., object]) -> Callable[..., object]:
        def compiled(*_: object) -> object:
            tried.append("")
            raise error

        return compiled

    monkeypatch.setattr(torch, "compile", compiles)
    modules = [Double(), Double()]
    for module in modules:
        compile_module(module)
        assert [module(torch.ones(1)).item() for _ in range(3)] == [2.0] * 3
    assert len(tried) == len(modules)  # and not at every call
    assert capsys.readouterr().err.count(UNCOMPILED) == 1
    assert hardware().endswith("; not compiled")


def test_an_error_of_the_models_own_is_raised_and_nothing_is_said(
    nothing_said: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda call: call)
    module = Double()
    compile_module(module)
    with pytest.raises(ValueError, match="nothing was given"):
        module(torch.ones(0))
    assert module(torch.ones(1)).item() == 2
    assert (uncompiled(), capsys.readouterr().err) == ("", "")


def test_a_python_that_torch_does_not_compile_for_is_no_error(
    nothing_said: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiles(call: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", compiles)
    module = Double()
    compile_module(module)
    assert module(torch.ones(1)).item() == 2
    assert "not supported on Python 3.99+" in capsys.readouterr().err


def test_of_what_a_child_said_only_that_line_is_passed_on(nothing_said: None, capsys: pytest.CaptureFixture[str]) -> None:
    note_uncompiled("W0101 pages of warnings\n")
    assert not uncompiled()
    note_uncompiled(f"W0101 a warning\n{UNCOMPILED}: no compiler\n{UNCOMPILED}: no compiler\nmore")
    assert capsys.readouterr().err == f"{UNCOMPILED}: no compiler\n"
