"""The same plan without a scheduler: processes on this machine, as many at once as its cores and GPUs allow."""

from __future__ import annotations

import os
import subprocess

from igpt.errors import UsageError
from igpt.machine import cores
from igpt.project import Project
from igpt.results.plan import Plan
from igpt.run.local import Room, run_plan
from igpt.slurm.profile import Profile


def run_here(project: Project, plan: Plan, profile: Profile, *, dry_run: bool) -> str:
    """Run a plan in the foreground; what to say of it.

    Raises UsageError when a stage asks for more than the machine has.
    """
    room = Room(cores(), tuple(gpus()))
    wanted = {planned.stage: profile.resources(planned.stage) for planned in plan}
    for stage, asked in wanted.items():
        if asked.gpus > len(room.gpus):
            raise UsageError(
                f"{stage.name} asks for {asked.gpus} GPUs and this machine has {len(room.gpus)}: lower stages.{stage.notebook}"
            )
    if dry_run:
        waiting = sum(planned.state != "fresh" for planned in plan)
        return f"{waiting} stages would run here on {room.cores} cores and {len(room.gpus)} GPUs; nothing was run"
    ran = run_plan(project, plan, room=room, needs=lambda stage: (min(wanted[stage].cpus, room.cores), wanted[stage].gpus))
    return f"{ran} stages run, {len(plan) - ran} were finished" if ran else f"nothing to run: all {len(plan)} stages are finished"


def gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(found.stdout.splitlines()) if line.startswith("GPU")]
