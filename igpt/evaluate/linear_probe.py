"""Linear probe (sections 2.4 and 4.1): logistic regression on frozen features by L-BFGS (`igpt.evaluate.logistic`).

Trained: one multinomial logistic regression a layer, on standardised features of the training split.
Chosen on validation: for each layer the strength C from `CS`, then the layer.
Refitted: every layer with its C on train and validation together.
Reported: the test accuracy of the chosen layer; the curve over layers comes from the same single look
at the test split, after every choice is made.

The paper says L-BFGS and the best layer; grid, standardisation, tolerance and the split the layer was
chosen on are unpublished and listed under deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from igpt.errors import UsageError
from igpt.evaluate.kept import Kept
from igpt.evaluate.logistic import Classifier, Features, Labels, Task, fit_paths
from igpt.measure import accuracy

CS = (0.01, 0.1, 1.0, 10.0)  # scikit-learn's C, the inverse of the L2 penalty's weight
Report = Callable[[int, int], None]  # fits done, fits in all; two a layer


@dataclass(frozen=True)
class LayerProbe:
    """What one layer's probe came to. ``predictions`` int64 (views, test images), accuracy as fractions."""

    layer: int
    C: float
    validation: float
    predictions: Labels
    converged: bool


@dataclass(frozen=True)
class ProbeResult:
    """The probes of all layers that were looked at, and the layer that validation chose."""

    layers: list[LayerProbe]
    chosen: int

    @property
    def best(self) -> LayerProbe:
        """The chosen layer's probe."""
        return next(probe for probe in self.layers if probe.layer == self.chosen)

    def as_json(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {**asdict(self), "layers": [{**vars(p), "predictions": p.predictions.tolist()} for p in self.layers]}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> ProbeResult:
        """What `as_json` gave."""
        layers = [LayerProbe(**{**row, "predictions": np.array(row["predictions"], np.int64)}) for row in found["layers"]]
        return cls(layers, found["chosen"])


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

    features : train, validation and the views of test, each float32 or float16 (layers, images, width); test has one
    view, or one for each mask of BERT
    labels : train and validation, int64 (images,). The test labels are not needed to choose or to fit.
    layers : the layers' numbers, from 0 on when left out
    device : where every product is computed, as many layers side by side as its memory holds
    kept : where each layer's outcome is kept as soon as it is solved, and not solved again
    Raises UsageError where the validation images are the test's, or have classes that train lacks.
    """
    train, validation, views = features
    check_classes(*labels)
    if _shared(validation[0], views[0][0]) > 0.5:  # a few double images are in many data sets
        raise UsageError("the images to choose by are those of the test: take the held-out part of train, and leave test alone")
    numbers = list(range(len(train)) if layers is None else layers)

    def each(name: str, task: Callable[[int], Task], finish: Callable[[int, list[Classifier]], Any], before: int) -> list[Any]:
        """What is made of each layer's solved task, in the layers' order."""
        found = [None if kept is None else kept.get(f"{name}-{number:03d}") for number in numbers]
        missing = [place for place, piece in enumerate(found) if piece is None]
        done = before + len(numbers) - len(missing)
        for place, path in zip(missing, fit_paths(map(task, missing), device=device), strict=True):
            found[place] = finish(place, path)
            if kept is not None:
                kept.keep(f"{name}-{numbers[place]:03d}", found[place])
            done += 1
            report(done, 2 * len(numbers))
        return found

    chosen = each(
        "search",
        lambda place: (train[place], labels[0], Cs),
        lambda place, path: list(choose(path, validation[place], labels[1])),
        0,
    )
    all_labels = np.concatenate(labels)
    refitted = each(
        "refit",
        lambda place: (np.concatenate([train[place], validation[place]]), all_labels, [chosen[place][0]]),
        lambda place, path: [[path[0].predict(view[place]).tolist() for view in views], path[0].converged],
        len(numbers),
    )
    probes = [
        LayerProbe(number, search[0], search[1], np.array(predictions, np.int64), converged)
        for number, search, (predictions, converged) in zip(numbers, chosen, refitted, strict=True)
    ]
    # The first of equals: the shallower layer.
    return ProbeResult(probes, max(probes, key=lambda probe: probe.validation).layer)


def chosen_layers(text: str, *, last: int) -> list[int]:
    """Layers as a person says them, ascending: ``all``, or some of 0 .. last, singly and in ranges.

    Raises UsageError for anything else.

    >>> chosen_layers("10-12, 20", last=24), chosen_layers("all", last=2)
    ([10, 11, 12, 20], [0, 1, 2])
    """
    if text.strip() == "all":
        return list(range(last + 1))
    found: set[int] = set()
    for word in text.split(","):
        first, dash, end = (part.strip() for part in word.partition("-"))
        numbers = (first, end if dash else first)
        if not all(number.isascii() and number.isdecimal() for number in numbers) or not int(first) <= int(numbers[1]) <= last:
            raise UsageError(f"layers are {text!r}, the model has layers 0 to {last}: say all, or some such as 0,4-{last}")
        found.update(range(int(first), int(numbers[1]) + 1))
    return sorted(found)


def check_classes(train: Labels, validation: Labels) -> None:
    """Raises UsageError for validation labels of classes that no training image has."""
    if outside := sorted(set(np.unique(validation).tolist()) - set(np.unique(train).tolist())):
        raise UsageError(f"validation has labels {outside}, which no training image has: take both from one data set")


def _shared(some: Features, others: Features) -> float:
    """The part of ``some`` rows that are among the ``others``; none where these hardly differ, and so tell nothing."""
    known = {np.asarray(row).tobytes() for row in others}
    if len(known) < len(others) / 2:
        return 0.0
    return float(np.mean([np.asarray(row).tobytes() in known for row in some]))


def depth_series(result: ProbeResult, test_labels: Labels) -> list[dict[str, float | int | bool]]:
    """One row a layer, as records keep it: test accuracy with its interval, and what was chosen."""
    rows: list[dict[str, float | int | bool]] = []
    for probe in result.layers:
        found = accuracy(probe.predictions[0], test_labels)
        rows.append(
            {
                "layer": probe.layer,
                "accuracy": found["value"],
                "low": found["low"],
                "high": found["high"],
                "validation": probe.validation,
                "strength": probe.C,
                "converged": probe.converged,
                "chosen": probe.layer == result.chosen,
            }
        )
    return rows


def choose(path: Sequence[Classifier], features: Features, labels: Labels) -> tuple[float, float]:
    """The strength with the best validation accuracy, the smaller of equals, and that accuracy."""
    accuracies = [(float((c.predict(features) == labels).mean()), -c.C) for c in path]
    accuracy, negative = max(accuracies)
    return -negative, accuracy


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
