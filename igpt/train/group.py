"""A run on several devices, of this node or of several: a process a device, started by PyTorch's elastic launcher.

The first node calls `train_store`; every other one, ``python -m igpt.train.group FOLDER`` with the same environment,
finds there what to do, joins and ends with it. The folder is on a disk that all of them see.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from igpt.data.store import TokenStore
from igpt.data.tokens import train_parts
from igpt.errors import StageError, UsageError
from igpt.fast import note_uncompiled
from igpt.files import write_text
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train.checkpoint import Losses
from igpt.train.loop import Machine, Stopped, pretrain
from igpt.train.recipe import Recipe

JOB, PALETTE, OUTCOME, STOP, LOG = "group.json", "group-palette.npy", ".outcome.json", ".group-stop", "group.log"
WAIT = 900  # seconds that nodes wait for each other at the start


@dataclass(frozen=True)
class Group:
    """Where a run is spread: nodes, devices on each, and HOST:PORT of the first node when there are more."""

    nodes: int = 1
    devices: int = 1
    rendezvous: str = ""

    @classmethod
    def here(cls, devices: int | None = None) -> Group:
        """As ``IGPT_NODES``, ``IGPT_DEVICES`` and ``IGPT_RENDEZVOUS`` say; one node with all its GPUs if they do not.

        Raises UsageError for numbers that are none, and for several nodes that have no place to meet.
        """
        try:
            nodes = int(os.environ.get("IGPT_NODES") or 1)
            devices = devices or int(os.environ.get("IGPT_DEVICES") or max(torch.cuda.device_count(), 1))
        except ValueError:
            raise UsageError("IGPT_NODES and IGPT_DEVICES are numbers: set them again") from None
        rendezvous = os.environ.get("IGPT_RENDEZVOUS", "")
        if min(nodes, devices) < 1 or (nodes > 1 and ":" not in rendezvous):
            raise UsageError("several nodes meet at the first one's HOST:PORT: set IGPT_RENDEZVOUS to it")
        if torch.cuda.is_available() and devices > torch.cuda.device_count():
            raise UsageError(f"{devices} devices are asked for, and this machine has {torch.cuda.device_count()}: take fewer")
        return cls(nodes, devices, rendezvous)


def train_store(
    recipe: Recipe,
    store: Path,
    palette: Palette,
    *,
    seed: int,
    folder: Path,
    machine: Machine,
    group: Group | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Losses:
    """Pre-train on a token store's training part, on every device of the group; the losses of `igpt.train.loop.pretrain`.

    store : folder of the store; palette : that of its tokens
    Raises what `pretrain` raises, and UsageError for a store that is not of these tokens.
    """
    group = group or Group()
    job = _Job(recipe, str(store.absolute()), seed, str(folder.absolute()), machine)
    if group.nodes * group.devices == 1:
        return job.run(palette, machine, report)
    folder.mkdir(parents=True, exist_ok=True)
    palette.save(folder / PALETTE)
    for name in (OUTCOME, STOP):
        (folder / name).unlink(missing_ok=True)
    write_text(folder / JOB, job.text())  # last: the other nodes begin with it
    with (folder / LOG).open("a+", errors="replace") as log, _launch(folder, group, first=True) as process:
        try:
            while process.poll() is None:
                time.sleep(0.2)
                _report(folder / "metrics.jsonl", recipe.steps, report)
                note_uncompiled(log.read())
                if machine.stop():
                    (folder / STOP).touch()
        finally:
            if process.poll() is None:  # interrupted: the processes end with their launcher
                process.terminate()
                process.wait()
    return _outcome(folder, process.returncode)


@dataclass(frozen=True)
class _Job:
    """What every process of a group has to know, as a file."""

    recipe: Recipe
    store: str
    seed: int
    folder: str
    machine: Machine

    def text(self) -> str:
        """The file's content."""
        machine = {name: value for name, value in vars(self.machine).items() if name != "stop"}
        return json.dumps({**vars(self), "recipe": asdict(self.recipe), "machine": machine})

    @classmethod
    def read(cls, path: Path) -> _Job:
        """The job of a file."""
        found = json.loads(path.read_text())
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found["recipe"].items()}
        recipe = Recipe(**{**fields, "shape": ModelShape(**fields["shape"])})
        return cls(**{**found, "recipe": recipe, "machine": Machine(**found["machine"])})

    def run(self, palette: Palette, machine: Machine, report: Callable[[int, int], None] = lambda done, total: None) -> Losses:
        """Carry it out in this process."""
        store = TokenStore(Path(self.store))
        store.check_for(palette, positions=self.recipe.shape.n_ctx)
        if len(palette) != self.recipe.shape.n_vocab:
            raise UsageError(
                f"{self.recipe.name} has {self.recipe.shape.n_vocab} colours, the palette {len(palette)}: give another"
            )
        training, validation = train_parts(store)
        return pretrain(
            self.recipe,
            training,
            validation,
            palette=palette,
            seed=self.seed,
            folder=Path(self.folder),
            machine=machine,
            report=report,
        )


def _launch(folder: Path, group: Group, *, first: bool) -> subprocess.Popen[bytes]:
    """The launcher of one node's processes; its stdin, which they inherit, ends when this process does, however it ends."""
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            _command(folder, group, first=first), stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(group)
        )


def _end_with_launcher() -> None:
    """End a process of a group whose run was killed; it would train on, and keep the folder from the next run."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _command(folder: Path, group: Group, *, first: bool) -> list[str]:
    """The launcher's command on one node."""
    meet = ["--standalone"]
    if group.nodes > 1:
        conf = f"timeout={WAIT},join_timeout={WAIT},is_host={int(first)}"
        meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={group.rendezvous}", f"--rdzv-id={folder.name}", f"--rdzv-conf={conf}"]
        if group.rendezvous.startswith("127."):
            meet.append("--local-addr=127.0.0.1")  # nodes that are one machine
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={group.nodes}", f"--nproc-per-node={group.devices}"]
    return [*launcher, *meet, "--max-restarts=0", "-m", "igpt.train.worker", str(folder / JOB)]


def _environment(group: Group) -> dict[str, str]:
    """The processes' environment: each its share of this one's threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(max(torch.get_num_threads() // group.devices, 1))}


def _report(metrics: Path, steps: int, report: Callable[[int, int], None]) -> None:
    """Pass on how far the processes are, by the last whole line of their metrics."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        report(int(json.loads(metrics.read_text().splitlines()[-1])["step"]), steps)


def _outcome(folder: Path, code: int) -> Losses:
    """What the processes came to, in this one."""
    try:
        found = json.loads((folder / OUTCOME).read_text())
    except OSError:
        raise StageError(f"a process of the group ended by itself (code {code}): {folder / LOG} has what it said") from None
    if "losses" in found:
        return Losses(**found["losses"])
    kind = {"UsageError": UsageError, "StageError": StageError, "Stopped": Stopped}[found["kind"]]
    raise kind(found["says"])


def work(path: Path) -> None:
    """One process of a group: train, and leave word of how it ended."""
    import torch.distributed as dist

    threading.Thread(target=_end_with_launcher, daemon=True).start()
    job = _Job.read(path)
    folder = Path(job.folder)
    place = int(os.environ["LOCAL_RANK"])
    cuda = job.machine.device == "cuda"
    if cuda:
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if cuda else "gloo")
    found: dict[str, object] = {}
    try:
        found["losses"] = vars(job.run(Palette.load(folder / PALETTE), replace(job.machine, stop=(folder / STOP).exists)))
    except (UsageError, StageError, Stopped) as error:
        found = {"kind": type(error).__name__, "says": str(error)}
    if dist.get_rank() == 0 or found.get("kind") in ("UsageError", "StageError"):
        write_text(folder / OUTCOME, json.dumps(found))
    if "kind" in found and found["kind"] != "Stopped":
        sys.exit(1)  # others may be waiting for this one
    dist.destroy_process_group()


def main() -> None:
    """``python -m igpt.train.group FOLDER``: this node's part in a group whose first node trains in the folder."""
    folder = Path(sys.argv[1]).absolute()
    group = Group.here()
    limit = time.monotonic() + WAIT
    while not (folder / JOB).exists():
        if time.monotonic() > limit:
            sys.exit(f"igpt: the first node has begun nothing in {folder} for {WAIT} seconds: look at its log")
        time.sleep(1)
    process = _launch(folder, group, first=False)
    sys.exit(process.wait())


if __name__ == "__main__":
    main()
