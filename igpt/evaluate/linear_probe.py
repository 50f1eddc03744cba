"""Linear probe (sections 2.4 and 4.1): logistic regression on frozen features by L-BFGS (`igpt.evaluate.logistic`).

Trained: one multinomial logistic regression per layer, on standardised features of the training split.
Chosen on validation: for each layer C from `CS`, then the layer.
Refitted: every layer with its C on train and validation together.
Reported: the test accuracy of the chosen layer; the curve over layers comes from the same single evaluation on test, after
every choice is made.

The paper says L-BFGS and the best layer; grid, standardisation, tolerance and the split the layer was chosen on are
unpublished and listed under deviations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from igpt.errors import UsageError
from igpt.evaluate.kept import Kept
from igpt.evaluate.logistic import Classifier, Features, Labels, Task, fit_paths
from igpt.measure import accuracy

CS = (0.01, 0.1, 1.0, 10.0)  # scikit-learn's C, the inverse weight of the L2 penalty
Report = Callable[[int, int], None]  # fits done, fits in all; two per layer


@dataclass(frozen=True)
class LayerProbe:
    """The result of one layer: ``predictions`` int64 (views, test images), validation accuracy as a fraction."""

    layer: int
    C: float
    validation: float
    predictions: Labels
    converged: bool


@dataclass(frozen=True)
class ProbeResult:
    """The results of all probed layers, and the layer that validation chose."""

    layers: list[LayerProbe]
    chosen: int

    @property
    def best(self) -> LayerProbe:
        """The chosen layer's result."""
        return next(probe for probe in self.layers if probe.layer == self.chosen)

    def as_json(self) -> dict[str, Any]:
        """The result in JSON's types."""
        return {**asdict(self), "layers": [{**vars(p), "predictions": p.predictions.tolist()} for p in self.layers]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ProbeResult:
        """The result that `as_json` describes."""
        layers = [LayerProbe(**{**row, "predictions": np.array(row["predictions"], np.int64)}) for row in content["layers"]]
        return cls(layers, content["chosen"])


def probe_layers(
    features: tuple[Sequence[Features], Sequence[Features], Sequence[Sequence[Features]]],
    labels: tuple[Labels, Labels],
    *,
    layers: Sequence[int] | None = None,
    Cs: Sequence[float] = CS,
    device: str = "cpu",
    kept: Kept | None = None,
    report: Report = lambda done, total: None,
) -> ProbeResult:
    """Probe every layer by the protocol above.

    features : train, validation and the views of test, each float32 or float16 (layers, images, width); test has one view,
    or one for each mask of BERT
    labels : train and validation, int64 (images,); choices and fits need no test labels
    layers : the layers' numbers; counted from 0 when None
    device : solves as many layers side by side as its memory holds
    kept : saves each layer's result as soon as it is computed
    Raises UsageError when the validation images are the test's, or have classes that train lacks.
    """
    train, validation, views = features
    check_classes(*labels)
    if _shared(validation[0], views[0][0]) > 0.5:  # many data sets have a few duplicates
        raise UsageError("the images to choose by are those of the test: take the held-out part of train, and leave test alone")
    numbers = list(range(len(train)) if layers is None else layers)

    def solve(name: str, task: Callable[[int], Task], finish: Callable[[int, list[Classifier]], Any], before: int) -> list[Any]:
        """Solve each layer's task that is not saved yet, and ``finish`` it; the outcomes in the layers' order."""
        outcomes = [None if kept is None else kept.get(f"{name}-{number:03d}") for number in numbers]
        missing = [index for index, outcome in enumerate(outcomes) if outcome is None]
        done = before + len(numbers) - len(missing)
        for index, path in zip(missing, fit_paths(map(task, missing), device=device), strict=True):
            outcomes[index] = finish(index, path)
            if kept is not None:
                kept.keep(f"{name}-{numbers[index]:03d}", outcomes[index])
            done += 1
            report(done, 2 * len(numbers))
        return outcomes

    searched = solve(
        "search",
        lambda index: (train[index], labels[0], Cs),
        lambda index, path: list(choose(path, validation[index], labels[1])),
        0,
    )
    all_labels = np.concatenate(labels)
    refitted = solve(
        "refit",
        lambda index: (np.concatenate([train[index], validation[index]]), all_labels, [searched[index][0]]),
        lambda index, path: [[path[0].predict(view[index]).tolist() for view in views], path[0].converged],
        len(numbers),
    )
    probes = [
        LayerProbe(number, C, fraction, np.array(predictions, np.int64), converged)
        for number, (C, fraction), (predictions, converged) in zip(numbers, searched, refitted, strict=True)
    ]
    # The first of equals: the shallowest layer.
    return ProbeResult(probes, max(probes, key=lambda probe: probe.validation).layer)


def choose(path: Sequence[Classifier], features: Features, labels: Labels) -> tuple[float, float]:
    """The C with the best validation accuracy (the smallest in a tie), and that accuracy."""
    fraction, negative_C = max((float((c.predict(features) == labels).mean()), -c.C) for c in path)
    return -negative_C, fraction


def check_classes(train: Labels, validation: Labels) -> None:
    """Raise UsageError for validation labels of classes that no training image has."""
    if outside := sorted(set(np.unique(validation).tolist()) - set(np.unique(train).tolist())):
        raise UsageError(f"validation has labels {outside}, which no training image has: take both from one data set")


def _shared(some: Features, others: Features) -> float:
    """The fraction of ``some`` rows that are also in ``others``; 0 when most rows there are equal, as for constant features."""
    rows = {np.asarray(row).tobytes() for row in others}
    if len(rows) < len(others) / 2:
        return 0.0
    return float(np.mean([np.asarray(row).tobytes() in rows for row in some]))


def vote(predictions: Labels, *, seed: int) -> Labels:
    """The most frequent class of each image, int64 (images,), over (views, images); ties at random (section 4.6).

    >>> import numpy as np
    >>> vote(np.array([[3, 1], [3, 1], [5, 2]]), seed=0)
    array([3, 1])
    """
    generator = np.random.default_rng(seed)
    classes = np.unique(predictions)
    counts = np.stack([(predictions == label).sum(0) for label in classes], axis=1)  # (images, classes)
    winners: Labels = classes[(counts + generator.random(counts.shape)).argmax(1)]
    return winners


def depth_series(result: ProbeResult, test_labels: Labels) -> list[dict[str, float | int | bool]]:
    """Rows of a record's series, one per layer: test accuracy with its interval, and what was chosen."""
    rows: list[dict[str, float | int | bool]] = []
    for probe in result.layers:
        measured = accuracy(probe.predictions[0], test_labels)
        rows.append(
            {
                "layer": probe.layer,
                "accuracy": measured["value"],
                "low": measured["low"],
                "high": measured["high"],
                "validation": probe.validation,
                "strength": probe.C,
                "converged": probe.converged,
                "chosen": probe.layer == result.chosen,
            }
        )
    return rows


def chosen_layers(text: str, *, last: int) -> list[int]:
    """Parse layers, ascending: ``all``, or some of 0 .. last, as numbers and ranges.

    Raises UsageError for anything else.

    >>> chosen_layers("10-12, 20", last=24), chosen_layers("all", last=2)
    ([10, 11, 12, 20], [0, 1, 2])
    """
    if text.strip() == "all":
        return list(range(last + 1))
    layers: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", word, re.ASCII)
        first, end = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= end <= last:
            raise UsageError(f"layers are {text!r}, the model has layers 0 to {last}: say all, or some such as 0,4-{last}")
        layers.update(range(first, end + 1))
    return sorted(layers)
