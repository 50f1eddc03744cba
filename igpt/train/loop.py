"""The pre-training loop (section 3.4): Adam on random batches, weights kept along the way.

The batch of step t depends on the seed and t alone, and a checkpoint holds the weights, Adam's moments and the losses
so far. On a processor, with as many threads, a run that was killed and started again therefore gives the same numbers to
the bit as one that was not. On a card it goes on from the same state with the same batches, but no deterministic
algorithms are asked for: gradients may be summed in another order each time, in two whole runs as well, and last digits
differ. That has not been tried on a card yet. In a process group every process takes its equal part of each batch;
the batch is the same for any number of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from igpt.data.labelled import LabelledTokens
from igpt.data.store import StorePart, TokenStore
from igpt.errors import StageError, UsageError
from igpt.files import remove_parts, try_lock, write_folder, write_text
from igpt.model import ImageGPT, draw_mask
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train.checkpoint import Losses, Progress, checkpoints, load_checkpoint, save_checkpoint, step_of
from igpt.train.recipe import Recipe
from igpt.train.spread import Spread
from igpt.weights.own import save_weights

Report = Callable[[int, int], None]  # steps done, steps in all

WINDOW = 50  # steps whose mean loss is one line of the metrics
DRAWN = 256  # images whose masks are drawn together when a loss is evaluated
COMPILED = 64  # width from which a model is compiled, and takes half precision on a processor
SHARDED = 2e9  # parameters, from which a model's state is too much for one card: iGPT-XL
PARTS = (".checkpoint-*.part", ".metrics.jsonl.*.part", ".weights-*.part")  # what a killed run may leave of its files
RISE = 1.0  # nats by which the mean loss of a window may stand above the lowest one before it


Tokens: TypeAlias = "Tensor | NDArray[np.integer] | TokenStore | StorePart | LabelledTokens"  # (images, positions)


class Stopped(Exception):
    """The run was asked to stop and has: its checkpoint stands, and the same call continues it."""


@dataclass(frozen=True)
class Machine:
    """How a run uses the machine that it is on; none of it is part of what is computed, but for rounding.

    bfloat16 : products in half precision, on float32 weights and moments
    micro_batch : images that go through the model at once, to save memory; all that fall to this process when None
    compiled, recompute, shard : as in `igpt.train.spread.Spread`
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
    def here(cls, shape: ModelShape) -> Machine:
        """The GPU where there is one, else the processor; in half precision where it has products of that.

        The compiler's quarter of a minute is spent on models that are worth it.
        """
        worth, large = shape.n_embd >= COMPILED, shape.parameters > SHARDED
        if torch.cuda.is_available():
            return cls(device="cuda", bfloat16=True, compiled=worth, recompute=large, shard=large)
        half = bool(torch.cpu._is_avx512_bf16_supported())
        return cls(bfloat16=half and worth, compiled=worth)


def pretrain(
    recipe: Recipe,
    tokens: Tokens,
    validation: Tokens,
    *,
    palette: Palette,
    seed: int,
    folder: Path,
    machine: Machine | None = None,
    report: Report = lambda done, total: None,
) -> Losses:
    """Train from ``recipe`` and keep the weights of each milestone under ``folder / weights_name(step)``.

    tokens, validation : integers (images, positions)
    Continues from the newest good checkpoint in ``folder`` when there is one, and writes ``metrics.jsonl`` there.
    Raises Stopped when it was asked to, UsageError for tokens that are not the recipe's, a folder of another run, or
    one that another process trains in, and StageError when the loss is NaN or infinite or has risen by a nat, and when a file
    could not be written (a full disk): the run then continues from its last checkpoint.
    """
    machine = machine or Machine()
    first = not dist.is_initialized() or dist.get_rank() == 0
    _check(recipe, tokens, machine)
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / ".training.lock") if first else nullcontext()
    if lock is None:
        raise UsageError(f"another process trains in {folder}: wait for it, or give another folder")
    with lock:
        if first:
            remove_parts(folder, *PARTS)
        try:
            return _Run(recipe, tokens, validation, palette, seed, folder, machine, report).finish()
        except OSError as error:
            if error.filename is None:
                raise
            raise StageError(
                f"training stopped because {error.filename} could not be written ({error.strerror}): fix that and run the same"
                " command, which continues from the last checkpoint"
            ) from None


@dataclass
class _Run:
    """One run at work, of what `pretrain` was called with."""

    recipe: Recipe
    tokens: Tokens
    validation: Tokens
    palette: Palette
    seed: int
    folder: Path
    machine: Machine
    report: Report

    def __post_init__(self) -> None:
        """Start: 1. from the folder's own newest checkpoint, 2. from the seed."""
        recipe, machine = self.recipe, self.machine
        data = f"{self.palette.digest} {_identity(self.tokens)}"
        self.name = f"{json.dumps(asdict(recipe), sort_keys=True)} {data} seed {self.seed}"
        self.spread = Spread(
            ImageGPT(recipe.shape, seed=self.seed),
            learning_rate=recipe.learning_rate,
            betas=recipe.betas,
            device=machine.device,
            compiled=machine.compiled,
            recompute=machine.recompute,
            shard=machine.shard,
        )
        self.first = self.spread.rank == 0
        state: dict[str, Tensor] = {}
        self.progress = Progress()
        if self.first:
            state, self.progress = load_checkpoint(self.folder, self.name, self.spread.expected())
        self.progress = self.spread.from_first(self.progress)
        if self.progress.step:
            self.spread.restore(state)
        if self.first:
            self.metrics = Metrics(self.folder / "metrics.jsonl", self.progress)

    def finish(self) -> Losses:
        """Take the steps that are missing."""
        recipe, progress = self.recipe, self.progress
        losses = progress.losses
        if not losses.steps:
            losses.steps.append(0)
            losses.train.append(math.log(recipe.shape.n_vocab))  # the output matrix starts at zero
            losses.validation.append(math.log(recipe.shape.n_vocab))
        saved = time.monotonic()
        self._keep_milestone()  # of a run that was stopped in the midst of it
        while progress.step < recipe.steps:
            part = self._step(progress.step)
            progress.step += 1
            late = self.first and time.monotonic() - saved > 60 * self.machine.minutes
            loss, stop, save = self.spread.sum([part, float(self.machine.stop()), float(late)])
            progress.running += loss
            progress.window.append(loss)
            if progress.step % WINDOW == 0 or not math.isfinite(loss):
                self._look()
            stopping = progress.step < recipe.steps and stop > 0
            if progress.step in recipe.milestone_steps or stopping or save:
                self._save()
                saved = time.monotonic()
            if not stopping:
                self._keep_milestone()
            if self.first:
                self.report(progress.step, recipe.steps)
            if stopping:
                raise Stopped(f"stopped after {progress.step:,} of {recipe.steps:,} steps; the same command continues")
        return losses

    def _keep_milestone(self) -> None:
        """At a milestone that is not kept yet: its losses and weights, and a checkpoint that knows of them."""
        progress, losses = self.progress, self.progress.losses
        if progress.step in self.recipe.milestone_steps and progress.step > losses.steps[-1]:
            validation = self._validate()  # which may take long, and be stopped
            if not math.isfinite(validation):
                self._give_up("the held-out loss is NaN or infinite")
            losses.train.append(progress.running / (progress.step - losses.steps[-1]))
            losses.steps.append(progress.step)
            losses.validation.append(validation)
            progress.running = 0.0
            weights = self.spread.weights()
            if self.first:
                with torch.device("meta"):
                    whole = ImageGPT(self.recipe.shape)
                whole.load_state_dict(weights, assign=True)
                place = self.folder / weights_name(progress.step)
                shutil.rmtree(place, ignore_errors=True)  # of a run that was killed before its checkpoint knew of them
                with write_folder(place) as part:
                    save_weights(part, whole, self.palette)
            self._save()

    def _save(self) -> None:
        """A checkpoint. Raises StageError instead of keeping weights that are no numbers."""
        if not self.spread.finite():
            self._give_up("the weights are NaN or infinite")
        state = self.spread.state()
        if self.first:
            save_checkpoint(self.folder, self.name, state, self.progress)

    def _give_up(self, fault: str) -> NoReturn:
        """Set aside the checkpoints since the last good window of losses, and raise StageError with the one before."""
        for path in checkpoints(self.folder) if self.first else []:
            if step_of(path) > self.progress.good:
                path.replace(path.with_suffix(".diverged"))
        kept = [path for path in checkpoints(self.folder) if step_of(path) <= self.progress.good]
        where = f"the last good checkpoint is {kept[-1]}" if kept else "it came before the first good checkpoint"
        raise StageError(f"{fault}, at step {self.progress.step:,}: {where}, and {self.folder / 'metrics.jsonl'} has the losses")

    def _step(self, step: int) -> float:
        """One step of Adam; what this process's part of the batch adds to the batch's mean loss before it."""
        recipe, machine, spread = self.recipe, self.machine, self.spread
        for group in spread.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, steps=recipe.steps, warmup=recipe.warmup)
        spread.optimizer.zero_grad()
        tokens, masked = draw_batch(recipe, self.tokens, seed=self.seed, step=step)
        share = recipe.batch // spread.size
        size = machine.micro_batch or share
        mine = range(share * spread.rank, share * (spread.rank + 1))
        total = torch.zeros((), device=machine.device)
        for start in mine[::size]:
            part = tokens[start : start + size].to(machine.device)
            hidden = None if masked is None else masked[start : start + size].to(machine.device)
            with spread.gathering(last=start + size > mine[-1]):
                # Each weight is used once, so nothing is gained by keeping its half-precision copy for a second time.
                with torch.autocast(machine.device, torch.bfloat16, enabled=machine.bfloat16, cache_enabled=False):
                    loss = spread.loss(part, hidden) * (size / share)
                loss.backward()
            total += loss.detach()
        spread.optimizer.step()
        return total.item() / spread.size

    def _look(self) -> None:
        """Note a window's mean loss. Raises StageError when it is no number, or far above the lowest before it."""
        progress = self.progress
        mean = math.fsum(progress.window) / len(progress.window)
        if not math.isfinite(mean):
            self._give_up("the loss is NaN or infinite")
        if self.first:
            rate = self.spread.optimizer.param_groups[0]["lr"]
            self.metrics.add(mean, rate, self.recipe.batch * self.recipe.shape.n_ctx)
        if progress.lowest is not None and mean > progress.lowest + RISE:
            self._give_up(f"the loss is {mean:.3f} nats, after {progress.lowest:.3f}")
        progress.window = []
        progress.lowest = mean if progress.lowest is None else min(progress.lowest, mean)
        progress.good = progress.step

    def _validate(self) -> float:
        """The held-out loss, in the precision that is trained in; each process takes its part of the images."""
        machine, spread = self.machine, self.spread
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.bfloat16):
            total = evaluate_loss(
                spread.model,
                self.validation,
                mask_rate=self.recipe.mask_rate,
                at_once=machine.micro_batch,
                part=(spread.rank, spread.size),
            )
        return spread.sum([total])[0]


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


def weights_name(step: int) -> str:
    """Name of the folder that keeps the weights after ``step`` steps.

    >>> weights_name(1250)
    'weights-0001250'
    """
    return f"weights-{step:07d}"


def schedule(step: int, *, steps: int, warmup: int) -> float:
    """Fraction of the learning rate at ``step``, from 0: linear warm-up, then cosine towards 0 at ``steps``.

    Section 3.4; the warm-up's shape is unpublished. The first step already moves (1 / warmup).

    >>> [round(schedule(step, steps=10, warmup=4), 2) for step in range(10)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def evaluate_loss(
    model: ImageGPT,
    tokens: Tokens,
    *,
    mask_rate: float = 0.15,
    at_once: int | None = None,
    part: tuple[int, int] = (0, 1),
    report: Report = lambda done, total: None,
) -> float:
    """Mean nats per token over integers (images, positions), every image counted once.

    at_once : images that go through the model together, to save memory; 256 when None
    part : (place, parts) sums over every so-manieth image only; the results of all places add up to the mean
    BERT's masks are drawn anew for each image, as in the released code, but from a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    place, parts = part
    total = 0.0
    for start in range(0, len(tokens), DRAWN):
        drawn = _take(tokens, np.arange(start, min(start + DRAWN, len(tokens))))
        masked = draw_mask(drawn, rate=mask_rate, generator=generator) if model.shape.objective == "bert" else None
        # Where images run out, a process looks at the first one and does not count it: those who share a model's
        # parameters have to go through it equally often.
        share = -(-len(drawn) // parts)
        mine = (torch.arange(share) * parts + place).clamp(max=len(drawn))
        for few in mine.split(at_once or DRAWN):
            counted = int((few < len(drawn)).sum())
            images = few[:counted] if counted else few[:1] * 0
            hidden = None if masked is None else masked[images].to(model.wte.device)
            total += model.loss(drawn[images].to(model.wte.device), hidden).item() * counted
        report(start + len(drawn), len(tokens))
    return total / len(tokens)


def draw_batch(recipe: Recipe, tokens: Tokens, *, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
    """Random images, int64 (batch, positions), and for BERT their mask, decided by ``seed`` and ``step`` alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_000_007 + step)
    batch = _take(tokens, torch.randint(len(tokens), (recipe.batch,), generator=generator).numpy())
    if recipe.shape.objective == "autoregressive":
        return batch, None
    return batch, draw_mask(batch, rate=recipe.mask_rate, generator=generator)


def _take(tokens: Tokens, indices: NDArray[np.int64]) -> Tensor:
    """Some images' tokens, int64 (B, positions)."""
    if isinstance(tokens, Tensor):
        return tokens[torch.from_numpy(indices)]
    return torch.from_numpy(tokens[indices].astype(np.int64))


def _identity(tokens: Tokens) -> str:
    """What is trained on, in few letters: a store by its header, an array by its content."""
    if isinstance(tokens, LabelledTokens):
        return tokens.digest
    if isinstance(tokens, StorePart):
        return f"{_identity(tokens.store)} {hashlib.sha256(tokens.places.tobytes()).hexdigest()}"
    if isinstance(tokens, TokenStore):
        return hashlib.sha256(tokens.header.model_dump_json().encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(np.asarray(tokens, dtype=np.int64)).tobytes()).hexdigest()


def _check(recipe: Recipe, tokens: Tokens, machine: Machine) -> None:
    """Refuse tokens of another size, and a batch that the processes or the micro-batch do not divide."""
    positions = len(tokens[np.arange(1)][0])
    if positions != recipe.shape.n_ctx:
        raise UsageError(
            f"the tokens have {positions} positions, {recipe.name} {recipe.shape.n_ctx}: tokenise at another resolution"
        )
    size = dist.get_world_size() if dist.is_initialized() else 1
    if recipe.batch % size:
        raise UsageError(f"a batch of {recipe.batch} images cannot be shared by {size} devices: take a number that divides it")
    share = recipe.batch // size
    if machine.micro_batch is not None and (machine.micro_batch < 1 or share % machine.micro_batch):
        whose = f"a batch of {share} images" if size == 1 else f"each device's {share} images of a batch"
        raise UsageError(f"{whose} cannot be cut into pieces of {machine.micro_batch}: take a number that divides {share}")
