"""What stages cost on a machine: hours at the machine's rates, memory, disk, and downloads.

Every stage is given with all its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from igpt.companion.experiments.demand import Demand
from igpt.companion.experiments.machines import GIB, H100, Card
from igpt.companion.experiments.protocols import protocol, stage_demand
from igpt.companion.stage import Stage
from igpt.data.cards import data_card, is_present
from igpt.data.dataset import TOKEN
from igpt.data.imagenet_tokens import released_path
from igpt.errors import UsageError
from igpt.train.memory import FLOAT, USED, Step, fitting
from igpt.weights.released import at_hand, released_at


@dataclass(frozen=True)
class Download:
    """Something that is fetched once, whatever stages need it.

    bytes : to transfer; exact : whether these are known, or the least that they can be
    disk : bytes that stay outside of the runs, in ``folder``; here : whether it has been fetched
    """

    name: str
    bytes: float
    disk: float
    exact: bool
    here: bool
    folder: Path


@dataclass(frozen=True)
class Cost:
    """What one or several stages take, without their parents.

    card, memory : bytes of the card's memory and of the machine's, at the peak; a processor has the second only
    kept, scratch : bytes in the folders of the stages: what stays of all of them, and the most that one has beside that
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
        """Bytes in the folders of the stages, at the peak."""
        return self.kept + self.scratch

    @property
    def room(self) -> float:
        """Bytes of disk at the peak, with what is to be downloaded."""
        return self.disk + sum(each.disk for each in self.downloads if not each.here)


@dataclass(frozen=True)
class Disks:
    """The disks that a run writes to.

    runs : where the stages' folders are
    look : gives the number of a folder's disk, and the bytes that are free there
    """

    runs: Path
    look: Callable[[Path], tuple[int, float]]

    def taken(self, cost: Cost) -> list[tuple[Path, float, float]]:
        """For each disk: a folder on it, the bytes that are written there at the peak, and the bytes that are free."""
        fetched = sorted((each.folder, each.disk) for each in cost.downloads if not each.here)
        disks: dict[int, tuple[Path, float, float]] = {}
        for folder, size in [(self.runs, cost.disk), *fetched]:
            number, free = self.look(folder)
            first, before, _ = disks.get(number, (folder, 0.0, free))
            disks[number] = (first, before + size, free)
        return list(disks.values())


def stage_hours(stage: Stage, card: Card = H100) -> float:
    """Hours of one stage without its parents; 0 for a user's own notebook. Raises KeyError as `stage_demand` does."""
    return stage_demand(stage).work.hours(card.rates)


def stage_cost(stage: Stage, card: Card) -> Cost:
    """What one stage takes on a card, without its parents. Raises KeyError as `stage_demand` does.

    Training is counted with as many images at once as the card holds, or with one where it does not even hold that.
    """
    demand = stage_demand(stage)
    peak = max(demand.passing + (0.0 if card.is_processor else demand.network), demand.other(), _training_bytes(demand, card))
    return Cost(
        hours=demand.work.hours(card.rates),
        card=0.0 if card.is_processor else peak,
        memory=demand.memory + (peak if card.is_processor else 0.0),
        kept=demand.kept,
        scratch=demand.scratch,
        downloads=frozenset(downloads(stage)),
    )


def _training_bytes(demand: Demand, card: Card) -> float:
    """The card's memory at the peak of a training step; of a processor, with one image at once."""
    if (training := demand.training) is None:
        return 0.0
    step = Step(training.shape, classes=training.classes)
    fit = None if card.is_processor else fitting(step, batch=training.batch, room=USED * card.gib * GIB)
    return (fit or replace(step, recompute=True)).memory


def downloads(stage: Stage) -> list[Download]:
    """What a stage reads that is published elsewhere; data sets that only their owners give out are not among it."""
    chosen = protocol(stage.notebook)
    needed = [_dataset(name, chosen.test_only) for name in chosen.datasets(stage.parameters)]
    given = stage.parameters
    if stage.notebook == "weights" and given["weights"] == "released":
        model = released_at(str(given["model"]), str(given["objective"]), int(given["step"]))
        size, here = FLOAT * model.shape.parameters, False
        with suppress(UsageError):  # a damaged index, which the stage reports
            here = bool(at_hand(model))
        needed.append(Download(model.label, size, size, True, here, model.prefix.parent))
    return [each for each in needed if each]


def _dataset(name: str, test_only: bool) -> Download | None:
    """A data set that can be downloaded; of one in loose files, the test images alone where no more is read."""
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
    """Why a machine cannot hold what a cost says, in a few words; empty where it can.

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


def with_parents(stages: Iterable[Stage], in_full: Callable[[Stage], Stage]) -> list[Stage]:
    """Stages and all that they depend on, once each, with all their parameters.

    in_full : gives a stage all its parameters, see `igpt.companion.results.signature.Signer.in_full`
    """
    needed: dict[Stage, None] = {}
    queue = list(stages)
    while queue:
        stage = in_full(queue.pop())
        if stage not in needed:
            needed[stage] = None
            queue += protocol(stage.notebook).parents(stage.parameters).values()
    return list(needed)


def run_hours(stages: Iterable[Stage], card: Card = H100) -> tuple[float, float]:
    """Hours of pre-training, and of everything else, of stages that run one after the other."""
    hours = {stage: stage_hours(stage, card) for stage in stages}
    pretraining = sum(h for stage, h in hours.items() if stage.notebook == "pretrain")
    return pretraining, sum(hours.values()) - pretraining


def run_room(stages: Iterable[Stage]) -> tuple[list[Download], float]:
    """What stages that run one after the other download, and the bytes of disk at the peak, on a machine with nothing of them."""
    demands = {stage: stage_demand(stage) for stage in stages}
    fetched = {each.name: each for stage in demands for each in downloads(stage)}.values()
    kept = sum(each.kept for each in demands.values())
    scratch = max((each.scratch for each in demands.values()), default=0.0)
    return list(fetched), kept + scratch + sum(each.disk for each in fetched)
