"""The cost of stages on a machine: hours at the machine's rates, memory, disk, and downloads.

All functions except `with_parents` expect stages that name all their parameters.
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
    """A download, which is fetched once for all stages.

    bytes : size of the transfer; exact : whether ``bytes`` is exact or a lower bound
    disk : bytes that remain in ``folder``, outside ``runs/``; here : whether it has been fetched
    """

    name: str
    bytes: float
    disk: float
    exact: bool
    here: bool
    folder: Path


@dataclass(frozen=True)
class Cost:
    """The cost of one or several stages, without their parents.

    card, memory : peak bytes of GPU memory and of main memory; ``card`` is 0 for a processor
    kept, scratch : bytes in run folders: the sum of what is kept, and the largest temporary need of one stage
    """

    hours: float = 0.0
    card: float = 0.0
    memory: float = 0.0
    kept: float = 0.0
    scratch: float = 0.0
    downloads: frozenset[Download] = field(default=frozenset())

    def __add__(self, other: Cost) -> Cost:
        """The cost of both, run one after the other."""
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
        """Bytes to download, without what has been fetched."""
        return sum(each.bytes for each in self.downloads if not each.here)

    @property
    def exact(self) -> bool:
        """Whether `to_fetch` is exact, not a lower bound."""
        return all(each.exact for each in self.downloads if not each.here)

    @property
    def disk(self) -> float:
        """Peak bytes in the run folders."""
        return self.kept + self.scratch

    @property
    def room(self) -> float:
        """Peak bytes of disk, including downloads."""
        return self.disk + sum(each.disk for each in self.downloads if not each.here)


@dataclass(frozen=True)
class Disks:
    """The disks that a run writes to.

    runs : the folder of the run folders
    look : function from a folder to the device number of its disk and the free bytes there
    """

    runs: Path
    look: Callable[[Path], tuple[int, float]]

    def taken(self, cost: Cost) -> list[tuple[Path, float, float]]:
        """For each disk: a folder on it, the peak bytes written, and the free bytes."""
        fetched = sorted((each.folder, each.disk) for each in cost.downloads if not each.here)
        disks: dict[int, tuple[Path, float, float]] = {}
        for folder, size in [(self.runs, cost.disk), *fetched]:
            number, free = self.look(folder)
            first, before, _ = disks.get(number, (folder, 0.0, free))
            disks[number] = (first, before + size, free)
        return list(disks.values())


def stage_hours(stage: Stage, card: Card = H100) -> float:
    """Hours of a stage without its parents; 0 for a user's own notebook. Raises KeyError as `stage_demand` does."""
    return stage_demand(stage).work.hours(card.rates)


def stage_cost(stage: Stage, card: Card) -> Cost:
    """The cost of a stage on a card, without its parents. Raises KeyError as `stage_demand` does.

    Training uses the largest micro-batch that fits the card, or one image if none fits.
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
    """Peak bytes of a training step on the card; on a processor, with one image at a time."""
    if (training := demand.training) is None:
        return 0.0
    step = Step(training.shape, classes=training.classes)
    fit = None if card.is_processor else fitting(step, batch=training.batch, room=USED * card.gib * GIB)
    return (fit or replace(step, recompute=True)).memory


def downloads(stage: Stage) -> list[Download]:
    """The downloads of a stage, without data sets that can only be obtained from their owners."""
    chosen = protocol(stage.notebook)
    needed = [_dataset(name, chosen.test_only) for name in chosen.datasets(stage.parameters)]
    given = stage.parameters
    if stage.notebook == "weights" and given["weights"] == "released":
        model = released_at(str(given["model"]), str(given["objective"]), int(given["step"]))
        size, here = FLOAT * model.shape.parameters, False
        with suppress(UsageError):  # for a damaged index, which the stage reports
            here = bool(at_hand(model))
        needed.append(Download(model.label, size, size, True, here, model.prefix.parent))
    return [each for each in needed if each]


def _dataset(name: str, test_only: bool) -> Download | None:
    """The download of a data set; None if it has no address. With ``test_only``, of loose files only the test images."""
    card = data_card(name)
    if card.loose and test_only:
        lower_bound = card.test * card.height**2 * TOKEN
        return Download(f"{name} (test)", lower_bound, lower_bound, False, released_path("test").exists(), card.folder)
    if card.loose:
        return Download(name, card.loose_bytes, card.loose_bytes, False, is_present(name), card.folder)
    if not card.archives or not all(archive.addresses for archive in card.archives):
        return None
    size = sum(archive.bytes for archive in card.archives)
    return Download(name, size, size + card.unpacked_bytes, True, is_present(name), card.folder)


def lacking(cost: Cost, card: Card, memory: float = math.inf, disks: Disks | None = None) -> str:
    """Why a cost exceeds a machine, as a phrase; empty if it fits.

    memory : free bytes of main memory; disks : None to ignore disk space
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
    """Stages and all their ancestors, without duplicates, with all their parameters.

    in_full : function that completes a stage's parameters, see `igpt.companion.results.signature.Signer.in_full`
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
    """Hours of pre-training and hours of all other stages, run one after the other."""
    hours = {stage: stage_hours(stage, card) for stage in stages}
    pretraining = sum(h for stage, h in hours.items() if stage.notebook == "pretrain")
    return pretraining, sum(hours.values()) - pretraining


def run_room(stages: Iterable[Stage]) -> tuple[list[Download], float]:
    """The downloads and peak disk bytes of stages that run one after the other, if nothing has been fetched."""
    demands = {stage: stage_demand(stage) for stage in stages}
    fetched = {each.name: each for stage in demands for each in downloads(stage)}.values()
    kept = sum(each.kept for each in demands.values())
    scratch = max((each.scratch for each in demands.values()), default=0.0)
    return list(fetched), kept + scratch + sum(each.disk for each in fetched)
