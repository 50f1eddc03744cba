"""The pre-training loop (section 3.4): Adam on random batches, weights kept along the way, exact to resume.

The batch of step t depends on the seed and t alone, and a checkpoint holds the weights, Adam's moments and the losses
so far, so a run that was killed and started again gives the same numbers as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from igpt.data.store import StorePart, TokenStore
from igpt.errors import StageError, UsageError
from igpt.files import write_text
from igpt.model import ImageGPT, draw_mask
from igpt.palette import Palette
from igpt.train.checkpoint import Losses, checkpoints, load_checkpoint, save_checkpoint, step_of
from igpt.train.recipes import Recipe
from igpt.weights.own import save_weights

Report = Callable[[int, int], None]  # steps done, steps in all

WINDOW = 50  # steps whose mean loss is one line of the metrics
DRAWN = 256  # images whose masks are drawn together when a loss is evaluated
RISE = 1.0  # nats by which the mean loss of a window may stand above the lowest one before it


Tokens: TypeAlias = "Tensor | NDArray[np.integer] | TokenStore | StorePart"  # (images, positions)


class Stopped(Exception):
    """The run was asked to stop and has: its checkpoint stands, and the same call continues it."""


@dataclass(frozen=True)
class Machine:
    """How a run uses the machine that it is on; none of it is part of what is computed, but for rounding.

    bfloat16 : products in half precision, on float32 weights and moments
    micro_batch : images that go through the model at once, to save memory; all of the batch when None
    minutes : between two checkpoints
    """

    device: str = "cpu"
    bfloat16: bool = False
    micro_batch: int | None = None
    minutes: float = 5.0
    stop: Callable[[], bool] = field(default=lambda: False)  # asked after every step

    @classmethod
    def here(cls) -> Machine:
        """The GPU in half precision where there is one, else the processor in full."""
        gpu = torch.cuda.is_available()
        return cls(device="cuda" if gpu else "cpu", bfloat16=gpu)


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
    one that another process trains in, and StageError when the loss is no number or has risen by a nat.
    """
    machine = machine or Machine()
    _check(recipe, tokens, machine)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".training.lock", timeout=0):
            return _Run(recipe, tokens, validation, palette, seed, folder, machine, report).finish()
    except Timeout:
        raise UsageError(f"another process trains in {folder}: wait for it, or give another folder") from None


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
        recipe = self.recipe
        data = f"{self.palette.digest} {_identity(self.tokens)}"
        self.name = f"{json.dumps(asdict(recipe), sort_keys=True)} {data} seed {self.seed}"
        self.model = ImageGPT(recipe.shape, seed=self.seed).to(self.machine.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True)
        self.progress = load_checkpoint(self.folder, self.name, self.model, self.optimizer)
        self.metrics = Metrics(self.folder / "metrics.jsonl", step=self.progress.step)

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
            loss = self._step(progress.step)
            progress.step += 1
            progress.running += loss
            progress.window.append(loss)
            if progress.step % WINDOW == 0 or not math.isfinite(loss):
                self._look()
            stopping = progress.step < recipe.steps and self.machine.stop()
            if progress.step in recipe.milestone_steps or stopping or time.monotonic() - saved > 60 * self.machine.minutes:
                self._save()
                saved = time.monotonic()
            if not stopping:
                self._keep_milestone()
            self.report(progress.step, recipe.steps)
            if stopping:
                raise Stopped(f"stopped after {progress.step:,} of {recipe.steps:,} steps; the same command continues")
        return losses

    def _keep_milestone(self) -> None:
        """At a milestone that is not kept yet: its losses and weights, and a checkpoint that knows of them."""
        progress, losses = self.progress, self.progress.losses
        if progress.step in self.recipe.milestone_steps and progress.step > losses.steps[-1]:
            validation = self._validate()  # which may take long, and be stopped
            losses.train.append(progress.running / (progress.step - losses.steps[-1]))
            losses.steps.append(progress.step)
            losses.validation.append(validation)
            progress.running = 0.0
            save_weights(self.folder / weights_name(progress.step), self.model, self.palette)
            self._save()

    def _save(self) -> None:
        """A checkpoint. Raises StageError instead of keeping weights that are no numbers."""
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            self._give_up("the weights are no numbers")
        save_checkpoint(self.folder, self.name, self.model, self.optimizer, self.progress)

    def _give_up(self, fault: str) -> NoReturn:
        """Set aside the checkpoints since the last good window of losses, and raise StageError with the one before."""
        for path in checkpoints(self.folder):
            if step_of(path) > self.progress.good:
                path.replace(path.with_suffix(".diverged"))
        kept = checkpoints(self.folder)
        where = f"the last good checkpoint is {kept[-1]}" if kept else "it came before the first good checkpoint"
        raise StageError(f"{fault}, at step {self.progress.step:,}: {where}, and {self.folder / 'metrics.jsonl'} has the losses")

    def _step(self, step: int) -> float:
        """One step of Adam; the batch's mean loss before it."""
        recipe, machine = self.recipe, self.machine
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, steps=recipe.steps, warmup=recipe.warmup)
        self.optimizer.zero_grad()
        tokens, masked = draw_batch(recipe, self.tokens, seed=self.seed, step=step)
        size = machine.micro_batch or recipe.batch
        total = 0.0
        for start in range(0, recipe.batch, size):
            part = tokens[start : start + size].to(machine.device)
            hidden = None if masked is None else masked[start : start + size].to(machine.device)
            with torch.autocast(machine.device, torch.bfloat16, enabled=machine.bfloat16):
                loss = self.model.loss(part, hidden) * (len(part) / recipe.batch)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return total

    def _look(self) -> None:
        """Note a window's mean loss. Raises StageError when it is no number, or far above the lowest before it."""
        progress = self.progress
        mean = math.fsum(progress.window) / len(progress.window)
        if not math.isfinite(mean):
            self._give_up("the loss is no number")
        rate = self.optimizer.param_groups[0]["lr"]
        self.metrics.add(progress.step, mean, rate, self.recipe.batch * self.recipe.shape.n_ctx)
        if progress.lowest is not None and mean > progress.lowest + RISE:
            self._give_up(f"the loss is {mean:.3f} nats, after {progress.lowest:.3f}")
        progress.window = []
        progress.lowest = mean if progress.lowest is None else min(progress.lowest, mean)
        progress.good = progress.step

    def _validate(self) -> float:
        """The held-out loss."""
        machine = self.machine
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.bfloat16):
            return evaluate_loss(self.model, self.validation, mask_rate=self.recipe.mask_rate, at_once=machine.micro_batch)


class Metrics:
    """The lines of ``metrics.jsonl``: step, mean loss since the last line, learning rate, tokens a second."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Lines of steps beyond ``step``, which a run that was killed had not kept, are dropped."""
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        write_text(path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))
        self._last, self._step = time.monotonic(), step

    def add(self, step: int, loss: float, rate: float, tokens: int) -> None:
        """One line more; ``tokens`` are those of a step, and only steps since the last line or the start are timed."""
        now = time.monotonic()
        speed = round(tokens * (step - self._step) / (now - self._last))
        self._last, self._step = now, step
        line = {"step": step, "loss": loss, "rate": rate, "tokens_per_second": speed}
        with self._path.open("a") as stream:
            print(json.dumps(line), file=stream)


def _step_of(line: str) -> float:
    """The step of a line; beyond all others for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def weights_name(step: int) -> str:
    """Name of the folder that keeps the weights after ``step`` steps."""
    return f"weights-{step:07d}"


def schedule(step: int, *, steps: int, warmup: int) -> float:
    """Fraction of the learning rate at ``step``, from 0: linear warm-up, then cosine towards 0 at ``steps``.

    Section 3.4; the warm-up's shape is unpublished. The first step already moves (1 / warmup).
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
    report: Report = lambda done, total: None,
) -> float:
    """Mean nats per token over integers (images, positions), every image counted once.

    at_once : images that go through the model together, to save memory; 256 when None
    BERT's masks are drawn anew for each image, as in the released code, but from a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for start in range(0, len(tokens), DRAWN):
        part = _take(tokens, np.arange(start, min(start + DRAWN, len(tokens))))
        masked = None
        if model.shape.objective == "bert":
            masked = draw_mask(part, rate=mask_rate, generator=generator)
        for place in range(0, len(part), at_once or DRAWN):
            here = slice(place, place + (at_once or DRAWN))
            hidden = None if masked is None else masked[here].to(model.wte.device)
            total += model.loss(part[here].to(model.wte.device), hidden).item() * len(part[here])
        report(start + len(part), len(tokens))
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
    if isinstance(tokens, StorePart):
        return f"{_identity(tokens.store)} {hashlib.sha256(tokens.places.tobytes()).hexdigest()}"
    if isinstance(tokens, TokenStore):
        return hashlib.sha256(tokens.header.model_dump_json().encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(np.asarray(tokens, dtype=np.int64)).tobytes()).hexdigest()


def _check(recipe: Recipe, tokens: Tokens, machine: Machine) -> None:
    """Refuse tokens of another size, and a micro-batch that does not divide the batch."""
    positions = len(tokens[np.arange(1)][0])
    if positions != recipe.shape.n_ctx:
        raise UsageError(
            f"the tokens have {positions} positions, {recipe.name} {recipe.shape.n_ctx}: tokenise at another resolution"
        )
    if machine.micro_batch is not None and (machine.micro_batch < 1 or recipe.batch % machine.micro_batch):
        raise UsageError(f"a batch of {recipe.batch} images does not divide into pieces of {machine.micro_batch}")
