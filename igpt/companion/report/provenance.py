"""Where the book's numbers come from: every published record, and what all of them have in common."""

from __future__ import annotations

import json
from pathlib import Path

from igpt.companion.report.tables import Cell, ResultTable, joined
from igpt.companion.results.record import Record, Value, read_record, usable_record
from igpt.companion.results.store import ReaderStore, record_path
from igpt.companion.results.verdict import differing_values
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project


def published_records(project: Project) -> dict[str, Record]:
    """Every record below the records folder, by its path there. Raises UsageError for a damaged one: none is left out."""
    paths = sorted(project.records.glob("*/*.json"))
    found = {str(path.relative_to(project.records)): read_record(path) for path in paths}
    return {path: record for path, record in found.items() if record is not None}


def provenance_table(project: Project) -> ResultTable:
    """What the records as a whole were made from, by what, in how long."""
    records = list(published_records(project).values())
    receipts = [record.receipt for record in records]
    dirty = sum(receipt.dirty for receipt in receipts)
    versions = sorted({f"{name} {version}" for r in receipts for name, version in r.versions.items()})
    rows = {
        "Records": str(len(records)),
        "Commits": joined(receipt.commit for receipt in receipts),
        "Checkout": f"{dirty} records with uncommitted changes" if dirty else "clean for every record",
        "Finished": f"{min(r.finished for r in receipts)} to {max(r.finished for r in receipts)}" if receipts else "none",
        "Seconds of work": f"{sum(receipt.seconds for receipt in receipts):,.0f}, all stages together",
        "Hardware": joined(receipt.hardware for receipt in receipts),
        "Versions": joined(versions),
    }
    cells = tuple((Cell(name), Cell(text)) for name, text in rows.items())
    return ResultTable("provenance", "What this book was built from", ("What", "Found"), cells)


def records_table(project: Project) -> ResultTable:
    """One row a record: tier, stage, seconds, commit, clean or not."""
    rows = []
    for path, record in published_records(project).items():
        receipt = record.receipt
        lines = (("Command", receipt.command), ("Notebook", receipt.notebook), ("Finished", receipt.finished))
        stage = Cell(record.stage, lines, "measured", (path,))
        clean = "uncommitted changes" if receipt.dirty else "clean"
        commit, seconds = Cell(receipt.commit[:12]), Cell(f"{receipt.seconds:.0f}")
        rows.append((stage, Cell(path.partition("/")[0]), seconds, commit, Cell(clean)))
    columns = ("Record", "Tier", "Seconds", "Commit", "Checkout")
    return ResultTable("records", "Every record behind this book", columns, tuple(rows))


def reader_records(project: Project, folder: str | None) -> ReaderStore | None:
    """A reader's own records, where a folder of them is named. Raises UsageError as `ReaderStore` does."""
    return ReaderStore(project, Path(folder)) if folder else None


def yours_table(project: Project, yours: ReaderStore) -> ResultTable:
    """A reader's records against ours and against each other: one row a value that differs beyond its intervals."""
    rows = []
    for index, (path, record) in enumerate(yours.all):
        for other, whose in [(_ours(project, yours, record), "ours"), *((r, p.name) for p, r in yours.all[:index])]:
            if other is None or other.stage != record.stage:
                continue
            for name in differing_values(record, other):
                values = (Cell(_span(record.values[name])), Cell(_span(other.values[name])))
                rows.append(
                    (Cell(record.stage), Cell(name), values[0], values[1], Cell(str(path.relative_to(yours.folder))), Cell(whose))
                )
    caption = (
        f"{yours.label}: {len(yours.all)} records, {len(rows) or 'no'} value{'' if len(rows) == 1 else 's'} beyond the intervals"
    )
    return ResultTable("yours", caption, ("Stage", "Value", "Yours", "Other", "Your record", "Other record"), tuple(rows))


def _ours(project: Project, yours: ReaderStore, record: Record) -> Record | None:
    """Our record of the same stage, if there is one."""
    head, *words = Stage.words(record.stage)
    parameters = {
        name: record.parameters[name] for name, _, _ in (word.partition("=") for word in words) if name in record.parameters
    }
    try:
        return usable_record(record_path(project, yours.signer.canonical(Stage.of(head, **parameters))))
    except UsageError:
        return None  # a stage that this checkout does not know


def _span(value: Value) -> str:
    """A value with its interval."""
    return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"


def record_schema() -> str:
    """The JSON Schema that every record satisfies, as text."""
    return json.dumps(Record.model_json_schema(), indent=1) + "\n"
