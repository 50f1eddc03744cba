"""What a stage costs on a machine: hours of its work at the machine's rates, memory, room on the disk, and downloads.

Every notebook has its own entry in `experiments.protocols`, and every stage is given with all its parameters: nothing has
a price by default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from igpt.companion.experiments.machines import GIB, H100, Card
from igpt.companion.experiments.needs import Needs, Training
from igpt.companion.experiments.protocols import PROTOCOLS, needed_datasets, needed_stages, test_only
from igpt.companion.experiments.work import Work
from igpt.companion.stage import Stage
from igpt.data.cards import data_card, is_present
from igpt.data.dataset import TOKEN
from igpt.data.imagenet_tokens import released_path
from igpt.train.memory import FLOAT, USED, fitting, step_memory
from igpt.train.recipe import Recipe
from igpt.train.recipes import recipe
from igpt.weights.released import Released, released_at

TENSORS = ("model.safetensors", "pytorch_model.bin")  # `igpt.weights.huggingface.TENSORS`, which brings torch


@dataclass(frozen=True)
class Download:
    """Something that is fetched once, whatever stages need it.

    bytes : that come over the network; exact : whether these are known, or the least that they can be
    disk : bytes that stay outside of the runs, in ``folder``; here : whether it is at hand
    """

    name: str
    bytes: float
    disk: float
    exact: bool
    here: bool
    folder: Path


@dataclass(frozen=True)
class Cost:
    """What one or several stages take, without the stages that they stand on.

    card, memory : bytes of the card's memory and of the machine's, at the height; a processor has the second only
    kept, scratch : bytes in the folders of the stages: what stays of all of them, and what passes of the one that has most
    """

    hours: float = 0.0
    card: float = 0.0
    memory: float = 0.0
    kept: float = 0.0
    scratch: float = 0.0
    downloads: frozenset[Download] = field(default=frozenset())

    def __add__(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(
            self.hours + other.hours,
            max(self.card, other.card),
            max(self.memory, other.memory),
            self.kept + other.kept,
            max(self.scratch, other.scratch),
            self.downloads | other.downloads,
        )

    @property
    def to_fetch(self) -> float:
        """Bytes to download that are not at hand."""
        return sum(each.bytes for each in self.downloads if not each.here)

    @property
    def exact(self) -> bool:
        """Whether `to_fetch` is known, and not the least that it can be."""
        return all(each.exact for each in self.downloads if not each.here)

    @property
    def disk(self) -> float:
        """Bytes in the folders of the stages, at the height."""
        return self.kept + self.scratch

    @property
    def room(self) -> float:
        """Bytes of disk at the height, with what is to be downloaded."""
        return self.disk + sum(each.disk for each in self.downloads if not each.here)


@dataclass(frozen=True)
class Disks:
    """The disks that a run writes to.

    runs : where the stages' folders are
    look : tells of a folder the number of its disk, and the bytes that are free there
    """

    runs: Path
    look: Callable[[Path], tuple[int, float]]

    def taken(self, cost: Cost) -> list[tuple[Path, float, float]]:
        """For each disk a folder on it, the bytes that are written there at the height, and those that are free."""
        fetched = sorted((each.folder, each.disk) for each in cost.downloads if not each.here)
        found: dict[int, tuple[Path, float, float]] = {}
        for folder, size in [(self.runs, cost.disk), *fetched]:
            number, free = self.look(folder)
            first, before, _ = found.get(number, (folder, 0.0, free))
            found[number] = (first, before + size, free)
        return list(found.values())


def stage_work(stage: Stage) -> Work:
    """The work of one stage, all of whose parameters are named, without its parents.

    Raises KeyError for a notebook that has no entry, and for one without the parameters that its price stands on.
    """
    work = PROTOCOLS[stage.notebook].work
    return work if isinstance(work, Work) else work(stage.parameters, _plan(stage))


def stage_hours(stage: Stage, card: Card = H100) -> float | None:
    """Hours of one stage, all of whose parameters are named, without its parents; None for a notebook of one's own."""
    try:
        return stage_work(stage).hours(card.rates)
    except KeyError:
        return None


def stage_needs(stage: Stage) -> Needs:
    """What one stage, all of whose parameters are named, needs beside time; little for one without a network, or of one's own."""
    if "model" not in stage.parameters or stage.notebook not in PROTOCOLS:
        return Needs()
    return PROTOCOLS[stage.notebook].needs(stage.parameters, _plan(stage))


def stage_cost(stage: Stage, card: Card) -> Cost:
    """All that one stage, all of whose parameters are named, takes on a card, without its parents.

    Raises KeyError as `stage_work` does. Training is counted with as many images at once as the card holds, or with one where
    it does not even hold that.
    """
    needs = stage_needs(stage)
    at_once = max(needs.passing + (0.0 if card.is_processor else needs.network), needs.other())
    if needs.training:
        at_once = max(at_once, training_bytes(needs.training, card.gib))
    return Cost(
        hours=stage_work(stage).hours(card.rates),
        card=0.0 if card.is_processor else at_once,
        memory=needs.memory + (at_once if card.is_processor else 0.0),
        kept=needs.kept,
        scratch=needs.scratch,
        downloads=frozenset(downloads(stage)),
    )


def training_bytes(training: Training, gib: float) -> float:
    """The card's memory at the height of a step: with as many images at once as it holds; with one where it holds none.

    gib : what the card has; 0 for a processor, for which one image is counted
    """
    shape, batch, classes = training.shape, training.batch, training.classes
    fit = fitting(shape, batch=batch, room=USED * gib * GIB, classes=classes) if gib else None
    return fit.memory.total if fit else step_memory(shape, images=1, recompute=True, classes=classes).total


def downloads(stage: Stage) -> list[Download]:
    """What a stage reads that is published elsewhere; a data set that may be had from its owner only is not among it."""
    found = [each for name in needed_datasets(stage.notebook, stage.parameters) if (each := _dataset(name, test_only(stage)))]
    given = stage.parameters
    if stage.notebook == "weights" and given["weights"] == "released":
        model = released_at(str(given["model"]), str(given["objective"]), int(given["step"]))
        size = FLOAT * model.shape.parameters
        found.append(Download(model.label, size, size, True, _at_hand(model), model.prefix.parent))
    return found


def _at_hand(model: Released) -> bool:
    """Whether released weights lie here, a checkpoint or Hugging Face's; as `igpt.weights.fetching.at_hand`, without torch."""
    stem = model.prefix
    ends = ["index", *(f"data-{shard:05d}-of-{model.shards:05d}" for shard in range(model.shards))]
    if all(stem.with_name(f"{stem.name}.{end}").exists() for end in ends):
        return True
    tensors = [model.mirrored / f"{name}{ending}" for name in TENSORS for ending in ("", ".index.json")]
    described = model.mirror is not None and (model.mirrored / "config.json").exists()
    return described and any(path.exists() for path in tensors)


def _dataset(name: str, test_only: bool) -> Download | None:
    """A data set that can be downloaded; of one that lies in loose files, the test images alone where no more is read."""
    card = data_card(name)
    if card.loose and test_only:
        least = card.test * card.height**2 * TOKEN
        return Download(f"{name} (test)", least, least, False, released_path("test").exists(), card.folder)
    if card.loose:
        return Download(name, card.loose_bytes, card.loose_bytes, False, is_present(name), card.folder)
    if not card.archives or not all(archive.addresses for archive in card.archives):
        return None
    size = sum(archive.bytes for archive in card.archives)
    return Download(name, size, size + card.unpacked_bytes, True, is_present(name), card.folder)


def lacking(cost: Cost, card: Card, memory: float = math.inf, disks: Disks | None = None) -> str:
    """Why a machine cannot hold what a cost says, in a few words; nothing where it can.

    memory : bytes that the machine has free; disks : not looked at when None
    """
    if not card.is_processor and cost.card > USED * card.gib * GIB:
        return f"it needs {cost.card / GIB:.1f} GiB on the card, of whose {card.gib:.0f} GiB {USED:.0%} are used"
    if cost.memory > memory:
        return f"it needs {cost.memory / GIB:.1f} GiB of memory, and {memory / GIB:.1f} GiB are free"
    for folder, size, free in disks.taken(cost) if disks else ():
        if size > free:
            return f"it needs {size / 1e9:.1f} GB of the disk of {folder}, and {free / 1e9:.1f} GB are free"
    return ""


InFull = Callable[[Stage], Stage]  # gives a stage all its parameters: `igpt.companion.results.signature.Signer.in_full`


def with_parents(stages: Iterable[Stage], in_full: InFull) -> list[Stage]:
    """Stages and all that they stand on, once each, with all their parameters."""
    found: dict[Stage, None] = {}
    queue = list(stages)
    while queue:
        stage = in_full(queue.pop())
        if stage not in found:
            found[stage] = None
            queue += needed_stages(stage.notebook, stage.parameters).values()
    return list(found)


def run_hours(stages: Iterable[Stage], in_full: InFull, card: Card = H100) -> tuple[float, float]:
    """Hours of pre-training, and of everything after it, for a run's stages and their parents."""
    hours = {stage: stage_work(stage).hours(card.rates) for stage in with_parents(stages, in_full)}
    pretraining = sum(h for stage, h in hours.items() if stage.notebook == "pretrain")
    return pretraining, sum(hours.values()) - pretraining


def run_room(stages: Iterable[Stage], in_full: InFull) -> tuple[float, float]:
    """Bytes to download and of disk for a run's stages and their parents, where nothing of them is at hand yet."""
    needed = with_parents(stages, in_full)
    fetched = {each.name: each for stage in needed for each in downloads(stage)}.values()
    return sum(each.bytes for each in fetched), stages_disk(needed) + sum(each.disk for each in fetched)


def stages_disk(stages: Iterable[Stage]) -> float:
    """Bytes in the folders of stages, one after the other: what stays of all of them, and what passes of the one with most."""
    needs = [stage_needs(stage) for stage in stages]
    return sum(each.kept for each in needs) + max((each.scratch for each in needs), default=0.0)


def _plan(stage: Stage) -> Recipe:
    """The recipe of a stage's model."""
    given = stage.parameters
    return recipe(str(given["model"]), str(given.get("objective", "autoregressive")))  # type: ignore[arg-type]  # refused there
