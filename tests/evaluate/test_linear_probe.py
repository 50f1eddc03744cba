from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from igpt.errors import UsageError
from igpt.evaluate.linear_probe import choose_strength, depth_series, fit_classifier, probe_layers, vote


def blobs(images: int, *, seed: int, spread: float = 1.0, classes: int = 3, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features around one centre a class; the centres are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, width)) * 2
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    return (centres[labels] + spread * generator.normal(size=(images, width))).astype(np.float32), labels


def test_the_classifier_minimises_the_stated_objective() -> None:
    x, y = blobs(60, seed=0, spread=2)
    strength = 0.5
    classifier, converged = fit_classifier(x, y, strength=strength)
    assert converged
    z = (x.astype(np.float64) - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)

    def objective(flat: np.ndarray) -> float:
        w, b = flat[:12].reshape(3, 4), flat[12:]
        logits = z @ w.T + b
        return float(strength * (logsumexp(logits, 1) - logits[np.arange(60), y]).sum() + 0.5 * (w**2).sum())

    best = minimize(objective, np.zeros(15), method="BFGS").fun
    found = classifier[-1]
    assert objective(np.concatenate([found.coef_.ravel(), found.intercept_])) == pytest.approx(best, rel=1e-4)


def test_scaling_a_feature_changes_nothing() -> None:
    x, y = blobs(60, seed=0, spread=2)
    scaled = x * np.array([1000, 1, 0.001, 1], np.float32) + 5
    predictions = [fit_classifier(f, y, strength=1.0)[0].predict(f) for f in (x, scaled)]
    np.testing.assert_array_equal(*predictions)


def test_the_strength_is_the_best_on_validation_and_the_smaller_of_equals() -> None:
    train, validation = blobs(60, seed=0), blobs(60, seed=1)
    strength, accuracy = choose_strength((train[0], validation[0]), (train[1], validation[1]), strengths=(10.0, 0.1, 1.0))
    scores = {s: (fit_classifier(*train, strength=s)[0].predict(validation[0]) == validation[1]).mean() for s in (0.1, 1.0, 10.0)}
    assert accuracy == max(scores.values())
    assert strength == min(s for s, score in scores.items() if score == accuracy)


def layered(images: int, *, seed: int, spreads: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    parts = [blobs(images, seed=seed, spread=spread) for spread in spreads]
    return np.stack([x for x, _ in parts]), parts[0][1]


def test_the_layer_is_chosen_on_validation_and_the_first_of_equals() -> None:
    spreads = (5.0, 0.01, 0.01, 3.0)
    train, y = layered(90, seed=0, spreads=spreads)
    validation, vy = layered(60, seed=1, spreads=spreads)
    test, ty = layered(60, seed=2, spreads=spreads)
    result = probe_layers((train, validation, [test]), (y, vy), strengths=(1.0,))
    assert result.chosen == 1
    assert [layer.layer for layer in result.layers] == [0, 1, 2, 3]
    rows = depth_series(result, ty)
    assert [row["chosen"] for row in rows] == [False, True, False, False]
    assert rows[1]["accuracy"] == 1.0
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)


def test_the_classifier_is_refitted_on_train_and_validation() -> None:
    train, validation, test = (blobs(n, seed=s, spread=2) for s, n in ((0, 30), (1, 300), (2, 300)))
    result = probe_layers((train[0][None], validation[0][None], [test[0][None]]), (train[1], validation[1]), strengths=(1.0,))
    both = np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
    expected = fit_classifier(*both, strength=1.0)[0].predict(test[0])
    np.testing.assert_array_equal(result.best.predictions[0], expected)
    assert (expected != fit_classifier(*train, strength=1.0)[0].predict(test[0])).any()


def test_predictions_of_test_decide_nothing() -> None:
    train, validation, test = (blobs(60, seed=s, spread=2) for s in range(3))
    labels = (train[1], validation[1])
    real, noise = test[0], np.random.default_rng(0).normal(size=test[0].shape).astype(np.float32)
    first, second = (probe_layers((train[0][None], validation[0][None], [t[None]]), labels) for t in (real, noise))
    assert (first.chosen, first.best.strength) == (second.chosen, second.best.strength)


def test_features_that_are_not_finite_are_refused() -> None:
    x, y = blobs(30, seed=0)
    x[3, 1] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        fit_classifier(x, y, strength=1.0)


def test_a_probe_that_did_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.evaluate.linear_probe.ITERATIONS", 1)
    assert not fit_classifier(*blobs(60, seed=0, spread=2), strength=10.0)[1]


def test_the_majority_wins_a_vote_and_ties_fall_both_ways() -> None:
    clear = np.array([[1, 2], [1, 2], [0, 2]])
    assert vote(clear, seed=0).tolist() == [1, 2]
    tied = np.tile(np.array([[0], [7]]), (1, 400))
    winners = vote(tied, seed=0)
    assert set(winners.tolist()) == {0, 7}
    assert 140 < (winners == 7).sum() < 260  # 200 expected, six sigma
    np.testing.assert_array_equal(winners, vote(tied, seed=0))


def test_the_order_of_images_is_irrelevant() -> None:
    x, y = blobs(60, seed=0, spread=2)
    order = np.random.default_rng(0).permutation(60)
    one, other = fit_classifier(x, y, strength=1.0)[0], fit_classifier(x[order], y[order], strength=1.0)[0]
    np.testing.assert_allclose(one[-1].coef_, other[-1].coef_, atol=1e-3)
