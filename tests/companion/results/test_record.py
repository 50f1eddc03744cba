from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.companion.results.record import (
    SCHEMA,
    Receipt,
    Record,
    Value,
    claims_to_be_record,
    read_record,
    usable_record,
    write_record,
)
from igpt.errors import UsageError

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


def one(**changes: object) -> dict[str, object]:
    return {"a": {"value": 0.5, "unit": "fraction", **changes}}


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
        (damaged(values=one(low=0.9, high=0.1)), "values.a: .*low, 0.9, is above high, 0.1"),
        (damaged(values=one(images=0)), "values.a.images"),
        (damaged(values=one(images=-1)), "values.a.images"),
        (damaged(values=one(images=10**400)), "values.a.images"),
        (damaged(values=one(images=2.0)), "values.a.images"),
        (damaged(values=one(value=10**400)), "values.a.value"),
        (damaged(values=one(value=1e300)), "values.a.value"),
        (damaged(values=one(value=True)), "values.a.value"),
        (damaged(values=one(low=float("-inf"), high=1.0)), "values.a.low"),
        (damaged(series={"rows": [{"a": 10**400}]}), "series.rows.0.a.*less than"),
        (damaged(series={"rows": [{"a": float("nan")}]}), "series.rows.0.a.*finite"),
        (damaged(series={"rows": [{"a": [2**70]}]}), "series.rows.0.a"),
        (damaged(parameters={"a": float("inf")}), "parameters.a.*finite"),
        (damaged(receipt={**RECEIPT.model_dump(), "seconds": -1.0}), "receipt.seconds"),
        (damaged(schema_version=True), "schema_version"),
        (damaged(schema_version=[[["1" * 10**6]]]), "has record schema"),
        (damaged(**{"k" * 10**6: 1}), "is not a valid record .kkk"),
        (damaged()[:-1] + ', "stage": "another"}', "has a field twice"),
        (damaged()[:-1] + ', "more": ' + "[" * 100_000, "nested too deeply"),
        (damaged()[:-1] + ', "more": ' + "9" * 5000 + "}", "is not a record"),
    ],
    ids=lambda text: ascii(text[-30:]),
)
def test_what_is_no_record_is_refused_with_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "palette,colours=16.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_record(path)
    assert "`igpt run palette,colours=16` makes it anew" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + len(str(path))
    assert usable_record(path) is None
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("runs/palette,seed=0-0123456789ab/record.json", "`igpt run palette,seed=0` makes it anew"),
        ("records/drill/local-cluster.json", "`igpt drill --profile local-cluster` makes it anew"),
        ("records/speed/live,model=laptop-l.json", "`igpt panel --measure` makes it anew"),
        ("somewhere/mine.json", "give the JSON file of a record"),
    ],
)
def test_a_damaged_record_names_the_command_that_makes_it_anew(tmp_path: Path, place: str, remedy: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UsageError, match="is not a record") as caught:
        read_record(path)
    assert str(caught.value).endswith(remedy)


def test_what_is_no_plain_file_or_too_large_is_refused_unread(tmp_path: Path) -> None:
    folder, pipe, huge, loop = (tmp_path / f"{name}.json" for name in ("folder", "pipe", "huge", "loop"))
    folder.mkdir()
    os.mkfifo(pipe)
    with huge.open("wb") as stream:
        stream.truncate(2**40)
    loop.symlink_to(loop)
    for path, reason in (
        (folder, "it is a folder"),
        (pipe, "no regular file"),
        (huge, "more than the"),
        (loop, "symbolic links"),
    ):
        with pytest.raises(UsageError, match=rf"is not a record \(.*{reason}"):
            read_record(path)
        assert usable_record(path) is None
        assert not claims_to_be_record(path)


def test_a_damaged_record_counts_as_missing_and_is_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "palette,seed=0.json"
    path.write_text(damaged()[:300])
    assert [usable_record(path) for _ in range(3)] == [None] * 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"igpt: {path} is not a record")


@pytest.mark.parametrize(
    ("name", "text", "claims"),
    [
        ("record.json", "", True),
        ("palette,seed=0.json", "", True),
        ("mine.json", damaged(), True),
        ("mine.json", damaged()[:-40], True),
        ("mine.json", damaged(schema_version=2), True),
        ("header.json", '{"layers": [0], "weights": "a"}', False),
        ("config.json", '{"schema_version": 3, "model_type": "imagegpt"}', False),
        ("list.json", "[1, 2]", False),
        ("schema.json", '{"properties": {"values": {}, "series": {}, "parameters": {}, "receipt": {}}}', False),
        ("text.json", "text", False),
    ],
)
def test_only_what_has_the_name_or_the_fields_of_a_record_claims_to_be_one(
    tmp_path: Path, name: str, text: str, claims: bool
) -> None:
    (tmp_path / name).write_text(text)
    assert claims_to_be_record(tmp_path / name) is claims


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
