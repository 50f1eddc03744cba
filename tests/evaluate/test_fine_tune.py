from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PATIENCE, random_model

from igpt.data.labelled import LabelledTokens, TokensInMemory
from igpt.errors import StageError, UsageError
from igpt.evaluate.fine_tune import (
    DIGITS_RATES,
    RATES,
    Classifier,
    FineTuneSettings,
    Tuned,
    Tuning,
    fine_tune,
    search,
    settings_grid,
    tune,
)
from igpt.model import ImageGPT, generative_loss
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train.engine import Stopped
from igpt.train.runtime import Launch, Runtime
from igpt.weights.own import save_weights

SETTINGS = FineTuneSettings(learning_rate=0.01, epochs=6, batch=16)


def labelled(tokens: torch.Tensor, labels: torch.Tensor) -> LabelledTokens:
    """Data in memory."""
    memory = TokensInMemory(tokens.numpy().astype(np.uint16), labels.numpy())
    return LabelledTokens.of(memory, np.arange(len(labels)), classes=int(labels.max()) + 1)


def counted(images: int, *, seed: int) -> LabelledTokens:
    """Tokens whose class is whether the first half of the colours prevails: easy for pooled features."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 2
    tokens = torch.randint(5, (images, 9), generator=generator) + 3 * labels[:, None]
    return labelled(tokens, labels)


def test_the_head_starts_at_zero_and_reads_the_pooled_final_norm(model: ImageGPT, tokens: torch.Tensor) -> None:
    classifier = Classifier(model, 3)
    assert not classifier(tokens)[0].any()
    torch.nn.init.normal_(classifier.head.weight)
    expected = model.features(tokens, layers=[2])[2] @ classifier.head.weight.T
    torch.testing.assert_close(classifier(tokens)[0], expected)
    torch.testing.assert_close(classifier(tokens)[1], model(tokens))


def test_fine_tuning_learns_and_leaves_the_model_alone(model: ImageGPT) -> None:
    before = {name: t.clone() for name, t in model.state_dict().items()}
    tuned = fine_tune(model, counted(128, seed=0), settings=SETTINGS, seed=0)
    test = counted(64, seed=1)
    assert (tuned.predict(test) == test.labels).mean() > 0.95
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not torch.equal(tuned.model.wte, model.wte)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_first_step_follows_the_gradient_of_both_losses(model: ImageGPT, weight: float) -> None:
    data = counted(16, seed=0)
    settings = FineTuneSettings(learning_rate=1e-3, epochs=1, batch=16, generative_weight=weight)
    tuned = fine_tune(model, data, settings=settings, seed=0)
    reference = Classifier(model, 2)
    tokens, labels = torch.from_numpy(data[:].astype(np.int64)), torch.from_numpy(data.labels)
    classes, logits = reference(tokens)
    (F.cross_entropy(classes, labels) + weight * generative_loss(logits, tokens)).backward()
    for name, before in reference.named_parameters():
        moved = dict(tuned.named_parameters())[name] - before
        gradient = before.grad if before.grad is not None else torch.zeros_like(before)
        sure = gradient.abs() > 1e-6
        # Adam's first step is the learning rate against the gradient's sign
        torch.testing.assert_close(moved[sure], -1e-3 * gradient[sure].sign(), atol=1e-4, rtol=0)


def test_the_search_takes_the_best_epoch_and_the_first_of_equals(model: ImageGPT) -> None:
    grid = [replace(SETTINGS, learning_rate=rate, epochs=4) for rate in (0.01, 1e-6)]
    found = search(model, counted(128, seed=0), counted(64, seed=1), settings=grid, seed=0)
    assert [(rate, epoch) for rate, epoch, _ in found.seen] == [(r, e) for r in (0.01, 1e-6) for e in (1, 2, 3, 4)]
    best = max(accuracy for _, _, accuracy in found.seen)
    first = next((rate, epoch) for rate, epoch, accuracy in found.seen if accuracy == best)
    assert (found.settings.learning_rate, found.settings.epochs) == first
    assert found.validation == best
    assert found.settings.learning_rate == 0.01


def test_the_grid_is_parts_of_pre_trainings_rate() -> None:
    for dataset, rates in (("digits", DIGITS_RATES), ("cifar10", RATES)):
        grid = settings_grid(dataset, 0.01, epochs=3)
        assert [s.learning_rate for s in grid] == pytest.approx([0.01 * part for part in rates])
        assert {s.epochs for s in grid} == {3}
    assert {s.batch for s in settings_grid("imagenet", 0.01, epochs=3)} == {128}
    augment = {name: settings_grid(name, 0.01, epochs=1)[0].augment for name in ("digits", "cifar10", "cifar100", "imagenet")}
    assert augment == {"digits": False, "cifar10": True, "cifar100": True, "imagenet": False}


def test_augmentation_changes_the_run_and_is_repeatable() -> None:
    model = ImageGPT(ModelShape(1, 8, 2, 6, 64))
    tokens = torch.randint(6, (20, 64), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 2
    plain, first, again = (
        fine_tune(model, labelled(tokens, labels), settings=FineTuneSettings(0.01, 2, batch=5, augment=augment), seed=0)
        for augment in (False, True, True)
    )
    weights = [torch.cat([p.flatten() for p in run.parameters()]) for run in (plain, first, again)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.allclose(weights[0], weights[1], atol=1e-4)


def test_the_seed_decides_the_order_of_images(model: ImageGPT) -> None:
    runs = [fine_tune(model, counted(64, seed=0), settings=replace(SETTINGS, epochs=1), seed=s).model.wte for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_bert_is_tuned_and_used_with_masks(bert: ImageGPT) -> None:
    tuned = fine_tune(bert, counted(64, seed=0), settings=replace(SETTINGS, epochs=2), seed=0)
    tokens = counted(400, seed=1)
    views = np.stack([tuned.predict(tokens, mask_seed=seed) for seed in (0, 0, 1)])
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any()


def weights_of(classifier: Classifier) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in classifier.parameters()])


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_accumulated_gradients_are_those_of_the_whole_batch(objective: str) -> None:
    model = random_model(ModelShape(2, 16, 2, 8, 9, objective))  # type: ignore[arg-type]
    data = counted(50, seed=0)  # three whole batches and two images
    settings = replace(SETTINGS, learning_rate=1e-3, epochs=2)
    whole = weights_of(fine_tune(model, data, settings=settings, seed=0))
    for runtime in (Runtime(micro_batch=1), Runtime(micro_batch=5), Runtime(recompute=True, micro_batch=8)):
        found = weights_of(fine_tune(model, data, settings=settings, seed=0, runtime=runtime))
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)


def test_half_precision_learns_the_same(model: ImageGPT) -> None:
    tuned = fine_tune(model, counted(128, seed=0), settings=SETTINGS, seed=0, runtime=Runtime(bfloat16=True))
    test = counted(64, seed=1)
    assert (tuned.predict(test) == test.labels).mean() > 0.95
    assert {p.dtype for p in tuned.parameters()} == {torch.float32}


class Stop(Exception):
    pass


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_an_interrupted_fine_tuning_continues_to_the_bit(tmp_path: Path, objective: str, stop: int) -> None:
    model = random_model(ModelShape(2, 16, 2, 8, 9, objective))  # type: ignore[arg-type]
    data, settings = counted(50, seed=0), replace(SETTINGS, epochs=3)

    def interrupt(done: int, total: int) -> None:
        if done == stop:
            raise Stop

    always = Runtime(minutes=0)
    with pytest.raises(Stop):
        fine_tune(model, data, settings=settings, seed=0, folder=tmp_path, runtime=always, report=interrupt)
    taken: list[int] = []
    found = fine_tune(model, data, settings=settings, seed=0, folder=tmp_path, report=lambda done, total: taken.append(done))
    assert taken == list(range(stop + 1, 13))
    assert torch.equal(weights_of(found), weights_of(fine_tune(model, data, settings=settings, seed=0)))


def test_a_search_that_was_stopped_goes_on_where_it_was(model: ImageGPT, tmp_path: Path) -> None:
    grid = [replace(SETTINGS, learning_rate=rate, epochs=3) for rate in (0.01, 0.001)]
    train, validation = counted(50, seed=0), counted(64, seed=1)
    asked = iter([False] * 16 + [True])  # in the second run's second epoch
    with pytest.raises(Stopped, match="stopped after 5 of 12 steps; the same command continues"):
        runtime = Runtime(stop=lambda: next(asked))
        search(model, train, validation, settings=grid, seed=0, folder=tmp_path, runtime=runtime)
    assert [path.name for path in sorted(tmp_path.glob("*/checkpoint-*"))] == [
        "checkpoint-0000004.safetensors",
        "checkpoint-0000005.safetensors",
    ]
    said: list[tuple[int, int]] = []
    found = search(
        model, train, validation, settings=grid, seed=0, folder=tmp_path, report=lambda done, total: said.append((done, total))
    )
    assert said == [(1, 2), *((12 + done, 24) for done in range(6, 13)), (2, 2)]
    assert found == search(model, train, validation, settings=grid, seed=0)
    assert [path.name for path in tmp_path.glob("*/checkpoint-*")] == []
    left = tmp_path / "search-2" / "checkpoint-0000012.safetensors"
    left.touch()  # by a kill between the end and its removal
    assert search(model, train, validation, settings=grid, seed=0, folder=tmp_path) == found
    assert not left.exists()


def test_the_outcome_of_another_run_or_a_damaged_one_does_not_count(model: ImageGPT, tmp_path: Path) -> None:
    train, validation = counted(50, seed=0), counted(64, seed=1)
    given = {"train": train, "validation": validation, "settings": [replace(SETTINGS, epochs=1)], "seed": 0}
    search(model, **given, folder=tmp_path)  # type: ignore[arg-type]
    others = ({"seed": 1}, {"settings": [SETTINGS]}, {"train": counted(50, seed=2)}, {"validation": counted(64, seed=2)})
    for changed in others:
        other = {**given, **changed}
        assert search(model, **other, folder=tmp_path) == search(model, **other)  # type: ignore[arg-type]
    (tmp_path / "search-1" / "finished.json").write_text("[]")
    assert search(model, **given, folder=tmp_path) == search(model, **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a seed is a whole number"):
        fine_tune(model, train, settings=SETTINGS, seed=-1)


def test_a_rate_that_diverges_counts_for_nothing_and_when_all_do_it_is_said(model: ImageGPT, tmp_path: Path) -> None:
    grid = [replace(SETTINGS, learning_rate=rate, epochs=2) for rate in (1e38, 0.01)]
    train, validation = counted(50, seed=0), counted(64, seed=1)
    found = search(model, train, validation, settings=grid, seed=0, folder=tmp_path)
    assert [(rate, epoch) for rate, epoch, _ in found.seen] == [(0.01, 1), (0.01, 2)]
    assert list(tmp_path.glob("*/checkpoint-*")) == []
    with pytest.raises(StageError, match="fine-tuning diverges at every rate before an epoch has ended"):
        search(model, train, validation, settings=grid[:1], seed=0)


SHAPE = ModelShape(2, 16, 2, 16, 64)


@pytest.fixture
def tuning(tmp_path: Path) -> Tuning:
    """A part of the digits, on weights of no training."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_weights(folder, random_model(SHAPE), Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None]))
    grid = tuple(FineTuneSettings(rate, epochs=2, batch=48) for rate in (0.02, 0.005))
    return Tuning(folder, SHAPE, "digits", images=200, seed=0, settings=grid, scratch_rate=0.02, views=2)


def same(one: Tuned, other: Tuned) -> bool:
    names = ("tuned", "without_generative", "from_scratch")
    equal = [np.array_equal(one.predictions[name], other.predictions[name]) for name in names]
    return one.search == other.search and all(equal) and list(one.predictions) == list(names)


KILLED = """
import pickle, sys, torch
from pathlib import Path
from igpt.evaluate.fine_tune import tune
from igpt.train.runtime import Runtime
torch.set_num_threads(1)
tuning = pickle.loads(Path(sys.argv[1]).read_bytes())
tune(tuning, folder=Path(sys.argv[2]), runtime=Runtime(minutes=0), report=lambda done, total: print(done / total, flush=True))
"""


def test_a_fine_tuning_killed_outright_ends_as_one_left_alone_to_the_bit(tuning: Tuning, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = tune(tuning, folder=tmp_path / "whole", runtime=Runtime())
        (tmp_path / "job").write_bytes(pickle.dumps(tuning))
        for stop in (0.1, 0.7):  # in the first rate's run, and in a refit
            command = [sys.executable, "-c", KILLED, str(tmp_path / "job"), str(tmp_path / "killed")]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            for line in child.stdout:
                if float(line) >= stop:
                    child.send_signal(signal.SIGKILL)
                    break
            child.stdout.close()
            assert child.wait(timeout=PATIENCE) == -signal.SIGKILL
        said: list[float] = []
        found = tune(tuning, folder=tmp_path / "killed", runtime=Runtime(), report=lambda d, n: said.append(d / n))
        assert said[0] > 0.19  # the first run is not repeated
    finally:
        torch.set_num_threads(threads)
    assert same(found, whole)
    assert found.predictions["tuned"].shape == (2, 360)
    assert sorted(path.name for path in (tmp_path / "killed").glob("*/*") if not path.name.startswith(".")) == sorted(
        ["finished.json", "metrics.jsonl"] * 5
    )


@pytest.mark.parametrize(
    ("objective", "runtime"),
    [("bert", Runtime(micro_batch=7)), ("autoregressive", Runtime(shard=True, recompute=True, micro_batch=24))],
)
def test_two_processes_tune_as_one_does(tuning: Tuning, tmp_path: Path, objective: str, runtime: Runtime) -> None:
    shape = replace(SHAPE, objective=objective)
    weights = tmp_path / objective
    weights.mkdir()
    save_weights(weights, random_model(shape), Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None]))
    settings = tuple(FineTuneSettings(rate, epochs=1, batch=49) for rate in (0.005,))  # which two do not divide
    tuning = replace(tuning, weights=weights, shape=shape, settings=settings)
    one = tune(tuning, folder=tmp_path / "one", runtime=Runtime())
    two = tune(tuning, folder=tmp_path / "two", runtime=runtime, launch=Launch(devices=2))
    assert [accuracy for *_, accuracy in two.search.seen] == pytest.approx([a for *_, a in one.search.seen], abs=0.03)
    for name, classes in one.predictions.items():
        assert (two.predictions[name] == classes).mean() > 0.98, name


@pytest.mark.gpu
def test_a_gpu_tunes_as_the_processor_does(tmp_path: Path) -> None:
    model = random_model(ModelShape(2, 64, 2, 8, 64))
    generator = torch.Generator().manual_seed(0)
    data = labelled(torch.randint(8, (40, 64), generator=generator), torch.arange(40) % 3)
    settings = FineTuneSettings(1e-3, epochs=2, batch=16)
    plain = weights_of(fine_tune(model, data, settings=settings, seed=0))
    for runtime in (Runtime(device="cuda", micro_batch=8), Runtime(device="cuda", compiled=True, recompute=True)):
        tuned = fine_tune(
            copy.deepcopy(model), data, settings=settings, seed=0, folder=tmp_path / str(runtime.compiled), runtime=runtime
        )
        torch.testing.assert_close(weights_of(tuned).cpu(), plain, atol=2e-3, rtol=0)
    fitted = Runtime(device="cuda", bfloat16=True).fitted(model.shape, batch=16, classes=3, folder=tmp_path)
    assert fitted.micro_batch == 16
    half = fine_tune(model, data, settings=settings, seed=0, runtime=fitted)
    assert half.predict(data).shape == (40,)
