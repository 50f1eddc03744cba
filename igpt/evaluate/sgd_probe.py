"""Linear probe at ImageNet's scale (section 3.4): stochastic gradients over features that stay on disk.

Trained: one multinomial logistic regression per learning rate, all side by side in one pass over the features, by SGD
with momentum 0.9 and a cosine schedule to zero.
Chosen on validation: the rate.
Refitted: with the chosen rate, on train and validation together, as everywhere in the paper.
Reported: the test accuracy of the refit, once.

The paper names the optimiser, the first rates and a million iterations. Batch, weight decay, augmentation and the scaling of
the features are unpublished. Here: 128 as in pre-training, no weight decay, no augmentation, and standardised features.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

RATES = (30.0, 10.0, 3.0, 1.0, 0.3)  # "30, 10, 3, ..."
ITERATIONS = 1_000_000
MOMENTUM = 0.9
BATCH = 128
BLOCK = 1024  # rows read at once
MINUTES = 5.0  # between two checkpoints

Report = Callable[[int, int], None]  # iterations done, iterations in all; an exception stops the work, after a checkpoint


@dataclass(frozen=True, eq=False)
class Rows:
    """Memory-mapped features of one or more layers, concatenated and read block by block.

    layers : each (N, width), rows in random order
    places : int64 (n,) indices of the rows to use, ascending; labels : int64 (n,), of those rows
    """

    layers: Sequence[NDArray[np.floating]]
    places: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check that each row has a label."""
        if len(self.labels) != len(self.places):
            raise ValueError(f"{len(self.places)} rows have {len(self.labels)} labels")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    @property
    def width(self) -> int:
        """Features per image, all layers together."""
        return sum(layer.shape[1] for layer in self.layers)

    @property
    def count(self) -> int:
        """Number of blocks; the last one takes the remainder, so that it is never too small for a batch."""
        return max(len(self) // BLOCK, 1)

    def blocks(self, order: Iterable[int] | None = None) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Features float32 (1,024 or more, width) and labels of each block, in the given order of blocks."""
        for block in range(self.count) if order is None else order:
            span = self.span(block)
            features = [layer[self.places[span]].astype(np.float32) for layer in self.layers]
            yield np.concatenate(features, axis=1), self.labels[span]

    def span(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * BLOCK, (block + 1) * BLOCK if block < self.count - 1 else len(self))


@dataclass(frozen=True, eq=False)
class SgdClassifier:
    """A trained classifier; ``weights`` float32 (classes, width) of standardised features."""

    rate: float
    mean: Tensor
    scale: Tensor
    weights: Tensor
    intercept: Tensor

    def predict(self, rows: Rows) -> NDArray[np.int64]:
        """The likeliest class of each row, int64 (n,)."""
        import torch

        classes = []
        for block, _ in rows.blocks():
            x = (torch.from_numpy(block).to(self.mean.device) - self.mean) / self.scale
            classes.append((x @ self.weights.T + self.intercept).argmax(1).cpu().numpy())
        predicted: NDArray[np.int64] = np.concatenate(classes)
        return predicted


def fit_sgd(
    rows: Rows,
    *,
    classes: int,
    rates: Sequence[float] = RATES,
    iterations: int = ITERATIONS,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Path | None = None,
    report: Report = lambda done, total: None,
) -> list[SgdClassifier]:
    """One classifier per rate, all trained in the same pass on the same batches.

    Each epoch takes the blocks of rows in a new random order, and the rows of each block in a random order.

    checkpoint : a file with the state, written every `MINUTES`, when ``report`` raises, and at the end. The same call
    resumes from it, on a CPU with the same numbers to the bit; a different call's checkpoint is overwritten.
    Raises UsageError for labels outside 0 .. classes - 1, and for features that are NaN or infinite.
    """
    import torch

    from igpt.weights.own import save_tensors

    if len(rows) < BATCH or not 0 <= rows.labels.min() <= rows.labels.max() < classes:
        raise UsageError(
            f"a probe wants at least {BATCH} images with labels from 0 to {classes - 1}, not {len(rows)} with labels from"
            f" {rows.labels.min(initial=0)} to {rows.labels.max(initial=0)}"
        )
    count = len(rates)
    rows_digest = hashlib.sha256(rows.places.tobytes() + rows.labels.tobytes()).hexdigest()
    call = f"{rows_digest} {rows.width} features, {classes} classes, rates {list(rates)}, {iterations} iterations, seed {seed}"
    step, state = _load(checkpoint, call, device)
    if not state:
        mean, scale = _moments(rows, device)
        # Row r * classes + k is class k of rate r, so that all rates are one product.
        weights, intercept = torch.zeros(count * classes, rows.width, device=device), torch.zeros(count * classes, device=device)
        state = {"mean": mean, "scale": scale, "weights": weights, "intercept": intercept}
        state |= {"speed": torch.zeros_like(weights), "intercept_speed": torch.zeros_like(intercept)}
    mean, scale, weights, intercept = (state[name] for name in ("mean", "scale", "weights", "intercept"))
    speed, intercept_speed = state["speed"], state["intercept_speed"]
    row_rates = torch.tensor(rates, device=device).repeat_interleave(classes)

    def save() -> None:
        if checkpoint is not None:
            save_tensors(checkpoint, {name: tensor.cpu() for name, tensor in state.items()}, {"call": call, "step": str(step)})

    saved = time.monotonic()
    for x, labels in _batches(rows, iterations, seed, device, skip=step):
        z = (x - mean) / scale
        logits = torch.addmm(intercept, z, weights.T).view(len(z), count, classes)
        gradient = logits.softmax(-1)
        gradient[torch.arange(len(z), device=device), :, labels] -= 1
        gradient = gradient.view(len(z), -1) / len(z)
        speed.mul_(MOMENTUM).addmm_(gradient.T, z)
        intercept_speed.mul_(MOMENTUM).add_(gradient.sum(0))
        rate = row_rates * 0.5 * (1 + math.cos(math.pi * step / iterations))
        weights -= rate[:, None] * speed
        intercept -= rate * intercept_speed
        step += 1
        if time.monotonic() - saved > 60 * MINUTES or step == iterations:
            save()
            saved = time.monotonic()
        try:
            report(step, iterations)
        except BaseException:
            save()
            raise
    trained = zip(rates, weights.view(count, classes, -1), intercept.view(count, classes), strict=True)
    return [SgdClassifier(rate, mean, scale, w, b) for rate, w, b in trained]


def choose_rate(classifiers: Sequence[SgdClassifier], validation: Rows) -> tuple[SgdClassifier, float]:
    """The classifier with the best validation accuracy (the smallest rate in a tie), and that accuracy."""
    scores = [(float((c.predict(validation) == validation.labels).mean()), -c.rate, c) for c in classifiers]
    accuracy, _, best = max(scores, key=lambda score: score[:2])
    return best, accuracy


def _load(checkpoint: Path | None, call: str, device: str) -> tuple[int, dict[str, Tensor]]:
    """Iterations done and the state after them; 0 and an empty state without a checkpoint of this call."""
    from igpt.weights.own import load_tensors

    if checkpoint is None or not checkpoint.exists():
        return 0, {}
    try:
        tensors, metadata = load_tensors(checkpoint)
        if metadata["call"] != call:
            return 0, {}
        return int(metadata["step"]), {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
    except (UsageError, KeyError, ValueError) as error:
        warnings.warn(f"{checkpoint} is damaged ({error}): the probe begins again", stacklevel=3)
        return 0, {}


def _batches(rows: Rows, iterations: int, seed: int, device: str, *, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One batch per iteration, without the first ``skip``; a block's last rows that do not fill a batch are left out.

    Each block is transferred to the device as a whole, not batch by batch.
    """
    import torch

    generator, done = np.random.default_rng(seed), 0
    while done < iterations:
        for block in generator.permutation(rows.count):
            span = rows.span(block)
            shuffled, count = generator.permutation(span.stop - span.start), (span.stop - span.start) // BATCH
            if done + count <= skip:  # drawn, to keep the generator's state, but not read
                done += count
                continue
            [(x, labels)] = ((torch.from_numpy(array).to(device) for array in arrays) for arrays in rows.blocks([block]))
            order = torch.from_numpy(shuffled).to(device)
            for start in range(0, count * BATCH, BATCH):
                if done == iterations:
                    return
                done += 1
                if done > skip:
                    batch = order[start : start + BATCH]
                    yield x[batch], labels[batch]


def _moments(rows: Rows, device: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, float32 (width,), in one pass; 1 where a feature is constant."""
    import torch

    total, squares = torch.zeros(2, rows.width, dtype=torch.float64, device=device)
    for block, _ in rows.blocks():
        x = torch.from_numpy(block).to(device).to(torch.float64)
        if not x.isfinite().all():
            raise UsageError("the features hold values that are not finite: the weights have diverged, train them again")
        total += x.sum(0)
        squares += x.square().sum(0)
    mean = total / len(rows)
    deviation = (squares / len(rows) - mean**2).clamp(min=0).sqrt()
    deviation[deviation < 1e-6 * mean.abs()] = 0  # a constant, up to rounding
    deviation[deviation == 0] = 1
    return mean.float(), deviation.float()
