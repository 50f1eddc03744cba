"""The pre-training loop (section 3.4): Adam on random batches, weights kept along the way, exact to resume.

The batch of step t depends on the seed and t alone, and the checkpoint holds the weights, Adam's moments
and the losses so far, so a run that was killed and started again gives the same numbers as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from igpt.model import ImageGPT, draw_mask
from igpt.palette import Palette
from igpt.train.recipes import Recipe
from igpt.weights.own import load_tensors, save_tensors, save_weights

Report = Callable[[int, int], None]  # steps done, steps in all


@dataclass
class Losses:
    """Losses along a run, nats per token: one (step, train, validation) a milestone, step 0 included."""

    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)  # mean over the steps since the last milestone
    validation: list[float] = field(default_factory=list)


def pretrain(
    recipe: Recipe,
    tokens: Tensor,
    validation: Tensor,
    *,
    palette: Palette,
    seed: int,
    folder: Path,
    report: Report = lambda done, total: None,
) -> Losses:
    """Train from ``recipe`` and keep the weights of each milestone under ``folder / weights_name(step)``.

    tokens, validation : int64 (images, positions)
    Continues from ``folder / checkpoint.safetensors`` when there is one.
    """
    model = ImageGPT(recipe.shape, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    checkpoint = folder / "checkpoint.safetensors"
    losses, running = Losses(), 0.0
    # Where a run starts: 1. from its own checkpoint, 2. from the seed.
    if checkpoint.exists():
        losses = _resume(checkpoint, model, optimizer)
    else:
        losses.steps.append(0)
        losses.train.append(math.log(recipe.shape.n_vocab))  # the output matrix starts at zero
        losses.validation.append(evaluate_loss(model, validation, mask_rate=recipe.mask_rate))
    since = losses.steps[-1]
    for step in range(since, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, steps=recipe.steps, warmup=recipe.warmup)
        optimizer.zero_grad()
        loss = model.loss(*_batch(recipe, tokens, seed=seed, step=step))
        loss.backward()
        optimizer.step()
        running += loss.item()
        if step + 1 in recipe.milestone_steps:
            losses.steps.append(step + 1)
            losses.train.append(running / (step + 1 - since))
            losses.validation.append(evaluate_loss(model, validation, mask_rate=recipe.mask_rate))
            running, since = 0.0, step + 1
            save_weights(folder / weights_name(step + 1), model, palette)
            _save(checkpoint, model, optimizer, losses)
        report(step + 1, recipe.steps)
    return losses


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
def evaluate_loss(model: ImageGPT, tokens: Tensor, *, mask_rate: float = 0.15, batch: int = 256) -> float:
    """Mean nats per token over int64 (images, positions), every image counted once.

    BERT's masks are drawn anew for each image, as in the released code, but from a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for part in tokens.split(batch):
        masked = None
        if model.shape.objective == "bert":
            masked = draw_mask(part, rate=mask_rate, generator=generator)
        total += model.loss(part, masked).item() * len(part)
    return total / len(tokens)


def _batch(recipe: Recipe, tokens: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
    """Random images and, for BERT, their mask, decided by ``seed`` and ``step`` alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_000_007 + step)
    batch = tokens[torch.randint(len(tokens), (recipe.batch,), generator=generator)]
    if recipe.shape.objective == "autoregressive":
        return batch, None
    return batch, draw_mask(batch, rate=recipe.mask_rate, generator=generator)


def _save(path: Path, model: ImageGPT, optimizer: torch.optim.Adam, losses: Losses) -> None:
    """Everything a continued run needs, in one file."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{key}": t for key, t in state.items()}
    save_tensors(path, tensors, {"losses": json.dumps(vars(losses))})


def _resume(path: Path, model: ImageGPT, optimizer: torch.optim.Adam) -> Losses:
    """Put a checkpoint back; returns the losses up to it, whose last step is where to go on."""
    tensors, metadata = load_tensors(path)
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return Losses(**json.loads(metadata["losses"]))
