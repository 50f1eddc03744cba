"""A plan in words: every cell, every stage, and what holds them up."""

from __future__ import annotations

from igpt.experiments import experiments
from igpt.results.plan import Plan, State
from igpt.results.signature import Signer
from igpt.text import visible


def plan_text(plan: Plan, signer: Signer, *, why: bool) -> str:
    """One line a cell that the plan's stages fill, one a stage, and the counts.

    A cell is as its worst stage: missing, stale, or fresh. ``why`` adds to each stage the inputs that
    changed since its record.
    """
    width = max((len(planned.stage.name) for planned in plan), default=0)
    lines = ["Cells"]
    states = {planned.stage: planned.state for planned in plan}
    for experiment in experiments():
        for run in experiment.runs:
            mine = [states.get(signer.canonical(stage)) for stage in run.stages()]
            if all(mine):
                lines.append(f"{_worst(mine):8} {run.tier:6} {experiment.name}")
    lines += ["", "Stages"]
    for planned in plan:
        lines.append(f"{planned.state:8} {planned.stage.name:{width}}{'  ' + visible(planned.why) if why else ''}".rstrip())
    counts = [f"{sum(p.state == state for p in plan)} {state}" for state in ("fresh", "stale", "missing")]
    return "\n".join([*lines, "", f"{len(plan)} stages: {', '.join(counts)}; nothing was run"])


def _worst(states: list[State | None]) -> str:
    """The state that decides a cell's."""
    return next(state for state in ("missing", "stale", "fresh") if state in states)
