from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from igpt.evaluate.fine_tune import DIGITS_RATES, RATES, Classifier, FineTuneSettings, fine_tune, search, settings_grid
from igpt.model import ImageGPT, generative_loss
from igpt.shape import ModelShape

SETTINGS = FineTuneSettings(learning_rate=0.01, epochs=6, batch=16)


def counted(images: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens whose class is whether the first half of the colours prevails: easy for pooled features."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 2
    tokens = torch.randint(5, (images, 9), generator=generator) + 3 * labels[:, None]
    return tokens, labels


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
    tokens, labels = counted(64, seed=1)
    assert (tuned.predict(tokens) == labels.numpy()).mean() > 0.95
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not torch.equal(tuned.model.wte, model.wte)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_first_step_follows_the_gradient_of_both_losses(model: ImageGPT, weight: float) -> None:
    data = counted(16, seed=0)
    settings = FineTuneSettings(learning_rate=1e-3, epochs=1, batch=16, generative_weight=weight)
    tuned = fine_tune(model, data, settings=settings, seed=0)
    reference = Classifier(model, 2)
    classes, logits = reference(data[0])
    (F.cross_entropy(classes, data[1]) + weight * generative_loss(logits, data[0])).backward()
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
        fine_tune(model, (tokens, labels), settings=FineTuneSettings(0.01, 2, batch=5, augment=augment), seed=0)
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
    tokens, _ = counted(400, seed=1)
    views = np.stack([tuned.predict(tokens, mask_seed=seed) for seed in (0, 0, 1)])
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any()
