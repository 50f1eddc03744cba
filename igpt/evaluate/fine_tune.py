"""Fine-tuning (sections 2.3, 3.4 and 4.5): all weights and a new head, on L_GEN + L_CLF.

Trained: every weight and a linear head, started at zero, on the final norm's output averaged over
positions. Adam with pre-training's betas, a constant rate, no dropout; CIFAR's images padded, cropped and flipped.
Chosen on validation: the rate, a part of pre-training's; the number of epochs, by
stopping early at the best validation accuracy.
Refitted: with both, from the pre-trained weights, on train and validation together.
Reported: the test accuracy of the refit, once.

Warm-up, epochs and the chosen rates are unpublished: no warm-up, and see deviations for the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from igpt.data.augment import augmented
from igpt.evaluate.linear_probe import check_classes
from igpt.fast import compile_module
from igpt.model import ImageGPT, draw_mask, generative_loss

Labelled = tuple[Tensor, Tensor]  # tokens int64 (images, positions), labels int64 (images,)


@dataclass(frozen=True)
class FineTuneSettings:
    """The choices of one fine-tuning run, up to its weights and seed."""

    learning_rate: float
    epochs: int
    generative_weight: float = 1.0  # of L_GEN beside L_CLF; 0 leaves the classification loss alone
    batch: int = 128  # section 3.4
    augment: bool = False  # pad, crop and flip, anew in each epoch
    betas: tuple[float, float] = (0.9, 0.95)
    mask_rate: float = 0.15
    bfloat16: bool = False  # products in half precision, on float32 weights and moments, as pre-training has them
    compiled: bool = False  # by torch.compile, where that works


class Classifier(nn.Module):
    """A model and a linear head on its pooled final features, without bias, zero at the start (as released)."""

    def __init__(self, model: ImageGPT, classes: int, *, bfloat16: bool = False) -> None:
        super().__init__()
        self.model, self._bfloat16 = model, bfloat16
        self.head = nn.Linear(model.shape.n_embd, classes, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class logits float32 (B, classes) and token logits float32 (B, T, V)."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False):
            hidden = self.model.hidden(tokens, masked)
            return self.head(hidden.mean(dim=1)).float(), self.model.logits(hidden)

    def mask(self, tokens: Tensor, *, rate: float, generator: torch.Generator) -> Tensor | None:
        """A BERT model's mask, which it sees in training and in use; None for an autoregressive one."""
        if self.model.shape.objective == "autoregressive":
            return None
        return draw_mask(tokens, rate=rate, generator=generator)

    @torch.no_grad()
    def predict(self, tokens: Tensor, *, mask_rate: float = 0.15, mask_seed: int = 0) -> NDArray[np.int64]:
        """Classes int64 (images,) of int64 tokens (images, positions)."""
        generator = torch.Generator().manual_seed(mask_seed)
        parts = []
        for part in tokens.split(256):
            masked = self.mask(part, rate=mask_rate, generator=generator)
            parts.append(self(*_on(self.head.weight.device, part, masked))[0].cpu())
        return torch.cat(parts).argmax(1).numpy()


@dataclass(frozen=True)
class Search:
    """What validation chose: the settings cut at the best epoch, and the accuracies (rate, epoch, fraction) seen."""

    settings: FineTuneSettings
    validation: float
    seen: list[tuple[float, int, float]]


# Parts of pre-training's rate. The paper often found a tenth best, which was worse on the digits' few epochs; they
# also make but ten batches of 128 an epoch, too few steps.
RATES = (0.3, 0.1, 0.03)
DIGITS_RATES, DIGITS_BATCH = (1.0, 0.3), 16
AUGMENTED = ("cifar10", "cifar100")  # as published; ImageNet's crops are drawn when it is tokenised


def settings_grid(
    dataset: str, pretraining_rate: float, *, epochs: int, bfloat16: bool = False, compiled: bool = False
) -> list[FineTuneSettings]:
    """The settings to search on a data set, one a rate, with at most ``epochs`` epochs.

    >>> [settings.learning_rate for settings in settings_grid("digits", 0.01, epochs=4)]
    [0.01, 0.003]
    """
    rates, batch = (DIGITS_RATES, DIGITS_BATCH) if dataset == "digits" else (RATES, FineTuneSettings.batch)
    augment = dataset in AUGMENTED
    return [
        FineTuneSettings(pretraining_rate * part, epochs, batch=batch, augment=augment, bfloat16=bfloat16, compiled=compiled)
        for part in rates
    ]


def search(
    model: ImageGPT,
    train: Labelled,
    validation: Labelled,
    *,
    settings: Sequence[FineTuneSettings],
    seed: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Search:
    """Run each of ``settings`` and choose by validation accuracy; the first and the earliest of equals.

    Raises UsageError for validation labels of classes that no training image has.
    """
    check_classes(train[1].numpy(), validation[1].numpy())
    total = sum(candidate.epochs for candidate in settings)
    seen: list[tuple[float, int, float]] = []
    best = (-1.0, settings[0])
    for candidate in settings:

        def after_epoch(epoch: int, classifier: Classifier, candidate: FineTuneSettings = candidate) -> None:
            nonlocal best
            accuracy = float((classifier.predict(validation[0]) == validation[1].numpy()).mean())
            seen.append((candidate.learning_rate, epoch, accuracy))
            report(len(seen), 2 * total)  # the refits that follow take about as long
            if accuracy > best[0]:
                best = (accuracy, FineTuneSettings(**{**vars(candidate), "epochs": epoch}))

        fine_tune(model, train, settings=candidate, seed=seed, after_epoch=after_epoch)
    return Search(best[1], best[0], seen)


def fine_tune(
    model: ImageGPT,
    train: Labelled,
    *,
    settings: FineTuneSettings,
    seed: int,
    after_epoch: Callable[[int, Classifier], None] = lambda epoch, classifier: None,
) -> Classifier:
    """A copy of ``model`` with a head, trained on every image once an epoch; ``model`` itself is left alone."""
    device = model.wte.device
    classifier = Classifier(copy.deepcopy(model), int(train[1].max()) + 1, bfloat16=settings.bfloat16).to(device)
    if settings.compiled:
        compile_module(classifier)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=settings.learning_rate, betas=settings.betas)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, settings.epochs + 1):
        for index in torch.randperm(len(train[0]), generator=generator).split(settings.batch):
            tokens, labels = train[0][index], train[1][index]
            if settings.augment:
                tokens = _augmented(tokens, index, images=len(train[0]), epoch=epoch, seed=seed)
            masked = classifier.mask(tokens, rate=settings.mask_rate, generator=generator)
            tokens, masked = _on(device, tokens, masked)
            classes, logits = classifier(tokens, masked)
            loss = F.cross_entropy(classes, labels.to(device))
            if settings.generative_weight:
                loss = loss + settings.generative_weight * generative_loss(logits, tokens, masked)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after_epoch(epoch, classifier)
    return classifier


def _on(device: torch.device, tokens: Tensor, masked: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens and mask where the model is."""
    return tokens.to(device), None if masked is None else masked.to(device)


def _augmented(tokens: Tensor, index: Tensor, *, images: int, epoch: int, seed: int) -> Tensor:
    """Tokens int64 (B, positions) of the images at ``index``, as `igpt.data.augment.augmented` draws them."""
    side = math.isqrt(tokens.shape[1])
    squares = tokens.view(-1, side, side).numpy()
    drawn = augmented(squares, index.numpy(), images=images, epoch=epoch, seed=seed)
    return torch.from_numpy(drawn).view(len(tokens), -1)
