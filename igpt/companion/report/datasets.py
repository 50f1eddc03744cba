"""The data sets as a table: sizes, splits and terms. Whether they are here is the reader's machine's business."""

from __future__ import annotations

from igpt.companion.report.tables import Cell, ResultTable
from igpt.data.cards import DATASETS
from igpt.project import Project


def datasets_table(_: Project) -> ResultTable:
    """One row a data set."""
    columns = ("Data set", "Name", "Train", "Held out", "Test", "Classes", "Pixels", "SHA-256 of held out")
    rows = []
    for name, card in DATASETS.items():
        held_out = "as released" if card.read is None else f"{card.validation:,}"
        counts = (card.count(card.train), held_out, card.count(card.test), f"{card.classes:,}", str(card.height))
        digest = card.split[:12] or ("none" if card.read is None else "by class")
        rows.append((Cell(card.title), Cell(name), *map(Cell, counts), Cell(digest)))
    return ResultTable("data-sets", "The data sets and their splits", columns, tuple(rows))


def terms_table(_: Project) -> ResultTable:
    """Under what terms each data set may be used."""
    rows = tuple((Cell(card.title), Cell(card.terms)) for card in DATASETS.values())
    return ResultTable("data-terms", "Terms of the data sets", ("Data set", "Terms"), rows)
