"""What a record says against itself: the book's own say nothing, and a changed value is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from igpt.results.check import doubts_of_stage, doubts_of_values
from igpt.results.record import read_record

PUBLISHED = [path for path in sorted(ROOT.glob("book/records/*/*,*.json")) if not path.name.startswith("live,")]
# Values that no series states again.
ALONE = (
    "accuracy_voted",
    "fine_tune_40",
    "from_scratch",
    "without_generative",
    "epochs",
    "learning_rate",
    "features",
    "rms_error",
)
ALONE_OF = {
    "fine_tune": ("accuracy",),
    "concatenated_features": ("accuracy", "single_layer"),
    "sgd_probe": ("accuracy", "validation", "rate"),
}
ALONE_OF |= {"released_loss": ("nats",)}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_records_of_the_book_say_nothing_against_themselves(path: Path) -> None:
    record = read_record(path)
    assert record is not None
    assert doubts_of_stage(record) == []
    assert doubts_of_values(record) == []


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_value_of_theirs_without_its_interval_and_changed_by_a_hundredth_is_found(path: Path) -> None:
    record = read_record(path)
    assert record is not None
    for name, value in record.values.items():
        if value.value == 0 or name in (*ALONE, *ALONE_OF.get(record.stage.partition(",")[0], ())):
            continue
        changed = value.model_copy(update={"value": 0.99 * value.value, "low": None, "high": None, "images": None})
        doubts = doubts_of_values(record.model_copy(update={"values": {**record.values, name: changed}}))
        assert [doubt for doubt in doubts if doubt.startswith(f"{name} is ")], name
