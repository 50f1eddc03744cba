from __future__ import annotations

from conftest import some_receipt

from igpt.companion.experiments.speed import AIMS, SPEED_STAGES
from igpt.companion.report.speed import seconds_table, speed_table
from igpt.companion.results.record import Record, write_record
from igpt.companion.results.signature import Signer
from igpt.companion.results.store import RecordStore, record_path
from igpt.project import Project


def write_speed(project: Project, seconds: dict[str, list[float]], *, signature: str | None = None) -> None:
    """A record of the comparison of sampling, by hand."""
    signer = Signer(project.notebooks)
    stage = signer.canonical(next(s for s in SPEED_STAGES if s.parameters["task"] == "sampling"))
    rounds = [
        {"contestant": name, "round": place, "seconds": found}
        for name, times in seconds.items()
        for place, found in enumerate(times)
    ]
    record = Record(
        schema_version=1,
        stage=stage.name,
        parameters=signer.parameters(stage),
        signature=signature or signer.sign(stage).digest,
        parts=signer.sign(stage).parts,
        values={},
        series={"rounds": rounds},  # type: ignore[dict-item]
        receipt=some_receipt(stage),
    )
    write_record(record_path(project, stage), record)


SECONDS = {
    "igpt": [1.0, 2.0, 1.0],
    "igpt, tuned": [1.0, 1.0, 1.0],
    "transformers": [4.0, 2.0, 5.0],
    "transformers, tuned": [1.5, 1.6, 1.7],
    "a full forward pass a pixel": [2000.0, 2000.0, 2000.0],
}


def test_what_was_not_measured_is_pending_with_its_command(project: Project) -> None:
    table = speed_table(RecordStore(project))
    assert len(table.rows) == len(AIMS)
    assert {row[-1].text for row in table.rows} == {"pending"}
    assert ("Command", "igpt bench sampling") in table.rows[0][3].receipt
    assert len(seconds_table(RecordStore(project)).rows) == len(SPEED_STAGES)


def test_a_ratio_is_the_median_over_rounds_and_its_verdict_follows(project: Project) -> None:
    write_speed(project, SECONDS)
    rows = speed_table(RecordStore(project), ["sampling"]).rows
    assert rows[0][3].text == "4 [1, 5]"
    assert [row[-1].text for row in rows] == ["met", "missed", "met"]
    assert rows[1][3].text == "1.6 [1.5, 1.7]"
    assert rows[2][3].text == "2,000 [1,000, 2,000]"


def test_seconds_are_listed_in_the_order_of_the_contestants(project: Project) -> None:
    write_speed(project, SECONDS)
    rows = seconds_table(RecordStore(project), ["sampling"]).rows
    assert [row[1].text for row in rows] == list(SECONDS)
    assert [row[2].text for row in rows[:3]] == ["1", "1", "4"]
    assert rows[2][3].text == "2 to 5"


def test_a_stale_time_says_so(project: Project) -> None:
    write_speed(project, SECONDS, signature="0" * 64)
    assert speed_table(RecordStore(project), ["sampling"]).rows[0][-1].text == "met, stale"
