"""What ``igpt plan`` and ``igpt run`` do, from the words a user typed."""

from __future__ import annotations

import shutil
from pathlib import Path

from igpt.companion.experiments.cells import declared_stages
from igpt.companion.experiments.costs import Disks
from igpt.companion.experiments.machines import this_machine
from igpt.companion.results.plan import Plan
from igpt.companion.results.signature import Signer
from igpt.companion.run.budget import is_released, make_budget
from igpt.companion.run.datasets import fetch
from igpt.companion.run.folder import empty, hold, release, run_folder
from igpt.companion.run.local import Slots, plan_stages, run_plan, to_do
from igpt.companion.run.own_weights import resolve_weights
from igpt.companion.run.targets import find_stages, parameters_of
from igpt.companion.stage import Stage
from igpt.data.cards import is_present
from igpt.errors import UsageError
from igpt.machine import cores, free_memory, gpus
from igpt.progress import tell
from igpt.project import Project
from igpt.text import counted


def plan_targets(targets: list[str], tier: str | None) -> tuple[Plan, Signer]:
    """The plan of the targets, of every tier when neither targets nor tier are named."""
    project = Project.here()
    stages = find_stages(targets, tier, project) if targets or tier else declared_stages()
    return plan_stages(project, stages), Signer(project.notebooks)


def run_speed(tasks: list[str], *, toy: bool) -> list[str]:
    """Run comparisons of speed again, one after the other and each alone; the names of those that ran.

    Without names all of them, those of GPUs where there is one.

    toy : one round at sizes that show that it works; such records are no experiment's and stay in ``runs/``

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
            release(folder)  # for the kernel
        run_plan(project, plan_stages(project, [stage]), wanted=[stage])
    return chosen


def run_targets(targets: list[str], tier: str | None, overrides: list[str]) -> str:
    """Run the targets; what to say when all is done.

    Stages on weights that exist are run as far as this machine can hold them, the cheapest first, and their data sets are
    downloaded before. Raises UsageError for an unknown target, parameter or type, and where this machine can hold none of such
    stages, before anything starts; and for data that cannot be had, once everything else is done.
    """
    project = Project.here()
    stages = find_stages(targets, tier, project)
    if overrides:
        stages = [
            resolve_weights(
                project, Stage.of(stage.notebook, **{**stage.parameters, **parameters_of(project, stage.notebook, overrides)})
            )
            for stage in stages
        ]
    plan, signer = plan_stages(project, stages), Signer(project.notebooks)
    if is_released(stages):
        done = _run_by_budget(project, plan, [signer.canonical(stage) for stage in stages])
    else:
        ran = run_plan(project, plan)
        done = f"{counted(ran, 'stage')} run, {len(plan) - ran} fresh" if ran else _nothing(plan)
    if overrides:
        places = [run_folder(project, signer.canonical(s), signer.sign(s)) / "record.json" for s in stages]
        return "\n".join([done, *(f"record: {place}" for place in dict.fromkeys(places))])
    return done


def _run_by_budget(project: Project, plan: Plan, wanted: list[Stage]) -> str:
    """Run of stages on weights that exist what this machine can hold; what to say when all is done."""
    todo = to_do(project, plan)
    if not todo:
        return _nothing(plan)
    memory, disks = free_memory(), Disks(project.runs, _disk_of)
    budget = make_budget(todo, wanted, this_machine(), memory=memory, disks=disks)
    if budget.left.keys() >= set(wanted):
        name, why = next((stage.name, why) for stage, why in budget.left.items())
        raise UsageError(f"this machine cannot hold {name}: {why}")
    _say_left(budget.left)
    room = Slots(cores(), tuple(gpus()), memory, budget.spare(disks))
    if budget.stages:
        tell(f"igpt: {budget.says(memory, disks)}")
    failures = []
    for name in budget.datasets():
        if not is_present(name):
            try:
                tell(f"igpt: {fetch(name)}")
            except UsageError as error:
                failures.append(error)
                fewer = budget.without(budget.reading(name), str(error))
                _say_left({stage: why for stage, why in fewer.left.items() if stage not in budget.left})
                budget = fewer
    ran = run_plan(project, plan, room=room, budget=budget) if budget.stages else 0
    if failures:
        raise failures[0]
    skipped = f"; {len(budget.left)} skipped: {', '.join(stage.name for stage in budget.left)}" if budget.left else ""
    return f"{counted(ran, 'stage')} run, {len(plan) - len(todo)} fresh{skipped}"


def _nothing(plan: Plan) -> str:
    """What to say of a plan whose stages are all finished."""
    return f"nothing to run: {counted(len(plan), 'stage is fresh', 'stages are fresh')}"


def _say_left(left: dict[Stage, str]) -> None:
    """One line on each reason, with the stages that are skipped for it."""
    names: dict[str, list[str]] = {}
    for stage, why in left.items():
        names.setdefault(why, []).append(stage.name)
    for why, stages in names.items():
        tell(f"igpt: skipped, since {why}: {'; '.join(stages)}")


def _disk_of(folder: Path) -> tuple[int, int]:
    """The number of the disk on which a folder is, or is to be, and the bytes that are free there."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    return place.stat().st_dev, shutil.disk_usage(place).free
