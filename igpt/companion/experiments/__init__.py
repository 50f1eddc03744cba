"""What the post and the paper claim, as data: declared before it is run."""

from __future__ import annotations

from igpt.companion.experiments.cells import Experiment, experiments
from igpt.companion.experiments.speed import SPEED_STAGES
from igpt.companion.experiments.tables import TABLES, Table
from igpt.companion.experiments.tiers import TIERS
from igpt.companion.stage import Stage

__all__ = ["TABLES", "TIERS", "Experiment", "Table", "declared_stages", "experiments"]


def declared_stages(tier: str | None = None) -> list[Stage]:
    """The stages of every experiment and figure, of one tier or of all; parents are not listed."""
    found = {stage: None for e in experiments() for run in e.measurements if tier in (None, run.tier) for stage in run.stages()}
    figures = {**{name: each.figure_stages() for name, each in TIERS.items()}, "speed": SPEED_STAGES}
    for name, stages in figures.items():
        if tier in (None, name):
            found |= dict.fromkeys(stages)
    return list(found)
