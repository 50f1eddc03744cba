"""Pre-training (section 3.4): Adam on random batches, with weights saved at milestones; run by `igpt.train.engine`."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from igpt.data.labelled import LabelledTokens
from igpt.data.store import TokenStore
from igpt.errors import UsageError
from igpt.files import write_folder
from igpt.model import ImageGPT, draw_mask
from igpt.palette import Palette
from igpt.seeds import check_seed
from igpt.train.checkpoint import Losses
from igpt.train.distributed import Distributed, GenerativeLoss, sum_over
from igpt.train.engine import Report, Task, train
from igpt.train.recipe import Recipe
from igpt.train.runtime import Runtime
from igpt.weights.own import load_weights, save_weights, weights_digest

DRAWN = 256  # images per draw of BERT's masks when a loss is evaluated
RISE = 1.0  # nats by which a window's mean loss may exceed the lowest one before it

Tokens: TypeAlias = "Tensor | NDArray[np.integer] | TokenStore | LabelledTokens"  # (images, positions)


def pretrain(
    recipe: Recipe,
    tokens: Tokens,
    validation: Tokens,
    *,
    palette: Palette,
    seed: int,
    folder: Path,
    begin_from: Path | None = None,
    runtime: Runtime | None = None,
    report: Report = lambda done, total: None,
) -> Losses:
    """Pre-train by ``recipe``, and save each milestone's weights in ``folder / weights_name(step)``.

    tokens, validation : integers (images, positions)
    begin_from : folder of the weights to begin from, in our format; they are drawn from the seed if None
    Resumes from the newest good checkpoint in ``folder``, and writes ``metrics.jsonl`` there.
    Raises what `igpt.train.engine.train` raises (Diverged also when the loss has risen by a nat), UsageError as `check_plan`
    does, for an invalid seed, and for weights to begin from that are damaged or have another shape.
    """
    runtime = runtime or Runtime()
    seed = check_seed(seed)
    check_plan(recipe, tokens, runtime, processes=dist.get_world_size() if dist.is_initialized() else 1)
    model = ImageGPT(recipe.shape, seed=seed) if begin_from is None else load_weights(begin_from, recipe.shape)[0]
    origin = "" if begin_from is None else f" from {weights_digest(model)}"

    def held_out_loss() -> float:
        """The held-out loss, in the precision of training."""
        with torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.bfloat16):
            return evaluate_loss(model, validation, mask_rate=recipe.mask_rate, at_once=runtime.micro_batch)

    def untrained_loss() -> float:
        """The loss of initial weights: the output matrix starts at zero, so all tokens are equally likely."""
        return math.log(recipe.shape.n_vocab)

    def keep(distributed: Distributed, step: int) -> None:
        """Save a milestone's weights."""
        weights = distributed.weights()
        if distributed.rank == 0:
            with torch.device("meta"):
                unsharded = ImageGPT(recipe.shape)
            unsharded.load_state_dict(weights, assign=True)
            shutil.rmtree(folder / weights_name(step), ignore_errors=True)  # left by a run that was killed before its checkpoint
            with write_folder(folder / weights_name(step)) as temporary:
                save_weights(temporary, unsharded, palette)

    task = Task(
        # `igpt.weights.training_run` reads the recipe's shape and the palette's digest from this.
        name=f"{json.dumps(recipe.as_dict(), sort_keys=True)} {palette.digest} {_identity(tokens)} seed {seed}{origin}",
        loss=GenerativeLoss(model),
        steps=recipe.steps,
        batch=recipe.batch,
        positions=recipe.shape.n_ctx,
        betas=recipe.betas,
        rate=lambda step: recipe.learning_rate * schedule(step, steps=recipe.steps, warmup=recipe.warmup),
        draw=lambda step: draw_batch(recipe, tokens, seed=seed, step=step),
        milestones=recipe.milestone_steps,
        measure=held_out_loss,
        keep=keep,
        prepare=lambda folder: palette.save(folder / "palette.npy"),  # for `igpt.weights.training_run`
        start=untrained_loss if begin_from is None else held_out_loss,
        rise=RISE,
    )
    return train(task, folder=folder, runtime=runtime, report=report)[0]


def weights_name(step: int) -> str:
    """Name of the folder with the weights after ``step`` steps.

    >>> weights_name(1250)
    'weights-0001250'
    """
    return f"weights-{step:07d}"


def schedule(step: int, *, steps: int, warmup: int) -> float:
    """Fraction of the learning rate at ``step``, counted from 0: linear warm-up, then cosine to 0 at ``steps``.

    Section 3.4; the warm-up's shape is unpublished. The first step has 1 / warmup, not 0.

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
    report: Report = lambda done, total: None,
) -> float:
    """Mean nats per token over integers (images, positions), every image counted once; a process group shares the work.

    at_once : images per forward pass, to save memory; 256 when None
    BERT's masks are drawn once per image, as in the released code, but from a fixed seed.
    """
    total, done = 0.0, 0
    for indices, batch, masked in passes(model, tokens, mask_rate=mask_rate, at_once=at_once):
        total += model.loss(batch, masked).item() * len(indices)
        done += len(indices)
        report(done, len(tokens))
    return sum_over([total / len(tokens)], model.wte.device.type)[0]


def passes(
    model: ImageGPT,
    tokens: Tokens,
    *,
    mask_rate: float = 0.15,
    mask_seed: int = 0,
    at_once: int | None = None,
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor | None]]:
    """Batches that cover every image once: indices int64 (B,), tokens int64 (B, positions) and BERT's masks, on the device.

    at_once : as in `evaluate_loss`
    In a group of n processes each gets every n-th image. A process without images left gets an image and no index: processes
    that share a model's parameters must call it equally often.
    """
    generator = torch.Generator().manual_seed(mask_seed)
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = model.wte.device
    for start in range(0, len(tokens), DRAWN):
        images = take(tokens, np.arange(start, min(start + DRAWN, len(tokens))))
        masked = draw_mask(images, rate=mask_rate, generator=generator) if model.shape.objective == "bert" else None
        assigned = torch.arange(rank, rank + size * -(-len(images) // size), size)
        for share in assigned.split(at_once or DRAWN):
            valid = share[share < len(images)]
            rows = valid if len(valid) else share[:1] * 0
            yield start + valid.numpy(), images[rows].to(device), None if masked is None else masked[rows].to(device)


def draw_batch(recipe: Recipe, tokens: Tokens, *, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
    """Random images, int64 (batch, positions), and for BERT their mask, from ``seed`` and ``step`` alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_000_007 + step)
    batch = take(tokens, torch.randint(len(tokens), (recipe.batch,), generator=generator).numpy())
    if recipe.shape.objective == "autoregressive":
        return batch, None
    return batch, draw_mask(batch, rate=recipe.mask_rate, generator=generator)


def take(tokens: Tokens, indices: NDArray[np.int64]) -> Tensor:
    """The tokens of the images at ``indices``, int64 (B, positions)."""
    if isinstance(tokens, Tensor):
        return tokens[torch.from_numpy(indices)]
    return torch.from_numpy(tokens[indices].astype(np.int64))


def check_plan(recipe: Recipe, tokens: Tokens, runtime: Runtime, *, processes: int) -> None:
    """Raise UsageError for tokens of a different resolution, and a batch that the processes or the micro-batch do not divide."""
    positions = len(tokens[np.arange(1)][0])
    if positions != recipe.shape.n_ctx:
        raise UsageError(
            f"the tokens have {positions} positions, {recipe.name} {recipe.shape.n_ctx}: tokenise at another resolution"
        )
    if recipe.batch % processes:
        raise UsageError(
            f"a batch of {recipe.batch} images cannot be shared by {processes} devices: take a number that divides it"
        )
    share = recipe.batch // processes
    if runtime.micro_batch is not None and (runtime.micro_batch < 1 or share % runtime.micro_batch):
        whose = f"a batch of {share} images" if processes == 1 else f"each device's {share} images of a batch"
        raise UsageError(f"{whose} cannot be cut into pieces of {runtime.micro_batch}: take a number that divides {share}")


def _identity(tokens: Tokens) -> str:
    """A digest of the training data: of a store's header, or of an array's content."""
    if isinstance(tokens, LabelledTokens):
        return tokens.digest
    if isinstance(tokens, TokenStore):
        return hashlib.sha256(tokens.header.model_dump_json().encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(np.asarray(tokens, dtype=np.int64)).tobytes()).hexdigest()
