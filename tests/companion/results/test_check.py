"""What a record says against itself: the book's own say nothing, and a changed value is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from igpt.companion.results.check import doubts_of_stage, doubts_of_values
from igpt.companion.results.record import read_record

PUBLISHED = [path for path in sorted(ROOT.glob("book/records/*/*,*.json")) if not path.name.startswith("live,")]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_records_of_the_book_say_nothing_against_themselves(path: Path) -> None:
    record = read_record(path)
    assert record is not None
    assert doubts_of_stage(record) == []
    assert doubts_of_values(record) == []


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_value_of_theirs_moved_out_of_its_interval_is_found(path: Path) -> None:
    record = read_record(path)
    assert record is not None
    for name, value in record.values.items():
        if value.low is None or value.low == value.high:
            continue
        changed = value.model_copy(update={"value": value.high + 0.01 * abs(value.high)})
        doubts = doubts_of_values(record.model_copy(update={"values": {**record.values, name: changed}}))
        assert [doubt for doubt in doubts if doubt.startswith(f"{name} is ")], name
