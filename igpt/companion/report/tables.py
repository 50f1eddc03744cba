"""Tables as data: cells of text, each with the receipt that a reader can open. No format is known here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from igpt.companion.criteria import Measurement
from igpt.companion.experiments.cells import TABLES, UNMEASURED, Experiment, experiments, why_not
from igpt.companion.experiments.costs import run_hours, run_room, with_parents
from igpt.companion.experiments.machines import H100, TWO_CORES
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
from igpt.project import Project
from igpt.text import listed
from igpt.train.cost import CARD

# Columns, those first in which the published numbers themselves are compared.
TIER_TITLES = {tier.name: tier.title for tier in sorted(TIERS.values(), key=lambda tier: not tier.numbers)}
CLAIMS = {"reproduced": "claim holds", "differs": "claim fails", "undecided": "undecided", "shown": "no claim"}
NUMBERS = {"reproduced": "reproduced", "differs": "differs", "undecided": "undecided", "shown": "shown"}
WORDS = {tier: NUMBERS if TIERS[tier].numbers else CLAIMS for tier in TIER_TITLES}
SHORT = {"": "none", **{name: card.short for name, card in DATASETS.items()}}
EVALUATIONS = {"none": "", "pre-train": "pre-training"}


@dataclass(frozen=True)
class Cell:
    """Text, and what a reader sees on opening it: (label, text) lines, empty for plain text."""

    text: str
    receipt: tuple[tuple[str, str], ...] = ()
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


def result_table(name: str, project: Project, yours: ReaderStore | None = None) -> ResultTable:
    """One of the book's tables; with ``yours``, a reader's own records in columns beside the others, never among them.

    Raises UsageError for an unknown name, naming near misses.
    """
    store = RecordStore(project)
    if name == "scoreboard":
        return _scoreboard(store, yours)
    table = next((t for t in TABLES if t.name == name), None)
    if table is None:
        raise UsageError(f"there is no table {name!r}{near_misses(name, table_names())}")
    members = table.experiments()
    measurable = any(e.published.ours and e.published.metric not in UNMEASURED for e in members)
    tiers = [t for t in TIER_TITLES if any(e.measurement(t) for e in members) or (t == "paper" and measurable)]
    extra = [column for column in _EXTRA if len({_EXTRA[column](e.published) for e in members}) > 1]
    beside = _tiers_of(members, yours)
    columns = ("System", "Data", "Published", *(TIER_TITLES[t] for t in tiers), *_titles(beside, yours), *extra)
    rows = []
    for experiment in members:
        row = experiment.published
        cells = [Cell(_system(row)), Cell(_data(row)), published_cell(row)]
        cells += [tier_cell(experiment, tier, store) for tier in tiers]
        cells += [_your_cell(experiment, tier, yours, store) for tier in beside if yours]
        rows.append((*cells, *(Cell(_EXTRA[column](row)) for column in extra)))
    return ResultTable(name, table.caption, columns, tuple(rows))


def table_names() -> list[str]:
    """The names `result_table` knows."""
    return ["scoreboard", *(table.name for table in TABLES)]


def published_cell(row: Published) -> Cell:
    """A published number with its source."""
    certainty = {"exact": "read in the source", "memory": "from memory, unsure", "digitised": "digitised from a figure"}
    note = "" if row.certainty == "exact" else f" ({'from memory' if row.certainty == 'memory' else 'digitised'})"
    receipt = (
        ("Published", f"{row.value} {row.unit}"),
        ("Source", f"{row.source}, {row.source_place}"),
        ("Certainty", certainty[row.certainty]),
        ("Row", row.row_id),
    )
    value = f"{int(row.value):,}" if row.unit == "parameters" else row.value
    return Cell(value + _unit_mark(row) + note, receipt, "published")


def tier_cell(experiment: Experiment, tier: str, store: RecordStore) -> Cell:
    """What a tier says of a published number: value, interval, seeds and verdict; or pending, with its price."""
    run = experiment.measurement(tier)
    if run is None:
        if tier == "paper" and experiment.published.ours and experiment.published.metric not in UNMEASURED:
            return Cell("pending", (("Status", "no experiment is declared for it yet"),), "pending", word="pending")
        reason = why_not(experiment.published, TIERS[tier]) if experiment.published.ours else ""
        return Cell("–", (("Status", f"not measured in this tier: {reason}"),) if reason else ())
    found = outcome(run.metric, store.read)
    verdict = judge(run.metric, run.criterion, store.read, published=experiment.published.number)
    if found is None:
        return Cell("pending", _price(experiment, run, store.signer.in_full), "pending", word="pending")
    if verdict.word == "pending":
        return Cell(
            "pending",
            (("Status", verdict.sentence), *_price(experiment, run, store.signer.in_full)[1:]),
            "pending",
            word="pending",
        )
    word = WORDS[tier][verdict.word]
    stale = sorted({name for stage in run.stages() for name in store.changed(stage)})
    text = f"{measured_text(found, experiment.published)}, {word}{', stale' if stale else ''}"
    paths = tuple(store.link(s) for s in run.stages())
    return Cell(text, _receipt(found, verdict, run, stale), "measured", paths, word)


def measured_text(found: Outcome, row: Published) -> str:
    """Mean, half width of the interval over seeds, and number of seeds, in the published unit and digits."""
    scale = 100 if row.unit in ("percent", "points") else 1
    if row.unit == "parameters":
        return f"{found.mean:,.0f}"
    digits = _digits(found, row)
    seeds = f"{len(found.values)} seed{'s' if len(found.values) > 1 else ''}"
    spread = "" if math.isinf(found.low) else f" ± {scale * (found.high - found.low) / 2:.{digits}f}"
    return f"{scale * found.mean:.{digits}f}{spread} ({seeds})"


def _digits(found: Outcome, row: Published) -> int:
    """Decimals: as the paper prints them, fewer where the interval is wider than ten of the last one."""
    printed = len(row.value.partition(".")[2])
    if row.metric == "loss":
        printed = 4
    scale = 100 if row.unit in ("percent", "points") else 1
    half = scale * (found.high - found.low) / 2
    if not 0 < half < math.inf:
        return printed
    supported = -math.floor(math.log10(half))
    return max(0, min(printed, supported + 1))


def _tiers_of(members: Iterable[Experiment], yours: ReaderStore | None) -> list[str]:
    """The tiers of which a reader has records for any of the experiments."""
    if yours is None:
        return []
    runs = [run for e in members for run in e.measurements if any(yours.read(stage) for stage in run.stages())]
    return [tier for tier in TIER_TITLES if any(run.tier == tier for run in runs)]


def _titles(tiers: Sequence[str], yours: ReaderStore | None) -> list[str]:
    """The heads of a reader's columns."""
    return [f"{yours.label}: {TIER_TITLES[tier]}" for tier in tiers] if yours else []


def _your_cell(experiment: Experiment, tier: str, yours: ReaderStore, store: RecordStore) -> Cell:
    """What a reader's records say of a published number, and whether that agrees with ours."""
    run = experiment.measurement(tier)
    if run is None or (found := outcome(run.metric, yours.read)) is None:
        return Cell("–")
    cell = tier_cell(experiment, tier, yours)
    lines: tuple[tuple[str, str], ...] = (
        ("Whose", f"yours, from the folder {yours.folder.name}; not part of this project's records"),
    )
    if own := sorted({name for record in found.records if (name := own_weights(record))}):
        return replace(cell, text=f"{cell.text}, on {joined(own)}", receipt=(*lines, *cell.receipt))
    apart = disagreement(run, yours, store)
    if apart:
        return replace(cell, text=f"{cell.text}; disagrees with ours", receipt=(*lines, ("Disagrees", apart), *cell.receipt))
    return replace(cell, receipt=(*lines, *cell.receipt))


def disagreement(run: Measurement, yours: RecordStore, ours: RecordStore) -> str:
    """Where a reader's records disagree with ours beyond their intervals, in words; nothing where they do not."""
    found = []
    mine, theirs = outcome(run.metric, ours.read), outcome(run.metric, yours.read)
    if mine is not None and theirs is not None and outcomes_apart(mine, theirs):
        found.append(
            f"the mean is {theirs.mean:.4f} in yours and {mine.mean:.4f} in ours, and the intervals over seeds do not meet"
        )
    for stage in run.metric.stages:
        here, there = ours.read(stage), yours.read(stage)
        if here is not None and there is not None and run.metric.key in differing_values(here, there):
            pair = there.values[run.metric.key].value, here.values[run.metric.key].value
            found.append(f"{stage.name} has {pair[0]:.4f} in yours and {pair[1]:.4f} in ours, and their intervals do not meet")
    return "; ".join(found)


def _scoreboard(store: RecordStore, yours: ReaderStore | None = None) -> ResultTable:
    """Every published number of Image GPT, and where each tier stands with it."""
    beside = _tiers_of(experiments(), yours)
    columns = ("Number", "Published", *TIER_TITLES.values(), *_titles(beside, yours), "What", "Experiment", "Table")
    tables = {e.name: table.name for table in reversed(TABLES) for e in table.experiments()}
    rows = []
    for experiment in experiments():
        row = experiment.published
        if not row.ours:
            continue
        cells = [Cell(f"{_system(row)}, {_data(row)}"), published_cell(row)]
        cells += [tier_cell(experiment, tier, store) for tier in TIER_TITLES]
        cells += [_your_cell(experiment, tier, yours, store) for tier in beside if yours]
        rows.append((*cells, Cell(_what(row)), Cell(experiment.name), Cell(tables.get(experiment.name, "none"))))
    return ResultTable("scoreboard", "Every published number of Image GPT, and its status by tier", columns, tuple(rows))


def score_counts(project: Project) -> ResultTable:
    """How many published numbers stand at which verdict, by tier."""
    board = _scoreboard(RecordStore(project))
    words = ["reproduced or claim holds", "differs or claim fails", "undecided", "no claim", "pending", "no counterpart"]
    same = {"claim holds": words[0], "reproduced": words[0], "claim fails": words[1], "differs": words[1], "shown": "no claim"}
    rows = []
    for column, (tier, title) in enumerate(TIER_TITLES.items(), start=2):
        found = [same.get(r[column].word, r[column].word) or "no counterpart" for r in board.rows]
        rows.append((Cell(title), *(Cell(str(found.count(word))) for word in words)))
        assert sum(found.count(word) for word in words) == len(board.rows), tier
    caption = f"Status of the {len(board.rows)} published numbers of Image GPT"
    return ResultTable("score-counts", caption, ("Tier", *words), tuple(rows))


def _receipt(found: Outcome, verdict: Verdict, run: Measurement, stale: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What is behind a measured cell, line by line."""
    records = found.records
    receipts = [record.receipt for record in records]
    dirty = any(receipt.dirty for receipt in receipts)
    values = ", ".join(f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}" for value in found.values)
    changed = f"stale: made before the code or its inputs changed ({listed(stale, most=5)})"
    lines = [
        ("State", changed if stale else "as this checkout stands"),
        ("Verdict", f"{WORDS[run.tier][verdict.word]}; {verdict.sentence}"),
        ("Values", f"{values}; mean with its {LEVEL:.0%} interval over {'seeds' if len(found.values) > 1 else 'test images'}"),
        ("Commit", joined(r.commit[:12] for r in receipts) + (", with uncommitted changes" if dirty else "")),
        ("Notebook", joined(r.notebook for r in receipts)),
        ("Parameters", _parameters(records)),
        ("Seeds", joined(str(r.parameters["seed"]) for r in records if "seed" in r.parameters)),
        ("Hardware", joined(r.hardware for r in receipts)),
        ("Seconds", f"{sum(r.seconds for r in receipts):.0f} in all"),
        ("Command", joined(r.command for r in receipts)),
    ]
    return tuple(lines)


def _price(experiment: Experiment, run: Measurement, in_full: Callable[[Stage], Stage]) -> tuple[tuple[str, str], ...]:
    """A pending cell's command and cost."""
    command = ("Command", f"igpt run {experiment.name} --tier {run.tier}")
    criterion = ("Criterion", run.criterion.claim)
    if run.tier == "tiny":  # too small to be priced
        return (("Status", "not run yet"), criterion, ("Cost", "minutes on two cores, the whole tier together"), command)
    unit, card = ("Hours of two cores", TWO_CORES) if TIERS[run.tier].cores else (f"{CARD}-hours", H100)
    needed = with_parents(run.stages(), in_full)
    pretraining, rest = run_hours(needed, card)
    work = f"{_hours(pretraining)} of pre-training, {_hours(rest)} of everything after it" if pretraining else _hours(rest)
    downloads, disk = run_room(needed)
    room = [f"{sum(each.bytes for each in downloads) / 1e9:.1f} GB to download"] if downloads else []
    cost = f"{unit}: {work}; {', '.join([*room, f'{disk / 1e9:.1f} GB of disk'])}"
    used = {d for s in needed for d in protocol(s.notebook).datasets(s.parameters)}
    status = f"not run: it needs {' and '.join(sorted(SHORT[name] for name in used))}, and the hours below"
    return (("Status", status), criterion, ("Cost", cost), command)


def _hours(hours: float) -> str:
    """Hours to two significant digits."""
    if hours < 0.1:
        return "under 0.1"
    return f"{float(f'{hours:.2g}'):,.10g}"


def _parameters(records: Sequence[Record]) -> str:
    """The parameters the records share, the seed apart."""
    shared = {k: v for k, v in records[0].parameters.items() if all(r.parameters.get(k) == v for r in records)}
    return ", ".join(f"{name} = {value}" for name, value in shared.items() if name != "seed") or "none"


def joined(words: Iterable[str]) -> str:
    """Different words once each, in order; "none" where there are none."""
    return ", ".join(dict.fromkeys(words)) or "none"


def _system(row: Published) -> str:
    """Method, model and resolution, as a reader names them."""
    name = row.method.replace("iGPT", row.model, 1) if row.model else row.method
    return f"{name} {row.resolution}" if row.resolution not in ("", "original") else name


def _data(row: Published) -> str:
    """The data set, and the labels where they are few."""
    return SHORT.get(row.dataset, row.dataset)


def _what(row: Published) -> str:
    """Evaluation and metric."""
    evaluation = EVALUATIONS.get(row.evaluation, row.evaluation.replace("-", " "))
    metric = "" if row.metric == evaluation or row.metric == "accuracy" else row.metric
    return ", ".join(filter(None, [evaluation, metric]))


def _unit_mark(row: Published) -> str:
    """The unit as cells print it."""
    marks = {"percent": " %", "points": " points", "parameters": "", "nats per token": " nats", "bits per token": " bits"}
    return marks.get(row.unit, f" {row.unit}")


_EXTRA: dict[str, Callable[[Published], str]] = {
    "Evaluation": _what,
    "Features": lambda row: row.features or "–",
    "Parameters (M)": lambda row: row.params_m or "–",
    "Labels in pre-training": lambda row: row.labels_used or "–",
    "Pre-trained on": lambda row: row.pretrain_data or "–",
    "Source": lambda row: row.source,
}
