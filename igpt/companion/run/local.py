"""Carry out a plan on this machine, in the plan's order: as many stages at once as its cores and GPUs hold.

What a stage takes follows from the machine and the stage alone, not from what else is running: threads can move the last
digits, and a run that is continued should have those that it began with.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from igpt.companion.experiments.cells import declared_stages
from igpt.companion.experiments.costs import Cost, stage_hours
from igpt.companion.experiments.machines import H100, many_cores
from igpt.companion.experiments.protocols import protocol
from igpt.companion.experiments.tiers import tier_of
from igpt.companion.results.plan import Plan, PlannedStage, make_plan
from igpt.companion.results.record import Record, write_record
from igpt.companion.results.signature import Signer
from igpt.companion.results.store import RecordStore, record_path
from igpt.companion.run.budget import Budget, is_released
from igpt.companion.run.execute import Kernels, StageStopped, execute
from igpt.companion.run.folder import finished_record, remove_leftovers, run_folder
from igpt.companion.run.progress import Progress
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.machine import cores, gpus
from igpt.project import Project

Needs = Callable[[Stage], tuple[int, int]]  # cores and GPUs of a stage
Takes = Callable[[Stage], tuple[int, int, int, int]]  # and bytes of memory and of disk
START = 4  # seconds of a kernel
AT_ONCE = 4  # stages that share the cores of a machine without GPUs: as many models as the laptop tier trains


@dataclass(frozen=True)
class Slots:
    """What of this machine the stages share; ``gpus`` as CUDA_VISIBLE_DEVICES names them, the rest in bytes."""

    cores: int
    gpus: tuple[str, ...] = ()
    memory: float = math.inf
    disk: float = math.inf  # for what is removed when a stage ends

    def take(self, cores: int, gpus: int, memory: int = 0, disk: int = 0) -> tuple[Slots, Slots] | None:
        """A part for one stage and the rest; None when there is not enough."""
        if self.cores < cores or len(self.gpus) < gpus or self.memory < memory or self.disk < disk:
            return None
        rest = Slots(self.cores - cores, self.gpus[gpus:], self.memory - memory, self.disk - disk)
        return Slots(cores, self.gpus[:gpus], memory, disk), rest

    def give_back(self, part: Slots) -> Slots:
        """The room with a part that is free again."""
        gpus, memory = (*self.gpus, *part.gpus), self.memory + part.memory
        return Slots(self.cores + part.cores, gpus, memory, self.disk + part.disk)


def shares(room: Slots) -> Needs:
    """What each stage takes of a room where no profile says so.

    The tiny tier's take a core and no GPU: their models gain nothing from more. A comparison of speed takes everything.
    Any other takes a GPU, where there is one, and an equal share of the cores; where there is none, one on released weights
    takes all cores, whatever threads it is told, as the memory holds one of them at a time. Training and fine-tuning take as
    many GPUs as ``IGPT_DEVICES`` says, or, of the paper's models, as divide the recipe's batch. A user's own OMP_NUM_THREADS
    counts for all others.
    """
    own = own_threads()
    share = min(own or max(room.cores // (len(room.gpus) or AT_ONCE), 1), room.cores)

    def needs(stage: Stage) -> tuple[int, int]:
        tier, devices = tier_of(stage), os.environ.get("IGPT_DEVICES", "")  # several of which only training can use
        if tier == "speed":
            return room.cores, len(room.gpus)
        if tier == "tiny":
            return min(own or 1, room.cores), 0
        if not room.gpus and is_released([stage]):
            return room.cores, 0
        chosen = protocol(stage.notebook)
        if not chosen.network:
            return share, 0
        if chosen.spreads and devices.isdecimal():
            return share, min(int(devices), len(room.gpus))
        if chosen.spreads and tier in ("paper", "released"):
            [plan] = chosen.recipes(stage.parameters)
            return share, max((n for n in range(len(room.gpus) + 1) if n and plan.batch % n == 0), default=0)
        return share, min(1, len(room.gpus))

    return needs


def own_threads() -> int | None:
    """The threads that the user has asked for; of a list, as nested programs take it, the first."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else None


def plan_stages(project: Project, stages: Iterable[Stage]) -> Plan:
    """The plan of ``stages``, and of their dependencies, against the published records."""
    store = RecordStore(project)
    return make_plan(stages, store.signer, store.read)


def publishable_stages(project: Project) -> Plan:
    """The plan of all stages whose records belong into the book: the declared ones, and their dependencies."""
    return plan_stages(project, declared_stages())


def ensure(project: Project, stages: Iterable[Stage]) -> None:
    """Have the outputs of ``stages`` at hand, for a notebook that was opened by itself."""
    plan = plan_stages(project, stages)
    run_plan(project, plan, wanted=[planned.stage for planned in plan if planned.stage in set(stages)])


def to_do(project: Project, plan: Plan, wanted: Iterable[Stage] = ()) -> list[PlannedStage]:
    """The stages of a plan that are to be carried out, parents first; see `igpt.companion.results.plan.Plan.to_run`."""
    return plan.to_run(lambda p: finished_record(project, p.stage, p.signature) is not None, wanted)


def run_plan(
    project: Project,
    plan: Plan,
    *,
    wanted: Iterable[Stage] = (),
    room: Slots | None = None,
    needs: Needs | None = None,
    budget: Budget | None = None,
) -> int:
    """Run what the plan needs and publish the records of declared stages; how many stages were run.

    ``wanted`` names stages whose outputs must be there although their records are fresh. ``room`` is what may be used,
    this machine when left out, and ``needs`` what each stage takes of it, as `shares` says when left out. With a ``budget``
    its stages alone are run, the cheapest first, and each takes of the room's memory and disk what it says; without one, what the
    longest chain waits for. A stage that
    fails holds up what stands on it and nothing else. Raises the first UsageError as it came, or one
    StageError for all failures, once everything else is done; KeyboardInterrupt after killing the kernels.
    """
    needed = to_do(project, plan, wanted)
    held = {planned.stage for planned in (needed if budget is None else budget.stages)}
    todo = [planned for planned in needed if planned.stage in held]
    check_data(project, plan if budget is None else todo)
    declared = {planned.stage for planned in publishable_stages(project)} if len(plan) else set()
    for planned in plan:
        if planned.state != "fresh" and planned.stage in declared and planned not in needed:
            record = finished_record(project, planned.stage, planned.signature)
            assert record is not None
            write_record(record_path(project, planned.stage), record)
    for planned in plan:
        if planned not in needed:
            remove_leftovers(run_folder(project, planned.stage, planned.signature))  # killed between its record and its end
    if not todo:
        return 0
    failures = _walk(project, todo, declared, room or Slots(cores(), tuple(gpus())), needs, budget)
    if failures and all(isinstance(failure, StageStopped) for failure in failures):
        raise StageStopped("; ".join(map(str, failures)))
    if failures:
        raise next((f for f in failures if isinstance(f, UsageError)), StageError("; ".join(map(str, failures))))
    return len(todo)


def _walk(
    project: Project,
    todo: list[PlannedStage],
    declared: set[Stage],
    room: Slots,
    needs: Needs | None,
    budget: Budget | None,
) -> list[Exception]:
    """Run stages as their parents end and as there is room; the failures."""
    kernels = Kernels()
    waiting = {planned.stage: planned for planned in todo}
    running: dict[Future[Record], PlannedStage] = {}
    failures: list[Exception] = []
    parts: dict[Stage, Slots] = {}
    told = _telling(room, threads=needs is not None or not own_threads())
    needs = needs or shares(room)
    takes = _taking(needs, budget)
    at_once = _fitting(todo, room, takes)
    seconds = budget.seconds if budget else _expecting(needs)
    progress = Progress(todo, lambda planned: run_folder(project, planned.stage, planned.signature), seconds, workers=at_once)
    rank = budget.rank() if budget else {}
    first = (lambda planned: -rank[planned.stage]) if budget else progress.priority
    with progress, ThreadPoolExecutor(min(room.cores, len(todo))) as pool:
        try:
            while waiting or running:
                busy = waiting.keys() | {planned.stage for planned in running.values()}
                ready = [p for p in waiting.values() if not busy & set(p.parents)]
                for planned in sorted(ready, key=first, reverse=True):
                    taken = room.take(*takes(planned.stage))
                    if taken is None:
                        break  # what matters most goes first, however much room smaller ones would find
                    parts[planned.stage], room = taken
                    progress.start(waiting.pop(planned.stage))
                    running[pool.submit(execute, planned, project, kernels, environment=told(taken[0]))] = planned
                if not running:
                    break  # what still waits depends on something that failed
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                progress.refresh()
                for future in done:
                    planned = running.pop(future)
                    room = room.give_back(parts.pop(planned.stage))
                    error = future.exception()
                    if error is None:
                        if planned.stage in declared:
                            write_record(record_path(project, planned.stage), future.result())
                        progress.end(planned, "done")
                    elif isinstance(error, StageError | UsageError):
                        failures.append(error)
                        progress.end(planned, "stopped" if isinstance(error, StageStopped) else "failed")
                        for stage in _descendants(planned.stage, waiting):
                            progress.end(waiting.pop(stage), f"not run, since {planned.stage.name} failed:")
                    else:
                        kernels.stop()
                        raise error
        except BaseException:
            kernels.stop()
            raise
    return failures


def _telling(room: Slots, *, threads: bool) -> Callable[[Slots], dict[str, str]]:
    """What a kernel is told of its part of a room; without ``threads`` those of the environment stand."""

    def told(part: Slots) -> dict[str, str]:
        share = {"OMP_NUM_THREADS": str(part.cores)} if threads else {}
        return {**share, **({"CUDA_VISIBLE_DEVICES": ",".join(part.gpus)} if room.gpus else {})}

    return told


def _expecting(needs: Needs) -> Callable[[PlannedStage], float]:
    """Seconds that a stage should take with what it is given, kernel start included: by its last record, else by its cost."""

    def seconds(planned: PlannedStage) -> float:
        if planned.record is not None:
            return planned.record.receipt.seconds + START
        cores, gpus = needs(planned.stage)
        return 3600 * stage_hours(planned.in_full, H100 if gpus else many_cores(cores)) + START

    return seconds


def _taking(needs: Needs, budget: Budget | None) -> Takes:
    """What a stage takes of a room; bytes of memory and of disk are told by a budget alone."""

    def takes(stage: Stage) -> tuple[int, int, int, int]:
        cost = budget.costs[stage] if budget else Cost()
        return *needs(stage), math.ceil(cost.memory), math.ceil(cost.scratch)

    return takes


def _fitting(todo: list[PlannedStage], room: Slots, takes: Takes) -> int:
    """How many of the stages the room holds at once; at least one."""
    count = 0
    for planned in todo:
        taken = room.take(*takes(planned.stage))
        if taken is None:
            break
        count, room = count + 1, taken[1]
    return max(count, 1)


def _descendants(stage: Stage, waiting: dict[Stage, PlannedStage]) -> list[Stage]:
    """Waiting stages that stand on ``stage``, directly or through others."""
    found = {stage}
    for planned in waiting.values():  # parents come first in a plan
        if found & set(planned.parents):
            found.add(planned.stage)
    return [s for s in waiting if s in found]


def check_data(project: Project, plan: Iterable[PlannedStage]) -> None:
    """Refuse, before anything starts, a stage whose data set is not at hand."""
    from igpt.data.cards import check_present

    signer = Signer(project.notebooks)
    for planned in plan:
        if planned.state != "fresh":
            for name in protocol(planned.stage.notebook).prior_datasets(signer.parameters(planned.stage)):
                check_present(name)
