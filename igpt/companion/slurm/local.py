"""The same plan without a scheduler: processes on this machine, as many at once as its cores and GPUs allow."""

from __future__ import annotations

from igpt.companion.results.plan import Plan
from igpt.companion.run.local import Slots, run_plan
from igpt.companion.slurm.profile import Profile
from igpt.errors import UsageError
from igpt.machine import cores, gpus
from igpt.project import Project
from igpt.text import counted


def run_here(project: Project, plan: Plan, profile: Profile, *, dry_run: bool) -> str:
    """Run a plan in the foreground; what to say of it.

    Raises UsageError when a stage asks for more than the machine has.
    """
    room = Slots(cores(), tuple(gpus()))
    wanted = {planned.stage: profile.resources(planned.stage) for planned in plan}
    for stage, asked in wanted.items():
        if asked.gpus > len(room.gpus):
            raise UsageError(
                f"{stage.name} asks for {counted(asked.gpus, 'GPU')} and this machine has {len(room.gpus)}: lower"
                f" stages.{stage.notebook}"
            )
    if dry_run:
        waiting = sum(planned.state != "fresh" for planned in plan)
        here = f"{counted(room.cores, 'core')} and {counted(len(room.gpus), 'GPU')}"
        return f"{counted(waiting, 'stage')} would run here on {here}; nothing was run"
    ran = run_plan(project, plan, room=room, needs=lambda stage: (min(wanted[stage].cpus, room.cores), wanted[stage].gpus))
    if not ran:
        return f"nothing to run: {counted(len(plan), 'stage is finished', 'stages are finished')}"
    return f"{counted(ran, 'stage')} run, {len(plan) - ran} finished before"
