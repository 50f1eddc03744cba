"""Low data (section 4.7): a linear probe on few labels, no augmentation, nothing semi-supervised after pre-training.

In the tiny tier the same training images are used for pre-training, without labels; in the paper they are not.

Trained: logistic regression on the frozen features of one layer, from `PER_CLASS` labels of each class.
Chosen: nothing here; the layer is the one chosen by the linear probe with all labels, and C is `FIXED_C` (the paper gives
neither; every C of the linear probe's grid is recorded too).
Reported: the test accuracy of each of `DRAWS` random subsets; tables show mean and sample deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from igpt.data import low_data_subset
from igpt.evaluate.logistic import Features, Labels, fit_paths
from igpt.measure import Measured, mean_interval, number, sample_deviation

DRAWS = 5
PER_CLASS = (4, 25, 400)  # 40, 250 and 4,000 labels of ten classes
FIXED_C = 1.0


def label_counts(labels: Labels) -> list[int]:
    """The entries of `PER_CLASS` for which int64 (images,) has enough labels of every class; on the digits not the last."""
    return [count for count in PER_CLASS if count <= np.unique(labels, return_counts=True)[1].min()]


def probe_few_labels(
    train: Features,
    labels: Labels,
    test: Features,
    test_labels: Labels,
    *,
    per_class: int,
    Cs: Sequence[float] = (FIXED_C,),
    device: str = "cpu",
) -> list[dict[str, float | int | str]]:
    """One row per draw of ``per_class`` labels of each class, and per C.

    train, test : float32 (images, width); labels, test_labels : int64 (images,)
    Columns: the number of labels, C as ``strength``, the draw, the test accuracy, and whether the solver converged.
    """
    draws = [low_data_subset(labels, per_class=per_class, draw=draw) for draw in range(DRAWS)]
    paths = fit_paths(((train[draw], labels[draw], Cs) for draw in draws), device=device)
    return [
        {
            "labels": len(draws[draw]),
            "strength": fitted.C,
            "draw": draw,
            "accuracy": float(np.mean(fitted.predict(test) == test_labels)),
            "converged": fitted.converged,
        }
        for draw, path in enumerate(paths)
        for fitted in path
    ]


def draw_values(rows: list[dict[str, float | int | str]]) -> dict[str, Measured]:
    """Mean with its interval, and sample deviation, over the draws at `FIXED_C`, per input and number of labels.

    rows : of `probe_few_labels`, with their ``input``
    Returns ``accuracy_40`` and ``deviation_40`` for the features, ``pixels_40`` and ``pixels_deviation_40`` for a baseline.
    """
    values: dict[str, Measured] = {}
    for kind, labels in dict.fromkeys((str(row["input"]), int(row["labels"])) for row in rows):
        accuracies = [float(r["accuracy"]) for r in rows if (r["input"], r["labels"], r["strength"]) == (kind, labels, FIXED_C)]
        mean, low, high = mean_interval(accuracies)
        name, deviation = ("accuracy", "deviation") if kind == "features" else (kind, f"{kind}_deviation")
        values[f"{name}_{labels}"] = {"value": mean, "unit": "fraction", "low": low, "high": high}
        values[f"{deviation}_{labels}"] = number(sample_deviation(accuracies), "fraction")
    return values
