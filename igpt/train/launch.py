"""A run on several devices, of this node or of several: a process a device, started by PyTorch's elastic launcher.

The first node calls `together`; every other one, ``python -m igpt.train.launch FOLDER`` with the same environment,
finds there what to do, joins and ends with it. The folder is on a disk that all of them see.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from igpt.data.store import TokenStore
from igpt.data.tokens import train_parts
from igpt.errors import StageError, UsageError
from igpt.fast import note_uncompiled
from igpt.files import read_json, write_atomically, write_text
from igpt.palette import Palette
from igpt.train.checkpoint import Losses
from igpt.train.engine import Report, Runtime, Stopped
from igpt.train.loop import pretrain
from igpt.train.recipe import Recipe

JOB, PALETTE, OUTCOME, STOP, LOG = "group.pickle", "group-palette.npy", ".outcome.pickle", ".group-stop", "group.log"
DONE = ".group-progress"
SAID_EVERY = 0.5  # seconds between two words on how far the first process is
Result_co = TypeVar("Result_co", covariant=True)
ERRORS = (UsageError, StageError, Stopped)  # which a job may raise, in words for the user
WAIT = 900  # seconds that nodes wait for each other at the start


@dataclass(frozen=True)
class Launch:
    """Where a run is spread: nodes, devices on each, and HOST:PORT of the first node when there are more."""

    nodes: int = 1
    devices: int = 1
    rendezvous: str = ""

    @classmethod
    def here(cls, devices: int | None = None) -> Launch:
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


class Job(Protocol[Result_co]):
    """What every process of a group has to know, small enough to be sent to it, and does with the others."""

    def run(self, folder: Path, runtime: Runtime, report: Report) -> Result_co:
        """Carry it out; what came of it."""
        ...


def together(
    job: Job[Result_co],
    *,
    folder: Path,
    runtime: Runtime,
    launch: Launch | None = None,
    report: Report = lambda done, total: None,
) -> Result_co:
    """What a job comes to on every device of the group; in this process where that is one.

    folder : on a disk that all nodes see
    Raises UsageError, StageError and Stopped as the job does, and StageError when a process ends by itself.
    """
    launch = launch or Launch()
    if launch.nodes * launch.devices == 1:
        return job.run(folder, runtime, report)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (OUTCOME, STOP, DONE):
        (folder / name).unlink(missing_ok=True)
    with write_atomically(folder / JOB) as stream:  # last: the other nodes begin with it
        pickle.dump((job, replace(runtime, stop=bool)), stream)  # `bool()` is False: who is to stop is told by a file
    with (folder / LOG).open("a+", errors="replace") as log, _launch(folder, launch, first=True) as process:
        try:
            while process.poll() is None:
                time.sleep(0.2)
                with suppress(OSError, ValueError):
                    report(*read_json(folder / DONE))
                note_uncompiled(log.read())
                if runtime.stop():
                    (folder / STOP).touch()
        finally:
            if process.poll() is None:  # interrupted: the processes end with their launcher
                process.terminate()
                process.wait()
    found: Result_co = _outcome(folder, process.returncode)
    return found


def train_store(
    recipe: Recipe,
    store: Path,
    palette: Palette,
    *,
    seed: int,
    folder: Path,
    runtime: Runtime,
    launch: Launch | None = None,
    report: Report = lambda done, total: None,
) -> Losses:
    """Pre-train on a token store's training part, on every device of the group; the losses of `igpt.train.loop.pretrain`.

    store : folder of the store; palette : that of its tokens
    Raises what `pretrain` raises, and UsageError for a store that is not of these tokens.
    """
    launch = launch or Launch()
    job = PreTraining(recipe, store.absolute(), seed)
    if launch.nodes * launch.devices == 1:
        return job.train(palette, folder, runtime, report)
    folder.mkdir(parents=True, exist_ok=True)
    palette.save(folder / PALETTE)
    return together(job, folder=folder.absolute(), runtime=runtime, launch=launch, report=report)


@dataclass(frozen=True)
class PreTraining:
    """Pre-training on a token store, whose palette lies in the group's folder."""

    recipe: Recipe
    store: Path
    seed: int

    def run(self, folder: Path, runtime: Runtime, report: Report) -> Losses:
        """Carry it out, with the others; the losses."""
        return self.train(Palette.load(folder / PALETTE), folder, runtime, report)

    def train(self, palette: Palette, folder: Path, runtime: Runtime, report: Report) -> Losses:
        """Carry it out; the losses."""
        store = TokenStore(self.store)
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
            folder=folder,
            runtime=runtime,
            report=report,
        )


def _launch(folder: Path, launch: Launch, *, first: bool) -> subprocess.Popen[bytes]:
    """The launcher of one node's processes; its stdin, which they inherit, ends when this process does, however it ends."""
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            _command(folder, launch, first=first), stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(launch)
        )


def _end_with_launcher() -> None:
    """End a process of a group whose run was killed; it would train on, and keep the folder from the next run."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _command(folder: Path, launch: Launch, *, first: bool) -> list[str]:
    """The launcher's command on one node."""
    meet = ["--standalone"]
    if launch.nodes > 1:
        conf = f"timeout={WAIT},join_timeout={WAIT},is_host={int(first)}"
        meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={launch.rendezvous}", f"--rdzv-id={folder.name}", f"--rdzv-conf={conf}"]
        if launch.rendezvous.startswith("127."):
            meet.append("--local-addr=127.0.0.1")  # nodes that are one machine
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={launch.nodes}", f"--nproc-per-node={launch.devices}"]
    return [*launcher, *meet, "--max-restarts=0", "-m", "igpt.train.worker", str(folder / JOB)]


def _environment(launch: Launch) -> dict[str, str]:
    """The processes' environment: each its share of this one's threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(max(torch.get_num_threads() // launch.devices, 1))}


def _outcome(folder: Path, code: int) -> Any:
    """What the processes came to, in this one."""
    try:
        found = pickle.loads((folder / OUTCOME).read_bytes())
    except OSError:
        raise StageError(f"a process of the group ended by itself (code {code}): {folder / LOG} has what it said") from None
    if isinstance(found, Exception):
        raise found
    return found


def work(path: Path) -> None:
    """One process of a group: carry out the job, and leave word of how it ended."""
    import torch.distributed as dist

    threading.Thread(target=_end_with_launcher, daemon=True).start()
    job, runtime = pickle.loads(path.read_bytes())  # which `together` wrote
    folder = path.parent
    place = int(os.environ["LOCAL_RANK"])
    cuda = runtime.device == "cuda"
    if cuda:
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if cuda else "gloo")
    said = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal said
        if dist.get_rank() == 0 and (time.monotonic() - said > SAID_EVERY or done == total):
            said = time.monotonic()
            write_text(folder / DONE, json.dumps([done, total]))

    try:
        found = job.run(folder, replace(runtime, stop=(folder / STOP).exists), report)
    except ERRORS as error:
        found = next(kind for kind in ERRORS if isinstance(error, kind))(str(error))
    failed = isinstance(found, UsageError | StageError)
    if dist.get_rank() == 0 or failed:
        with write_atomically(folder / OUTCOME) as stream:
            pickle.dump(found, stream)
    if failed:
        sys.exit(1)  # others may be waiting for this one
    dist.destroy_process_group()


def main() -> None:
    """``python -m igpt.train.launch FOLDER``: this node's part in a group whose first node trains in the folder."""
    folder = Path(sys.argv[1]).absolute()
    launch = Launch.here()
    limit = time.monotonic() + WAIT
    while not (folder / JOB).exists():
        if time.monotonic() > limit:
            sys.exit(f"igpt: the first node has begun nothing in {folder} for {WAIT} seconds: look at its log")
        time.sleep(1)
    process = _launch(folder, launch, first=False)
    sys.exit(process.wait())


if __name__ == "__main__":
    main()
