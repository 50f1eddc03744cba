"""Tables of speed: ratios to the alternatives and to the machine's limits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from igpt.companion.experiments.speed import AIMS, SPEED_STAGES
from igpt.companion.report.tables import Cell, ResultTable, pending, plain_table, receipt_lines, rounded
from igpt.companion.results.record import Record
from igpt.companion.results.store import RecordStore
from igpt.companion.stage import Stage
from igpt.measure import Seconds, ratios

EVERY = tuple(str(stage.parameters["task"]) for stage in SPEED_STAGES)


def speed_table(store: RecordStore, tasks: Sequence[str] = EVERY) -> ResultTable:
    """One row per aim: the measured ratio, and whether the aim is met."""
    rows = []
    for aim in AIMS:
        if aim.task not in tasks:
            continue
        peer = aim.peer.removeprefix("limit: ") + (", as its limit" if aim.peer.startswith("limit: ") else "")
        record = store.read(aim.stage)
        if record is None:
            ratio, verdict = _pending(aim.task), Cell("pending", word="pending")
        else:
            median, least, greatest = (rounded(ratio, digits=3) for ratio in ratios(_seconds(record), aim.peer, aim.ours))
            word = "met" if ratios(_seconds(record), aim.peer, aim.ours)[0] >= aim.factor else "missed"
            ratio = _measured(f"{median} [{least}, {greatest}]", record, aim.stage, store, word)
            verdict = Cell(word + (", stale" if store.changed(aim.stage) else ""))
        rows.append((aim.task, aim.ours, peer, ratio, f"at least {aim.factor:g}", verdict))
    columns = ("Task", "Faster", "Than", "Times", "Aim", "Verdict")
    return plain_table("speed", "How many times as fast, and what was aimed at", columns, rows)


def seconds_table(store: RecordStore, tasks: Sequence[str] = EVERY) -> ResultTable:
    """One row per candidate: its seconds, and their ratio to the first candidate's."""
    rows: list[tuple[str | Cell, ...]] = []
    for task, stage in zip(EVERY, SPEED_STAGES, strict=True):
        if task not in tasks:
            continue
        record = store.read(stage)
        if record is None:
            rows.append((task, "all", _pending(task), "–", "–"))
            continue
        seconds = _seconds(record)
        for name, times in seconds.items():
            median = _measured(rounded(statistics.median(times), digits=3), record, stage, store)
            extremes = f"{rounded(min(times), digits=3)} to {rounded(max(times), digits=3)}"
            rows.append((task, name, median, extremes, rounded(ratios(seconds, name, next(iter(seconds)))[0], digits=3)))
    columns = ("Task", "Candidate", "Seconds", "Least and greatest", "Times the first")
    return plain_table("speed-seconds", "Seconds of every candidate", columns, rows)


def _measured(text: str, record: Record, stage: Stage, store: RecordStore, word: str = "") -> Cell:
    """A time or a ratio with its receipt."""
    rounds = len({row["round"] for row in record.series["rounds"]})
    times = ("Times", f"median of {rounds} rounds, in which all candidates took turns")
    return Cell(text, (times, *receipt_lines([record])), "measured", (store.link(stage),), word)


def _pending(task: str) -> Cell:
    """A time that has not been measured."""
    return pending(("Status", "not measured yet"), ("Command", f"igpt bench {task}"))


def _seconds(record: Record) -> Seconds:
    """Seconds by candidate, in the order of the rounds."""
    seconds: Seconds = {}
    for row in record.series["rounds"]:
        seconds.setdefault(str(row["contestant"]), []).append(float(row["seconds"]))  # type: ignore[arg-type]
    return seconds
