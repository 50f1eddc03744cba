from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from igpt.errors import UsageError
from igpt.evaluate import logistic
from igpt.evaluate.linear_probe import probe_layers
from igpt.evaluate.logistic import Classifier, fit_path, fit_paths

CS = (0.001, 0.1, 10.0, 100.0)


def skewed(images: int, width: int, *, seed: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features as those of a network are: a few directions hold nearly all variance; labels with noise."""
    axes = np.linalg.qr(np.random.default_rng(99).normal(size=(width, width)))[0]
    readout = np.random.default_rng(98).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    along = generator.normal(size=(images, width))
    x = (along / np.arange(1, width + 1)) @ axes * 3
    labels = (along @ readout.T + 2 * generator.gumbel(size=(images, classes))).argmax(1)
    return x.astype(np.float32), labels


def objective(z: np.ndarray, labels: np.ndarray, weights: np.ndarray, intercept: np.ndarray, C: float) -> float:
    """Scikit-learn's, over C and the images."""
    logits = z @ weights.T + intercept
    entropy = (logsumexp(logits, 1) - logits[np.arange(len(z)), labels]).mean()
    return float(entropy + (weights**2).sum() / (2 * C * len(z)))


@pytest.mark.parametrize("C", CS)
def test_the_path_reaches_scikit_learns_objective_and_predictions(C: float) -> None:
    x, labels = skewed(600, 24, seed=0)
    held, _ = skewed(2000, 24, seed=1)
    [found] = [c for c in fit_path(x, labels, Cs=CS) if c.C == C]
    scaler = StandardScaler().fit(x.astype(np.float64))
    z = scaler.transform(x.astype(np.float64))
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=50_000).fit(z, labels)
    best = objective(z, labels, theirs.coef_, theirs.intercept_, C)
    assert found.converged
    assert found.objective == pytest.approx(objective(z, labels, found.weights.numpy(), found.intercept.numpy(), C), rel=1e-9)
    assert found.objective <= best * (1 + 1e-6)
    agree = (found.predict(held) == theirs.predict(scaler.transform(held.astype(np.float64)))).mean()
    assert agree >= 0.999


def test_the_objective_is_the_one_that_is_stated() -> None:
    x, labels = skewed(60, 4, seed=0, classes=3)
    z = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)

    def value(flat: np.ndarray) -> float:
        return objective(z, labels, flat[:12].reshape(3, 4), flat[12:], 0.5)

    best = minimize(value, np.zeros(15), method="BFGS", options={"gtol": 1e-8}).fun
    assert fit_path(x, labels, Cs=[0.5])[0].objective == pytest.approx(best, rel=1e-7)


def test_a_strength_on_a_path_ends_where_it_ends_alone_and_in_the_order_asked_for() -> None:
    x, labels = skewed(300, 12, seed=2)
    path = fit_path(x, labels, Cs=(10.0, 0.01, 1.0))
    assert [c.C for c in path] == [10.0, 0.01, 1.0]
    for found in path:
        [alone] = fit_path(x, labels, Cs=[found.C])
        assert found.objective == pytest.approx(alone.objective, rel=1e-7)
        np.testing.assert_allclose(found.weights, alone.weights, atol=2e-3)


def test_scaling_and_shifting_a_feature_changes_nothing() -> None:
    x, labels = skewed(200, 4, seed=3)
    moved = x * np.array([1000, 1, 0.001, 1], np.float32) + 5
    one, other = (fit_path(f, labels, Cs=[1.0])[0].predict(f) for f in (x, moved))
    np.testing.assert_array_equal(one, other)


def test_constant_features_and_fewer_images_than_features_do_no_harm() -> None:
    x, labels = skewed(12, 30, seed=4, classes=3)
    labels[:3] = [0, 1, 2]
    x[:, 7] = 3
    [found] = fit_path(x, labels, Cs=[1.0])
    assert found.weights.isfinite().all()
    assert found.weights[:, 7].abs().max() < 1e-9


def test_classes_keep_their_labels() -> None:
    x, labels = skewed(100, 6, seed=5, classes=3)
    renamed = np.array([3, 70, 9])[labels]
    plain, other = (fit_path(x, y, Cs=[1.0])[0].predict(x) for y in (labels, renamed))
    np.testing.assert_array_equal(np.array([3, 70, 9])[plain], other)


def test_the_order_of_images_is_irrelevant() -> None:
    x, labels = skewed(100, 6, seed=6)
    order = np.random.default_rng(0).permutation(100)
    one, other = fit_path(x, labels, Cs=[1.0])[0], fit_path(x[order], labels[order], Cs=[1.0])[0]
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-3)


def test_a_fit_that_did_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.evaluate.logistic.ITERATIONS", 1)
    found: list[Classifier] = fit_path(*skewed(100, 6, seed=0), Cs=[10.0])
    assert not found[0].converged


def test_what_cannot_be_fitted_is_refused() -> None:
    x, labels = skewed(30, 4, seed=0)
    with pytest.raises(UsageError, match="30 images have 29 labels of 5 classes: give one label an image"):
        fit_path(x, labels[:29], Cs=[1.0])
    with pytest.raises(UsageError, match="30 images have 30 labels of 1 classes"):
        fit_path(x, 0 * labels, Cs=[1.0])
    x[3, 1] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        fit_path(x, labels, Cs=[1.0])


def by_scipy(x: np.ndarray, labels: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights, intercept and objective as scipy's own L-BFGS finds them from the objective as it is written, in standardised features."""
    z, classes = standardised(x), np.unique(labels)
    one_hot = (labels[:, None] == classes).astype(float)
    shape, penalty = (len(classes), z.shape[1] + 1), 1 / (C * len(z))
    extended = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    weighed = np.concatenate([np.full(z.shape[1], penalty), [0.0]])

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(shape)
        logits = extended @ w.T
        entropy = (logsumexp(logits, 1) - (logits * one_hot).sum(1)).mean()
        slope = (softmax(logits, 1) - one_hot).T @ extended / len(z) + weighed * w
        return float(entropy + (weighed * w**2).sum() / 2), slope.ravel()

    options = {"maxiter": 20_000, "maxfun": 40_000, "maxcor": 30, "ftol": 0.0, "gtol": 1e-9}
    found = minimize(value, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", options=options)
    w = found.x.reshape(shape)
    return w[:, :-1], w[:, -1], float(found.fun)


def standardised(x: np.ndarray) -> np.ndarray:
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    return (x - mean) / np.where(scale <= 1e-9 * np.abs(mean), 1, scale)


@settings(deadline=None, max_examples=20)
@given(
    images=st.integers(20, 120),
    width=st.integers(1, 12),
    classes=st.integers(2, 6),
    steep=st.floats(0, 4),  # variances fall over so many orders of magnitude
    apart=st.floats(0, 20),  # 0: labels by chance; 20: classes that a plane separates
    seed=st.integers(0, 10**6),
)
def test_scipy_finds_no_lower_optimum_and_the_same_classes(
    images: int, width: int, classes: int, steep: float, apart: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, images - classes)])
    mixed = np.linalg.qr(generator.normal(size=(width, width)))[0] * np.logspace(0, -steep, width)
    x = (apart * generator.normal(size=(classes, width))[labels] + generator.normal(size=(images, width))) @ mixed
    x = x.astype(np.float32)
    for found in fit_path(x, labels, Cs=(0.01, 1.0, 1000.0)):
        weights, intercept, best = by_scipy(x, labels, found.C)
        assert found.converged
        assert found.objective == pytest.approx(best, abs=1e-8)
        logits = standardised(x) @ weights.T + intercept
        top = np.sort(logits, axis=1)
        clear = top[:, -1] - top[:, -2] > 0.02 * (1 + np.abs(top[:, -1]))  # a tie may fall either way
        np.testing.assert_array_equal(found.predict(x)[clear], logits.argmax(1)[clear])


@pytest.mark.parametrize("C", [1e4, 1e6])
def test_classes_that_are_apart_and_hardly_a_penalty_end_at_the_optimum(C: float) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (30 * np.eye(3)[labels] + generator.normal(size=(60, 3))).astype(np.float32)
    [found] = fit_path(x, labels, Cs=[C])
    weights, _, best = by_scipy(x, labels, C)
    assert found.converged
    assert found.objective == pytest.approx(best, abs=1e-8)
    np.testing.assert_allclose(np.linalg.norm(found.weights), np.linalg.norm(weights), rtol=0.02)


def test_two_hundred_classes_reach_scipys_optimum() -> None:
    x, labels = skewed(900, 6, seed=7, classes=200)
    assert len(np.unique(labels)) > 100
    for found in fit_path(x, labels, Cs=(0.1, 1.0)):
        assert found.converged
        assert found.objective == pytest.approx(by_scipy(x, labels, found.C)[2], abs=1e-8)


def three_layers() -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Train, validation and test features (layers, images, width), and the labels of the first two."""
    parts = [[skewed(n, 10, seed=10 * layer + s) for layer in range(3)] for s, n in ((0, 200), (1, 90), (2, 300))]
    train, validation, test = (np.stack([x for x, _ in part]) for part in parts)
    return train, validation, test, (parts[0][0][1], parts[1][0][1])


def test_a_probe_chooses_and_predicts_as_scipy_would() -> None:
    train, validation, test, labels = three_layers()
    result = probe_layers((train, validation, [test]), labels)
    for layer, probe in enumerate(result.layers):
        scores = []
        for C in (0.01, 0.1, 1.0, 10.0):
            weights, intercept, _ = by_scipy(train[layer], labels[0], C)
            mean, scale = train[layer].mean(0, dtype=np.float64), train[layer].std(0, dtype=np.float64)
            predicted = ((validation[layer] - mean) / scale @ weights.T + intercept).argmax(1)
            scores.append(((predicted == labels[1]).mean(), -C))
        assert (probe.validation, -probe.C) == max(scores)
        both = np.concatenate([train[layer], validation[layer]])
        weights, intercept, _ = by_scipy(both, np.concatenate(labels), probe.C)
        mean, scale = both.mean(0, dtype=np.float64), both.std(0, dtype=np.float64)
        expected = ((test[layer] - mean) / scale @ weights.T + intercept).argmax(1)
        assert (probe.predictions[0] == expected).mean() >= 0.996  # one of 300 images may lie on a border


def tasks(classes: tuple[int, ...] = (5, 5, 5, 4, 5)) -> list[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    """Five problems, of which one has another width, one lacks a class, and one asks for fewer strengths."""
    found = [(*skewed(150, 8 if place != 1 else 6, seed=place, classes=count), CS) for place, count in enumerate(classes)]
    return [*found[:-1], (*found[-1][:2], CS[1:2])]


@pytest.mark.parametrize("memory", [0, 2**17, 2**30])
def test_problems_side_by_side_end_where_each_ends_alone_whatever_the_memory(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic, "CPU_BYTES", memory)
    together = list(fit_paths(iter(tasks())))
    assert [[c.C for c in path] for path in together] == [list(Cs) for _, _, Cs in tasks()]
    for path, (x, labels, Cs) in zip(together, tasks(), strict=True):
        for found, alone in zip(path, fit_path(x, labels, Cs=Cs), strict=True):
            assert found.objective == pytest.approx(alone.objective, rel=1e-9)
            np.testing.assert_array_equal(found.predict(x), alone.predict(x))


def test_no_more_problems_are_taken_at_once_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def one_by_one() -> object:
        for place in range(6):
            taken.append(place)
            yield (*skewed(150, 8, seed=place), (1.0,))

    stays, passing = logistic.problem_bytes(150, 8, 5, 1)
    monkeypatch.setattr(logistic, "CPU_BYTES", 2 * stays + passing)
    paths = fit_paths(one_by_one())  # type: ignore[arg-type]
    next(paths)
    assert taken == [0, 1, 2]  # two side by side; the third said that there is no room for it
    assert len(list(paths)) == 5


def test_a_class_that_only_some_folds_have_is_never_predicted_by_the_others() -> None:
    x, labels = skewed(200, 8, seed=1)
    without = labels != 2
    whole, part = fit_paths([(x, labels, [1.0]), (x[without], labels[without], [1.0])])
    assert 2 in whole[0].predict(x)
    assert set(part[0].predict(x).tolist()) <= {0, 1, 3, 4}


@pytest.mark.gpu
@pytest.mark.parametrize("memory", [0, 2**40])
def test_a_card_finds_what_a_processor_finds(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "CPU_BYTES", memory)
    for path, other in zip(fit_paths(tasks(), device="cuda"), fit_paths(tasks()), strict=True):
        for card, processor, (x, _, _) in zip(path, other, [tasks()[0]] * len(path), strict=True):
            assert card.weights.device.type == "cuda"
            assert card.objective == pytest.approx(processor.objective, rel=1e-9)
            x = x[:, : card.weights.shape[1]]
            np.testing.assert_array_equal(card.predict(x), processor.predict(x))


@pytest.mark.gpu
def test_a_card_chooses_the_strengths_and_the_layer_that_a_processor_chooses() -> None:
    train, validation, test, labels = three_layers()
    card, processor = (probe_layers((train, validation, [test]), labels, device=device) for device in ("cuda", "cpu"))
    assert card.chosen == processor.chosen
    for one, other in zip(card.layers, processor.layers, strict=True):
        assert (one.C, one.validation, one.converged) == (other.C, other.validation, True)
        assert (one.predictions == other.predictions).mean() >= 0.996


@pytest.mark.gpu
def test_a_card_without_room_for_one_problem_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "GPU_PART", 1e-9)
    with pytest.raises(UsageError, match="150 images with 8 features takes .* GiB of the card, .* or probe fewer images"):
        fit_path(*skewed(150, 8, seed=0), Cs=[1.0], device="cuda")


def test_few_images_of_many_features_reach_scipys_optimum() -> None:
    x, labels = skewed(30, 90, seed=8, classes=3)
    for found in fit_path(x, labels, Cs=(0.1, 10.0)):
        weights, _, best = by_scipy(x, labels, found.C)
        assert found.objective == pytest.approx(best, abs=1e-8)
        np.testing.assert_allclose(found.weights, weights, atol=1e-3)


def test_images_that_go_through_in_parts_end_where_they_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = skewed(150, 8, seed=9)
    whole = fit_path(x, labels, Cs=CS)
    monkeypatch.setattr(logistic, "LOGITS", 700)  # 35 images of four strengths and five classes
    for found, other in zip(fit_path(x, labels, Cs=CS), whole, strict=True):
        assert found.objective == pytest.approx(other.objective, rel=1e-9)
        np.testing.assert_array_equal(found.predict(x), other.predict(x))
