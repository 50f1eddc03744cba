from __future__ import annotations

import csv
from collections import Counter

import pytest
from conftest import ROOT

from igpt.companion.experiments.cells import TABLES, experiments
from igpt.companion.experiments.published import curve_points, published_rows

SHARED = ROOT.parent / "shared" / "paper"


@pytest.mark.parametrize("name", ["published.csv", "curves.csv"])
def test_the_numbers_are_those_of_the_collection_they_were_copied_from(name: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the collection of published numbers lies outside the project and is not here")
    theirs, ours = (
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (SHARED / name, ROOT / "igpt" / "companion" / "experiments" / name)
    )
    assert theirs == [{column: value for column, value in row.items() if column != "measure"} for row in ours]


def test_every_row_has_its_own_name_a_source_and_a_certainty() -> None:
    rows = published_rows()
    assert max(Counter(row.row_id for row in rows).values()) == 1
    assert {row.certainty for row in rows} == {"exact", "memory", "digitised"}
    assert all(row.source and row.source_place and float(row.value) == float(row.value) for row in rows)


def test_every_row_is_in_a_table_of_the_book() -> None:
    shown = {e.name for table in TABLES for e in table.experiments()}
    assert {row.row_id for row in published_rows()} <= shown
    assert {e.name for e in experiments()} == shown


def test_the_curves_are_figures_2_and_3() -> None:
    points = curve_points()
    assert Counter(p.curve for p in points) == {"figure-2": 144, "figure-2-text": 1, "figure-3": 15}
    best = max((p for p in points if p.curve == "figure-2" and p.dataset == "cifar10"), key=lambda p: p.y or 0)
    assert best.y == 96.3
    assert 20 <= best.x <= 22


def test_percentages_become_fractions_and_other_units_stay() -> None:
    by_name = {row.row_id: row.number for row in published_rows()}
    assert by_name["headline-001"] == pytest.approx(0.963)
    assert by_name["probe-paper-103"] == pytest.approx(-0.024)
    assert by_name["compute-128"] == 2500
