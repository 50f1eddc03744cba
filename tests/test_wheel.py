"""The package installed from its wheel: with its base dependencies alone, outside of any checkout, without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IN_CHECKOUT = {
    *("plan", "run headline-001", "table headline", "bench quantise", "publish laptop-l", "panel", "verify record.json"),
    *("submit --profile local", "status", "logs 1", "cancel", "resume", "collect", "clean", "doctor --profile local"),
    "drill --profile local",
}
# Each command in one process, which prints its exit code and its sentence.
EVERY = """
import sys
from igpt.companion.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["igpt", *line.split()]
    try:
        main()
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
"""
LIBRARY = """
from igpt import ImageGPT
import torch
model = ImageGPT.from_pretrained("laptop-l")
opened = ImageGPT.from_pretrained("mine")
assert torch.equal(model.sample(n=2, seed=3), opened.sample(n=2, seed=3))
assert model.complete(model.sample(n=1)[:, :200], n=2).shape == (1, 2, 256)
from igpt.sklearn import ImageGPTFeatures
assert ImageGPTFeatures().fit_transform(["samples.png"]).shape == (1, 128)
"""


def base_distributions() -> set[str]:
    """The base dependencies and what they need here, by name."""
    names: set[str] = set()
    waiting = [Requirement(text) for text in PROJECT["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.name in names or not any((m := requirement.marker) is None or m.evaluate({"extra": e}) for e in extras):
            continue
        names.add(requirement.name)
        waiting += [Requirement(text) for text in distribution(requirement.name).requires or [] if "extra ==" not in text]
    return names


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel and links to the base dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "igpt", "*.toml", "README.md", "LICENSE"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "--python", folder / "venv", "install", "--no-deps", "--no-index", wheel], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    for name in base_distributions():
        for file in distribution(name).files or []:
            top = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not top.exists():
                top.symlink_to(distribution(name).locate_file(file.parts[0]))
    return folder / "venv" / "bin"


@pytest.fixture
def away(tmp_path: Path) -> dict[str, str]:
    """An environment without a checkout, without data and weights, and with a proxy that answers nobody."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("IGPT_", "PYTHON"))}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return {**ours, **proxies, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}


def test_an_installed_wheel_samples_completes_and_exports_offline(installed: Path, away: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run([installed / "igpt", "sample", "--n", "4"], env=away, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (
        *("features samples.png --out f.npz", "score samples.png --out s.csv"),
        *("complete samples.png --n 1", "complete samples.png --n 1 --keep samples.png --out masked.png"),
        *("export --to ours mine", "sample --n 4 --model mine --out again.png"),
        *("sample --n 4 --format npz", "sample --n 4 --format png --model mine --out pngs"),
    )
    program = [installed / "python", "-c", EVERY + LIBRARY]  # in one process, since most of their time is torch's start
    done = subprocess.run(program, input="\n".join(lines), env=away, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, re.findall(r"^\d+$", done.stderr, re.MULTILINE)) == (0, ["0"] * len(lines)), done.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "samples.png").read_bytes()
    assert (tmp_path / "completions.png").exists() and (tmp_path / "masked.png").exists()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["samples.json", "samples.npz"]
    assert len(list((tmp_path / "pngs").glob("0000[0-3].png"))) == 4


def test_an_installed_command_says_which_checkout_or_extra_it_needs(
    installed: Path, away: dict[str, str], tmp_path: Path
) -> None:
    from typer.main import get_command

    from igpt.companion import cli

    def said(lines: list[str], **environment: str) -> list[str]:
        done = subprocess.run(
            [installed / "python", "-c", EVERY],
            input="\n".join(lines),
            env={**away, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        return re.findall(r"^(?:igpt: )?(.*)\n2$", done.stderr, re.MULTILINE)

    commands = sorted(IN_CHECKOUT)
    anywhere = {"sample", "samples", "complete", "train", "fine-tune", "evaluate-loss", "export", "data"}
    anywhere |= {"features", "score", "classify"}
    assert {line.split()[0] for line in commands} == get_command(cli.app).commands.keys() - anywhere  # type: ignore[attr-defined]
    url = re.escape(PROJECT["urls"]["Repository"])
    sentences = said(commands)
    assert len(sentences) == len(commands)
    for sentence in sentences:
        assert re.fullmatch(rf"this command needs a checkout of the project: clone it \({url}\), or set IGPT_ROOT", sentence)
    [sentence] = said(["sample --model tiny-s"])
    assert sentence.startswith("tiny-s, which is not among the published weights, needs a checkout of the project: clone it")
    lacking = said(["plan", "run headline-001", "submit --profile local"], IGPT_ROOT=str(ROOT))
    assert len(lacking) == 3
    for sentence in [*lacking, *said(["export --to onnx graph", "features a.png --out a.parquet"])]:
        assert re.fullmatch(r'this command needs \w+, which is not installed: pip install "igpt\[(run|slurm)\]"', sentence)
