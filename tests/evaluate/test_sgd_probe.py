from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT

from igpt.errors import UsageError
from igpt.evaluate.sgd_probe import BATCH, BLOCK, Rows, SgdClassifier, choose_rate, fit_sgd


def blobs(images: int, *, seed: int, spread: float = 1.0, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features around one of four centres each, of very different scales; the centres are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(4, width)) * 2
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, images)
    x = centres[labels] + spread * generator.normal(size=(images, width))
    return (x * np.logspace(-1, 1, width) + 3).astype(np.float16), labels


def rows(images: int, *, seed: int, spread: float = 1.0) -> Rows:
    x, labels = blobs(images, seed=seed, spread=spread)
    return Rows([x[:, :2], x[:, 2:]], np.arange(images), labels)


def test_a_probe_by_sgd_separates_what_can_be_separated() -> None:
    train, test = rows(2000, seed=0, spread=0.3), rows(500, seed=1, spread=0.3)
    [found] = fit_sgd(train, classes=4, rates=[1.0], iterations=300)
    assert (found.predict(test) == test.labels).mean() == 1


def test_every_rate_is_trained_as_if_it_were_alone() -> None:
    train = rows(1500, seed=0)
    together = fit_sgd(train, classes=4, rates=(3.0, 0.1), iterations=50)
    for found in together:
        [alone] = fit_sgd(train, classes=4, rates=[found.rate], iterations=50)
        torch.testing.assert_close(found.weights, alone.weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.intercept, alone.intercept, rtol=1e-4, atol=1e-5)


def test_the_steps_are_those_of_torchs_sgd() -> None:
    train, iterations = rows(BATCH, seed=0), 5  # one batch, so that the order is none
    [found] = fit_sgd(train, classes=4, rates=[0.5], iterations=iterations)
    x, labels = next(train.blocks())
    z = (torch.from_numpy(x) - found.mean) / found.scale
    layer = torch.nn.Linear(6, 4)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(z), torch.from_numpy(labels)).backward()
        optimizer.step()
        cosine.step()
    torch.testing.assert_close(found.weights, layer.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.intercept, layer.bias.detach(), rtol=1e-4, atol=1e-5)


def test_features_are_standardised_over_all_blocks() -> None:
    train = rows(BLOCK + 300, seed=2)
    [found] = fit_sgd(train, classes=4, rates=[1.0], iterations=1)
    x = np.concatenate([block for block, _ in train.blocks()])
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.scale, x.std(0), rtol=1e-3)


def test_only_the_rows_that_are_named_count() -> None:
    x, labels = blobs(600, seed=3)
    places = np.flatnonzero(np.arange(600) % 3 != 0)
    chosen = Rows([x], places, labels[places])
    poisoned = x.copy()
    poisoned[np.arange(600) % 3 == 0] = np.nan
    one, other = (fit_sgd(Rows([f], places, labels[places]), classes=4, rates=[1.0], iterations=20)[0] for f in (x, poisoned))
    assert torch.equal(one.weights, other.weights)
    assert len(chosen) == 400


def test_the_rate_is_chosen_on_validation_and_the_smaller_of_equals() -> None:
    train, validation = rows(1000, seed=0, spread=0.2), rows(400, seed=1, spread=0.2)
    found = fit_sgd(train, classes=4, rates=(1.0, 0.3), iterations=200)
    best, accuracy = choose_rate(found, validation)
    assert (best.rate, accuracy) == (0.3, 1.0)


def test_the_same_seed_gives_the_same_probe_and_another_seed_another() -> None:
    train = rows(3000, seed=0)
    first, again, other = (fit_sgd(train, classes=4, rates=[1.0], iterations=30, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.weights, other.weights)


@pytest.mark.parametrize("images", [BATCH, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 50])
def test_every_image_is_in_some_block_that_a_batch_can_be_drawn_from(images: int) -> None:
    found = [len(labels) for _, labels in rows(images, seed=0).blocks()]
    assert sum(found) == images
    assert min(found) >= BATCH


def test_what_cannot_be_trained_on_is_refused() -> None:
    x, labels = blobs(200, seed=0)
    with pytest.raises(UsageError, match="labels from 0 to 2, not 200 with labels from 0 to 3"):
        fit_sgd(Rows([x], np.arange(200), labels), classes=3, iterations=1)
    with pytest.raises(UsageError, match=f"at least {BATCH} images"):
        fit_sgd(Rows([x], np.arange(9), labels[:9]), classes=4, iterations=1)
    x[7, 1] = np.inf
    with pytest.raises(UsageError, match="not finite"):
        fit_sgd(Rows([x], np.arange(200), labels), classes=4, iterations=1)


@pytest.mark.gpu
def test_a_card_trains_what_a_processor_trains() -> None:
    train = rows(2 * BLOCK + 50, seed=0)
    card, processor = (fit_sgd(train, classes=4, rates=(1.0, 0.1), iterations=60, device=device) for device in ("cuda", "cpu"))
    for one, other in zip(card, processor, strict=True):
        torch.testing.assert_close(one.mean.cpu(), other.mean)
        torch.testing.assert_close(one.scale.cpu(), other.scale)
        torch.testing.assert_close(one.weights.cpu(), other.weights, rtol=1e-3, atol=1e-4)  # float32, in another order
        assert (one.predict(train) == other.predict(train)).mean() > 0.99


CUT = """
import os, signal
from pathlib import Path
import torch
from igpt.evaluate import sgd_probe
from test_sgd_probe import HOW, rows
torch.set_num_threads({threads})
sgd_probe.MINUTES = 0.0
def report(done, total):
    if done == 21:
        os.kill(os.getpid(), signal.SIGKILL)
sgd_probe.fit_sgd(rows(3000, seed=0), checkpoint=Path({checkpoint!r}), report=report, **HOW)
"""
HOW = {"classes": 4, "rates": (3.0, 0.1), "iterations": 70}


def test_a_probe_whose_process_is_killed_goes_on_and_ends_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests'}:{ROOT / 'tests' / 'evaluate'}")
    checkpoint = tmp_path / "probe.safetensors"
    code = CUT.format(checkpoint=str(checkpoint), threads=torch.get_num_threads())
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    train, done = rows(3000, seed=0), list[int]()
    whole = fit_sgd(train, **HOW)
    cut = fit_sgd(train, checkpoint=checkpoint, report=lambda now, total: done.append(now), **HOW)
    assert done == list(range(22, 71))
    assert same(cut, whole)
    done.clear()
    assert same(fit_sgd(train, checkpoint=checkpoint, report=lambda now, total: done.append(now), **HOW), whole)
    assert done == []


def same(some: list[SgdClassifier], others: list[SgdClassifier]) -> bool:
    names = ("mean", "scale", "weights", "intercept")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for a, b in zip(some, others, strict=True) for n in names)


@pytest.mark.parametrize("moment", [1, 9, 22, 69])
def test_a_probe_that_is_stopped_keeps_the_step_it_was_at(tmp_path: Path, moment: int) -> None:
    class Enough(Exception):
        pass

    def report(done: int, total: int) -> None:
        if done == moment:
            raise Enough

    train, went_on = rows(3000, seed=0), list[int]()
    with pytest.raises(Enough):
        fit_sgd(train, checkpoint=tmp_path / "c", report=report, **HOW)
    cut = fit_sgd(train, checkpoint=tmp_path / "c", report=lambda now, total: went_on.append(now), **HOW)
    assert went_on[0] == moment + 1
    assert same(cut, fit_sgd(train, **HOW))


def test_rows_that_a_continued_probe_has_passed_are_not_read_again(tmp_path: Path) -> None:
    train, read = rows(3 * BLOCK, seed=0), list[int]()

    class Watched(Rows):
        def blocks(self, order=None):  # type: ignore[no-untyped-def]
            read.extend(range(self.count) if order is None else order)
            return super().blocks(order)

    watched = Watched(train.layers, train.places, train.labels)
    how = {**HOW, "iterations": 24}  # three blocks of eight batches
    fit_sgd(watched, checkpoint=tmp_path / "c", **how)
    assert sorted(read) == [0, 0, 1, 1, 2, 2]  # once for mean and deviation
    read.clear()
    fit_sgd(watched, checkpoint=tmp_path / "c", **how)
    assert read == []


def test_a_checkpoint_of_another_call_or_a_damaged_one_does_not_count(tmp_path: Path) -> None:
    train, checkpoint = rows(1500, seed=0), tmp_path / "c"
    fit_sgd(train, checkpoint=checkpoint, **HOW)
    for other in ({**HOW, "iterations": 40}, {**HOW, "rates": (1.0,)}, {**HOW, "seed": 1}):
        assert same(fit_sgd(train, checkpoint=checkpoint, **other), fit_sgd(train, **other))
    fewer = Rows(train.layers, train.places[:1400], train.labels[:1400])
    assert same(fit_sgd(fewer, checkpoint=checkpoint, **HOW), fit_sgd(fewer, **HOW))
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    with pytest.warns(UserWarning, match="is damaged .*: the probe begins again"):
        assert same(fit_sgd(fewer, checkpoint=checkpoint, **HOW), fit_sgd(fewer, **HOW))
