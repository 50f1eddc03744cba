"""Training on several devices of one or more nodes: one process per device, started by PyTorch's elastic launcher.

The first node calls `together`. Every other node runs ``python -m igpt.train.launch FOLDER`` in the same environment: it
reads the job from the folder, which must be on a disk that all nodes share, and exits with the job.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from igpt.data.labelled import LabelledTokens
from igpt.data.store import TokenStore
from igpt.data.tokens import train_parts
from igpt.errors import StageError, UsageError
from igpt.fast import note_uncompiled
from igpt.files import read_json, write_atomically, write_text
from igpt.palette import Palette
from igpt.train.checkpoint import Losses
from igpt.train.engine import Report, Stopped
from igpt.train.loop import pretrain
from igpt.train.recipe import Recipe
from igpt.train.runtime import Launch, Runtime

JOB, OUTCOME, STOP, DONE, LOG = "group.pickle", ".outcome.pickle", ".group-stop", ".group-progress", "group.log"
ERRORS = (UsageError, StageError, Stopped)  # exceptions of a job that reach the user
REPORT_EVERY = 0.5  # seconds between two reports of the first process
WAIT = 900  # seconds that a node waits for the others at the start

Result = TypeVar("Result")
Job = Callable[[Path, Runtime, Report], Result]  # called in every process; it and its result must be picklable


def together(
    job: Job[Result],
    *,
    folder: Path,
    runtime: Runtime,
    launch: Launch | None = None,
    report: Report = lambda done, total: None,
) -> Result:
    """Call ``job(folder, runtime, report)`` in one process per device, in this process for a single device; its result.

    folder : on a disk shared by all nodes
    Raises the job's UsageError, StageError or Stopped, and StageError when a process dies.
    """
    launch, folder = launch or Launch(), folder.absolute()
    if launch.size == 1:
        return job(folder, runtime, report)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (OUTCOME, STOP, DONE):
        (folder / name).unlink(missing_ok=True)
    with write_atomically(folder / JOB) as stream:  # written last: the other nodes wait for this file
        pickle.dump((job, replace(runtime, stop=bool)), stream)  # bool() is False; the processes are stopped by a file
    with (folder / LOG).open("a+", errors="replace") as log, _start(folder, launch, first=True) as process:
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
    result: Result = _outcome(folder, process.returncode)
    return result


def train_store(
    recipe: Recipe,
    store: Path,
    palette: Palette,
    *,
    seed: int,
    folder: Path,
    runtime: Runtime,
    classes: Sequence[int] = (),
    begin_from: Path | None = None,
    launch: Launch | None = None,
    report: Report = lambda done, total: None,
) -> Losses:
    """`pretrain` on the training part of the token store in the folder ``store``, on every device of the launch.

    classes, begin_from : as in `store_parts` and `pretrain`
    Raises what `pretrain` and `store_parts` raise.
    """
    job = partial(_pretrain, recipe, store.absolute(), palette, seed, tuple(classes), begin_from and begin_from.absolute())
    return together(job, folder=folder, runtime=runtime, launch=launch, report=report)


def store_parts(
    recipe: Recipe, store: Path, palette: Palette, *, classes: Sequence[int] = ()
) -> tuple[LabelledTokens, LabelledTokens]:
    """The training and the held-out images of a train store for a recipe.

    classes : labels of the images to use; all if empty
    Raises UsageError for a store that does not fit the recipe or the palette, or has no images of these classes.
    """
    opened = TokenStore(store)
    if len(palette) != recipe.shape.n_vocab:
        raise UsageError(
            f"{recipe.name} has {recipe.shape.n_vocab} colours, the palette {len(palette)}: give another palette (--palette)"
        )
    opened.check_for(palette, positions=recipe.shape.n_ctx)
    parts = train_parts(opened)
    if classes:
        training, validation = (part.take(np.flatnonzero(np.isin(part.labels, classes))) for part in parts)
    else:
        training, validation = parts
    if not len(training) or not len(validation):
        which = " of these classes" if classes else ""
        raise UsageError(
            f"{store} has {len(training):,} training and {len(validation):,} held-out images{which}, and training needs both:"
            f" {'choose other classes' if classes else 'give another store'}"
        )
    return training, validation


def _pretrain(
    recipe: Recipe,
    store: Path,
    palette: Palette,
    seed: int,
    classes: Sequence[int],
    begin_from: Path | None,
    folder: Path,
    runtime: Runtime,
    report: Report,
) -> Losses:
    """Pre-train in this process."""
    training, validation = store_parts(recipe, store, palette, classes=classes)
    return pretrain(
        recipe,
        training,
        validation,
        palette=palette,
        seed=seed,
        folder=folder,
        begin_from=begin_from,
        runtime=runtime,
        report=report,
    )


def _start(folder: Path, launch: Launch, *, first: bool) -> subprocess.Popen[bytes]:
    """Start this node's launcher. Its processes inherit its stdin, which closes when this process ends, even if killed."""
    rendezvous = ["--standalone"]
    if launch.nodes > 1:
        settings = f"timeout={WAIT},join_timeout={WAIT},is_host={int(first)}"
        rendezvous = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={launch.rendezvous}",
            f"--rdzv-id={folder.name}",
            f"--rdzv-conf={settings}",
        ]
        if launch.rendezvous.startswith("127."):
            rendezvous.append("--local-addr=127.0.0.1")  # all nodes on one machine
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={launch.nodes}", f"--nproc-per-node={launch.devices}"]
    command = [*launcher, *rendezvous, "--max-restarts=0", "-m", "igpt.train.launch", str(folder), "worker"]
    threads = str(max(torch.get_num_threads() // launch.devices, 1))
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads}
        )


def _outcome(folder: Path, code: int) -> Any:
    """The job's result from the folder. Raises the job's exception, and StageError when no process wrote an outcome."""
    try:
        outcome = pickle.loads((folder / OUTCOME).read_bytes())
    except OSError:
        raise StageError(f"a process of the group died (exit code {code}): see {folder / LOG}") from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def work(folder: Path) -> None:
    """Run the folder's job as one process of the group, and write its outcome."""
    import torch.distributed as dist

    threading.Thread(target=_end_with_launcher, daemon=True).start()
    job, runtime = pickle.loads((folder / JOB).read_bytes())  # written by `together`
    cuda = runtime.device == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    reported = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal reported
        if dist.get_rank() == 0 and (time.monotonic() - reported > REPORT_EVERY or done == total):
            reported = time.monotonic()
            write_text(folder / DONE, json.dumps([done, total]))

    try:
        outcome = job(folder, replace(runtime, stop=(folder / STOP).exists), report)
    except ERRORS as error:
        outcome = next(kind for kind in ERRORS if isinstance(error, kind))(str(error))
    failed = isinstance(outcome, UsageError | StageError)
    if dist.get_rank() == 0 or failed:
        with write_atomically(folder / OUTCOME) as stream:
            pickle.dump(outcome, stream)
    if failed:
        sys.exit(1)  # ends the group: other processes may be waiting for this one
    dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Exit when the launching process has ended; otherwise this one would train on and hold the folder's lock."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def join(folder: Path) -> int:
    """Wait for the first node's job in the folder, and run this node's processes of it. Returns the launcher's exit code."""
    launch, deadline = Launch.here(), time.monotonic() + WAIT
    while not (folder / JOB).exists():
        if time.monotonic() > deadline:
            sys.exit(f"igpt: the first node has started nothing in {folder} for {WAIT} seconds: look at its log")
        time.sleep(1)
    return _start(folder, launch, first=False).wait()


if __name__ == "__main__":
    if sys.argv[2:] == ["worker"]:
        work(Path(sys.argv[1]))
    else:
        sys.exit(join(Path(sys.argv[1]).absolute()))
