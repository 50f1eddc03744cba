"""What the post and the paper claim, as data: declared before it is run.

Names are imported when they are first used: `igpt --help` needs the tiers alone, which import nothing large.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igpt.companion.experiments.cells import Experiment, experiments
    from igpt.companion.experiments.tables import TABLES, Table
    from igpt.companion.experiments.tiers import TIERS
    from igpt.companion.stage import Stage

__all__ = ["TABLES", "TIERS", "Experiment", "Table", "declared_stages", "experiments"]
_MODULES = {"Experiment": "cells", "experiments": "cells", "TABLES": "tables", "Table": "tables", "TIERS": "tiers"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def declared_stages(tier: str | None = None) -> list[Stage]:
    """The stages of every experiment and figure, of one tier or of all; parents are not listed."""
    from igpt.companion.experiments.cells import experiments
    from igpt.companion.experiments.speed import SPEED_STAGES
    from igpt.companion.experiments.tiers import TIERS

    found = {stage: None for e in experiments() for m in e.measurements if tier in (None, m.tier) for stage in m.stages()}
    figures = {**{name: each.figure_stages() for name, each in TIERS.items()}, "speed": SPEED_STAGES}
    for name, stages in figures.items():
        if tier in (None, name):
            found |= dict.fromkeys(stages)
    return list(found)
