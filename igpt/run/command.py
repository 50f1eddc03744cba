"""What ``igpt plan`` and ``igpt run`` do, from the words a user typed."""

from __future__ import annotations

from igpt.errors import UsageError
from igpt.experiments import declared_stages
from igpt.machine import gpus
from igpt.project import Project
from igpt.results.plan import Plan
from igpt.results.signature import Signer
from igpt.run.folder import empty, hold, release, run_folder
from igpt.run.local import plan_stages, run_plan
from igpt.run.own_weights import settle
from igpt.run.targets import find_stages, parameters_of
from igpt.stage import Stage


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
    from igpt.experiments.speed import SPEED_STAGES

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

    Raises UsageError for an unknown target, parameter or type, before anything starts.
    """
    project = Project.here()
    stages = find_stages(targets, tier, project)
    if overrides:
        stages = [
            settle(project, Stage.of(stage.notebook, **{**stage.parameters, **parameters_of(project, stage.notebook, overrides)}))
            for stage in stages
        ]
    plan = plan_stages(project, stages)
    ran = run_plan(project, plan)
    done = f"{ran} stages run, {len(plan) - ran} were fresh" if ran else f"nothing to run: all {len(plan)} stages are fresh"
    if overrides:
        signer = Signer(project.notebooks)
        places = [run_folder(project, signer.canonical(s), signer.sign(s)) / "record.json" for s in stages]
        return "\n".join([done, *(f"record: {place}" for place in dict.fromkeys(places))])
    return done
