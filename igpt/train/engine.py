"""What every training here has in common: steps of Adam on batches cut into pieces, checkpoints, a stop, guards, metrics.

Pre-training (`igpt.train.loop`) and fine-tuning (`igpt.evaluate.fine_tune`) say in a `Task` what differs: the loss, the
batches, the rate, and what is kept along the way. A checkpoint holds the weights, Adam's moments and the losses so far,
and the batch of a step depends on the seed and the step alone. On a processor, with as many threads, a run that was killed
and started again therefore gives the same numbers to the bit as one that was not. On a card it goes on from the same state
with the same batches, but no deterministic algorithms are asked for: gradients may be summed in another order each time, in
two whole runs as well, and last digits differ. That has not been tried on a card yet. In a process group every process
takes its equal part of each batch; the batch is the same for any number of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from igpt.errors import StageError, UsageError
from igpt.files import read_json, remove_parts, try_lock, write_text
from igpt.machine import cores, free_memory
from igpt.shape import ModelShape
from igpt.train.checkpoint import Losses, Progress, checkpoints, load_checkpoint, save_checkpoint, step_of
from igpt.train.distributed import Distributed, Loss
from igpt.train.memory import FLOAT, GIB, USED, fitting

Report = Callable[[int, int], None]  # steps done, steps in all
Batch = tuple[Tensor | None, ...]  # what a loss takes; the images are the first dimension of each

WINDOW = 50  # steps whose mean loss is one line of the metrics
COMPILED = 64  # width from which a model is compiled, and takes half precision on a processor
SHARDED = 2e9  # parameters, from which a model's state is too much for one card: iGPT-XL
FIT = "fit.json"  # how a step was made to fit into memory
PARTS = (".checkpoint-*.part", ".metrics.jsonl.*.part", ".weights-*.part")  # what a killed run may leave of its files


class Stopped(Exception):
    """The run was asked to stop and has: its checkpoint stands, and the same call continues it."""


class Diverged(StageError):
    """The loss or the weights are NaN or infinite, or the loss has risen; ``losses`` are those kept until then."""

    def __init__(self, says: str, losses: Losses) -> None:
        super().__init__(says)
        self.losses = losses


@dataclass(frozen=True)
class Runtime:
    """How a run uses the machine that it is on; none of it is part of what is computed, but for rounding.

    bfloat16 : products in half precision, on float32 weights and moments
    micro_batch : images that go through the model at once, to save memory; all that fall to this process when None
    compiled, recompute, shard : as in `igpt.train.distributed.Distributed`
    minutes : between two checkpoints
    """

    device: str = "cpu"
    bfloat16: bool = False
    micro_batch: int | None = None
    compiled: bool = False
    recompute: bool = False
    shard: bool = False
    minutes: float = 5.0
    stop: Callable[[], bool] = field(default=lambda: False)  # asked after every step

    @classmethod
    def here(cls, shape: ModelShape) -> Runtime:
        """The GPU where there is one, else the processor; in half precision where it has products of that.

        The compiler's quarter of a minute is spent on models that are worth it.
        """
        worth, large = shape.n_embd >= COMPILED, shape.parameters > SHARDED
        if torch.cuda.is_available():
            return cls(device="cuda", bfloat16=True, compiled=worth, recompute=large, shard=large)
        half = bool(torch.cpu._is_avx512_bf16_supported())
        return cls(bfloat16=half and worth, compiled=worth)

    def fitted(
        self, shape: ModelShape, *, batch: int, folder: Path | None = None, classes: int = 0, devices: int = 1, nodes: int = 1
    ) -> Runtime:
        """The same with as many images at once as the memory holds, which is asked for now; recomputing where it must.

        The choice is kept in ``folder``, if there is one: a run that is continued there on such a device cuts its batches as
        before, so that it rounds as before.

        batch : images of a step on all devices; classes : of a head; devices : of each node
        Raises UsageError when not even one image fits.
        """
        if self.device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            room, card = USED * total, [torch.cuda.get_device_name(), total]
        else:  # other stages have the other threads, and their part of the memory
            part = min(torch.get_num_threads() / cores(), 1.0)
            room, card = USED * part * free_memory() / devices, []
            room -= FLOAT * shape.parameters if classes else 0  # a copy of a model is fine-tuned
        key = [self.device, *card, self.bfloat16, batch, classes, devices, nodes, shape.as_dict()]
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = read_json(folder / FIT) if folder else {}
            if found["key"] == key:
                return replace(self, **found["fit"])
        count = devices * nodes
        fit = fitting(
            shape,
            batch=batch,
            room=room,
            devices=count,
            shard=self.shard and count > 1,
            recompute=self.recompute,
            half=self.bfloat16,
            classes=classes,
        )
        if fit is None:
            raise UsageError(
                f"a step of this model ({shape.parameters:,} parameters) does not fit into the {room / GIB:.1f} GiB that"
                f" {'the device has' if count == 1 else f'each of {count} devices has'} for it: take more devices or larger ones"
            )
        if folder:
            chosen = {"micro_batch": fit.images, "shard": fit.shard, "recompute": fit.recompute}
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / FIT, json.dumps({"key": key, "fit": chosen}))
        return replace(self, micro_batch=fit.images, shard=fit.shard, recompute=fit.recompute)


@dataclass(frozen=True)
class Task:
    """One training: what of it the engine does not know.

    name : all that decides its numbers, in letters; a checkpoint of another name is refused
    loss : of some of a batch's images, their mean
    batch, positions : images of a whole batch, tokens of one
    rate : the learning rate of a step, from 0
    draw : the batch of a step, decided by the step alone, on the CPU
    milestones : steps after which ``measure`` is called, and then, with the step, ``keep``
    start : the training and the held-out loss before the first step, where they are known
    rise : nats by which the mean loss of a window may stand above the lowest one before it
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
    measure: Callable[[Distributed], float] = lambda spread: 0.0
    keep: Callable[[Distributed, int], None] = lambda spread, step: None
    start: float | None = None
    rise: float = math.inf


def train(
    task: Task, *, folder: Path | None, runtime: Runtime, report: Report = lambda done, total: None
) -> tuple[Losses, Distributed]:
    """Train, and what was measured at the milestones; the network is trained in place.

    folder : continues from the newest good checkpoint there, and writes ``metrics.jsonl``; nothing is kept when None
    Raises Stopped when it was asked to, UsageError for a folder of another run, or one that another process trains in,
    Diverged when the loss or the weights are NaN or infinite or the loss has risen too far, and StageError when a file
    could not be written (a full disk): the run then continues from its last checkpoint.
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
    """One run at work, of what `train` was called with."""

    task: Task
    folder: Path | None
    runtime: Runtime
    report: Report

    def __post_init__(self) -> None:
        """Start: 1. from the folder's own newest checkpoint, 2. from the network as it is."""
        task, runtime = self.task, self.runtime
        self.spread = Distributed(
            task.loss,
            learning_rate=task.rate(0),
            betas=task.betas,
            device=runtime.device,
            compiled=runtime.compiled,
            recompute=runtime.recompute,
            shard=runtime.shard,
        )
        self.mine = None if self.spread.rank else self.folder  # the first process writes
        state: dict[str, Tensor] = {}
        self.progress = Progress()
        if self.mine is not None:
            state, self.progress = load_checkpoint(self.mine, task.name, self.spread.expected())
        self.progress = self.spread.from_first(self.progress)
        if self.progress.step:
            self.spread.restore(state)
        self.metrics = None if self.mine is None else Metrics(self.mine / "metrics.jsonl", self.progress)

    def finish(self) -> tuple[Losses, Distributed]:
        """Take the steps that are missing."""
        task, progress = self.task, self.progress
        losses = progress.losses
        if not losses.steps and task.start is not None:
            losses.steps.append(0)
            losses.train.append(task.start)
            losses.validation.append(task.start)
        saved = time.monotonic()
        self._keep_milestone()  # of a run that was stopped in the midst of it
        while progress.step < task.steps:
            part = self._step(progress.step)
            progress.step += 1
            late = self.spread.rank == 0 and time.monotonic() - saved > 60 * self.runtime.minutes
            loss, stop, save = self.spread.sum([part, float(self.runtime.stop()), float(late)])
            progress.running += loss
            progress.window.append(loss)
            if progress.step % WINDOW == 0 or not math.isfinite(loss):
                self._look()
            stopping = progress.step < task.steps and stop > 0
            if progress.step in task.milestones or progress.step == task.steps or stopping or save:
                self._save()
                saved = time.monotonic()
            if not stopping:
                self._keep_milestone()
            if self.spread.rank == 0:
                self.report(progress.step, task.steps)
            if stopping:
                raise Stopped(f"stopped after {progress.step:,} of {task.steps:,} steps; the same command continues")
        return losses, self.spread

    def _keep_milestone(self) -> None:
        """At a milestone that is not kept yet: its losses and weights, and a checkpoint that knows of them."""
        progress, losses = self.progress, self.progress.losses
        before = losses.steps[-1] if losses.steps else 0
        if progress.step in self.task.milestones and progress.step > before:
            measured = self.task.measure(self.spread)  # which may take long, and be stopped
            if not math.isfinite(measured):
                self._give_up("the held-out loss is NaN or infinite")
            losses.train.append(progress.running / (progress.step - before))
            losses.steps.append(progress.step)
            losses.validation.append(measured)
            progress.running = 0.0
            self.task.keep(self.spread, progress.step)
            self._save()

    def _save(self) -> None:
        """A checkpoint. Raises Diverged instead of keeping weights that are NaN or infinite."""
        if not self.spread.finite():
            self._give_up("the weights are NaN or infinite")
        if self.folder is not None:
            state = self.spread.state()
            if self.mine is not None:
                save_checkpoint(self.mine, self.task.name, state, self.progress)

    def _give_up(self, fault: str) -> NoReturn:
        """Set aside the checkpoints since the last good window of losses, and raise Diverged with the one before."""
        found = [] if self.folder is None else checkpoints(self.folder)
        for path in found if self.mine else []:
            if step_of(path) > self.progress.good:
                path.replace(path.with_suffix(".diverged"))
        kept = [path for path in found if step_of(path) <= self.progress.good]
        where = f"the last good checkpoint is {kept[-1]}" if kept else "it came before the first good checkpoint"
        losses = "" if self.folder is None else f", and {self.folder / 'metrics.jsonl'} has the losses"
        raise Diverged(f"{fault}, at step {self.progress.step:,}: {where}{losses}", self.progress.losses)

    def _step(self, step: int) -> float:
        """One step of Adam; what this process's part of the batch adds to the batch's mean loss before it."""
        task, runtime, spread = self.task, self.runtime, self.spread
        for group in spread.optimizer.param_groups:
            group["lr"] = task.rate(step)
        spread.optimizer.zero_grad()
        batch = task.draw(step)
        images = next(len(part) for part in batch if part is not None)
        share = -(-images // spread.size)
        size = runtime.micro_batch or share
        total = torch.zeros((), device=runtime.device)
        for start in range(0, share, size):
            mine = slice(spread.rank * share + start, min(spread.rank * share + min(start + size, share), images))
            count = max(mine.stop - mine.start, 0)
            # Where images run out, a process takes the first one and does not count it: all go through the model equally often.
            few = [None if part is None else (part[mine] if count else part[:1]).to(runtime.device) for part in batch]
            with spread.gathering(last=start + size >= share):
                # Each weight is used once, so nothing is gained by keeping its half-precision copy for a second time.
                with torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.bfloat16, cache_enabled=False):
                    loss = spread.loss(*few) * (count * spread.size / images)
                loss.backward()
            total += loss.detach()
        spread.optimizer.step()
        return total.item() / spread.size

    def _look(self) -> None:
        """Note a window's mean loss. Raises Diverged when it is NaN or infinite, or far above the lowest before it."""
        progress = self.progress
        mean = math.fsum(progress.window) / len(progress.window)
        if not math.isfinite(mean):
            self._give_up("the loss is NaN or infinite")
        if self.metrics is not None:
            rate = self.spread.optimizer.param_groups[0]["lr"]
            self.metrics.add(mean, rate, self.task.batch * self.task.positions)
        if progress.lowest is not None and mean > progress.lowest + self.task.rise:
            self._give_up(f"the loss is {mean:.3f} nats, after {progress.lowest:.3f}")
        progress.window = []
        progress.lowest = mean if progress.lowest is None else min(progress.lowest, mean)
        progress.good = progress.step


class Metrics:
    """``metrics.jsonl``, a line a window: step, mean loss since the last line, learning rate, tokens a second.

    The file is written whole each time, out of the lines in the run's progress: after a crash or on a full disk it has
    the lines of an earlier step, and a continued run has those of its checkpoint, none lost and none twice.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        """Lines of steps beyond the checkpoint's, which a run that was killed had not kept, are dropped."""
        self._path, self._progress = path, progress
        if not progress.metrics:  # a new run, or a checkpoint of before it had the lines
            progress.metrics = _lines(path, progress.step)
        self._write()
        self._last, self._step = time.monotonic(), progress.step

    def add(self, loss: float, rate: float, tokens: int) -> None:
        """One line more; ``tokens`` are those of a step, and only steps since the last line or the start are timed."""
        now, step = time.monotonic(), self._progress.step
        speed = round(tokens * (step - self._step) / (now - self._last))
        self._last, self._step = now, step
        self._progress.metrics.append({"step": step, "loss": loss, "rate": rate, "tokens_per_second": speed})
        self._write()

    def _write(self) -> None:
        """Write all lines."""
        write_text(self._path, "".join(f"{json.dumps(line)}\n" for line in self._progress.metrics))


def _lines(path: Path, step: int) -> list[dict[str, float]]:
    """The whole lines of a file of metrics, up to those of ``step``."""
    found = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError, TypeError, KeyError, RecursionError):  # a line that was cut off
            line = json.loads(text)
            if line["step"] <= step:
                found.append(line)
    return found
