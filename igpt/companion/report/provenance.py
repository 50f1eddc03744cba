"""The book's tables of records and data sets: what was run, with which code, on which machine."""

from __future__ import annotations

from igpt.companion.report.tables import Cell, ResultTable, joined, plain_table, receipt_lines
from igpt.companion.results.record import Record, Value, read_record, usable_record
from igpt.companion.results.store import ReaderStore, record_path
from igpt.companion.results.verdict import differing_values
from igpt.companion.stage import Stage
from igpt.data.cards import DATASETS
from igpt.errors import UsageError
from igpt.project import Project
from igpt.text import counted


def published_records(project: Project) -> dict[str, Record]:
    """Every record below the records folder, by its path there. Raises UsageError for a damaged one."""
    records = {path: read_record(path) for path in sorted(project.records.glob("*/*.json"))}
    return {str(path.relative_to(project.records)): record for path, record in records.items() if record is not None}


def provenance_table(project: Project) -> ResultTable:
    """A summary of all records: commits, hardware, versions and time."""
    records = list(published_records(project).values())
    receipts = [record.receipt for record in records]
    dirty = sum(receipt.dirty for receipt in receipts)
    rows = (
        ("Records", str(len(records))),
        ("Commits", joined(receipt.commit for receipt in receipts)),
        ("Checkout", f"{dirty} records with uncommitted changes" if dirty else "clean for every record"),
        ("Finished", f"{min(r.finished for r in receipts)} to {max(r.finished for r in receipts)}" if receipts else "none"),
        ("Seconds of work", f"{sum(receipt.seconds for receipt in receipts):,.0f}, all stages together"),
        ("Hardware", joined(receipt.hardware for receipt in receipts)),
        ("Versions", joined(sorted(f"{name} {version}" for r in receipts for name, version in r.versions.items()))),
    )
    return plain_table("provenance", "What this book was built from", ("What", "Value"), rows)


def records_table(project: Project) -> ResultTable:
    """One row per record: tier, stage, seconds, commit, clean or not."""
    rows = []
    for path, record in published_records(project).items():
        receipt = record.receipt
        stage = Cell(record.stage, (("Finished", receipt.finished), *receipt_lines([record])), "measured", (path,))
        clean = "uncommitted changes" if receipt.dirty else "clean"
        rows.append((stage, path.partition("/")[0], f"{receipt.seconds:.0f}", receipt.commit[:12], clean))
    return plain_table("records", "Every record behind this book", ("Record", "Tier", "Seconds", "Commit", "Checkout"), rows)


def drills_table(project: Project) -> ResultTable:
    """One row per drill: a training run that a cluster's scheduler killed, compared with an uninterrupted one."""
    rows: list[tuple[str | Cell, ...]] = []
    for path in sorted(project.records.glob("drill/*.json")):
        record = usable_record(path)
        if record is None:
            continue
        lines = (("Finished", record.receipt.finished), *receipt_lines([record]))
        profile = Cell(str(record.parameters["profile"]), lines, "measured", (str(path.relative_to(project.records)),))
        steps = f"{record.values['killed'].value:,.0f} of {record.values['steps'].value:,.0f}"
        equal = "equal to the bit" if record.values["equal"].value == 1 else "different"
        rows.append((profile, str(record.parameters["model"]), steps, equal))
    if not rows:
        rows.append((Cell("none", (("Command", "igpt drill --profile NAME"),), "pending"), "–", "–", "pending"))
    columns = ("Profile", "Model", "Killed after step", "The two runs' weights")
    return plain_table("drills", "Trainings that a scheduler killed and queued again", columns, rows)


def datasets_table() -> ResultTable:
    """One row per data set: sizes and splits."""
    columns = ("Data set", "Name", "Train", "Held out", "Test", "Classes", "Pixels", "SHA-256 of held out")
    rows = []
    for name, card in DATASETS.items():
        held_out = "as released" if card.read is None else f"{card.validation:,}"
        digest = card.split[:12] or ("none" if card.read is None else "by class")
        sizes = (card.count(card.train), held_out, card.count(card.test), f"{card.classes:,}", str(card.height))
        rows.append((card.title, name, *sizes, digest))
    return plain_table("data-sets", "The data sets and their splits", columns, rows)


def terms_table() -> ResultTable:
    """The terms of use of each data set."""
    rows = [(card.title, card.terms) for card in DATASETS.values()]
    return plain_table("data-terms", "Terms of the data sets", ("Data set", "Terms"), rows)


def yours_table(project: Project, yours: ReaderStore) -> ResultTable:
    """A reader's records compared with ours and with each other: one row per value that differs beyond its intervals."""
    rows = []
    for index, (path, record) in enumerate(yours.all):
        for other, source in [(_ours(project, yours, record), "ours"), *((r, p.name) for p, r in yours.all[:index])]:
            if other is None or other.stage != record.stage:
                continue
            for name in differing_values(record, other):
                values = (_span(record.values[name]), _span(other.values[name]))
                rows.append((record.stage, name, *values, str(path.relative_to(yours.folder)), source))
    differing = counted(len(rows), "value") if rows else "no values"
    caption = f"{yours.label}: {counted(len(yours.all), 'record')}, {differing} beyond the intervals"
    return plain_table("yours", caption, ("Stage", "Value", "Yours", "Other", "Your record", "Other record"), rows)


def _ours(project: Project, yours: ReaderStore, record: Record) -> Record | None:
    """Our record of the same stage, if there is one."""
    notebook, *words = Stage.words(record.stage)
    parameters = {name: record.parameters[name] for word in words if (name := word.partition("=")[0]) in record.parameters}
    try:
        return usable_record(record_path(project, yours.signer.canonical(Stage.of(notebook, **parameters))))
    except UsageError:
        return None  # a stage that this checkout does not know


def _span(value: Value) -> str:
    """A value with its interval."""
    return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"
