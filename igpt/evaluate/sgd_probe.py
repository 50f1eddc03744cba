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

Report = Callable[[int, int], None]  # iterations done, iterations in all; what it raises ends the work, which a checkpoint keeps


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

    def blocks(self, order: Iterable[int] | None = None) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Features float32 (1,024 or more, width) with labels, block by block, in the given order of blocks."""
        for block in range(self.count) if order is None else order:
            here = self.span(block)
            rows = [layer[self.places[here]].astype(np.float32) for layer in self.layers]
            yield np.concatenate(rows, axis=1), self.labels[here]

    def span(self, block: int) -> slice:
        """Which of the rows are in a block."""
        return slice(block * BLOCK, (block + 1) * BLOCK if block < self.count - 1 else len(self))


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
    checkpoint: Path | None = None,
    report: Report = lambda done, total: None,
) -> list[SgdClassifier]:
    """One classifier a rate, all trained in the same pass on the same batches.

    Blocks of rows come in a new random order in each epoch, and rows in a random order within a block.

    checkpoint : a file that keeps the state every `MINUTES`, when ``report`` raises, and at the end. The same call goes on
    from it, and ends, on a processor, with the same numbers to the bit; one of another call is written over.
    Raises UsageError for labels outside 0 .. classes - 1, and for features that are not finite.
    """
    import torch

    if len(rows) < BATCH or not 0 <= rows.labels.min() <= rows.labels.max() < classes:
        raise UsageError(
            f"a probe wants at least {BATCH} images with labels from 0 to {classes - 1}, not {len(rows)} with labels from"
            f" {rows.labels.min(initial=0)} to {rows.labels.max(initial=0)}"
        )
    many = len(rates)
    content = hashlib.sha256(rows.places.tobytes() + rows.labels.tobytes()).hexdigest()
    call = f"{content} {rows.width} features, {classes} classes, rates {list(rates)}, {iterations} iterations, seed {seed}"
    step, state = _begun(checkpoint, call, device)
    if not state:
        mean, scale = _moments(rows, device)
        # Row r * classes + k is class k of rate r, so that all rates are one product.
        weights, intercept = torch.zeros(many * classes, rows.width, device=device), torch.zeros(many * classes, device=device)
        state = {"mean": mean, "scale": scale, "weights": weights, "intercept": intercept}
        state |= {"speed": torch.zeros_like(weights), "intercept_speed": torch.zeros_like(intercept)}
    mean, scale, weights, intercept = (state[name] for name in ("mean", "scale", "weights", "intercept"))
    speed, intercept_speed = state["speed"], state["intercept_speed"]
    each = torch.tensor(rates, device=device).repeat_interleave(classes)
    saved = time.monotonic()
    for x, labels in _batches(rows, iterations, seed, device, skip=step):
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
        step += 1
        if time.monotonic() - saved > 60 * MINUTES or step == iterations:
            _keep(checkpoint, call, step, state)
            saved = time.monotonic()
        try:
            report(step, iterations)
        except BaseException:
            _keep(checkpoint, call, step, state)
            raise
    parts = zip(rates, weights.view(many, classes, -1), intercept.view(many, classes), strict=True)
    return [SgdClassifier(rate, mean, scale, w, b) for rate, w, b in parts]


def _keep(checkpoint: Path | None, call: str, step: int, state: dict[str, Tensor]) -> None:
    """Write the state after ``step`` iterations, whole or not at all."""
    from igpt.weights.own import save_tensors

    if checkpoint is not None:
        save_tensors(checkpoint, {name: tensor.cpu() for name, tensor in state.items()}, {"call": call, "step": str(step)})


def _begun(checkpoint: Path | None, call: str, device: str) -> tuple[int, dict[str, Tensor]]:
    """Iterations done and the state after them, of a call that was made before; none where there is no such checkpoint."""
    from igpt.weights.own import load_tensors

    if checkpoint is None or not checkpoint.exists():
        return 0, {}
    try:
        tensors, said = load_tensors(checkpoint)
        if said["call"] != call:
            return 0, {}
        return int(said["step"]), {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
    except (UsageError, KeyError, ValueError) as error:
        warnings.warn(f"{checkpoint} is damaged ({error}): the probe begins again", stacklevel=3)
        return 0, {}


def choose_rate(found: Sequence[SgdClassifier], validation: Rows) -> tuple[SgdClassifier, float]:
    """The classifier with the best validation accuracy, of the smaller rate of equals, and that accuracy."""
    scores = [(float((c.predict(validation) == validation.labels).mean()), -c.rate, c) for c in found]
    accuracy, _, best = max(scores, key=lambda score: score[:2])
    return best, accuracy


def _batches(rows: Rows, iterations: int, seed: int, device: str, *, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
    """As many batches as there are iterations, less the first ``skip``; what a block leaves over is passed over.

    A block goes to the device whole, where batches are taken from it: one transfer in place of eight.
    """
    import torch

    generator, done = np.random.default_rng(seed), 0
    while done < iterations:
        for block in generator.permutation(rows.count):
            here = rows.span(block)
            shuffled, count = generator.permutation(here.stop - here.start), (here.stop - here.start) // BATCH
            if done + count <= skip:  # drawn, so that the others are as they were, and not read
                done += count
                continue
            [(x, labels)] = ((torch.from_numpy(part).to(device) for part in read) for read in rows.blocks([block]))
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
    deviation[deviation < 1e-6 * mean.abs()] = 0  # what rounding leaves of a constant
    deviation[deviation == 0] = 1
    return mean.float(), deviation.float()
