"""Fine-tuning (sections 2.3, 3.4 and 4.5): all weights and a new head, on L_GEN + L_CLF.

Trained: every weight and a linear head, started at zero, on the final norm's output averaged over
positions. Adam with pre-training's betas, a constant rate, no dropout; CIFAR's images padded, cropped and flipped.
Chosen on validation: the rate, a part of pre-training's; the number of epochs, by
stopping early at the best validation accuracy.
Refitted: with both, from the pre-trained weights, on train and validation together.
Reported: the test accuracy of the refit, once.

Warm-up, epochs and the chosen rates are unpublished: no warm-up, and see deviations for the rest.

Each run is one of `igpt.train.engine`. With a folder it goes on after a kill or a stop as if there had been none; once it
has ended, `FINISHED` there has what came of it, and its checkpoints are removed. A checkpoint is three times the
weights; at most four of them lie there at a time, one of which is being written: 65 GB for iGPT-L.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from igpt.data import LabelledTokens, data_card, labelled_tokens, subsample
from igpt.data.augment import augmented
from igpt.data.labelled import TokensInMemory
from igpt.errors import StageError, UsageError
from igpt.evaluate.linear_probe import check_classes
from igpt.files import read_json, write_text
from igpt.model import ImageGPT, draw_mask, generative_loss
from igpt.seeds import check_seed
from igpt.shape import ModelShape
from igpt.train import engine
from igpt.train.checkpoint import Losses
from igpt.train.distributed import Distributed, Loss, from_first, sum_over
from igpt.train.engine import Batch, Diverged, Report, Runtime, Task
from igpt.train.launch import Launch, together
from igpt.train.loop import passes, take
from igpt.weights.own import load_weights

FINISHED = "finished.json"  # in a run's folder, what came of it; the run's name with it


Data: TypeAlias = "LabelledTokens | tuple[Tensor, Tensor]"  # or tokens int64 (images, positions) and labels int64 (images,)


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
        """Classes int64 (images,) of integer tokens (images, positions); in a process group each finds its part of them.

        A BERT model sees masks in use as in training, drawn from ``mask_seed``.
        """
        runtime, classes = self._runtime, np.zeros(len(tokens), np.int64)
        pieces = passes(
            self.model,
            tokens,
            mask_rate=mask_rate,
            mask_seed=mask_seed,
            at_once=runtime.micro_batch,
            part=(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1),
        )
        for indices, few, masked in pieces:
            with torch.autocast(few.device.type, torch.bfloat16, enabled=runtime.bfloat16, cache_enabled=False):
                found = self(few, masked, generative=False)[0].argmax(1).cpu().numpy()
            classes[indices] = found[: len(indices)]
        return np.array(sum_over(classes.tolist(), runtime.device), np.int64)


class JointLoss(Loss):
    """L_CLF, and L_GEN by its weight."""

    network: Classifier

    def __init__(self, network: Classifier, *, weight: float) -> None:
        super().__init__(network)
        self.weight = weight

    def forward(self, tokens: Tensor, masked: Tensor | None, labels: Tensor) -> Tensor:
        classes, logits = self.network(tokens, masked, generative=bool(self.weight))
        loss = F.cross_entropy(classes, labels)
        return loss if logits is None else loss + self.weight * generative_loss(logits, tokens, masked)


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


def settings_grid(dataset: str, pretraining_rate: float, *, epochs: int) -> list[FineTuneSettings]:
    """The settings to search on a data set, one a rate, with at most ``epochs`` epochs.

    >>> [settings.learning_rate for settings in settings_grid("digits", 0.01, epochs=4)]
    [0.01, 0.003]
    """
    rates, batch = (DIGITS_RATES, DIGITS_BATCH) if dataset == "digits" else (RATES, FineTuneSettings.batch)
    augment = dataset in AUGMENTED
    return [FineTuneSettings(pretraining_rate * part, epochs, batch=batch, augment=augment) for part in rates]


def search(
    model: ImageGPT,
    train: Data,
    validation: Data,
    *,
    settings: Sequence[FineTuneSettings],
    seed: int,
    folder: Path | None = None,
    runtime: Runtime | None = None,
    report: Report = lambda done, total: None,
) -> Search:
    """Run each of ``settings`` and choose by validation accuracy; the first and the earliest of equals.

    folder : each keeps its checkpoints and what came of it in a folder of its own there; nothing is kept when None
    One that diverges counts with the epochs before. Raises what `igpt.train.engine.train` raises, UsageError for
    validation labels of classes that no training image has, and StageError when all diverge before an epoch has ended.
    """
    given, held_out = _labelled(train), _labelled(validation)
    check_classes(given.labels, held_out.labels)
    seen: list[tuple[float, int, float]] = []
    best: tuple[float, FineTuneSettings] | None = None
    for number, candidate in enumerate(settings):
        run = _Run(model, given, candidate, seed, folder and folder / f"search-{number + 1}", runtime)
        for epoch, accuracy in enumerate(run.accuracies(held_out, _part(report, number, len(settings))), 1):
            seen.append((candidate.learning_rate, epoch, accuracy))
            if best is None or accuracy > best[0]:
                best = accuracy, replace(candidate, epochs=epoch)
    if best is None:
        raise StageError("fine-tuning diverges at every rate before an epoch has ended: look at the weights, or give lower rates")
    return Search(best[1], best[0], seen)


def fine_tune(
    model: ImageGPT,
    train: Data,
    *,
    settings: FineTuneSettings,
    seed: int,
    folder: Path | None = None,
    runtime: Runtime | None = None,
    report: Report = lambda done, total: None,
) -> Classifier:
    """A copy of ``model`` with a head, trained on every image once an epoch; ``model`` itself is left alone.

    folder : continues from its newest good checkpoint, the last step's included; nothing is kept when None
    machine : the device of the model, in full precision, when None
    Raises what `igpt.train.engine.train` raises, and UsageError for a number that is no seed.
    """
    return _Run(model, _labelled(train), settings, seed, folder, runtime).train(None, report)[1]


@dataclass(frozen=True)
class Tuned:
    """What came of a `Tuning`: the search, and of each run the test images' classes, int64 (views, images)."""

    search: Search
    predictions: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Tuning:
    """A search, the refit and two controls, in the plain words that every process of a group can carry them out by.

    weights : the folder of the pre-trained ones; shape : theirs
    images : of train and the held-out part together; all of them for 0
    settings : to search in, see `settings_grid`
    scratch_rate : the learning rate from a random start, which pre-training took
    views : masked views at test time, drawn from ``seed`` and the numbers after it
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
        """Carry it out, with the others."""
        seed = self.seed
        model, palette = load_weights(self.weights, self.shape)
        side = math.isqrt(self.shape.n_ctx)
        train, validation = subsample(
            *(labelled_tokens(self.dataset, name, side=side, palette=palette) for name in ("train", "validation")),
            images=self.images,
            seed=seed,
        )
        test = labelled_tokens(self.dataset, "test", side=side, palette=palette)
        runs = len(self.settings) + 3  # about as long as each other
        found = search(
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
            "tuned": found.settings,
            "without_generative": replace(found.settings, generative_weight=0.0),
            "from_scratch": replace(found.settings, learning_rate=self.scratch_rate),
        }
        predictions = {}
        for number, (name, settings) in enumerate(refits.items()):
            if name == "from_scratch":
                model = ImageGPT(self.shape, seed=seed)  # in the place of the trained one, of which no more is needed
            run = _Run(model, train + validation, settings, seed, folder / name, runtime)
            classes = run.predictions(test, self.views, _part(report, len(self.settings) + number, runs))
            predictions[name] = np.array(classes, np.int64)
        return Tuned(found, predictions)


def tune(
    tuning: Tuning, *, folder: Path, runtime: Runtime, launch: Launch | None = None, report: Report = lambda done, total: None
) -> Tuned:
    """Carry out a `Tuning` on every device of the group, with as many images at once as fit when ``machine`` does not say.

    folder : where each run has a folder of its own; runs that have ended are not repeated
    Raises what `search` raises, and UsageError when a step does not fit into memory.
    """
    launch = launch or Launch()
    if runtime.micro_batch is None:
        batch, classes = tuning.settings[0].batch, data_card(tuning.dataset).classes
        runtime = runtime.fitted(
            tuning.shape, batch=batch, folder=folder, classes=classes, devices=launch.devices, nodes=launch.nodes
        )
    return together(tuning, folder=folder.absolute(), runtime=runtime, launch=launch, report=report)


@dataclass(frozen=True)
class _Run:
    """One fine-tuning of a copy of ``start``."""

    start: ImageGPT
    data: LabelledTokens
    settings: FineTuneSettings
    seed: int
    folder: Path | None
    runtime: Runtime | None

    def accuracies(self, validation: LabelledTokens, report: Report) -> list[float]:
        """The validation accuracy after each epoch, up to where it diverges."""
        name = f"{self.name} validation {validation.digest}"
        kept: list[float] | None = self._kept(name, "accuracies")
        if kept is None:
            try:
                kept = self.train(validation, report)[0].validation
            except Diverged as error:
                kept = error.losses.validation
            self._keep(name, {"accuracies": kept})
        self._end(report)
        return kept

    def predictions(self, test: LabelledTokens, views: int, report: Report) -> list[list[int]]:
        """The classes of the test images, for each of ``views`` masks, after the last epoch."""
        name = f"{self.name} test {test.digest}"
        kept: list[list[int]] = self._kept(name, "predictions") or []
        if len(kept) < views:
            classifier = self.train(None, report)[1]
            for view in range(len(kept), views):
                kept.append(classifier.predict(test, mask_rate=self.settings.mask_rate, mask_seed=self.seed + view).tolist())
                self._keep(name, {"predictions": kept})
            del classifier
        self._end(report)
        return kept

    def train(self, validation: LabelledTokens | None, report: Report) -> tuple[Losses, Classifier]:
        """Train, and measure the accuracy after each epoch where there are images for that."""
        settings, data = self.settings, self.data
        runtime = self._runtime
        check_seed(self.seed)
        classifier = Classifier(copy.deepcopy(self.start), data.classes, runtime=runtime)
        if not settings.generative_weight:
            classifier.model.wtet.requires_grad_(False)  # no loss reaches it
        an_epoch = -(-len(data) // settings.batch)
        steps = an_epoch * settings.epochs

        def accuracy(spread: Distributed) -> float:
            assert validation is not None
            return float((classifier.predict(validation, mask_rate=settings.mask_rate) == validation.labels).mean())

        coming: Iterator[Batch] | None = None

        def draw(step: int) -> Batch:
            """The engine asks for one step after the other, from where it goes on."""
            nonlocal coming
            coming = coming or self._batches(step)
            return next(coming)

        task = Task(
            name=self.name,
            loss=JointLoss(classifier, weight=settings.generative_weight),
            steps=steps,
            batch=settings.batch,
            positions=classifier.model.shape.n_ctx,
            betas=settings.betas,
            rate=lambda step: settings.learning_rate,
            draw=draw,
            milestones=() if validation is None else range(an_epoch, steps + 1, an_epoch),
            measure=accuracy,
        )
        return engine.train(task, folder=self.folder, runtime=runtime, report=report)[0], classifier

    def _batches(self, first: int) -> Iterator[Batch]:
        """From the ``first`` step on, tokens, BERT's masks and labels. One generator draws all, also what is passed over."""
        settings, data, shape = self.settings, self.data, self.start.shape
        generator = torch.Generator().manual_seed(self.seed)
        steps = itertools.count()
        for epoch in range(1, settings.epochs + 1):
            for index in torch.randperm(len(data), generator=generator).split(settings.batch):
                masked = None
                if shape.objective == "bert":
                    like = torch.empty(len(index), shape.n_ctx, device="meta")
                    masked = draw_mask(like, rate=settings.mask_rate, generator=generator)
                if next(steps) < first:
                    continue
                tokens = take(data, index.numpy())
                if settings.augment:
                    tokens = _augmented(tokens, index, images=len(data), epoch=epoch, seed=self.seed)
                yield tokens, masked, torch.from_numpy(data.labels[index.numpy()])

    @property
    def _runtime(self) -> Runtime:
        """As given, or plainly where the model is."""
        return self.runtime or Runtime(device=self.start.wte.device.type)

    @cached_property
    def name(self) -> str:
        """All that decides the run, in letters."""
        if self.folder is None:
            return ""
        weights = hashlib.sha256()
        for tensor in self.start.state_dict().values():
            weights.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        settings = json.dumps(asdict(self.settings), sort_keys=True)
        return f"{settings} {self.start.shape} {weights.hexdigest()} {self.data.digest} seed {self.seed}"

    def _kept(self, name: str, what: str) -> Any:
        """What the first process had kept of the run, the same for all; None where there is nothing."""
        found = None
        if self.folder is not None and _first() and (self.folder / FINISHED).exists():
            path = self.folder / FINISHED
            try:
                kept = read_json(path)
                found = kept[what]
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{path} is damaged ({error}): remove it, and the run is repeated") from None
            if kept["run"] != name:
                raise UsageError(f"{path} is of another model, settings, seed or data: give another folder")
        return from_first(found, self._runtime.device)

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        """Keep what came of the run."""
        if self.folder is not None and _first():
            write_text(self.folder / FINISHED, json.dumps({"run": name, **found}))

    def _end(self, report: Report) -> None:
        """Remove the checkpoints of a run whose end is kept, also where a kill came between the two, and free its memory.

        A card has no room for two runs, and a compiled module is in a circle of references; torch keeps eight compiled codes.
        """
        if self.folder is not None and _first():
            for path in self.folder.glob("checkpoint-*"):
                path.unlink()
        torch.compiler.reset()
        gc.collect()
        report(1, 1)


def _labelled(data: Data) -> LabelledTokens:
    """Data in either form as one."""
    if isinstance(data, LabelledTokens):
        return data
    tokens, labels = (tensor.cpu().numpy() for tensor in data)
    memory = TokensInMemory(tokens.astype(np.uint16), labels)
    return LabelledTokens.of(memory, np.arange(len(labels)), classes=int(labels.max()) + 1)


def _augmented(tokens: Tensor, index: Tensor, *, images: int, epoch: int, seed: int) -> Tensor:
    """Tokens int64 (B, positions) of the images at ``index``, as `igpt.data.augment.augmented` draws them."""
    side = math.isqrt(tokens.shape[1])
    squares = tokens.view(-1, side, side).numpy()
    drawn = augmented(squares, index.numpy(), images=images, epoch=epoch, seed=seed)
    return torch.from_numpy(drawn).view(len(tokens), -1)


def _part(report: Report, place: int, parts: int) -> Report:
    """The report of one of several parts that take about as long as each other."""
    return lambda done, total: report(place * total + done, parts * total)


def _first() -> bool:
    """Whether this process is the first of its group, or has none."""
    return not dist.is_initialized() or dist.get_rank() == 0
