"""Run a plan on this machine.

1. Plan: `plan_stages` compares stages with the published records, and `stages_to_run` lists those to run, parents first.
2. Slots: as many stages run at once as the machine's cores, GPUs, memory and disk allow (`igpt.companion.run.slots`).
3. Kernel: each stage's notebook runs in its own kernel (`igpt.companion.run.execute`).
4. Record: the record is written to the stage's run folder once the notebook has succeeded.
5. Publish: the records of declared stages are copied to book/records.

If a stage fails, only its dependents are skipped. An interrupt kills the kernels; the same command resumes from their
checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from igpt.companion.experiments.cells import declared_stages
from igpt.companion.experiments.machines import H100, many_cores
from igpt.companion.experiments.protocols import known_demand, protocol
from igpt.companion.results.plan import Plan, PlannedStage, make_plan
from igpt.companion.results.record import Record, write_record
from igpt.companion.results.store import RecordStore, record_path
from igpt.companion.run.budget import Budget
from igpt.companion.run.execute import Kernels, StageStopped, execute
from igpt.companion.run.folder import finished_record, remove_leftovers, run_folder
from igpt.companion.run.progress import Progress
from igpt.companion.run.slots import Needs, Slots, default_needs, omp_threads
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.machine import cores, gpus
from igpt.project import Project

START = 4  # seconds that a kernel takes to start


def plan_stages(project: Project, stages: Iterable[Stage]) -> Plan:
    """The plan of ``stages`` and their dependencies, compared with the published records."""
    store = RecordStore(project)
    return make_plan(stages, store.signer, store.read)


def publishable_stages(project: Project) -> Plan:
    """The plan of all stages whose records the book publishes: the declared stages and their dependencies."""
    return plan_stages(project, declared_stages())


def stages_to_run(project: Project, plan: Plan, wanted: Iterable[Stage] = ()) -> list[PlannedStage]:
    """The stages of a plan to run, parents first; see `igpt.companion.results.plan.Plan.to_run`."""
    return plan.to_run(lambda p: finished_record(project, p.stage, p.signature) is not None, wanted)


def run_plan(
    project: Project,
    plan: Plan,
    *,
    wanted: Iterable[Stage] = (),
    slots: Slots | None = None,
    needs: Needs | None = None,
    budget: Budget | None = None,
) -> int:
    """Run the stages of a plan and publish the records of declared stages; return the number of stages run.

    wanted : stages whose outputs are needed even if their records are fresh
    slots : the slots to use, by default the whole machine
    needs : the needs of each stage, by default `igpt.companion.run.slots.default_needs`
    budget : run only its stages, cheapest first; without a budget the longest chain of dependent stages runs first

    Raises the first UsageError, or one StageError for all failures, once all other stages have ended; and KeyboardInterrupt
    after killing the kernels.
    """
    slots = slots or Slots(cores(), tuple(gpus()))
    todo = stages_to_run(project, plan, wanted) if budget is None else list(budget.stages)
    check_data(todo)
    declared = {planned.stage for planned in publishable_stages(project)}

    def publish(planned: PlannedStage, record: Record) -> None:
        if planned.stage in declared:
            write_record(record_path(project, planned.stage), record)

    chosen = {planned.stage for planned in todo}
    for planned in plan:
        if planned.stage not in chosen:
            remove_leftovers(run_folder(project, planned.stage, planned.signature))  # killed after it wrote its record
            if planned.state != "fresh" and (record := finished_record(project, planned.stage, planned.signature)):
                publish(planned, record)
    if not todo:
        return 0
    users_threads = needs is None and omp_threads() is not None

    def environment(part: Slots) -> dict[str, str]:
        threads = {} if users_threads else {"OMP_NUM_THREADS": str(part.cores)}
        return {**threads, **({"CUDA_VISIBLE_DEVICES": ",".join(part.gpus)} if slots.gpus else {})}

    needs = needs or default_needs(slots, budget)
    seconds = budget.seconds if budget else _expected_seconds(needs)
    rank = budget.rank() if budget else {stage: -chain for stage, chain in _chains(todo, seconds).items()}
    todo.sort(key=lambda planned: rank[planned.stage])
    at_once = slots.fitting(needs(planned.stage) for planned in todo)
    with Progress(todo, lambda p: run_folder(project, p.stage, p.signature), seconds, workers=at_once) as progress:
        failures = _run_stages(project, todo, slots, needs, environment, publish, progress)
    if failures and all(isinstance(failure, StageStopped) for failure in failures):
        raise StageStopped("; ".join(map(str, failures)))
    if failures:
        raise next((f for f in failures if isinstance(f, UsageError)), StageError("; ".join(map(str, failures))))
    return len(todo)


def _run_stages(
    project: Project,
    todo: Iterable[PlannedStage],
    slots: Slots,
    needs: Needs,
    environment: Callable[[Slots], Mapping[str, str]],
    publish: Callable[[PlannedStage, Record], None],
    progress: Progress,
) -> list[Exception]:
    """Run stages in this order, each once its parents have ended and it fits; return the failures."""
    kernels = Kernels()
    waiting = {planned.stage: planned for planned in todo}
    running: dict[Future[Record], tuple[PlannedStage, Slots]] = {}
    failures: list[Exception] = []
    with ThreadPoolExecutor(min(slots.cores, len(waiting))) as pool:
        try:
            while waiting or running:
                unfinished = waiting.keys() | {planned.stage for planned, _ in running.values()}
                for planned in [p for p in waiting.values() if not unfinished & set(p.parents)]:
                    taken = slots.take(needs(planned.stage))
                    if taken is None:
                        break  # smaller stages do not overtake the first one that waits
                    part, slots = taken
                    progress.start(waiting.pop(planned.stage))
                    running[pool.submit(execute, planned, project, kernels, environment=environment(part))] = planned, part
                if not running:
                    break  # the remaining stages cannot run: their parents failed
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                progress.refresh()
                for future in done:
                    planned, part = running.pop(future)
                    slots = slots.give_back(part)
                    error = future.exception()
                    if error is None:
                        publish(planned, future.result())
                        progress.end(planned, "done")
                    elif isinstance(error, StageError | UsageError):
                        failures.append(error)
                        progress.end(planned, "stopped" if isinstance(error, StageStopped) else "failed")
                        for stage in _dependents(planned.stage, waiting.values()):
                            progress.end(waiting.pop(stage), f"not run, since {planned.stage.name} failed:")
                    else:
                        raise error
        except BaseException:
            kernels.stop()
            raise
    return failures


def _expected_seconds(needs: Needs) -> Callable[[PlannedStage], float]:
    """A function for the expected seconds of a stage with kernel start: from its last record, else from its cost."""

    def seconds(planned: PlannedStage) -> float:
        if planned.record is not None:
            return planned.record.receipt.seconds + START
        need = needs(planned.stage)
        card = H100 if need.gpus else many_cores(need.cores)
        return max(3600 * known_demand(planned.in_full).work.hours(card.rates), protocol(planned.stage.notebook).seconds) + START

    return seconds


def _chains(todo: list[PlannedStage], seconds: Callable[[PlannedStage], float]) -> dict[Stage, float]:
    """For each stage the expected seconds of the longest chain of dependent stages that starts with it."""
    chains: dict[Stage, float] = {}
    for planned in reversed(todo):  # parents come first in a plan
        dependents = [chains[p.stage] for p in todo if planned.stage in p.parents]
        chains[planned.stage] = seconds(planned) + max(dependents, default=0)
    return chains


def _dependents(stage: Stage, waiting: Iterable[PlannedStage]) -> list[Stage]:
    """The waiting stages that depend on ``stage``, directly or through others."""
    direct = [planned.stage for planned in waiting if stage in planned.parents]
    return list(dict.fromkeys([*direct, *(s for child in direct for s in _dependents(child, waiting))]))


def check_data(stages: Iterable[PlannedStage]) -> None:
    """Raise UsageError, before anything starts, for a stage whose data set is missing."""
    from igpt.data.cards import check_present

    for planned in stages:
        for name in protocol(planned.stage.notebook).prior_datasets(planned.in_full.parameters):
            check_present(name)
