"""Multinomial logistic regression, many problems side by side on a CPU or a GPU: layers, and the strengths of each.

The objective is scikit-learn's: C times the sum of the images' cross-entropies plus half the squared weights, the
intercept left free. (Of two classes both have weights here: C is what scikit-learn calls 2 C.) It is strictly convex but for
a constant added to all intercepts, so its optimum is one and does not depend on the solver. scikit-learn's L-BFGS needs more
iterations the larger C is, and its default tolerance stops before the optimum there; on features, whose variances span many
orders of magnitude, that costs accuracy. Here L-BFGS (`igpt.evaluate.lbfgs`) works in the coordinates in which the features'
covariance is diagonal, each scaled by its curvature.

All is in float64, on a card too: float32's rounding of the objective hides its last decreases, and with float64 a
card finds what a processor finds. An H100 computes products in float64 at its float32 rate; a consumer's card at 1/64 of it,
which is still several cores' worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from igpt.evaluate.lbfgs import Minima

ITERATIONS = 2000
TOLERANCE = 1e-11  # of the objective, as `igpt.evaluate.lbfgs.minimise` says; relative where it is above 1
CPU_BYTES = 2**30  # for problems side by side on a processor, where more of them at once gain nothing
LOGITS = 2**24  # computed at once
GPU_PART = 0.7  # of a card's free memory; the rest is for what the products and the sums take beside what is counted

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Task = tuple[Features, Labels, Sequence[float]]  # what `fit_path` takes


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fitted one: logits are ``(x - mean) / scale @ weights.T + intercept``, all float64 and where it was fitted."""

    mean: Tensor
    scale: Tensor
    weights: Tensor  # (classes, width), of the standardised features
    intercept: Tensor
    classes: Labels
    C: float
    objective: float  # mean cross-entropy plus the penalty over C and the images
    converged: bool
    iterations: int

    def predict(self, features: Features) -> Labels:
        """The likeliest class, int64 (images,), of features (images, width)."""
        import torch

        x = torch.from_numpy(features).to(self.mean.device).to(torch.float64, copy=True)
        logits = torch.addmm(self.intercept, x.sub_(self.mean).div_(self.scale), self.weights.T)
        predicted: Labels = self.classes[logits.argmax(1).cpu().numpy()]
        return predicted


def fit_path(
    features: Features, labels: Labels, *, Cs: Sequence[float], device: str = "cpu", standardise: bool = True
) -> list[Classifier]:
    """One classifier a strength, in their order.

    features : float32 (images, width); labels : int64 (images,); strengths : scikit-learn's C
    standardise : each feature to mean 0 and variance 1 first, which decides what the penalty weighs
    Raises UsageError for features that are not finite, other numbers of them and of labels, a single class, a strength
    that is not above 0 and finite, and where the device's memory does not hold them.
    """
    return next(fit_paths([(features, labels, Cs)], device=device, standardise=standardise))


def fit_paths(tasks: Iterable[Task], *, device: str = "cpu", standardise: bool = True) -> Iterator[list[Classifier]]:
    """`fit_path` of each task, in their order; tasks are taken, and solved side by side, as many at once as memory holds."""
    group: list[_Prepared] = []
    room = 0.0
    for task in tasks:
        features, labels, Cs = task
        classes = np.unique(labels)
        if len(labels) != len(features) or len(classes) < 2:
            count = f"{len(labels)} labels of {len(classes)} classes"
            raise UsageError(f"{len(features)} images have {count}: give one label an image, of two classes or more")
        if not all(0 < C < np.inf for C in Cs):
            raise UsageError(f"C is {', '.join(map(str, Cs))}: give numbers above 0")
        images, width = features.shape
        stays, passing = problem_bytes(images, width, len(classes), len(Cs))
        if group and ((len(group) + 1) * stays + passing > room or not group[0].is_like(features, classes)):
            paths, group = _solve(group), []
            yield from paths
        if not group:
            room = _room(device)
            if device != "cpu" and stays + passing > room:
                need, has = ((stays + passing) / 2**30, room / 2**30)
                raise UsageError(
                    f"a probe of {images:,} images with {width:,} features takes {need:.1f} GiB of the card, which has"
                    f" {has:.1f} to give: end what else runs there, or probe fewer images"
                )
        group.append(_Prepared.of(task, classes, device=device, standardise=standardise))
    if group:
        yield from _solve(group)


def _room(device: str) -> float:
    """Bytes that problems side by side may take."""
    import torch

    if device == "cpu":
        return CPU_BYTES
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, from what is over already
    return GPU_PART * (torch.cuda.mem_get_info(device)[0] + kept)


def problem_bytes(images: int, width: int, classes: int, Cs: int) -> tuple[int, int]:
    """What a task takes of its device while it is solved, and what one of several takes at a time."""
    from igpt.evaluate.lbfgs import MEMORY

    inner, outputs = min(images, width), Cs * classes
    # The features and their axes; by unknown what L-BFGS keeps, twice when problems leave, and a dozen vectors of its own.
    stays = images * inner + 2 * width * inner + outputs * (inner + 1) * (4 * MEMORY + 12)
    # Before: the features once more as they came and once more turned; then the logits.
    return 8 * stays, 8 * 2 * (images * width + max(LOGITS, outputs))


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A task on its device, in the coordinates that L-BFGS takes: along the features' principal axes."""

    x: Tensor  # float64 (N, axes); as many axes as features, or as images where these are fewer
    moments: Tensor  # float64 (classes, axes + 1): the mean over all images of each class's features, and its share of images
    variances: Tensor  # float64 (axes,)
    axes: Tensor  # float64 (width, axes)
    mean: Tensor
    scale: Tensor
    classes: Labels
    Cs: Sequence[float]

    @classmethod
    def of(cls, task: Task, classes: Labels, *, device: str, standardise: bool) -> _Prepared:
        """The task's features centred, scaled and turned. Raises UsageError for some that are not finite."""
        import torch

        features, labels, Cs = task
        x = torch.from_numpy(features).to(device).to(torch.float64, copy=True)
        if not x.isfinite().all():
            raise UsageError("the features hold values that are not finite: the weights have diverged, train them again")
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale[scale <= 1e-9 * mean.abs()] = 1  # a constant feature says nothing, but for what rounding makes of it
        if not standardise:
            scale = torch.ones_like(scale)
        x.sub_(mean).div_(scale)  # a shift alone changes nothing: the intercept is free
        basis = None
        if len(x) < x.shape[1]:  # the optimum is a sum of the images, so that it lies in their span
            basis = torch.linalg.qr(x.T)[0]
            x = x @ basis
        variances, axes = torch.linalg.eigh(x.T @ x / len(x))
        x = x @ axes
        places = torch.from_numpy(np.searchsorted(classes, labels)).to(device)
        moments = x.new_zeros(len(classes), x.shape[1] + 1)
        part = max(LOGITS // len(classes), 1)  # images at once: of many classes their shares take more than the features
        for some, of in zip(x.split(part), places.split(part), strict=True):
            shares = torch.nn.functional.one_hot(of, len(classes)).T.to(x.dtype) / len(x)  # (classes, n)
            moments += torch.cat([shares @ some, shares.sum(1, keepdim=True)], dim=1)
        axes = axes if basis is None else basis @ axes
        return cls(x, moments, variances.clamp(min=0), axes, mean, scale, classes, Cs)

    def is_like(self, features: Features, classes: Labels) -> bool:
        """Whether a task of these has as many unknowns a strength, so that the two can be solved side by side."""
        return min(features.shape) == self.x.shape[1] and len(classes) == len(self.classes)

    def penalties(self) -> Tensor:
        """Of half the squared weights, beside the mean cross-entropy: (strengths,)."""
        import torch

        return 1 / (torch.tensor(self.Cs, dtype=self.x.dtype, device=self.x.device) * len(self.x))

    def units(self) -> Tensor:
        """What one unknown of L-BFGS is in weights along the axes, (strengths, 1, axes + 1) with the intercept last.

        From half of what a class's curvature is where all are as likely, so that L-BFGS starts near the identity; this
        sets the speed, not where it ends.
        """
        import torch

        half = 1 / (2 * len(self.classes))
        penalties = self.penalties()[:, None]
        curvature = torch.cat([half * self.variances + penalties, half * torch.ones_like(penalties)], dim=1)
        return curvature.rsqrt()[:, None]

    def value(self, given: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
        """Objectives (k,) over C and the images, and gradients, of weights (k, classes, axes + 1) with the intercept last."""
        import torch

        weights, intercept = given[..., :-1], given[..., -1]
        # What the labels choose of the logits is linear in the weights, so the moments know its mean.
        entropy, gradient = -(given * self.moments).sum((1, 2)), -self.moments.repeat(len(given), 1, 1)
        for x in self.x.split(max(LOGITS // intercept.numel(), 1)):
            logits = torch.addmm(intercept.reshape(-1, 1), weights.flatten(0, 1), x.T)
            logits = logits.view(*intercept.shape, -1)  # (k, classes, n): sums over classes run along the images, which is fast
            top = logits.amax(1, keepdim=True)
            total = logits.sub_(top).exp_().sum(1, keepdim=True)
            entropy += (total.log() + top).sum((1, 2)) / len(self.x)
            likely = logits.div_(total)
            gradient[..., :-1] += (likely.flatten(0, 1) @ x).view(weights.shape) / len(self.x)
            gradient[..., -1] += likely.sum(2) / len(self.x)
        gradient[..., :-1] += penalties[:, None, None] * weights
        return entropy + penalties / 2 * weights.square().sum((1, 2)), gradient

    def classifiers(self, given: Tensor, minima: Minima) -> list[Classifier]:
        """One a strength, of weights (strengths, classes, axes + 1) along the axes."""
        told = zip(minima.values.tolist(), minima.converged.tolist(), minima.iterations.tolist(), strict=True)
        return [
            Classifier(self.mean, self.scale, w[:, :-1] @ self.axes.T, w[:, -1], self.classes, C, *outcome)
            for C, w, outcome in zip(self.Cs, given, told, strict=True)
        ]


def _solve(group: Sequence[_Prepared]) -> list[list[Classifier]]:
    """The optima of all strengths of a group, side by side: L-BFGS steps in one batch, products layer by layer."""
    import torch

    from igpt.evaluate.lbfgs import Minima, minimise

    owners = [place for place, task in enumerate(group) for _ in task.Cs]
    units, penalties = torch.cat([task.units() for task in group]), torch.cat([task.penalties() for task in group])
    shape = (len(owners), *group[0].moments.shape)

    def objective(points: Tensor, live: list[int]) -> tuple[Tensor, Tensor]:
        unit, penalty = units[live], penalties[live]
        given = points.view(-1, *shape[1:]) * unit
        values, gradients = torch.empty_like(penalty), torch.empty_like(given)
        for owner, places in groupby(range(len(live)), key=lambda place: owners[live[place]]):
            first, *others = places
            here = slice(first, first + len(others) + 1)
            values[here], gradients[here] = group[owner].value(given[here], penalty[here])
        return values, (gradients * unit).flatten(1)

    start = torch.zeros(shape, dtype=units.dtype, device=units.device).flatten(1)
    found = minimise(objective, start, tolerance=TOLERANCE, iterations=ITERATIONS)
    weights = found.points.view(shape) * units
    paths, done = [], 0
    for task in group:
        here = slice(done, done := done + len(task.Cs))
        part = Minima(*(t[here] for t in vars(found).values()))
        paths.append(task.classifiers(weights[here], part))
    return paths
