"""Tables as data: cells of text with receipts that a reader can open; and their rendering in four formats."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from tabulate import tabulate

from igpt.companion.criteria import Measurement
from igpt.companion.experiments.cells import TABLES, UNMEASURED, Experiment, experiments, why_not
from igpt.companion.experiments.costs import run_hours, run_room, with_parents
from igpt.companion.experiments.machines import CARD, H100, TWO_CORES
from igpt.companion.experiments.protocols import protocol
from igpt.companion.experiments.published import Published
from igpt.companion.experiments.tiers import TIERS
from igpt.companion.results.notebooks import near_misses
from igpt.companion.results.record import Record
from igpt.companion.results.store import ReaderStore, RecordStore, own_weights
from igpt.companion.results.verdict import Outcome, Verdict, differing_values, judge, outcome, outcomes_apart
from igpt.companion.stage import Stage
from igpt.data import DATASETS
from igpt.errors import UsageError
from igpt.measure import LEVEL
from igpt.text import counted, listed, visible

# Columns: first the tiers whose numbers are compared with the published ones.
TIER_TITLES = {tier.name: tier.title for tier in sorted(TIERS.values(), key=lambda tier: not tier.numbers)}
# Verdicts in words: of numbers, and of claims, which are all that a small tier can test.
NUMBERS = {"reproduced": "reproduced", "differs": "differs", "undecided": "undecided", "shown": "shown"}
CLAIMS = {"reproduced": "claim holds", "differs": "claim fails", "undecided": "undecided", "shown": "no claim"}
# Certainty of a published number: text of its receipt, and suffix of its cell.
CERTAINTY = {
    "exact": ("read in the source", ""),
    "memory": ("from memory, unsure", " (from memory)"),
    "digitised": ("digitised from a figure", " (digitised)"),
}
UNITS = {"percent": " %", "points": " points", "parameters": "", "nats per token": " nats", "bits per token": " bits"}
SHORT = {"": "none", **{name: card.short for name, card in DATASETS.items()}}

Lines = tuple[tuple[str, str], ...]  # of a receipt: label and text


@dataclass(frozen=True)
class Cell:
    """Text with its receipt, which is empty for plain text."""

    text: str
    receipt: Lines = ()
    kind: Literal["plain", "published", "measured", "pending"] = "plain"
    records: tuple[str, ...] = ()  # paths below the records folder
    word: str = ""  # of the verdict


@dataclass(frozen=True)
class ResultTable:
    """A table ready to be printed: every row has a cell for every column."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def plain_table(name: str, caption: str, columns: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> ResultTable:
    """A table from cells, and from texts without receipts."""
    cells = (tuple(Cell(entry) if isinstance(entry, str) else entry for entry in row) for row in rows)
    return ResultTable(name, caption, tuple(columns), tuple(cells))


def result_table(name: str, store: RecordStore, yours: ReaderStore | None = None) -> ResultTable:
    """One of the book's tables; with ``yours``, a reader's own records are in separate columns.

    Raises UsageError, with near misses, for an unknown name.
    """
    if name == "scoreboard":
        return _scoreboard(store, yours)
    table = next((t for t in TABLES if t.name == name), None)
    if table is None:
        raise UsageError(f"there is no table {name!r}{near_misses(name, table_names())}")
    members = table.experiments()
    measurable = any(e.published.ours and e.published.metric not in UNMEASURED for e in members)
    tiers = [t for t in TIER_TITLES if any(e.measurement(t) for e in members) or (t == "paper" and measurable)]
    measured = _measured_columns(members, tiers, store, yours)
    extra = [column for column in _EXTRA if len({_EXTRA[column](e.published) for e in members}) > 1]
    rows: list[tuple[str | Cell, ...]] = [
        (
            *(_system(e.published), _data(e.published), published_cell(e.published)),
            *(cell(e) for cell in measured.values()),
            *(_EXTRA[column](e.published) for column in extra),
        )
        for e in members
    ]
    return plain_table(name, table.caption, ("System", "Data", "Published", *measured, *extra), rows)


def values_table(yours: ReaderStore) -> ResultTable:
    """Every value of a reader's own records, also of those that no published number is compared with, a row each."""
    rows = []
    for record in yours.latest():
        for name, value in record.values.items():
            scale, unit, digits = (100, "%", 1) if value.unit == "fraction" else (1, value.unit, 4)
            texts = [
                "" if part is None else f"{round(scale * part, digits):,.10g}" for part in (value.value, value.low, value.high)
            ]
            interval = f"{texts[1]} to {texts[2]}" if texts[1] else "–"
            images = f"{value.images:,}" if value.images else "–"
            rows.append((record.stage, name, f"{texts[0]} {unit}", interval, images))
    caption = f"All values of the records in {yours.folder.name}"
    return plain_table("yours", caption, ("Record", "Value", "Result", f"{LEVEL:.0%} interval", "Images"), rows)


def table_names() -> list[str]:
    """The names that `result_table` accepts."""
    return ["scoreboard", *(table.name for table in TABLES)]


def _scoreboard(store: RecordStore, yours: ReaderStore | None = None) -> ResultTable:
    """Every published number of Image GPT, and each tier's measurement of it."""
    ours = [e for e in experiments() if e.published.ours]
    measured = _measured_columns(ours, list(TIER_TITLES), store, yours)
    tables = {e.name: table.name for table in reversed(TABLES) for e in table.experiments()}
    rows: list[tuple[str | Cell, ...]] = [
        (
            *(f"{_system(e.published)}, {_data(e.published)}", published_cell(e.published)),
            *(cell(e) for cell in measured.values()),
            *(_what(e.published), e.name, tables.get(e.name, "none")),
        )
        for e in ours
    ]
    columns = ("Number", "Published", *measured, "What", "Experiment", "Table")
    return plain_table("scoreboard", "Every published number of Image GPT, and its status by tier", columns, rows)


def score_counts(board: ResultTable) -> ResultTable:
    """The number of scoreboard entries per verdict, one row per tier."""
    words = ["reproduced or claim holds", "differs or claim fails", "undecided", "no claim", "pending", "no counterpart"]
    column = {"claim holds": words[0], "reproduced": words[0], "claim fails": words[1], "differs": words[1], "shown": "no claim"}
    rows = []
    for index, (tier, title) in enumerate(TIER_TITLES.items(), start=2):
        verdicts = [column.get(row[index].word, row[index].word) or "no counterpart" for row in board.rows]
        assert set(verdicts) <= set(words), tier
        rows.append((title, *(str(verdicts.count(word)) for word in words)))
    caption = f"Status of the {len(board.rows)} published numbers of Image GPT"
    return plain_table("score-counts", caption, ("Tier", *words), rows)


def _measured_columns(
    members: Sequence[Experiment], tiers: Sequence[str], store: RecordStore, yours: ReaderStore | None
) -> dict[str, Callable[[Experiment], Cell]]:
    """The cells of measured columns, by title: one column per tier, and one per tier for which a reader has records."""
    columns: dict[str, Callable[[Experiment], Cell]] = {}
    for tier in tiers:
        columns[TIER_TITLES[tier]] = partial(tier_cell, tier=tier, store=store)
    for tier in TIER_TITLES if yours else ():
        measurements = [m for e in members if (m := e.measurement(tier))]
        if yours and any(yours.read(stage) for m in measurements for stage in m.stages()):
            columns[f"{yours.label}: {TIER_TITLES[tier]}"] = partial(_your_cell, tier=tier, yours=yours, store=store)
    return columns


def published_cell(row: Published) -> Cell:
    """A published number with its source."""
    certainty, note = CERTAINTY[row.certainty]
    receipt = (
        ("Published", f"{row.value} {row.unit}"),
        ("Source", f"{row.source}, {row.source_place}"),
        ("Certainty", certainty),
        ("Row", row.row_id),
    )
    value = f"{int(row.value):,}" if row.unit == "parameters" else row.value
    return Cell(value + UNITS.get(row.unit, f" {row.unit}") + note, receipt, "published")


def tier_cell(experiment: Experiment, tier: str, store: RecordStore) -> Cell:
    """A tier's measurement of a published number: value, interval, seeds and verdict; or pending, with its cost."""
    measurement = experiment.measurement(tier)
    if measurement is None:
        if tier == "paper" and experiment.published.ours and experiment.published.metric not in UNMEASURED:
            return pending(("Status", "no experiment is declared for it yet"))
        reason = why_not(experiment.published, TIERS[tier]) if experiment.published.ours else ""
        return Cell("–", (("Status", f"not measured in this tier: {reason}"),) if reason else ())
    measured = outcome(measurement.metric, store.read)
    verdict = judge(measurement.metric, measurement.criterion, store.read, published=experiment.published.number)
    if measured is None or verdict.word == "pending":
        status, *lines = _price(experiment, measurement, store.signer.in_full)
        return pending(status if measured is None else ("Status", verdict.sentence), *lines)
    word = (NUMBERS if TIERS[tier].numbers else CLAIMS)[verdict.word]
    stale = sorted({name for stage in measurement.stages() for name in store.changed(stage)})
    text = f"{measured_text(measured, experiment.published)}, {word}{', stale' if stale else ''}"
    paths = tuple(store.link(s) for s in measurement.stages())
    return Cell(text, _receipt(measured, verdict, word, stale), "measured", paths, word)


def recorded_cell(stage: Stage, key: str, store: RecordStore) -> Cell:
    """One value of a stage's record with its interval, or pending. Raises UsageError for a value that the record lacks."""
    record = store.read(stage)
    if record is None:
        return pending(("Status", "pending: there is no record of it"), ("Command", f"igpt run {stage.name}"))
    if key not in record.values:
        raise UsageError(f"the record of {stage.name} has no value {key!r}{near_misses(key, list(record.values))}")
    value, changed = record.values[key], store.changed(stage)
    receipt = [("State", "stale: made before the code or its inputs changed" if changed else "fresh: made with this code")]
    if value.low is not None and value.high is not None:
        receipt.append((f"{LEVEL:.0%} interval over test images", f"{value.low:.4f} to {value.high:.4f}"))
    if value.unit == "fraction":
        text = f"{100 * value.value:.1f} %"
    elif value.unit == "seconds":
        text = f"{value.value:.0f} s" if value.value < 90 else f"{value.value / 60:.0f} minutes"
    else:
        text = f"{rounded(value.value, digits=4)} {value.unit}"
    text += ", stale" if changed else ""
    return Cell(text, (*receipt, *receipt_lines([record])), "measured", (store.link(stage),))


def pending(*lines: tuple[str, str]) -> Cell:
    """The cell of a number that has not been measured."""
    return Cell("pending", lines, "pending", word="pending")


def measured_text(measured: Outcome, row: Published) -> str:
    """Mean, half width of the interval over seeds, and number of seeds, in the published unit.

    As many digits as in the paper, fewer where the interval is wider than ten units of the last digit.
    """
    if row.unit == "parameters":
        return f"{measured.mean:,.0f}"
    scale = 100 if row.unit in ("percent", "points") else 1
    half = scale * (measured.high - measured.low) / 2
    digits = 4 if row.metric == "loss" else len(row.value.partition(".")[2])
    if 0 < half < math.inf:
        digits = max(0, min(digits, 1 - math.floor(math.log10(half))))
    spread = f" ± {half:.{digits}f}" if half < math.inf else ""
    return f"{scale * measured.mean:.{digits}f}{spread} ({counted(len(measured.values), 'seed')})"


def _your_cell(experiment: Experiment, tier: str, yours: ReaderStore, store: RecordStore) -> Cell:
    """A reader's measurement of a published number, and whether it agrees with ours."""
    measurement = experiment.measurement(tier)
    if measurement is None or (measured := outcome(measurement.metric, yours.read)) is None:
        return Cell("–")
    cell = tier_cell(experiment, tier, yours)
    lines = [("Whose", f"yours, from the folder {yours.folder.name}; not part of this project's records")]
    note = ""
    if own := sorted({name for record in measured.records if (name := own_weights(record))}):
        note = f", on {joined(own)}"
    elif apart := disagreement(measurement, yours, store):
        note = "; disagrees with ours"
        lines.append(("Disagrees", apart))
    return replace(cell, text=cell.text + note, receipt=(*lines, *cell.receipt))


def disagreement(run: Measurement, yours: RecordStore, ours: RecordStore) -> str:
    """Describes where a reader's records disagree with ours beyond their intervals; empty if they agree."""
    sentences = []
    our, your = outcome(run.metric, ours.read), outcome(run.metric, yours.read)
    if our is not None and your is not None and outcomes_apart(our, your):
        sentences.append(
            f"the mean is {your.mean:.4f} in yours and {our.mean:.4f} in ours, and the intervals over seeds do not meet"
        )
    key = run.metric.key
    for stage in run.metric.stages:
        our_record, your_record = ours.read(stage), yours.read(stage)
        if our_record is not None and your_record is not None and key in differing_values(our_record, your_record):
            pair = f"{your_record.values[key].value:.4f} in yours and {our_record.values[key].value:.4f} in ours"
            sentences.append(f"{stage.name} has {pair}, and their intervals do not meet")
    return "; ".join(sentences)


def receipt_lines(records: Sequence[Record]) -> Lines:
    """How records were made, for the receipt of a number that comes from them."""
    receipts = [record.receipt for record in records]
    dirty = any(receipt.dirty for receipt in receipts)
    return (
        ("Commit", joined(r.commit[:12] for r in receipts) + (", with uncommitted changes" if dirty else "")),
        ("Notebook", joined(r.notebook for r in receipts)),
        ("Hardware", joined(r.hardware for r in receipts)),
        ("Versions", joined(f"{name} {version}" for r in receipts for name, version in r.versions.items())),
        ("Seconds", f"{sum(r.seconds for r in receipts):.0f} in all"),
        ("Command", joined(r.command for r in receipts)),
    )


def _receipt(measured: Outcome, verdict: Verdict, word: str, stale: Sequence[str]) -> Lines:
    """The receipt of a measured cell."""
    records = measured.records
    values = ", ".join(f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}" for value in measured.values)
    shared = {k: v for k, v in records[0].parameters.items() if all(r.parameters.get(k) == v for r in records)}
    changed = f"stale: made before the code or its inputs changed ({listed(stale, most=5)})"
    return (
        ("State", changed if stale else "fresh: made with this code and these inputs"),
        ("Verdict", f"{word}; {verdict.sentence}"),
        ("Values", f"{values}; mean with its {LEVEL:.0%} interval over {'seeds' if len(measured.values) > 1 else 'test images'}"),
        ("Parameters", joined(f"{name} = {value}" for name, value in shared.items() if name != "seed")),
        ("Seeds", joined(str(r.parameters["seed"]) for r in records if "seed" in r.parameters)),
        *receipt_lines(records),
    )


def _price(experiment: Experiment, run: Measurement, in_full: Callable[[Stage], Stage]) -> Lines:
    """The receipt of a pending cell: its criterion, cost and command."""
    command = ("Command", f"igpt run {experiment.name} --tier {run.tier}")
    criterion = ("Criterion", run.criterion.claim)
    if run.tier == "tiny":  # too small for an estimate
        return (("Status", "not run yet"), criterion, ("Cost", "minutes on two cores, the whole tier together"), command)
    unit, card = ("Hours of two cores", TWO_CORES) if TIERS[run.tier].cores else (f"{CARD}-hours", H100)
    needed = with_parents(run.stages(), in_full)
    pretraining, rest = run_hours(needed, card)
    work = f"{_hours(pretraining)} of pre-training, {_hours(rest)} of everything after it" if pretraining else _hours(rest)
    downloads, disk = run_room(needed)
    download = f"{sum(fetch.bytes for fetch in downloads) / 1e9:.1f} GB to download, " if downloads else ""
    datasets = {d for s in needed for d in protocol(s.notebook).datasets(s.parameters)}
    status = f"not run: it needs {' and '.join(sorted(SHORT[name] for name in datasets))}, and the hours below"
    return (("Status", status), criterion, ("Cost", f"{unit}: {work}; {download}{disk / 1e9:.1f} GB of disk"), command)


def _hours(hours: float) -> str:
    """Hours to two significant digits."""
    return "under 0.1" if hours < 0.1 else rounded(hours, digits=2)


def rounded(number: float, *, digits: int) -> str:
    """A number to ``digits`` significant digits, without an exponent."""
    return f"{float(f'{number:.{digits}g}'):,.10g}"


def joined(words: Iterable[str]) -> str:
    """Distinct words in order, separated by commas; "none" without any."""
    return ", ".join(dict.fromkeys(words)) or "none"


def _system(row: Published) -> str:
    """Method, model and resolution as one name."""
    name = row.method.replace("iGPT", row.model, 1) if row.model else row.method
    return f"{name} {row.resolution}" if row.resolution not in ("", "original") else name


def _data(row: Published) -> str:
    """The data set's short name."""
    return SHORT.get(row.dataset, row.dataset)


def _what(row: Published) -> str:
    """Evaluation and metric."""
    evaluation = {"none": "", "pre-train": "pre-training"}.get(row.evaluation, row.evaluation.replace("-", " "))
    metric = "" if row.metric in (evaluation, "accuracy") else row.metric
    return ", ".join(filter(None, [evaluation, metric]))


_EXTRA: dict[str, Callable[[Published], str]] = {
    "Evaluation": _what,
    "Features": lambda row: row.features or "–",
    "Parameters (M)": lambda row: row.params_m or "–",
    "Labels in pre-training": lambda row: row.labels_used or "–",
    "Pre-trained on": lambda row: row.pretrain_data or "–",
    "Source": lambda row: row.source,
}


def render(table: ResultTable, format: str) -> str:
    """The table as text that ends in a newline; ``format`` is md, html, csv or latex.

    Text from a reader's folder is escaped: it cannot add control characters, columns, tags or links.
    """
    columns = [visible(column) for column in table.columns]
    cells = [[visible(cell.text) for cell in row] for row in table.rows]
    if format == "csv":
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([columns, *cells])
        return stream.getvalue()
    if format == "latex":  # tabulate escapes LaTeX's special characters, but not these two
        cells = [[text.replace("±", "\x00").replace("–", "\x01") for text in row] for row in cells]
    if format == "md":
        columns, cells = [_literal(column) for column in columns], [[_literal(text) for text in row] for row in cells]
    style = {"md": "github", "html": "html", "latex": "latex_booktabs"}[format]
    text = tabulate(cells, headers=columns, tablefmt=style, disable_numparse=True)
    return text.replace("\x00", "$\\pm$").replace("\x01", "--") + "\n"


def _literal(text: str) -> str:
    """Text escaped for Markdown."""
    return re.sub(r"[\\|<`*]|(?<=\])(?=\()", r"\\\g<0>", text)
