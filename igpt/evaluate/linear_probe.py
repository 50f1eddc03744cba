"""Linear probe (sections 2.4 and 4.1): logistic regression on frozen features by L-BFGS (`igpt.evaluate.logistic`).

Trained: one multinomial logistic regression a layer, on standardised features of the training split.
Chosen on validation: for each layer the strength C from `STRENGTHS`, then the layer.
Refitted: every layer with its C on train and validation together.
Reported: the test accuracy of the chosen layer; the curve over layers comes from the same single look
at the test split, after every choice is made.

The paper says L-BFGS and the best layer; grid, standardisation, tolerance and the split the layer was
chosen on are unpublished and listed under deviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from igpt.errors import UsageError
from igpt.evaluate.logistic import Classifier, Features, Labels, fit_paths
from igpt.measure import accuracy

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # scikit-learn's C, the inverse of the L2 penalty's weight


@dataclass(frozen=True)
class LayerProbe:
    """What one layer's probe came to. ``predictions`` int64 (views, test images), accuracy as fractions."""

    layer: int
    strength: float
    validation: float
    predictions: Labels
    converged: bool


@dataclass(frozen=True)
class ProbeResult:
    """The probes of all layers, and the one that validation chose."""

    layers: list[LayerProbe]
    chosen: int

    @property
    def best(self) -> LayerProbe:
        """The chosen layer's probe."""
        return self.layers[self.chosen]


def probe_layers(
    features: tuple[Features, Features, Sequence[Features]],
    labels: tuple[Labels, Labels],
    *,
    strengths: Sequence[float] = STRENGTHS,
    device: str = "cpu",
) -> ProbeResult:
    """Probe every layer by the protocol above.

    features : train, validation and the views of test, each float32 (layers, images, width); test has one
    view, or one for each mask of BERT
    device : where every product is computed, as many layers side by side as its memory holds
    labels : train and validation, int64 (images,). The test labels are not needed to choose or to fit.
    Raises UsageError where the validation images are the test's, or have classes that train lacks.
    """
    train, validation, views = features
    check_classes(*labels)
    if _shared(validation[0], views[0][0]) > 0.5:  # a few double images are in many data sets
        raise UsageError("the images to choose by are those of the test: take the held-out part of train, and leave test alone")
    depth = range(len(train))
    search = fit_paths(((train[layer], labels[0], strengths) for layer in depth), device=device)
    found = [choose(path, validation[layer], labels[1]) for layer, path in enumerate(search)]
    all_labels = np.concatenate(labels)
    again = ((np.concatenate([train[layer], validation[layer]]), all_labels, [found[layer][0]]) for layer in depth)
    layers = []
    for layer, [refitted] in enumerate(fit_paths(again, device=device)):
        predictions = np.stack([refitted.predict(view[layer]) for view in views])
        layers.append(LayerProbe(layer, *found[layer], predictions, refitted.converged))
    # The first of equals: the shallower layer.
    chosen = max(range(len(layers)), key=lambda layer: layers[layer].validation)
    return ProbeResult(layers, chosen)


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
                "strength": probe.strength,
                "converged": probe.converged,
                "chosen": probe.layer == result.chosen,
            }
        )
    return rows


def choose(path: Sequence[Classifier], features: Features, labels: Labels) -> tuple[float, float]:
    """The strength with the best validation accuracy, the smaller of equals, and that accuracy."""
    accuracies = [(float((c.predict(features) == labels).mean()), -c.strength) for c in path]
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
