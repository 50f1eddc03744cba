from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from igpt.errors import UsageError
from igpt.evaluate.kept import Kept
from igpt.evaluate.linear_probe import ProbeResult, choose, chosen_layers, depth_series, probe_layers, vote
from igpt.evaluate.logistic import fit_path


def blobs(images: int, *, seed: int, spread: float = 1.0, classes: int = 3, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features around one centre a class; the centres are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, width)) * 2
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    return (centres[labels] + spread * generator.normal(size=(images, width))).astype(np.float32), labels


def test_the_strength_is_the_best_on_validation_and_the_smaller_of_equals() -> None:
    train, validation = blobs(60, seed=0), blobs(60, seed=1)
    path = fit_path(*train, Cs=(10.0, 0.1, 1.0))
    best, accuracy = choose(path, *validation)
    scores = {c.C: (c.predict(validation[0]) == validation[1]).mean() for c in path}
    assert accuracy == max(scores.values())
    assert best == min(s for s, score in scores.items() if score == accuracy)


def layered(images: int, *, seed: int, spreads: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    parts = [blobs(images, seed=seed, spread=spread) for spread in spreads]
    return np.stack([x for x, _ in parts]), parts[0][1]


def test_the_layer_is_chosen_on_validation_and_the_first_of_equals() -> None:
    spreads = (5.0, 0.01, 0.01, 3.0)
    train, y = layered(90, seed=0, spreads=spreads)
    validation, vy = layered(60, seed=1, spreads=spreads)
    test, ty = layered(60, seed=2, spreads=spreads)
    result = probe_layers((train, validation, [test]), (y, vy), Cs=(1.0,))
    assert result.chosen == 1
    assert [layer.layer for layer in result.layers] == [0, 1, 2, 3]
    rows = depth_series(result, ty)
    assert [row["chosen"] for row in rows] == [False, True, False, False]
    assert rows[1]["accuracy"] == 1.0
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)


def test_the_classifier_is_refitted_on_train_and_validation() -> None:
    train, validation, test = (blobs(n, seed=s, spread=2) for s, n in ((0, 30), (1, 300), (2, 300)))
    result = probe_layers((train[0][None], validation[0][None], [test[0][None]]), (train[1], validation[1]), Cs=(1.0,))
    both = np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
    expected = fit_path(*both, Cs=[1.0])[0].predict(test[0])
    np.testing.assert_array_equal(result.best.predictions[0], expected)
    assert (expected != fit_path(*train, Cs=[1.0])[0].predict(test[0])).any()


def test_predictions_of_test_decide_nothing() -> None:
    train, validation, test = (blobs(60, seed=s, spread=2) for s in range(3))
    labels = (train[1], validation[1])
    real, noise = test[0], np.random.default_rng(0).normal(size=test[0].shape).astype(np.float32)
    first, second = (probe_layers((train[0][None], validation[0][None], [t[None]]), labels) for t in (real, noise))
    assert (first.chosen, first.best.C) == (second.chosen, second.best.C)


def test_the_majority_wins_a_vote_and_ties_fall_both_ways() -> None:
    clear = np.array([[1, 2], [1, 2], [0, 2]])
    assert vote(clear, seed=0).tolist() == [1, 2]
    tied = np.tile(np.array([[0], [7]]), (1, 400))
    winners = vote(tied, seed=0)
    assert set(winners.tolist()) == {0, 7}
    assert 140 < (winners == 7).sum() < 260  # 200 expected, six sigma
    np.testing.assert_array_equal(winners, vote(tied, seed=0))


def test_a_test_split_offered_for_selection_and_labels_of_no_class_are_refused() -> None:
    generator = np.random.default_rng(0)
    train, held_out, test = (generator.normal(size=(2, n, 4)).astype(np.float32) for n in (30, 10, 12))
    labels = (np.arange(30) % 3, np.arange(10) % 3)
    probe_layers((train, held_out, [test]), labels)
    with pytest.raises(UsageError, match="the images to choose by are those of the test"):
        probe_layers((train, test, [test]), (labels[0], np.arange(12) % 3))
    with pytest.raises(UsageError, match=r"validation has labels \[7\], which no training image has"):
        probe_layers((train, held_out, [test]), (labels[0], np.full(10, 7)))


def test_layers_have_their_own_numbers_and_survive_being_written_down() -> None:
    train, y = layered(90, seed=0, spreads=(0.01, 3.0))
    validation, vy = layered(60, seed=1, spreads=(0.01, 3.0))
    result = probe_layers((train, validation, [validation[:, :1]]), (y, vy), layers=[7, 12], Cs=(1.0,))
    assert ([layer.layer for layer in result.layers], result.chosen, result.best.layer) == ([7, 12], 7, 7)
    again = ProbeResult.from_json(json.loads(json.dumps(result.as_json())))
    assert again.as_json() == result.as_json()
    assert again.best.predictions.dtype == np.int64 and again.best.predictions.shape == (1, 1)


def test_a_probe_that_is_stopped_solves_no_layer_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spreads = (3.0, 1.0, 2.0)
    train, y = layered(90, seed=0, spreads=spreads)
    validation, vy = layered(60, seed=1, spreads=spreads)
    test, _ = layered(60, seed=2, spreads=spreads)
    given, labels = (train, validation, [test]), (y, vy)
    monkeypatch.setattr("igpt.evaluate.logistic.CPU_BYTES", 0)  # one layer at a time

    class Enough(Exception):
        pass

    def stop_after(fits: int) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            reported.append(done)
            if len(reported) == fits:
                raise Enough

        return report

    reported: list[int] = []
    for _ in range(3):  # two fits each time
        before = len(reported)
        with suppress(Enough):
            probe_layers(given, labels, kept=Kept(tmp_path, {}), report=stop_after(before + 2))
    assert reported == [1, 2, 3, 4, 5, 6]
    again = probe_layers(given, labels, kept=Kept(tmp_path, {}), report=stop_after(0))
    assert len(reported) == 6
    assert again.as_json() == probe_layers(given, labels).as_json()


@pytest.mark.parametrize("text", ["", "all,3", "3-", "-3", "5-4", "3-25", "25", "1;2", "1.5", "²", "1,,2", "3-4-5", "first"])
def test_layers_that_are_none_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="the model has layers 0 to 24: say all, or some such as 0,4-24") as caught:
        chosen_layers(text, last=24)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("name", ["linear_probe", "sgd_probe", "fine_tune", "low_data"])
def test_every_protocol_says_what_is_trained_what_is_chosen_and_what_is_reported(name: str) -> None:
    text = import_module(f"igpt.evaluate.{name}").__doc__ or ""
    assert [word for word in ("Trained:", "Chosen", "Reported:", "section") if word not in text] == []
