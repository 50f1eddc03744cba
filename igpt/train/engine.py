"""The training engine: Adam on batches cut into micro-batches, checkpoints, stopping, divergence checks, metrics.

Pre-training (`igpt.train.loop`) and fine-tuning (`igpt.evaluate.fine_tune`) describe their runs by a `Task`. A checkpoint
holds the weights, Adam's moments and the losses so far, and a step's batch depends on the seed and the step alone. On a CPU
with the same number of threads, a run that was killed and restarted therefore gives the same numbers to the bit as an
uninterrupted one. On a GPU it resumes from the same state with the same batches, but deterministic algorithms are not
enabled: last digits differ, also between two uninterrupted runs. (Not yet tested on a GPU.) In a process group every process
takes an equal part of each batch; the batches do not depend on the number of processes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from igpt.errors import StageError, UsageError
from igpt.files import remove_parts, try_lock, write_text
from igpt.train.checkpoint import Losses, Progress, load_checkpoint, save_checkpoint
from igpt.train.distributed import Distributed, Loss
from igpt.train.runtime import Runtime
from igpt.weights.training_run import METRICS, checkpoints, step_of

Report = Callable[[int, int], None]  # steps done, steps in all
Batch = tuple[Tensor | None, ...]  # arguments of a loss; images along the first dimension of each

WINDOW = 50  # steps whose mean loss is one line of the metrics
# Temporary files that a killed run may leave.
PARTS = (".checkpoint-*.part", f".{METRICS}.*.part", ".palette.npy.*.part", ".weights-*.part")


class Stopped(Exception):
    """The run stopped on request, after writing a checkpoint; the same call resumes it."""


class Diverged(StageError):
    """The loss or the weights are NaN or infinite, or the loss has risen; ``losses`` are those up to then."""

    def __init__(self, message: str, losses: Losses) -> None:
        super().__init__(message)
        self.losses = losses


@dataclass(frozen=True)
class Task:
    """What a training run computes; its `Runtime` is given separately.

    name : identifies everything that the numbers depend on; checkpoints with a different name are refused
    loss : the mean over some images of a batch
    batch, positions : images per step, tokens per image
    rate : learning rate by step, counted from 0
    draw : the whole batch of a step, on the CPU; depends on the step alone
    milestones : steps after which ``measure`` gives the held-out loss, and ``keep`` is called
    prepare : called with the folder in the first process, once the folder is found to be this run's or new
    start : returns the loss before the first step, called if no checkpoint has it; None if it is not of interest
    rise : nats by which a window's mean loss may exceed the lowest one before it
    """

    name: str
    loss: Loss
    steps: int
    batch: int
    positions: int
    betas: tuple[float, float]
    rate: Callable[[int], float]
    draw: Callable[[int], Batch]
    milestones: Collection[int] = ()
    measure: Callable[[], float] = lambda: 0.0
    keep: Callable[[Distributed, int], None] = lambda distributed, step: None
    prepare: Callable[[Path], None] = lambda folder: None
    start: Callable[[], float] | None = None
    rise: float = math.inf


def train(
    task: Task, *, folder: Path | None, runtime: Runtime, report: Report = lambda done, total: None
) -> tuple[Losses, Distributed]:
    """Train the task's network in place. Returns its losses at the milestones, and the network with its optimizer.

    folder : of checkpoints, from the newest of which the run resumes, and of ``metrics.jsonl``; nothing is written when None
    Raises Stopped when asked to stop; UsageError for a folder of a different run, or in which another process trains;
    Diverged when loss or weights are NaN or infinite, or the loss has risen too far; and StageError when a file cannot be
    written (a full disk): the run then resumes from its last checkpoint.
    """
    if folder is None:
        return _Run(task, folder, runtime, report).finish()
    first = not dist.is_initialized() or dist.get_rank() == 0
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / ".training.lock") if first else nullcontext()
    if lock is None:
        raise UsageError(f"another process trains in {folder}: wait for it, or give another folder")
    with lock:
        if first:
            remove_parts(folder, *PARTS)
        try:
            return _Run(task, folder, runtime, report).finish()
        except OSError as error:
            if error.filename is None:
                raise
            raise StageError(
                f"training stopped because {error.filename} could not be written ({error.strerror}): fix that and run the same"
                " command, which continues from the last checkpoint"
            ) from None


@dataclass
class _Run:
    """A run in progress; its fields are the arguments of `train`."""

    task: Task
    folder: Path | None
    runtime: Runtime
    report: Report

    def __post_init__(self) -> None:
        """Start from the newest checkpoint in the folder, else from the network as it is."""
        task, runtime = self.task, self.runtime
        self.distributed = Distributed(
            task.loss,
            learning_rate=task.rate(0),
            betas=task.betas,
            device=runtime.device,
            compiled=runtime.compiled,
            recompute=runtime.recompute,
            shard=runtime.shard,
        )
        self.written = None if self.distributed.rank else self.folder  # only the first process writes
        state: dict[str, Tensor] = {}
        self.progress = Progress()
        if self.written is not None:
            state, self.progress = load_checkpoint(self.written, task.name, self.distributed.expected())
            task.prepare(self.written)
        self.progress = self.distributed.from_first(self.progress)
        if self.progress.step:
            self.distributed.restore(state)
        self.line = (self.progress.step, time.monotonic())  # step and time of the last line of metrics
        self._write_metrics()

    def finish(self) -> tuple[Losses, Distributed]:
        """Take the remaining steps."""
        task, progress = self.task, self.progress
        losses = progress.losses
        if not losses.steps and task.start is not None:
            start = task.start()
            losses.steps.append(0)
            losses.train.append(start)
            losses.validation.append(start)
        saved = time.monotonic()
        self._reach_milestone()  # if the run was stopped between its checkpoint and its measurement
        while progress.step < task.steps:
            local_loss = self._step(progress.step)
            progress.step += 1
            due = self.distributed.rank == 0 and time.monotonic() - saved > 60 * self.runtime.minutes
            loss, stop, save = self.distributed.sum([local_loss, float(self.runtime.stop()), float(due)])
            progress.running += loss
            progress.window.append(loss)
            if progress.step % WINDOW == 0 or not math.isfinite(loss):
                self._end_window()
            stopping = progress.step < task.steps and stop > 0
            if progress.step in task.milestones or progress.step == task.steps or stopping or save:
                self._save()
                saved = time.monotonic()
            if not stopping:
                self._reach_milestone()
            if self.distributed.rank == 0:
                self.report(progress.step, task.steps)
            if stopping:
                raise Stopped(f"stopped after {progress.step:,} of {task.steps:,} steps; the same command continues")
        return losses, self.distributed

    def _reach_milestone(self) -> None:
        """At a new milestone measure the held-out loss, save the weights, and write a checkpoint with both losses."""
        progress, losses = self.progress, self.progress.losses
        previous = losses.steps[-1] if losses.steps else 0
        if progress.step in self.task.milestones and progress.step > previous:
            validation = self.task.measure()  # may take long, and the run may be killed meanwhile
            if not math.isfinite(validation):
                self._give_up("the held-out loss is NaN or infinite")
            losses.train.append(progress.running / (progress.step - previous))
            losses.steps.append(progress.step)
            losses.validation.append(validation)
            progress.running = 0.0
            self.task.keep(self.distributed, progress.step)
            self._save()

    def _save(self) -> None:
        """Write a checkpoint. Raises Diverged instead when weights are NaN or infinite."""
        if not self.distributed.finite():
            self._give_up("the weights are NaN or infinite")
        if self.folder is not None:
            state = self.distributed.state()
            if self.written is not None:
                save_checkpoint(self.written, self.task.name, state, self.progress)

    def _give_up(self, fault: str) -> NoReturn:
        """Set aside the checkpoints written since the last good window, and raise Diverged."""
        paths = [] if self.folder is None else checkpoints(self.folder)
        good = [path for path in paths if step_of(path) <= self.progress.good]
        for path in set(paths) - set(good) if self.written else ():
            path.replace(path.with_suffix(".diverged"))
        where = f"the last good checkpoint is {good[-1]}" if good else "it came before the first good checkpoint"
        losses = "" if self.folder is None else f", and {self.folder / METRICS} has the losses"
        raise Diverged(f"{fault}, at step {self.progress.step:,}: {where}{losses}", self.progress.losses)

    def _step(self, step: int) -> float:
        """Take one step of Adam. Returns this process's share of the batch's mean loss before the step."""
        task, runtime, distributed = self.task, self.runtime, self.distributed
        for group in distributed.optimizer.param_groups:
            group["lr"] = task.rate(step)
        distributed.optimizer.zero_grad()
        batch = task.draw(step)
        images = next(len(tensor) for tensor in batch if tensor is not None)
        share = -(-images // distributed.size)
        micro_batch = runtime.micro_batch or share
        total = torch.zeros((), device=runtime.device)
        for start in range(0, share, micro_batch):
            first = distributed.rank * share
            rows = slice(first + start, min(first + min(start + micro_batch, share), images))
            count = max(rows.stop - rows.start, 0)
            # A process without images takes the first one with weight 0: all processes must call the model equally often.
            inputs = [None if tensor is None else (tensor[rows] if count else tensor[:1]).to(runtime.device) for tensor in batch]
            with distributed.gathering(last=start + micro_batch >= share):
                # Each weight is used once per pass, so caching its half-precision copy gains nothing.
                with torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.bfloat16, cache_enabled=False):
                    loss = distributed.loss(*inputs) * (count * distributed.size / images)
                loss.backward()
            total += loss.detach()
        distributed.optimizer.step()
        return total.item() / distributed.size

    def _end_window(self) -> None:
        """Add a line to the metrics. Raises Diverged when the window's mean loss is NaN, infinite or has risen too far."""
        progress, task = self.progress, self.task
        mean = math.fsum(progress.window) / len(progress.window)
        if not math.isfinite(mean):
            self._give_up("the loss is NaN or infinite")
        (last_step, last_time), now = self.line, time.monotonic()
        speed = round(task.batch * task.positions * (progress.step - last_step) / (now - last_time))
        rate = self.distributed.optimizer.param_groups[0]["lr"]
        progress.metrics.append({"step": progress.step, "loss": mean, "rate": rate, "tokens_per_second": speed})
        self.line = (progress.step, now)
        self._write_metrics()
        if progress.lowest is not None and mean > progress.lowest + task.rise:
            self._give_up(f"the loss is {mean:.3f} nats, after {progress.lowest:.3f}")
        progress.window = []
        progress.lowest = mean if progress.lowest is None else min(progress.lowest, mean)
        progress.good = progress.step

    def _write_metrics(self) -> None:
        """Write ``metrics.jsonl``, one line per window.

        The file is rewritten from the checkpoint's lines, so that no line is lost or duplicated after a crash or on a full disk.
        """
        if self.written is not None:
            write_text(self.written / METRICS, "".join(f"{json.dumps(line)}\n" for line in self.progress.metrics))
