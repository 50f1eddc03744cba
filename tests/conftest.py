"""What several tests share: small models and tokens, a project folder of their own, the built book."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from igpt.companion.results.record import SCHEMA, Receipt, Record, Value, write_record
from igpt.companion.results.signature import Signature, Signer
from igpt.companion.run.folder import run_folder
from igpt.companion.stage import Stage
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.project import Project
from igpt.shape import ModelShape

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parents[1]

# A shell has what it runs in the background ignore Ctrl-C; what tests start, and interrupt, would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test of a busy machine's speed; the rest as hypothesis has it, whose examples are in CI the same every time.
settings.register_profile("tests", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Under `-n`, tests that share something costly go to one process: the built book, the cluster, a module's fixtures."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        """Whole folders where a folder shares, else whole files. (Groups by a mark are lost in pytest 9.2's node ids.)"""

        def _split_scope(self, nodeid: str) -> str:
            shared = (folder for folder in ("tests/book/", "tests/companion/slurm/") if nodeid.startswith(folder))
            return next(shared, super()._split_scope(nodeid))

    return Together(config, log)


# Work in the order of its length, so that no worker is left with the longest. (xdist's own is by number of tests.)
LONGEST = (
    "companion/slurm",
    "book",
    "notebooks",
    "companion/run",
    "train",
    "test_cli",
    "companion/bench",
    "weights",
    "companion/results",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, in which tests of a folder stay together; those that need a GPU are skipped where there is none."""
    items.sort(key=lambda item: next((n for n, name in enumerate(LONGEST) if item.nodeid.startswith(f"tests/{name}")), 99))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


Rows = list[dict[str, float | int | str | bool | list[int]]]  # of a record's series

PATIENCE = 600  # s: a machine three times as slow, under eight times the load, is waited for; only a fault is not


def wait_until(state: Callable[[], object], *, said: Callable[[], str] = str, every: float = 0.05) -> None:
    """Look for a state ``every`` so many seconds until it is there; fail with what ``said`` tells when it never comes."""
    deadline = time.monotonic() + PATIENCE
    while not state():
        assert time.monotonic() < deadline, f"after {PATIENCE} s: {said()}"
        time.sleep(every)


def alive(process: int) -> bool:
    """Whether a process of a number is at work: one that has ended and whose end nobody has asked for is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(autouse=True)
def no_data_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets and weights on the machine that runs the tests are not theirs to find, nor to add to."""
    monkeypatch.setenv("IGPT_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path / "no-weights"))


@pytest.fixture
def model() -> ImageGPT:
    """A small autoregressive model whose output matrix is not zero, so that logits differ."""
    return random_model(ModelShape(2, 16, 2, 8, 9))


@pytest.fixture
def biased() -> ImageGPT:
    """The same with biases, as transformers leaves them after fine-tuning."""
    return random_model(ModelShape(2, 16, 2, 8, 9, biases=True))


@pytest.fixture
def bert() -> ImageGPT:
    """The same with BERT's objective."""
    return random_model(ModelShape(2, 16, 2, 8, 9, "bert"))


def random_model(shape: ModelShape) -> ImageGPT:
    """A model in evaluation mode with random output, and random biases if its shape has any."""
    built, generator = ImageGPT(shape, seed=1).eval(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        built.wtet.normal_(0, 0.5, generator=generator)
        for name, parameter in built.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=generator)
    return built


@pytest.fixture
def tokens() -> torch.Tensor:
    """Tokens for the small models, int64 (5, 9)."""
    return torch.randint(8, (5, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def greys() -> Palette:
    """Eight greys."""
    return Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None])


def some_receipt(stage: Stage, *, dirty: bool = False) -> Receipt:
    """A receipt for a record that a test writes by hand."""
    return Receipt(
        commit="0123456789abcdef",
        dirty=dirty,
        command=f"igpt run {stage.name}",
        notebook=f"notebooks/{stage.notebook}.ipynb",
        hardware="a processor",
        seconds=2.0,
        finished="2026-01-02T03:04:05+00:00",
        versions={"torch": "2.0"},
    )


def some_record(
    project: Project, stage: Stage, values: dict[str, Value], series: dict[str, Rows] | None = None, *, code: str = ""
) -> tuple[Record, Path]:
    """The record that a stage's notebook would write, by this checkout's code or by another that ``code`` names; its folder."""
    signer = Signer(project.notebooks)
    stage, signature = signer.canonical(stage), signer.sign(stage)
    if code:
        signature = Signature({**signature.parts, "module igpt.palette": code})
    record = Record(
        schema_version=SCHEMA,
        stage=stage.name,
        parameters=signer.parameters(stage),
        signature=signature.digest,
        parts=signature.parts,
        values=values,
        series=series or {},
        receipt=some_receipt(stage),
    )
    return record, run_folder(project, stage, signature)


def run_of(project: Project, seed: int, *, code: str = "") -> Path:
    """A finished run of a palette, by this checkout's code, or by another that ``code`` names."""
    record, folder = some_record(project, Stage.of("palette", seed=seed), {"answer": Value(value=1.0, unit="none")}, code=code)
    (folder / "weights-0000001").mkdir(parents=True)
    (folder / "weights-0000001" / "model").write_bytes(bytes(100_000))
    write_record(folder / "record.json", record)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Put a disk of its own size, as of "4m", under a folder."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a small disk can be mounted by root only: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project: the checkout's notebooks, no runs, no records."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "book" / "records").mkdir(parents=True)
    monkeypatch.setenv("IGPT_ROOT", str(tmp_path))
    return Project(tmp_path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data home."""
    monkeypatch.setenv("IGPT_DATA", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data home with the real CIFAR-10, where there is a copy to be had."""
    from igpt.data.cards import data_home

    shared = ROOT.parent / "shared" / "data"
    if (data_home() / "cifar-10-batches-py" / "data_batch_5").exists():
        return data_home()
    if not (shared / "cifar10").is_dir():
        pytest.skip(f"CIFAR-10 is neither in {data_home()} nor in {shared}")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, shared / "unpack.py", folder, "--only", "cifar10"], check=True, capture_output=True)
    return folder


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Give a data set other sizes and sums, for the length of a test in tests/data."""
    from official import forget, publisher

    yield publisher(monkeypatch)
    monkeypatch.undo()
    forget()


WriteNotebook = Callable[..., Path]


@pytest.fixture
def write_notebook(project: Project) -> WriteNotebook:
    """Write a notebook into the project: a parameters cell, then one code cell for each text."""

    def write(name: str, *cells: str, tag: str = "parameters") -> Path:
        path = project.notebooks / f"{name}.ipynb"
        body = [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "metadata": {"tags": [tag]} if number == 0 else {},
                "source": cell,
                "outputs": [],
                "execution_count": None,
            }
            for number, cell in enumerate(cells)
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path.write_text(json.dumps({"cells": body, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
        return path

    return write


def igpt(*words: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, on the project at ``root``."""
    return subprocess.run(
        [sys.executable, "-m", "igpt", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=root,
        env={**os.environ, "IGPT_ROOT": str(root), **environment},
    )


def igpt_here(*words: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same within this process, so that Python and its libraries need not start; for commands that run no stage."""
    from igpt.companion import cli

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in {"IGPT_ROOT": str(root), "COLUMNS": "80", **environment}.items():
            patch.setenv(name, value)
        patch.chdir(root)
        patch.setattr(sys, "argv", ["igpt", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def html() -> Path:
    """The built book: the one that `make test` has just built; without make, `make book` in this checkout builds it."""
    if "IGPT_BOOK_IS_BUILT" not in os.environ:
        done = subprocess.run(["make", "book"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "book" / "_build" / "html"


def browser_path() -> str | None:
    """The Chromium that is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; without one its tests are skipped, in CI they fail."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no Chromium")
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


class Counting(http.server.SimpleHTTPRequestHandler):
    """Serves files and counts them."""

    served: list[str]

    def do_GET(self) -> None:
        self.served.append(Path(self.path).name)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def counting(folder: Path) -> Iterator[str]:
    """The address of a server that shows a folder; `Counting.served` begins anew."""
    Counting.served = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Counting, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def address(html: Path) -> Iterator[str]:
    """Where the built book is served, on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
