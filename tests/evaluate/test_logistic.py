from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from igpt.errors import UsageError
from igpt.evaluate.logistic import Classifier, fit_path

STRENGTHS = (0.001, 0.1, 10.0, 100.0)


def skewed(images: int, width: int, *, seed: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features as those of a network are: a few directions hold nearly all variance; labels with noise."""
    axes = np.linalg.qr(np.random.default_rng(99).normal(size=(width, width)))[0]
    readout = np.random.default_rng(98).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    along = generator.normal(size=(images, width))
    x = (along / np.arange(1, width + 1)) @ axes * 3
    labels = (along @ readout.T + 2 * generator.gumbel(size=(images, classes))).argmax(1)
    return x.astype(np.float32), labels


def objective(z: np.ndarray, labels: np.ndarray, weights: np.ndarray, intercept: np.ndarray, strength: float) -> float:
    """Scikit-learn's, over C and the images."""
    logits = z @ weights.T + intercept
    entropy = (logsumexp(logits, 1) - logits[np.arange(len(z)), labels]).mean()
    return float(entropy + (weights**2).sum() / (2 * strength * len(z)))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_path_reaches_scikit_learns_objective_and_predictions(strength: float) -> None:
    x, labels = skewed(600, 24, seed=0)
    held, _ = skewed(2000, 24, seed=1)
    [found] = [c for c in fit_path(x, labels, strengths=STRENGTHS) if c.strength == strength]
    scaler = StandardScaler().fit(x.astype(np.float64))
    z = scaler.transform(x.astype(np.float64))
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=50_000).fit(z, labels)
    best = objective(z, labels, theirs.coef_, theirs.intercept_, strength)
    assert found.converged
    assert found.objective == pytest.approx(objective(z, labels, found.weights, found.intercept, strength), rel=1e-9)
    assert found.objective <= best * (1 + 1e-6)
    agree = (found.predict(held) == theirs.predict(scaler.transform(held.astype(np.float64)))).mean()
    assert agree >= 0.999


def test_the_objective_is_the_one_that_is_stated() -> None:
    x, labels = skewed(60, 4, seed=0, classes=3)
    z = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)

    def value(flat: np.ndarray) -> float:
        return objective(z, labels, flat[:12].reshape(3, 4), flat[12:], 0.5)

    best = minimize(value, np.zeros(15), method="BFGS", options={"gtol": 1e-8}).fun
    assert fit_path(x, labels, strengths=[0.5])[0].objective == pytest.approx(best, rel=1e-7)


def test_a_strength_on_a_path_ends_where_it_ends_alone_and_in_the_order_asked_for() -> None:
    x, labels = skewed(300, 12, seed=2)
    path = fit_path(x, labels, strengths=(10.0, 0.01, 1.0))
    assert [c.strength for c in path] == [10.0, 0.01, 1.0]
    for found in path:
        [alone] = fit_path(x, labels, strengths=[found.strength])
        assert found.objective == pytest.approx(alone.objective, rel=1e-7)
        np.testing.assert_allclose(found.weights, alone.weights, atol=2e-3)


def test_scaling_and_shifting_a_feature_changes_nothing() -> None:
    x, labels = skewed(200, 4, seed=3)
    moved = x * np.array([1000, 1, 0.001, 1], np.float32) + 5
    one, other = (fit_path(f, labels, strengths=[1.0])[0].predict(f) for f in (x, moved))
    np.testing.assert_array_equal(one, other)


def test_constant_features_and_fewer_images_than_features_do_no_harm() -> None:
    x, labels = skewed(12, 30, seed=4, classes=3)
    labels[:3] = [0, 1, 2]
    x[:, 7] = 3
    [found] = fit_path(x, labels, strengths=[1.0])
    assert np.isfinite(found.weights).all()
    assert np.abs(found.weights[:, 7]).max() < 1e-9


def test_classes_keep_their_labels() -> None:
    x, labels = skewed(100, 6, seed=5, classes=3)
    renamed = np.array([3, 70, 9])[labels]
    plain, other = (fit_path(x, y, strengths=[1.0])[0].predict(x) for y in (labels, renamed))
    np.testing.assert_array_equal(np.array([3, 70, 9])[plain], other)


def test_the_order_of_images_is_irrelevant() -> None:
    x, labels = skewed(100, 6, seed=6)
    order = np.random.default_rng(0).permutation(100)
    one, other = fit_path(x, labels, strengths=[1.0])[0], fit_path(x[order], labels[order], strengths=[1.0])[0]
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-3)


def test_a_fit_that_did_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.evaluate.logistic.ITERATIONS", 1)
    found: list[Classifier] = fit_path(*skewed(100, 6, seed=0), strengths=[10.0])
    assert not found[0].converged


def test_what_cannot_be_fitted_is_refused() -> None:
    x, labels = skewed(30, 4, seed=0)
    with pytest.raises(UsageError, match="30 features need as many labels, of two classes or more, not 29 of"):
        fit_path(x, labels[:29], strengths=[1.0])
    with pytest.raises(UsageError, match="not 30 of 1"):
        fit_path(x, 0 * labels, strengths=[1.0])
    x[3, 1] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        fit_path(x, labels, strengths=[1.0])
