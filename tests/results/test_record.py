from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.errors import UsageError
from igpt.results.record import SCHEMA, Receipt, Record, Value, read_record, write_record

RECEIPT = Receipt(
    commit="c0ffee",
    dirty=False,
    command="igpt run palette",
    notebook="notebooks/palette.ipynb",
    hardware="one processor",
    seconds=1.5,
    finished="2026-01-01T00:00:00+00:00",
    versions={"igpt": "0.1.0"},
)


def record(stage: str = "palette,colours=16", signature: str = "s" * 64, **values: float) -> Record:
    return Record(
        schema_version=SCHEMA,
        stage=stage,
        parameters={"colours": 16},
        signature=signature,
        parts={"notebook": "d1"},
        values={name: Value(value=value, unit="fraction") for name, value in values.items()},
        series={"rows": [{"a": 1, "b": [1, 2]}]},
        receipt=RECEIPT,
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", record(accuracy=0.1 + 0.2))
    assert read_record(tmp_path / "r.json") == record(accuracy=0.1 + 0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none.json") is None


def damaged(**changes: object) -> str:
    return json.dumps({**record(accuracy=0.5).model_dump(), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a record"),
        ("[1]", "is not a record"),
        (damaged()[:200], "is not a record"),
        (damaged(schema_version=2), "has record schema 2, this version reads 1"),
        ("{}", "has record schema None"),
        (damaged(extra=1), "is not a valid record .extra"),
        (damaged(values={"a": {"value": "0.5", "unit": "fraction"}}), "values.a.value"),
        (damaged(values={"a": {"value": float("nan"), "unit": "fraction"}}), "values.a.value"),
        (damaged(receipt={}), "receipt.commit"),
    ],
)
def test_what_is_no_record_is_refused_with_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "palette,colours=16.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_record(path)
    assert "delete it and run `igpt run palette,colours=16`" in str(caught.value)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_record_is_read_or_refused_and_never_crashes(data: st.DataObject) -> None:
    import tempfile

    content = bytearray(damaged().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "r.json"
        path.write_bytes(content)
        try:
            assert isinstance(read_record(path), Record)
        except UsageError:
            pass
