"""Low data (section 4.7): a linear probe on few labels, no augmentation, nothing semi-supervised after pre-training.

In the tiny tier pre-training itself has seen the training images, without labels; the paper's has not.

Trained: logistic regression on the frozen features of one layer, from `per_class` labels a class.
Chosen: nothing here; the layer is the linear probe's, chosen with all labels, the strength is fixed in advance at `FIXED_C`
(the paper names neither; every strength of the probe's grid is recorded beside it).
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
    """Those of `PER_CLASS` that every class of int64 (images,) labels can fill; the digits cannot fill the last."""
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
    """One row a draw of ``per_class`` labels a class and strength, all solved side by side on the device.

    train, test : float32 (images, width); labels, test_labels : int64 (images,)
    Rows have the number of labels, the strength, the draw, the accuracy as a fraction of test, and whether the solver converged.
    """
    draws = [low_data_subset(labels, per_class=per_class, draw=draw) for draw in range(DRAWS)]
    rows: list[dict[str, float | int | str]] = []
    for draw, path in enumerate(fit_paths(((train[d], labels[d], Cs) for d in draws), device=device)):
        for found in path:
            right = float(np.mean(found.predict(test) == test_labels))
            row = {"labels": len(draws[draw]), "strength": found.C, "draw": draw, "accuracy": right}
            rows.append({**row, "converged": found.converged})
    return rows


def draw_values(rows: list[dict[str, float | int | str]]) -> dict[str, Measured]:
    """Mean, with its interval, and sample deviation over draws at `FIXED_C`, one of each an input and number of labels.

    rows : one a draw, with its input, labels, strength and accuracy
    Returns ``accuracy_40`` and ``deviation_40`` for the features, ``pixels_40`` ... for the baselines.
    """
    values: dict[str, Measured] = {}
    kinds = dict.fromkeys((str(row["input"]), int(row["labels"])) for row in rows)
    for kind, labels in kinds:
        found = [float(r["accuracy"]) for r in rows if (r["input"], r["labels"], r["strength"]) == (kind, labels, FIXED_C)]
        name = "accuracy" if kind == "features" else kind
        mean, low, high = mean_interval(found)
        values[f"{name}_{labels}"] = {"value": mean, "unit": "fraction", "low": low, "high": high}
        deviation = "deviation" if kind == "features" else f"{kind}_deviation"
        values[f"{deviation}_{labels}"] = number(sample_deviation(found), "fraction")
    return values
