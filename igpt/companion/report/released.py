"""What the released tier takes: a table of downloads, disk and hours, by notebook, model and data set."""

from __future__ import annotations

from collections.abc import Sequence

from igpt.companion.experiments import declared_stages
from igpt.companion.experiments.costs import downloads, stage_work, stages_disk, with_parents
from igpt.companion.experiments.machines import CARDS
from igpt.companion.report.tables import Cell, ResultTable
from igpt.companion.results.signature import Signer
from igpt.companion.stage import Stage
from igpt.project import Project


def released_costs(project: Project) -> ResultTable:
    """A line for each notebook, model and data set, the cheapest first, and the whole; the same on every machine."""
    stages = with_parents(declared_stages("released"), Signer(project.notebooks).in_full)
    groups: dict[tuple[str, str], list[Stage]] = {}
    for stage in stages:
        words = [str(stage.parameters[name]) for name in ("model", "dataset") if name in stage.parameters]
        groups.setdefault((stage.notebook, ", ".join(words)), []).append(stage)
    rows = [(*group, *_numbers(groups[group])) for group in sorted(groups, key=lambda group: _hours(groups[group]))]
    rows.append(("all", "", *_numbers(stages)))
    columns = ("Notebook", "Of", "Stages", "GB to get", "GB of disk", *(card.title for card in CARDS))
    sources = "; ".join(f"{card.title}: {card.source}" for card in CARDS)
    caption = (
        f"What the released tier takes: downloads (+: at least), disk with them at the height, and hours of one card. {sources}"
    )
    return ResultTable("released-costs", caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def _numbers(stages: Sequence[Stage]) -> tuple[str, ...]:
    """How many stages, what is to be downloaded for them, the disk with that at the height, and their hours."""
    fetched = {each for stage in stages for each in downloads(stage)}
    size = f"{sum(each.bytes for each in fetched) / 1e9:,.1f}{'' if all(each.exact for each in fetched) else '+'}"
    disk = stages_disk(stages) + sum(each.disk for each in fetched)
    return (str(len(stages)), size, f"{disk / 1e9:,.1f}", *map(_rounded, _hours(stages)))


def _hours(stages: Sequence[Stage]) -> list[float]:
    """On each card."""
    return [sum(stage_work(stage).hours(card.rates) for stage in stages) for card in CARDS]


def _rounded(hours: float) -> str:
    """Hours to two significant digits."""
    return "<0.01" if hours < 0.01 else f"{float(f'{hours:.2g}'):,.10g}"
