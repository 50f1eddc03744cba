from __future__ import annotations

import numpy as np
import pytest

from igpt.data import low_data_subset
from igpt.evaluate.logistic import fit_path
from igpt.evaluate.low_data import DRAWS, FIXED_C, draw_values, label_counts, probe_few_labels


def test_each_draw_is_a_probe_on_its_own_subset() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    centres = generator.normal(size=(3, 4))
    train, test = ((centres[labels] + generator.normal(size=(120, 4))).astype(np.float32) for _ in range(2))
    rows = probe_few_labels(train, labels, test, labels, per_class=4, Cs=(0.1, FIXED_C))
    assert [(row["draw"], row["strength"]) for row in rows] == [(draw, s) for draw in range(DRAWS) for s in (0.1, FIXED_C)]
    assert {(row["labels"], row["converged"]) for row in rows} == {(12, True)}
    for row in rows:
        chosen = low_data_subset(labels, per_class=4, draw=int(row["draw"]))
        expected = fit_path(train[chosen], labels[chosen], Cs=[float(row["strength"])])[0].predict(test)
        assert row["accuracy"] == (expected == labels).mean()
    assert len({row["accuracy"] for row in rows}) > 1


@pytest.mark.gpu
def test_a_card_finds_a_processors_accuracies() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    x = (generator.normal(size=(3, 4))[labels] + generator.normal(size=(120, 4))).astype(np.float32)
    card, processor = (probe_few_labels(x, labels, x, labels, per_class=4, device=device) for device in ("cuda", "cpu"))
    assert [row["accuracy"] for row in card] == pytest.approx([row["accuracy"] for row in processor], abs=1 / 120)


def test_values_are_mean_and_sample_deviation_at_the_declared_strength() -> None:
    rows = [
        {"input": kind, "labels": 40, "strength": C, "draw": draw, "accuracy": base + 0.1 * draw}
        for kind, base in (("features", 0.5), ("pixels", 0.2))
        for C, base in ((FIXED_C, base), (9.0, 0.0))
        for draw in range(3)
    ]
    values = {name: value["value"] for name, value in draw_values(rows).items()}
    assert values == pytest.approx({"accuracy_40": 0.6, "deviation_40": 0.1, "pixels_40": 0.3, "pixels_deviation_40": 0.1})


def test_only_label_counts_that_every_class_can_fill_are_probed() -> None:
    assert label_counts(np.repeat(np.arange(10), 129)) == [4, 25]
    assert label_counts(np.repeat(np.arange(10), 5000)) == [4, 25, 400]
