"""Fine-tuning (sections 2.3, 3.4 and 4.5): all weights and a new head, on L_GEN + L_CLF.

Trained: every weight and a linear head, started at zero, on the final norm's output averaged over positions. Adam with
pre-training's betas, a constant rate, no dropout; CIFAR's images padded, cropped and flipped.
Chosen on validation: the rate, a fraction of pre-training's; the number of epochs, by stopping early at the best
validation accuracy.
Refitted: with both, from the pre-trained weights, on train and validation together.
Reported: the test accuracy of the refit, once.

Warm-up, epochs and the chosen rates are unpublished. There is no warm-up here; see deviations for the rest.

Each run is trained by `igpt.train.engine`. With a folder it resumes after a kill or a stop, on a CPU to the bit; its outcome
is saved there, and its checkpoints are removed at the end. A checkpoint is three times the weights, and at most four exist at a
time, one of them being written: 65 GB for iGPT-L.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from igpt.data import LabelledTokens, data_card, labelled_tokens, subsample
from igpt.data.augment import augmented
from igpt.errors import StageError
from igpt.evaluate.kept import Kept
from igpt.evaluate.linear_probe import check_classes
from igpt.files import remove_parts
from igpt.model import ImageGPT, draw_mask, generative_loss
from igpt.seeds import check_seed
from igpt.shape import ModelShape
from igpt.train import engine
from igpt.train.checkpoint import Losses
from igpt.train.distributed import Loss, from_first, sum_over
from igpt.train.engine import Batch, Diverged, Report, Task
from igpt.train.launch import together
from igpt.train.loop import passes, take
from igpt.train.runtime import Launch, Runtime
from igpt.weights.own import load_weights

Outcome = TypeVar("Outcome")

# Fractions of pre-training's rate. In the paper a tenth is often best; on the digits, with few epochs, it was worse.
# Batches of 128 would give the digits, and many a user's own pictures, only ten steps per epoch.
RATES = (0.3, 0.1, 0.03)
DIGITS_RATES = (1.0, 0.3)
SMALL, SMALL_BATCH = 2_000, 16  # training images below which the batch is smaller
AUGMENTED = ("cifar10", "cifar100")  # as published; ImageNet's crops are drawn when it is tokenised


@dataclass(frozen=True)
class FineTuneSettings:
    """Hyperparameters of one fine-tuning run, except for its weights and seed."""

    learning_rate: float
    epochs: int
    generative_weight: float = 1.0  # of L_GEN beside L_CLF; 0 for the classification loss alone
    batch: int = 128  # section 3.4
    augment: bool = False  # pad, crop and flip, anew in each epoch
    betas: tuple[float, float] = (0.9, 0.95)
    mask_rate: float = 0.15


class Classifier(nn.Module):
    """A model and a linear head on its pooled final features, without bias, zero at the start (as released)."""

    def __init__(self, model: ImageGPT, classes: int, *, runtime: Runtime | None = None) -> None:
        super().__init__()
        self.model, self._runtime = model, runtime or Runtime(device=model.wte.device.type)
        self.head = nn.Linear(model.shape.n_embd, classes, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor, masked: Tensor | None = None, *, generative: bool = True) -> tuple[Tensor, Tensor | None]:
        """Class logits float32 (B, classes), and with ``generative`` token logits float32 (B, T, V)."""
        hidden = self.model.hidden(tokens, masked)
        return self.head(hidden.mean(dim=1)).float(), self.model.logits(hidden) if generative else None

    @torch.no_grad()
    def predict(self, tokens: LabelledTokens | Tensor, *, mask_rate: float = 0.15, mask_seed: int = 0) -> NDArray[np.int64]:
        """Classes int64 (images,) of integer tokens (images, positions); a process group shares the work.

        The images of a BERT model are masked as in training, with masks drawn from ``mask_seed``.
        """
        runtime, classes = self._runtime, np.zeros(len(tokens), np.int64)
        batches = passes(self.model, tokens, mask_rate=mask_rate, mask_seed=mask_seed, at_once=runtime.micro_batch)
        for indices, batch, masked in batches:
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=runtime.bfloat16, cache_enabled=False):
                predicted = self(batch, masked, generative=False)[0].argmax(1).cpu().numpy()
            classes[indices] = predicted[: len(indices)]
        return np.array(sum_over(classes.tolist(), runtime.device), np.int64)


class JointLoss(Loss):
    """L_CLF + weight * L_GEN."""

    network: Classifier

    def __init__(self, network: Classifier, *, weight: float) -> None:
        super().__init__(network)
        self.weight = weight

    def forward(self, tokens: Tensor, masked: Tensor | None, labels: Tensor) -> Tensor:
        classes, logits = self.network(tokens, masked, generative=bool(self.weight))
        loss = F.cross_entropy(classes, labels)
        return loss if logits is None else loss + self.weight * generative_loss(logits, tokens, masked)


def settings_grid(dataset: str, pretraining_rate: float, *, epochs: int) -> list[FineTuneSettings]:
    """The settings to search on a data set, one per rate, each with at most ``epochs`` epochs.

    >>> [settings.learning_rate for settings in settings_grid("digits", 0.01, epochs=4)]
    [0.01, 0.003]
    """
    rates = DIGITS_RATES if dataset == "digits" else RATES
    batch = SMALL_BATCH if data_card(dataset).train < SMALL else FineTuneSettings.batch
    augment = dataset in AUGMENTED
    return [FineTuneSettings(pretraining_rate * fraction, epochs, batch=batch, augment=augment) for fraction in rates]


@dataclass(frozen=True)
class Search:
    """The settings chosen on validation, with the best number of epochs, and all accuracies (rate, epoch, fraction)."""

    settings: FineTuneSettings
    validation: float
    seen: list[tuple[float, int, float]]


def search(
    model: ImageGPT,
    train: LabelledTokens,
    validation: LabelledTokens,
    *,
    settings: Sequence[FineTuneSettings],
    seed: int,
    folder: Path | None = None,
    runtime: Runtime | None = None,
    report: Report = lambda done, total: None,
) -> Search:
    """Run each of ``settings`` and choose by validation accuracy; ties go to the first settings and the earliest epoch.

    folder : each run has a subfolder, in which it resumes and saves its outcome; nothing is saved when None
    Of a run that diverges the earlier epochs count. Raises what `igpt.train.engine.train` raises, UsageError for
    validation labels of classes that no training image has, and StageError when all runs diverge in their first epoch.
    """
    check_classes(train.labels, validation.labels)
    seen: list[tuple[float, int, float]] = []
    best: tuple[float, FineTuneSettings] | None = None
    for number, candidate in enumerate(settings):
        run = _Run(model, train, candidate, seed, folder and folder / f"search-{number + 1}", runtime)
        for epoch, accuracy in enumerate(run.accuracies(validation, _part(report, number, len(settings))), 1):
            seen.append((candidate.learning_rate, epoch, accuracy))
            if best is None or accuracy > best[0]:
                best = accuracy, replace(candidate, epochs=epoch)
    if best is None:
        raise StageError("fine-tuning diverges at every rate before an epoch has ended: look at the weights, or give lower rates")
    return Search(best[1], best[0], seen)


def fine_tune(
    model: ImageGPT,
    train: LabelledTokens,
    *,
    settings: FineTuneSettings,
    seed: int,
    folder: Path | None = None,
    runtime: Runtime | None = None,
    report: Report = lambda done, total: None,
) -> Classifier:
    """A copy of ``model`` with a head, trained on every image once per epoch; ``model`` itself is not changed.

    folder : resumes from the newest good checkpoint there; nothing is saved when None
    runtime : the device of the model, in full precision, when None
    Raises what `igpt.train.engine.train` raises, and UsageError for an invalid seed.
    """
    return _Run(model, train, settings, seed, folder, runtime).train(None, report)[1]


@dataclass(frozen=True)
class Tuned:
    """The outcome of a `Tuning`: its search, and each refit's classes of the test images, int64 (views, images)."""

    search: Search
    predictions: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Tuning:
    """A search, the refit and two controls, described by picklable values.

    weights : folder of the pre-trained weights; shape : of the model
    images : of train and validation together to use; 0 for all
    settings : to search, see `settings_grid`
    scratch_rate : learning rate of the control from random weights, pre-training's
    views : masked views at test time, with mask seeds from ``seed`` on
    """

    weights: Path
    shape: ModelShape
    dataset: str
    images: int
    seed: int
    settings: tuple[FineTuneSettings, ...]
    scratch_rate: float
    views: int = 1

    def run(self, folder: Path, runtime: Runtime, report: Report) -> Tuned:
        """Run the search and the refits in this process, as one of its group."""
        seed = self.seed
        model, palette = load_weights(self.weights, self.shape)
        side = math.isqrt(self.shape.n_ctx)
        train, validation = subsample(
            *(labelled_tokens(self.dataset, name, side=side, palette=palette) for name in ("train", "validation")),
            images=self.images,
            seed=seed,
        )
        test = labelled_tokens(self.dataset, "test", side=side, palette=palette)
        runs = len(self.settings) + 3  # of about equal length
        chosen = search(
            model,
            train,
            validation,
            settings=self.settings,
            seed=seed,
            folder=folder,
            runtime=runtime,
            report=lambda done, total: report(done * len(self.settings), total * runs),
        )
        refits = {
            "tuned": chosen.settings,
            "without_generative": replace(chosen.settings, generative_weight=0.0),
            "from_scratch": replace(chosen.settings, learning_rate=self.scratch_rate),
        }
        predictions = {}
        for number, (name, settings) in enumerate(refits.items(), start=len(self.settings)):
            if name == "from_scratch":
                model = ImageGPT(self.shape, seed=seed)
            run = _Run(model, train + validation, settings, seed, folder / name, runtime)
            predictions[name] = np.array(run.predictions(test, self.views, _part(report, number, runs)), np.int64)
        return Tuned(chosen, predictions)


def tune(
    tuning: Tuning, *, folder: Path, runtime: Runtime, launch: Launch | None = None, report: Report = lambda done, total: None
) -> Tuned:
    """Run a `Tuning` on every device of the launch; without a ``micro_batch`` in ``runtime``, the largest that fits is used.

    folder : each run has a subfolder; finished runs are not repeated
    Raises what `search` raises, and UsageError when a step does not fit into memory.
    """
    launch = launch or Launch()
    if runtime.micro_batch is None:
        batch, classes = tuning.settings[0].batch, data_card(tuning.dataset).classes
        runtime = runtime.fitted(tuning.shape, batch=batch, folder=folder, classes=classes, launch=launch)
    return together(tuning.run, folder=folder, runtime=runtime, launch=launch, report=report)


@dataclass(frozen=True)
class _Run:
    """One fine-tuning run, on a copy of ``start``."""

    start: ImageGPT
    data: LabelledTokens
    settings: FineTuneSettings
    seed: int
    folder: Path | None
    given: Runtime | None

    def accuracies(self, validation: LabelledTokens, report: Report) -> list[float]:
        """The validation accuracy after each epoch; of a run that diverges, after each epoch before."""

        def compute() -> list[float]:
            try:
                return self.train(validation, report)[0].validation
            except Diverged as error:
                return error.losses.validation

        return self._once("accuracies", validation, compute, report)

    def predictions(self, test: LabelledTokens, views: int, report: Report) -> list[list[int]]:
        """The classes of the test images after the last epoch, for each of ``views`` masks."""

        def compute() -> list[list[int]]:
            classifier, rate = self.train(None, report)[1], self.settings.mask_rate
            seeds = range(self.seed, self.seed + views)
            return [classifier.predict(test, mask_rate=rate, mask_seed=mask_seed).tolist() for mask_seed in seeds]

        return self._once(f"predictions-{views}", test, compute, report)

    def train(self, validation: LabelledTokens | None, report: Report) -> tuple[Losses, Classifier]:
        """Train, and measure the accuracy after each epoch if there are validation images."""
        settings, data = self.settings, self.data
        check_seed(self.seed)
        classifier = Classifier(copy.deepcopy(self.start), data.classes, runtime=self.runtime)
        if not settings.generative_weight:
            classifier.model.wtet.requires_grad_(False)  # no loss depends on it
        steps_per_epoch = -(-len(data) // settings.batch)
        steps = steps_per_epoch * settings.epochs
        batches: Iterator[Batch] | None = None

        def accuracy() -> float:
            assert validation is not None
            return float((classifier.predict(validation, mask_rate=settings.mask_rate) == validation.labels).mean())

        def draw(step: int) -> Batch:
            """The batch of a step; the engine draws steps in order, from the one at which it resumes."""
            nonlocal batches
            batches = batches or self._batches(step)
            return next(batches)

        task = Task(
            name=self.name,
            loss=JointLoss(classifier, weight=settings.generative_weight),
            steps=steps,
            batch=settings.batch,
            positions=classifier.model.shape.n_ctx,
            betas=settings.betas,
            rate=lambda step: settings.learning_rate,
            draw=draw,
            milestones=() if validation is None else range(steps_per_epoch, steps + 1, steps_per_epoch),
            measure=accuracy,
        )
        return engine.train(task, folder=self.folder, runtime=self.runtime, report=report)[0], classifier

    def _batches(self, first: int) -> Iterator[Batch]:
        """Tokens, BERT's masks and labels of each step from ``first`` on; earlier ones are drawn, to advance the generator."""
        settings, data, shape = self.settings, self.data, self.start.shape
        generator = torch.Generator().manual_seed(self.seed)
        steps = itertools.count()
        for epoch in range(1, settings.epochs + 1):
            for index in torch.randperm(len(data), generator=generator).split(settings.batch):
                masked = None
                if shape.objective == "bert":
                    empty_batch = torch.empty(len(index), shape.n_ctx, device="meta")
                    masked = draw_mask(empty_batch, rate=settings.mask_rate, generator=generator)
                if next(steps) < first:
                    continue
                tokens = take(data, index.numpy())
                if settings.augment:
                    side = math.isqrt(shape.n_ctx)
                    squares = tokens.view(-1, side, side).numpy()
                    cropped = augmented(squares, index.numpy(), images=len(data), epoch=epoch, seed=self.seed)
                    tokens = torch.from_numpy(cropped).view(len(tokens), -1)
                yield tokens, masked, torch.from_numpy(data.labels[index.numpy()])

    @cached_property
    def runtime(self) -> Runtime:
        """The given runtime; by default the model's device in full precision."""
        return self.given or Runtime(device=self.start.wte.device.type)

    @cached_property
    def name(self) -> str:
        """Identifies all inputs of the run; empty without a folder."""
        if self.folder is None:
            return ""
        weights = hashlib.sha256()
        for tensor in self.start.state_dict().values():
            weights.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        settings = json.dumps(asdict(self.settings), sort_keys=True)
        return f"{settings} {self.start.shape} {weights.hexdigest()} {self.data.digest} seed {self.seed}"

    def _once(self, what: str, data: LabelledTokens, compute: Callable[[], Outcome], report: Report) -> Outcome:
        """An outcome on some images, read from the folder, or computed and saved; the run's checkpoints and memory are freed.

        Only the first process of a group reads and writes the folder.
        """
        first = not dist.is_initialized() or dist.get_rank() == 0
        key = {"run": self.name, "data": data.digest, "outcome": what}
        kept = Kept(self.folder, key) if self.folder and first else None
        outcome: Outcome | None = from_first(kept.get("finished") if kept else None, self.runtime.device)
        if outcome is None:
            outcome = compute()
            if kept:
                kept.keep("finished", outcome)
        if kept:
            remove_parts(kept.folder, "checkpoint-*")
        # Two runs do not fit on a GPU, compiled modules are in reference cycles, and torch caches only eight compilations.
        torch.compiler.reset()
        gc.collect()
        report(1, 1)
        return outcome


def _part(report: Report, index: int, parts: int) -> Report:
    """The report of part ``index`` of ``parts`` equal ones, as progress of the whole."""
    return lambda done, total: report(index * total + done, parts * total)
