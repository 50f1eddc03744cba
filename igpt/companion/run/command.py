"""The commands ``igpt plan``, ``igpt run`` and ``igpt bench``, from their arguments."""

from __future__ import annotations

import shutil
from pathlib import Path

from igpt.companion.experiments.cells import declared_stages
from igpt.companion.experiments.costs import Disks
from igpt.companion.experiments.machines import this_machine
from igpt.companion.results.plan import Plan
from igpt.companion.results.signature import Signature, Signer
from igpt.companion.run.budget import make_budget, on_existing_weights
from igpt.companion.run.folder import empty, finished_record, hold, release, run_folder
from igpt.companion.run.local import plan_stages, run_plan, stages_to_run
from igpt.companion.run.own_weights import resolve_weights
from igpt.companion.run.slots import Slots
from igpt.companion.run.targets import find_stages, parameters_of
from igpt.companion.stage import Stage
from igpt.data.cards import is_present
from igpt.errors import UsageError
from igpt.machine import cores, free_memory, gpus
from igpt.measure import LEVEL
from igpt.progress import tell
from igpt.project import Project
from igpt.text import counted


def plan_targets(targets: list[str], tier: str | None) -> tuple[Plan, Signer]:
    """The plan of the targets; of all tiers if neither targets nor a tier are given."""
    project = Project.here()
    stages = find_stages(targets, tier, project) if targets or tier else declared_stages()
    return plan_stages(project, stages), Signer(project.notebooks)


def run_speed(tasks: list[str], *, toy: bool) -> list[str]:
    """Rerun speed comparisons one at a time; return their names.

    tasks : by default all, with those for GPUs only if there is a GPU
    toy : one round at tiny sizes, as a test; such records stay in ``runs/``

    Raises UsageError for an unknown task, before anything starts.
    """
    from igpt.companion.experiments.speed import SPEED_STAGES

    project, signer = Project.here(), Signer(Project.here().notebooks)
    known = {str(stage.parameters["task"]): stage for stage in SPEED_STAGES}
    if unknown := [task for task in tasks if task not in known]:
        raise UsageError(f"there is no comparison {unknown[0]!r}; choose from {', '.join(known)}")
    chosen = tasks or [task for task in known if gpus() or not task.endswith("_gpu")]
    for task in chosen:
        stage = signer.canonical(Stage.of("speed", task=task, rounds=1, toy=True) if toy else known[task])
        folder = run_folder(project, stage, signer.sign(stage))
        if folder.exists():
            hold(folder)
            empty(folder)
            release(folder)  # the kernel locks it
        run_plan(project, plan_stages(project, [stage]), wanted=[stage])
    return chosen


def run_targets(targets: list[str], tier: str | None, overrides: list[str]) -> str:
    """Run the targets; return a summary.

    If all stages are on existing weights, their data sets are downloaded, and the stages that fit this machine are run,
    cheapest first.

    Raises UsageError before anything starts for an unknown target or parameter, a wrong type, and if none of the stages on
    existing weights fits; after all other stages have run for a data set that cannot be downloaded.
    """
    project = Project.here()
    stages = find_stages(targets, tier, project)
    if overrides:
        overridden = [{**stage.parameters, **parameters_of(project, stage.notebook, overrides)} for stage in stages]
        stages = [resolve_weights(project, Stage.of(s.notebook, **more)) for s, more in zip(stages, overridden, strict=True)]
    plan, signer = plan_stages(project, stages), Signer(project.notebooks)
    by_budget = on_existing_weights(stages)  # before canonical names, which omit default parameters
    stages = [signer.canonical(stage) for stage in stages]
    lines = [_run_by_budget(project, plan, stages) if by_budget else _summary(plan, run_plan(project, plan))]
    if overrides:
        lines += dict.fromkeys(line for stage in stages for line in _result_lines(project, stage, signer.sign(stage)))
    return "\n".join(lines)


def _result_lines(project: Project, stage: Stage, signature: Signature) -> list[str]:
    """The accuracies that a finished stage found, with their intervals, and the path of its record."""
    record = finished_record(project, stage, signature)
    lines = []
    for name, value in record.values.items() if record else ():
        if value.unit == "fraction" and value.low is not None and value.high is not None:
            interval = f"{LEVEL:.0%} interval {value.low:.1%} to {value.high:.1%}"
            lines.append(f"{name}: {value.value:.1%}{f' of {value.images:,} images' if value.images else ''}, {interval}")
    return [*lines, f"record: {run_folder(project, stage, signature) / 'record.json'}"]


def _run_by_budget(project: Project, plan: Plan, wanted: list[Stage]) -> str:
    """Run the stages that fit this machine; return a summary."""
    from igpt.companion.run.datasets import fetch

    todo = stages_to_run(project, plan)
    if not todo:
        return _summary(plan, 0)
    memory, disks = free_memory(), Disks(project.runs, _disk_of)
    budget = make_budget(todo, wanted, this_machine(), memory=memory, disks=disks)
    if budget.skipped.keys() >= set(wanted):
        stage, why = next(iter(budget.skipped.items()))
        raise UsageError(f"this machine cannot hold {stage.name}: {why}")
    _tell_skipped(budget.skipped)
    slots = Slots(cores(), tuple(gpus()), memory, budget.scratch_space(disks))
    if budget.stages:
        tell(f"igpt: {budget.summary(memory, disks)}")
    failures = []
    for name, readers in budget.datasets().items():
        if not is_present(name):
            try:
                tell(f"igpt: {fetch(name)}")
            except UsageError as error:
                failures.append(error)
                fewer = budget.without(readers, str(error))
                _tell_skipped({stage: why for stage, why in fewer.skipped.items() if stage not in budget.skipped})
                budget = fewer
    ran = run_plan(project, plan, slots=slots, budget=budget) if budget.stages else 0
    if failures:
        raise failures[0]
    skipped = f"; {len(budget.skipped)} skipped: {', '.join(s.name for s in budget.skipped)}" if budget.skipped else ""
    return f"{counted(ran, 'stage')} run, {len(plan) - len(todo)} fresh{skipped}"


def _summary(plan: Plan, ran: int) -> str:
    """A summary of how many stages of a plan were run."""
    if ran:
        return f"{counted(ran, 'stage')} run, {len(plan) - ran} fresh"
    return f"nothing to run: {counted(len(plan), 'stage is fresh', 'stages are fresh')}"


def _tell_skipped(skipped: dict[Stage, str]) -> None:
    """Print one line per reason, with the stages that are skipped for it."""
    for why in dict.fromkeys(skipped.values()):
        tell(f"igpt: skipped, since {why}: {'; '.join(stage.name for stage, other in skipped.items() if other == why)}")


def _disk_of(folder: Path) -> tuple[int, int]:
    """The device number and free bytes of the disk of a folder, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing.stat().st_dev, shutil.disk_usage(existing).free
