"""Linear probe at ImageNet's scale (section 3.4): stochastic gradients over features that stay on disk.

Trained: one multinomial logistic regression a learning rate, all of them side by side in one pass over the features,
by SGD with momentum 0.9 and a cosine to zero.
Chosen on validation: the rate. Then the held-out images return to train, as everywhere in the paper, and the chosen
rate is trained once more.
Reported: the test accuracy of that last one, once.

The paper names the optimiser, the rates it began with and a million iterations. Batch, weight decay, augmentation and
the scaling of the features are not published: 128 as in pre-training, none, none, and standardised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

Report = Callable[[int, int], None]  # iterations done, iterations in all


@dataclass(frozen=True, eq=False)
class Rows:
    """Features that are read row by row: some layers side by side, memory-mapped, of the images at ``places``.

    layers : each (N, width), rows in random order; places : int64 (n,) rows to be used, ascending
    labels : int64 (n,), of those rows
    """

    layers: Sequence[NDArray[np.floating]]
    places: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuse labels that do not belong to the rows."""
        if len(self.places) != len(self.labels):
            raise UsageError(f"{len(self.places)} rows of features need as many labels, not {len(self.labels)}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    @property
    def width(self) -> int:
        """Features an image, all layers together."""
        return sum(layer.shape[1] for layer in self.layers)

    @property
    def count(self) -> int:
        """Number of blocks; the last one takes what is left over, so that no row is too few to be used."""
        return max(len(self) // BLOCK, 1)

    def blocks(self, order: NDArray[np.int64] | None = None) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Features float32 (1,024 or more, width) with labels, block by block, in the given order of blocks."""
        for block in range(self.count) if order is None else order:
            here = slice(block * BLOCK, (block + 1) * BLOCK if block < self.count - 1 else None)
            rows = [layer[self.places[here]].astype(np.float32) for layer in self.layers]
            yield np.concatenate(rows, axis=1), self.labels[here]


@dataclass(frozen=True, eq=False)
class SgdClassifier:
    """A trained one; ``weights`` float32 (classes, width) of standardised features."""

    rate: float
    mean: Tensor
    scale: Tensor
    weights: Tensor
    intercept: Tensor

    def predict(self, rows: Rows) -> NDArray[np.int64]:
        """The likeliest class of each row, int64 (n,)."""
        import torch

        found = []
        for block, _ in rows.blocks():
            x = (torch.from_numpy(block).to(self.mean.device) - self.mean) / self.scale
            found.append((x @ self.weights.T + self.intercept).argmax(1).cpu().numpy())
        predicted: NDArray[np.int64] = np.concatenate(found)
        return predicted


def fit_sgd(
    rows: Rows,
    *,
    classes: int,
    rates: Sequence[float] = RATES,
    iterations: int = ITERATIONS,
    seed: int = 0,
    device: str = "cpu",
    report: Report = lambda done, total: None,
) -> list[SgdClassifier]:
    """One classifier a rate, all trained in the same pass on the same batches.

    Blocks of rows come in a new random order in each epoch, and rows in a random order within a block. Raises
    UsageError for labels outside 0 .. classes - 1, and for features that are not finite.
    """
    import torch

    if len(rows) < BATCH or not 0 <= rows.labels.min() <= rows.labels.max() < classes:
        raise UsageError(
            f"a probe wants at least {BATCH} images with labels from 0 to {classes - 1}, not {len(rows)} with labels from"
            f" {rows.labels.min(initial=0)} to {rows.labels.max(initial=0)}"
        )
    mean, scale = _moments(rows, device)
    many = len(rates)
    # Row r * classes + k is class k of rate r, so that all rates are one product.
    weights = torch.zeros(many * classes, rows.width, device=device)
    intercept = torch.zeros(many * classes, device=device)
    speed, intercept_speed = torch.zeros_like(weights), torch.zeros_like(intercept)
    each = torch.tensor(rates, device=device).repeat_interleave(classes)
    for step, (x, labels) in enumerate(_batches(rows, iterations, seed, device)):
        z = (x - mean) / scale
        logits = torch.addmm(intercept, z, weights.T).view(len(z), many, classes)
        slope = logits.softmax(-1)
        slope[torch.arange(len(z), device=device), :, labels] -= 1
        slope = slope.view(len(z), -1) / len(z)
        speed.mul_(MOMENTUM).addmm_(slope.T, z)
        intercept_speed.mul_(MOMENTUM).add_(slope.sum(0))
        rate = each * 0.5 * (1 + math.cos(math.pi * step / iterations))
        weights -= rate[:, None] * speed
        intercept -= rate * intercept_speed
        report(step + 1, iterations)
    parts = zip(rates, weights.view(many, classes, -1), intercept.view(many, classes), strict=True)
    return [SgdClassifier(rate, mean, scale, w, b) for rate, w, b in parts]


def choose_rate(found: Sequence[SgdClassifier], validation: Rows) -> tuple[SgdClassifier, float]:
    """The classifier with the best validation accuracy, of the smaller rate of equals, and that accuracy."""
    scores = [(float((c.predict(validation) == validation.labels).mean()), -c.rate, c) for c in found]
    accuracy, _, best = max(scores, key=lambda score: score[:2])
    return best, accuracy


def _batches(rows: Rows, iterations: int, seed: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """As many batches as there are iterations, epoch after epoch; what a block leaves over is passed over.

    A block goes to the device whole, where batches are taken from it: one transfer in place of eight.
    """
    import torch

    generator, done = np.random.default_rng(seed), 0
    while True:
        for block in rows.blocks(generator.permutation(rows.count)):
            x, labels = (torch.from_numpy(part).to(device) for part in block)
            shuffled = torch.from_numpy(generator.permutation(len(x))).to(device)
            for start in range(0, len(x) - BATCH + 1, BATCH):
                if done == iterations:
                    return
                done += 1
                here = shuffled[start : start + BATCH]
                yield x[here], labels[here]


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
    deviation[deviation < 1e-6 * mean.abs()] = 0  # what rounding leaves of a constant
    deviation[deviation == 0] = 1
    return mean.float(), deviation.float()
