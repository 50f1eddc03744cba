"""A checkout of its own with small notebooks, and a real SLURM of two nodes, without accounting, for the session."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from conftest import PATIENCE, ROOT, wait_until

from igpt.companion.slurm.ledger import Array, Job, Ledger, Listed
from igpt.companion.slurm.status import Row, look_at
from igpt.companion.slurm.submit import submit_targets
from igpt.project import Project

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

OPEN = "from igpt.companion.run import open_stage\nstage = open_stage({name!r}, {parameters})\n"
RECORD = 'stage.write_record(values={"answer": {"value": float(seed) + 0.5, "unit": "none"}})'
PALETTE = ('dataset = "digits"\ncolours = 16\nseed = 0', "palette", "dataset=dataset, colours=colours, seed=seed", "pass")
# Training as it is, but of a sum: a checkpoint is asked for or comes every ten steps, then every hundred. A long one takes minutes, so that
# it is still at work when a test has looked at it; once it continues it has no such time to lose.
LONG_STEPS = 3000
TRAINING = """
import json, time
class Stopped(Exception):
    pass
parent = stage.parent("palette")
if seed == 13:
    raise RuntimeError("bad luck")
if seed == 17:
    time.sleep(1000)
if seed == 19:
    kept = bytearray(1 << 30); time.sleep(1000)
if seed == 23:
    raise OSError(28, "No space left on device")
steps = long if seed in (40, 41, 42, 43) else 8
found = sorted(stage.folder.glob("checkpoint-*"))
done, total = json.loads(found[-1].read_text()) if found else (0, 0)
while done < steps:
    time.sleep(0 if found else 0.1)
    done, total = done + 1, (total * 31 + done) % 1000003
    stage.report(done, steps)
    if done % (10 if done < 100 else 100) == 0 or stage.stopping():
        (stage.folder / "part").write_text(json.dumps([done, total]))
        (stage.folder / "part").rename(stage.folder / f"checkpoint-{done:07d}")
    if stage.stopping():
        raise Stopped(f"stopped after {done} of {steps} steps; the same command continues")
"""
TRAINED = """
(stage.folder / "weights-0000001").mkdir(exist_ok=True)
(stage.folder / "weights-0000001" / "model").write_text(str(total))
stage.write_record(values={"total": {"value": float(total), "unit": "none"}}, series={"losses": [{"step": steps}]})
"""
PRICED = 'layers = "all"\nprecision = "float32"\nviews = 1'  # without which a probe has no cost
PROBE = 'pretrain_total = stage.parent_record("pretrain").values["total"].value\nseed = pretrain_total'


def write_notebook(folder: Path, name: str, *cells: str) -> None:
    """A notebook whose first cell has the parameters."""
    body = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {"tags": ["parameters"] if number == 0 else []},
            "source": cell,
            "outputs": [],
            "execution_count": None,
        }
        for number, cell in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": body, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))


def an_array(*names: str, **changes: object) -> Array:
    """Jobs as `igpt submit` leaves them in the ledger, one a name."""
    stages = tuple(Listed(name=name, folder=f"{name}-{'0' * 12}", planned=0.5) for name in names or ("palette,seed=0",))
    given: dict[str, object] = {"token": "0a", "number": 1, "job": "7", "profile": "any", "snapshot": "/", "submitted": "2026"}
    given |= {"by": "", "gpus": 0, "nodes": 1, "minutes": 1, "stages": stages}
    return Array(**{**given, **changes})  # type: ignore[arg-type]


def rows(ledger: Ledger, target: str = "") -> list[Row]:
    """The rows of a ledger's jobs, or of those that a target names."""
    return look_at([job for job in ledger.latest().values() if not target or target in job.words]).rows


@dataclass
class Checkout:
    """A clean git checkout of igpt with the tests' notebooks."""

    root: Path
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    @property
    def project(self) -> Project:
        return Project(self.root)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.project)

    def git(self, *words: str) -> str:
        identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
        command = ["git", "-C", str(self.root), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "as it is")

    def profile(self, **settings: object) -> str:
        """A profile in a file beside the checkout: one core and 1.5 GiB a job."""
        resources = {"cpus": 1, "memory_gib": 1.5, "minutes": 30, **settings.pop("resources", {})}  # type: ignore[dict-item]
        content = {"partition": "main", "signal_seconds": 20, "stages": {"default": resources}, **settings}
        path = self.root.with_name(f"{self.root.name}-profile-{next(self.numbers)}.yaml")
        path.write_text(yaml.safe_dump(content))
        return str(path)

    def write(self, notebook: str, work: str, *, more: str = "") -> None:
        """Have a notebook do other work; ``more`` are parameters beside those of all that train."""
        model = 'model = "tiny-s"\nobjective = "autoregressive"\nweights = "trained"\nseed = 0'
        opened = OPEN.format(name=notebook, parameters="model=model, objective=objective, seed=seed")
        write_notebook(self.root / "notebooks", notebook, f"{model}\n{more}", opened + work)
        self.commit()

    def submit(self, *targets: str, profile: str | None = None) -> str:
        return submit_targets(list(targets), None, profile or self.profile(), dry_run=False, dirty=False)

    def row(self, target: str) -> Row:
        (found,) = rows(self.ledger, target)
        return found

    def job(self, name: str) -> Job:
        """The last job of the stage whose folder begins so."""
        return next(job for folder, job in self.ledger.latest().items() if folder.startswith(name))

    def wait(self, target: str, until: Callable[[Row], bool]) -> Row:
        """A job's row, once it is as wanted."""
        row = self.row(target)

        def reached() -> bool:
            nonlocal row
            row = self.row(target)
            found = until(row)
            assert found or row.state not in ("done", "failed"), f"it will not come any more: {row}\n{self.logs()}"
            return found

        wait_until(reached, said=lambda: f"{row}\n{self.logs()}\n{squeue()}", every=0.2)
        return row

    def wait_for(self, target: str, *states: str) -> Row:
        return self.wait(target, lambda row: row.state in states)

    def wait_for_step(self, target: str, step: int) -> Row:
        return self.wait(target, lambda row: row.state == "running" and (row.steps_done or 0) >= step)

    def logs(self) -> str:
        """What the jobs wrote, for a test that fails."""
        return "\n".join(f"{p}\n{p.read_text()[-3000:]}" for p in sorted(self.ledger.folder.glob("*/*.err")))

    def folder(self, name: str) -> Path:
        (found,) = self.project.runs.glob(f"{name}-*")
        return found


@dataclass
class Cluster:
    """A folder of slurm/local-cluster, used as a user does."""

    folder: Path

    def run(self, *words: str) -> str:
        """What a command of it says."""
        command = [sys.executable, str(ROOT / "slurm" / "local-cluster"), "--folder", str(self.folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def squeue() -> str:
    """The whole queue, for a test that fails."""
    return subprocess.run(["squeue", "-t", "all"], capture_output=True, text=True, timeout=PATIENCE).stdout


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each test's checkout is a copy of."""
    root = tmp_path_factory.mktemp("template")
    ignored = shutil.ignore_patterns("__pycache__", "published")  # whose models would fill a small disk
    shutil.copytree(ROOT / "igpt", root / "igpt", ignore=ignored)
    shutil.copytree(ROOT / "slurm", root / "slurm", ignore=ignored)
    shutil.copy(ROOT / ".gitignore", root)
    notebooks = root / "notebooks"
    notebooks.mkdir()
    for each in ROOT.glob("notebooks/*.ipynb"):
        shutil.copy(each, notebooks)
    parameters, name, given, work = PALETTE
    write_notebook(notebooks, name, parameters, OPEN.format(name=name, parameters=given) + work, RECORD)
    model = 'model = "tiny-s"\nobjective = "autoregressive"\nseed = 0'
    given = "model=model, objective=objective, seed=seed"
    write_notebook(
        notebooks, "pretrain", model, OPEN.format(name="pretrain", parameters=given) + f"long = {LONG_STEPS}" + TRAINING, TRAINED
    )
    probe = OPEN.format(name="linear_probe", parameters=f"{given}, dataset=dataset")
    write_notebook(
        notebooks, "linear_probe", f'{model}\nweights = "trained"\ndataset = "digits"\n{PRICED}', probe + PROBE, RECORD
    )
    checkout = Checkout(root)
    checkout.git("init", "-q")
    checkout.commit()
    return root


@contextmanager
def copy_of(template: Path, root: Path) -> Iterator[Checkout]:
    """A checkout of its own at ``root``, and the one in which commands work meanwhile."""
    shutil.copytree(template, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IGPT_ROOT", str(root))
        patch.chdir(root)
        yield Checkout(root)


@pytest.fixture
def checkout(template: Path, tmp_path: Path) -> Iterator[Checkout]:
    """A checkout of the test's own."""
    with copy_of(template, tmp_path / "checkout") as found:
        yield found


@dataclass
class Answers:
    """A scheduler's commands: one that prints a file, one that keeps what it was asked, and no more."""

    folder: Path

    def say(self, *lines: str) -> None:
        """Have the queue be these lines, ``title|job|state|time used|node|reason`` each."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def program(self, name: str, does: str) -> None:
        """Have a command do something else."""
        (self.folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (self.folder / name).chmod(0o755)

    def cancelled(self) -> list[str]:
        return (self.folder / "cancelled").read_text().split() if (self.folder / "cancelled").exists() else []


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """A scheduler that knows of no job yet."""
    folder = tmp_path / "scheduler"
    folder.mkdir()
    found = Answers(folder)
    programs = {
        "squeue": f"cat {folder}/queue",
        "scancel": f'echo "$@" >> {folder}/cancelled',
        "sbatch": "exit 1",
        "srun": "exit 1",
        "sacct": "exit 1",
    }
    for name, does in programs.items():
        found.program(name, does)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    found.say()
    return found


def skip_without_slurm(*more: str) -> None:
    """Skip a test where SLURM is not installed, but for CI, where that is a failure."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in (*PROGRAMS, *more) if not shutil.which(program, path=path)]
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(missing)}: slurm/local-cluster up says what to install")


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that is up."""
    skip_without_slurm()
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.run("--no-accounting", "up")
    yield cluster
    cluster.run("down")


@pytest.fixture
def cluster(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, at hand in this test and in what it starts."""
    monkeypatch.setenv("SLURM_CONF", str(running_cluster.folder / "slurm.conf"))
    return running_cluster
