"""Tables of speed: how many times as fast as whom, and how far from the machine's limit."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from igpt.companion.experiments.speed import AIMS, SPEED_STAGES, Aim
from igpt.companion.report.tables import Cell, ResultTable
from igpt.companion.results.record import Record
from igpt.companion.results.store import RecordStore
from igpt.measure import Seconds, ratios
from igpt.project import Project

EVERY = tuple(str(stage.parameters["task"]) for stage in SPEED_STAGES)


def speed_table(project: Project, tasks: Sequence[str] = EVERY) -> ResultTable:
    """One row an aim: the ratio reached, and whether that is enough."""
    store = RecordStore(project)
    columns = ("Task", "Faster", "Than", "Times", "Aim", "Verdict")
    rows = []
    for aim in AIMS:
        if aim.task in tasks:
            ratio, verdict = _judge(aim, store)
            than, limit = aim.peer, aim.peer.startswith("limit: ")
            names = (Cell(aim.task), Cell(aim.ours), Cell(than.removeprefix("limit: ") + (", as its limit" if limit else "")))
            rows.append((*names, ratio, Cell(f"at least {aim.factor:g}"), verdict))
    return ResultTable("speed", "How many times as fast, and what was aimed at", columns, tuple(rows))


def seconds_table(project: Project, tasks: Sequence[str] = EVERY) -> ResultTable:
    """One row a candidate: its seconds, and how many times the first one's that is."""
    store = RecordStore(project)
    columns = ("Task", "Candidate", "Seconds", "Least and greatest", "Times the first")
    rows = []
    for stage in SPEED_STAGES:
        task = str(stage.parameters["task"])
        if task not in tasks:
            continue
        record = store.read(stage)
        if record is None:
            rows.append((Cell(task), Cell("all"), _pending(task), Cell("–"), Cell("–")))
            continue
        seconds = _seconds(record)
        for name, found in seconds.items():
            times = ratios(seconds, name, next(iter(seconds)))[0]
            median = Cell(_three(statistics.median(found)), _receipt(record), "measured", (_path(store, task),))
            between = f"{_three(min(found))} to {_three(max(found))}"
            rows.append((Cell(task), Cell(name), median, Cell(between), Cell(_three(times))))
    return ResultTable("speed-seconds", "Seconds of every candidate", columns, tuple(rows))


def _judge(aim: Aim, store: RecordStore) -> tuple[Cell, Cell]:
    """The ratio with its spread, and the word for it."""
    record = store.read(aim.stage)
    if record is None:
        return _pending(aim.task), Cell("pending", word="pending")
    median, least, greatest = ratios(_seconds(record), aim.peer, aim.ours)
    text = f"{_three(median)} [{_three(least)}, {_three(greatest)}]"
    stale = ", stale" if store.changed(aim.stage) else ""
    word = "met" if median >= aim.factor else "missed"
    return Cell(text, _receipt(record), "measured", (_path(store, aim.task),), word), Cell(word + stale)


def _receipt(record: Record) -> tuple[tuple[str, str], ...]:
    """What is behind a time."""
    receipt = record.receipt
    rounds = len({row["round"] for row in record.series["rounds"]})
    return (
        ("Times", f"median of {rounds} rounds, in which all candidates took turns"),
        ("Commit", receipt.commit[:12] + (", with uncommitted changes" if receipt.dirty else "")),
        ("Notebook", receipt.notebook),
        ("Hardware", receipt.hardware),
        ("Versions", ", ".join(f"{name} {version}" for name, version in receipt.versions.items())),
        ("Command", f"igpt bench {record.parameters['task']}"),
    )


def _seconds(record: Record) -> Seconds:
    """Seconds by candidate, in the order of the rounds."""
    found: Seconds = {}
    for row in record.series["rounds"]:
        found.setdefault(str(row["contestant"]), []).append(float(row["seconds"]))  # type: ignore[arg-type]
    return found


def _pending(task: str) -> Cell:
    """A time that was not measured."""
    return Cell("pending", (("Status", "not measured yet"), ("Command", f"igpt bench {task}")), "pending", word="pending")


def _path(store: RecordStore, task: str) -> str:
    """A task's record, below the records folder."""
    stage = next(s for s in SPEED_STAGES if s.parameters["task"] == task)
    return str(store.path(stage).relative_to(store.project.records))


def _three(number: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{number:.3g}'):,.10g}"
