"""What can be said of a record: what it says of itself, held against this checkout, and what a repetition finds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, ignore_patterns

from igpt.companion.results.check import doubts_of_notebook, doubts_of_stage, doubts_of_values, shown_records
from igpt.companion.results.record import SCHEMA, Record, read_record, usable_record
from igpt.companion.results.signature import Signature, Signer
from igpt.companion.results.store import record_path
from igpt.companion.results.verdict import apart
from igpt.companion.run.git import git
from igpt.companion.run.targets import find_stages
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.project import Project
from igpt.text import listed, visible

SAME, WITHIN, NEAR, OTHER, MISSING = "the same", "within the intervals", "close", "disagrees", "missing"
WORDS = {SAME: "the same", WITHIN: "within the intervals", NEAR: "within 0.1 %", OTHER: "different", MISSING: "missing"}
MOST = 12  # doubts that are listed
LONGEST = 600  # characters of one thing that is said: the whole is to stay on a screen


def verify_record(path: Path, *, repeat: bool = False) -> tuple[str, bool]:
    """What to say of a record, on one screen, and whether it has no problem.

    That is no proof of its values: whoever writes a record can write one that agrees with itself.

    repeat : run its stage afresh, in a temporary checkout with these notebooks and this code, and compare the values.
    The record names the stage only; no command out of the file is run.

    Raises UsageError for a file that is missing or no record, StageError when the repetition fails.
    """
    record = read_record(path)
    if record is None:
        raise UsageError(f"there is no record at {path}: name a record's JSON file")
    project, receipt = Project.here(), record.receipt
    doubts = list(_doubts_of_record(record))
    stage, state, notebooks = _stage_of(record, project), "its stage is not one of this checkout's", []
    if isinstance(stage, Stage):
        state, changed = _against_checkout(record, stage, project)
        notebooks = _executed(record, path, project)
        doubts += [*changed, *_doubts_of_name(record, stage, project), *doubts_of_stage(record)]
        doubts += [*_doubts_of_place(record, path, stage, project), *_doubts_of_copies(record, path, stage, project)]
    else:
        doubts.append(stage)
    doubts += doubts_of_values(record)
    doubts += [doubt for notebook in notebooks for doubt in doubts_of_notebook(record, notebook)]
    if not _is_commit(project, receipt.commit):
        doubts.append("its commit is not in this repository: fetch it, or ask where it is from")
    lines = [
        ("Record", str(path)),
        ("Schema", f"{record.schema_version}, which this version reads ({SCHEMA})"),
        ("Stage", record.stage),
        ("Signature", f"{record.signature[:12]}, {state}"),
        ("Checkout", f"commit {receipt.commit[:12]}, {'uncommitted changes' if receipt.dirty else 'clean'}"),
        ("Notebook", f"{receipt.notebook}; executed: {', '.join(map(str, notebooks)) or 'none that is at hand'}"),
        ("Made", f"{receipt.finished}, in {receipt.seconds:.0f} s, on {receipt.hardware}"),
        ("Versions", ", ".join(f"{name} {found}" for name, found in receipt.versions.items())),
        ("Repeat", f"igpt run {record.stage}" if isinstance(stage, Stage) else "not from this checkout"),
    ]
    text = [f"{name:10} {said}" for name, said in lines]
    of_values = "its values were not computed again: --repeat does that"
    if repeat and isinstance(stage, Stage):
        again = _repeat(stage, project)
        text += ["", *_comparison(record, again)]
        doubts += [f"repeated here, {finding}" for finding in _other_findings(record, again)]
        of_values = _reproduced(record, again)
    shown = any(record.stage in shown_records(notebook) for notebook in notebooks)
    text += ["", *_conclusion(doubts, of_values, shown=shown)]
    return "\n".join(visible(line, limit=LONGEST) for line in text), not doubts


def _conclusion(doubts: list[str], of_values: str, *, shown: bool) -> list[str]:
    """What was looked at and found, and no more than that."""
    if doubts:
        more = [f"- and {len(doubts) - MOST} more"] if len(doubts) > MOST else []
        return ["The record has problems:", *(f"- {doubt}" for doubt in doubts[:MOST]), *more, _sentence(of_values)]
    checked = "its parts, parameters and receipt agree with each other and with this checkout, its values with their intervals"
    checked += " and with its executed notebook" if shown else ""
    own = "Who made it, when and on which machine cannot be checked."
    return [f"No problem was found: {checked}.", f"{_sentence(of_values)} {own}"]


def _sentence(words: str) -> str:
    """Words with a capital and a stop."""
    return f"{words[0].upper()}{words[1:]}."


def _doubts_of_record(record: Record) -> Iterator[str]:
    """What a record says against itself."""
    if Signature(record.parts).digest != record.signature:
        yield "its signature is not that of its parts: it was changed by hand, or cut"
    if record.receipt.dirty:
        yield "it was made with uncommitted changes, so no commit has its code"
    if "by hand" in record.receipt.notebook:
        yield "its notebook was run by hand, and may have differed from the file that was signed"


def _stage_of(record: Record, project: Project) -> Stage | str:
    """The record's stage; or in words why there is none."""
    signer = Signer(project.notebooks)
    if len(record.stage) > LONGEST:
        return f"its stage's name has {len(record.stage):,} characters"
    try:
        stage = signer.canonical(find_stages([record.stage], None, project)[0])
        signer.sign(stage)
    except UsageError as error:
        return str(error)
    if stage.name != record.stage:
        return f"its stage is called {stage.name} in this checkout, not {record.stage}"
    return stage


def _doubts_of_name(record: Record, stage: Stage, project: Project) -> Iterator[str]:
    """Whether a record's parameters are those of its stage."""
    try:
        meant = Signer(project.notebooks).canonical(Stage(stage.notebook, tuple(sorted(record.parameters.items()))))
    except UsageError as error:
        yield str(error)
        return
    if meant != stage:
        yield f"its parameters are those of {meant.name}, not of {stage.name}"


def _doubts_of_place(record: Record, path: Path, stage: Stage, project: Project) -> Iterator[str]:
    """Whether the names of file and folder, where they name a stage, name the record's."""
    place = path.resolve()
    if place.name == "record.json" and re.search("-[0-9a-f]{12}$", place.parent.name):
        meant = f"{record.stage}-{record.signature[:12]}"
        if place.parent.name != meant:
            yield f"it lies in a folder called {place.parent.name}, and its own is {meant}"
    elif "," in place.stem and "=" in place.stem and not re.fullmatch(re.escape(record.stage) + r"( \(\d+\))?", place.stem):
        yield f"its file is called {place.name}, and its stage {record.stage}"
    elif project.records.resolve() in place.parents and place != record_path(project, stage).resolve():
        yield f"it lies among the published records, and its place there is {record_path(project, stage)}"


def _run_folder(record: Record, project: Project) -> Path:
    """Where the run that made a record lies, where it was on this machine. The stage must be one of this checkout's."""
    return project.runs / f"{record.stage}-{Signature(record.parts).digest[:12]}"


def _executed(record: Record, path: Path, project: Project) -> list[Path]:
    """The executed notebooks of a record that are at hand: in its run's folder, and beside the file."""
    folder = _run_folder(record, project)
    kept = usable_record(folder / "record.json")
    own = kept is None or kept.receipt.finished == record.receipt.finished  # or it is another run's of the same stage
    found = [folder / "notebook.ipynb"] if own else []
    beside = path.parent / "notebook.ipynb"
    if path.name == "record.json" or record.stage in shown_records(beside):
        found.append(beside)
    return list({notebook.resolve(): notebook for notebook in found if notebook.is_file()}.values())


def _doubts_of_copies(record: Record, path: Path, stage: Stage, project: Project) -> Iterator[str]:
    """Where other copies of a record, in its run's folder and among the published, say something else."""
    for place in (_run_folder(record, project) / "record.json", record_path(project, stage)):
        copy = None if place.resolve() == path.resolve() else usable_record(place)
        if copy is None or copy.signature != record.signature:
            continue
        if copy.receipt.finished == record.receipt.finished:
            differing = [name for name in Record.model_fields if getattr(copy, name) != getattr(record, name)]
            if differing:
                yield f"{place} has the same time of finishing, and differs in {', '.join(differing)}"
        elif copy.receipt.hardware == record.receipt.hardware or stage.notebook != "speed":  # times are a machine's own
            yield from (f"by another run, in {place}, {finding}" for finding in _other_findings(record, copy))


def _against_checkout(record: Record, stage: Stage, project: Project) -> tuple[str, list[str]]:
    """The signature's state in words, and the doubts that follow."""
    signature = Signer(project.notebooks).sign(stage)
    if signature.digest == record.signature:
        return "as this checkout stands", []
    changed = signature.difference(record.parts) or ["the signature alone"]
    return f"not this checkout's: {listed(changed, most=6)} changed", [
        f"{len(changed)} of its inputs differ from this checkout's"
    ]


def _is_commit(project: Project, commit: str) -> bool:
    """Whether this repository has the commit."""
    if not re.fullmatch("[0-9a-f]{7,64}", commit):  # a name such as HEAD says nothing
        return False
    try:
        git(project.root, "cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _repeat(stage: Stage, project: Project) -> Record:
    """The record of the same stage, run afresh with all that it stands on."""
    with tempfile.TemporaryDirectory(prefix="igpt-repeat-") as folder:
        copytree(project.notebooks, Path(folder) / "notebooks", ignore=ignore_patterns(".*"))
        done = subprocess.run(
            [sys.executable, "-m", "igpt", "run", stage.name],
            env={**os.environ, "IGPT_ROOT": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no reason was given"]
            raise StageError(f"the repetition of {stage.name} failed: {last[0].removeprefix('igpt: ')}")
        for path in sorted(Path(folder).glob("runs/*/record.json")):
            record = read_record(path)
            if record is not None and record.stage == stage.name:
                return record
    raise StageError(f"the repetition of {stage.name} left no record")


def _other_findings(record: Record, again: Record) -> list[str]:
    """What another run of the same stage found otherwise; its series count where there are no values."""
    found = [f"{name} differs" for name in record.values if _word(record, again, name) in (OTHER, MISSING)]
    found += [f"the record lacks the value {name}" for name in again.values if name not in record.values]
    if not again.values and again.series != record.series:
        found.append("its series differ")
    return found


def _reproduced(record: Record, again: Record) -> str:
    """How many of a record's values a repetition found, and how exactly."""
    words = [_word(record, again, name) for name in record.values]
    counts = [f"{words.count(word)} {meant}" for word, meant in WORDS.items() if word in words]
    if not words:
        return "repeated here, its series came out " + ("the same" if again.series == record.series else "different")
    return f"repeated here, its {len(words)} values came out: {', '.join(counts)}"


def _word(record: Record, again: Record, name: str) -> str:
    """How a value and its repetition compare, one of `WORDS`.

    The repetition's interval counts, as wide for the record's value: the record's own could be of any width.
    """
    if name not in again.values:
        return MISSING
    one, other = record.values[name], again.values[name]
    if one.unit != other.unit or one.images != other.images:
        return OTHER
    if one.value == other.value:
        return SAME
    if other.low is None or other.high is None:
        return NEAR if abs(one.value - other.value) <= 1e-3 * max(abs(one.value), abs(other.value)) else OTHER
    return WITHIN if abs(one.value - other.value) <= other.high - other.low and not apart(one, other) else OTHER


def _comparison(record: Record, again: Record) -> list[str]:
    """One line a value: the record's, the repetition's, and a word."""
    width = max((len(name) for name in record.values), default=0)
    lines = [f"{'Value':{width}}  {'record':>12}  {'repeated':>12}"]
    for name, value in record.values.items():
        word = _word(record, again, name)
        found = "" if word == MISSING else f"{again.values[name].value:.6g}"
        lines.append(f"{name:{width}}  {value.value:12.6g}  {found:>12}  {word}")
    return lines
