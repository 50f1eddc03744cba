"""Check a record for consistency with itself, this checkout, its executed notebook and other copies; optionally repeat it."""

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
from igpt.companion.results.record import SCHEMA, Record, Value, read_record, usable_record
from igpt.companion.results.signature import Signature, Signer
from igpt.companion.results.store import record_path
from igpt.companion.results.verdict import apart
from igpt.companion.run.git import git
from igpt.companion.run.own_weights import share_names
from igpt.companion.run.targets import find_stages
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.project import Project
from igpt.text import listed, visible

OUTCOMES = SAME, WITHIN, CLOSE, DIFFERENT, MISSING = "the same", "within the intervals", "within 0.1 %", "different", "missing"
MOST = 12  # problems listed; the rest are only counted
LONGEST = 600  # characters per line, so that the report fits on a screen


def verify_record(path: Path, *, repeat: bool = False) -> tuple[str, bool]:
    """A report on one screen, and whether the record has no problems.

    This does not prove its values: anyone can write a consistent record.

    repeat : also run the stage again, in a temporary folder with the notebooks and code of this checkout, and compare values;
    only the stage's name is taken from the record, and no command from the file is run

    Raises UsageError for a missing file or one that is not a record, StageError if the repetition fails.
    """
    record = read_record(path)
    if record is None:
        raise UsageError(f"there is no record at {path}: name a record's JSON file")
    project, receipt = Project.here(), record.receipt
    problems = list(_problems_of_receipt(record, project))
    stage, state, notebooks = None, "its stage is not one of this checkout's", list[Path]()
    try:
        stage = _stage_of(record, project)
    except UsageError as error:
        problems.append(str(error))
    else:
        signature = Signer(project.notebooks).sign(stage)
        changed = signature.difference(record.parts)
        if not changed and signature.digest != record.signature:
            changed = ["the signature alone"]
        state = f"not this checkout's: {listed(changed, most=6)} changed" if changed else "as this checkout stands"
        problems += [f"{len(changed)} of its inputs differ from this checkout's"] * bool(changed)
        problems += [*doubts_of_stage(record), *_problems_of_names(record, path, stage, project)]
        problems += _problems_of_copies(record, path, stage, project)
        notebooks = _executed_notebooks(record, path, project)
        problems += [problem for notebook in notebooks for problem in doubts_of_notebook(record, notebook)]
    problems += doubts_of_values(record)
    lines = [
        ("Record", str(path)),
        ("Schema", f"{record.schema_version}, which this version reads ({SCHEMA})"),
        ("Stage", record.stage),
        ("Signature", f"{record.signature[:12]}, {state}"),
        ("Checkout", f"commit {receipt.commit[:12]}, {'uncommitted changes' if receipt.dirty else 'clean'}"),
        ("Notebook", f"{receipt.notebook}; executed: {', '.join(map(str, notebooks)) or 'not on this machine'}"),
        ("Made", f"{receipt.finished}, in {receipt.seconds:.0f} s, on {receipt.hardware}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in receipt.versions.items())),
        ("Repeat", f"igpt run {record.stage}" if stage else "not from this checkout"),
    ]
    text = [f"{name:10} {content}" for name, content in lines]
    values = "Its values were not computed again: --repeat does that."
    if repeat and stage:
        again = _repeat(stage, project)
        table, values = _comparison(record, again)
        text += ["", *table]
        problems += [f"repeated here, {difference}" for difference in _differences(record, again)]
    if problems:
        more = [f"- and {len(problems) - MOST} more"] if len(problems) > MOST else []
        text += ["", "The record has problems:", *(f"- {problem}" for problem in problems[:MOST]), *more, values]
    else:
        shown = any(record.stage in shown_records(notebook) for notebook in notebooks)
        text += [
            "",
            "No problem was found: its parts, parameters and receipt agree with each other and with this checkout, its values"
            f" with their intervals{' and with its executed notebook' if shown else ''}.",
            f"{values} Who made it, when and on which machine cannot be checked.",
        ]
    return "\n".join(visible(line, limit=LONGEST) for line in text), not problems


def _problems_of_receipt(record: Record, project: Project) -> Iterator[str]:
    """Inconsistencies within the record, and a commit that is not in this repository."""
    if Signature(record.parts).digest != record.signature:
        yield "its signature is not that of its parts: it was changed by hand, or cut"
    if record.receipt.dirty:
        yield "it was made with uncommitted changes, so no commit has its code"
    if "by hand" in record.receipt.notebook:
        yield "its notebook was run by hand, and may have differed from the file that was signed"
    commit = record.receipt.commit
    try:
        if not re.fullmatch("[0-9a-f]{7,64}", commit):  # names such as HEAD are not accepted
            raise OSError
        git(project.root, "cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.CalledProcessError):
        yield "its commit is not in this repository: fetch it, or ask where it is from"


def _stage_of(record: Record, project: Project) -> Stage:
    """The record's stage. Raises UsageError if this checkout has no stage of that name."""
    if len(record.stage) > LONGEST:
        raise UsageError(f"its stage's name has {len(record.stage):,} characters")
    signer = Signer(project.notebooks)
    stage = signer.canonical(find_stages([record.stage], None, project)[0])
    signer.sign(stage)
    if stage.name != record.stage:
        raise UsageError(f"its stage is called {stage.name} in this checkout, not {record.stage}")
    return stage


def _problems_of_names(record: Record, path: Path, stage: Stage, project: Project) -> Iterator[str]:
    """Parameters, file names and folder names that belong to a different stage than the record's."""
    try:
        named_stage = Signer(project.notebooks).canonical(Stage.of(stage.notebook, **record.parameters))
        if named_stage != stage:
            yield f"its parameters are those of {named_stage.name}, not of {stage.name}"
    except UsageError as error:
        yield str(error)
    path = path.resolve()
    folder, own, published = path.parent.name, f"{record.stage}-{record.signature[:12]}", record_path(project, stage)
    if path.name == "record.json" and re.search("-[0-9a-f]{12}$", folder):
        if folder != own:
            yield f"it lies in a folder called {folder}, and its own is {own}"
    elif "," in path.stem and "=" in path.stem and not re.fullmatch(re.escape(record.stage) + r"( \(\d+\))?", path.stem):
        yield f"its file is called {path.name}, and its stage {record.stage}"
    elif project.records.resolve() in path.parents and path != published.resolve():
        yield f"it lies among the published records, and its place there is {published}"


def _run_folder(record: Record, project: Project) -> Path:
    """The run folder of a record, if the run was on this machine. The stage must exist in this checkout."""
    return project.runs / f"{record.stage}-{Signature(record.parts).digest[:12]}"


def _executed_notebooks(record: Record, path: Path, project: Project) -> list[Path]:
    """The executed notebooks of a record on this machine: in its run folder and in the folder of the record's file."""
    folder, beside = _run_folder(record, project), path.parent / "notebook.ipynb"
    folder_record = usable_record(folder / "record.json")
    same_run = (
        folder_record is None or folder_record.receipt.finished == record.receipt.finished
    )  # otherwise the folder is of a different run of the stage
    notebooks = [folder / "notebook.ipynb"] if same_run else []
    notebooks += [beside] if path.name == "record.json" or record.stage in shown_records(beside) else []
    return list({notebook.resolve(): notebook for notebook in notebooks if notebook.is_file()}.values())


def _problems_of_copies(record: Record, path: Path, stage: Stage, project: Project) -> Iterator[str]:
    """Differences from records with the same signature in the run folder and in book/records."""
    for other in (_run_folder(record, project) / "record.json", record_path(project, stage)):
        copy = None if other.resolve() == path.resolve() else usable_record(other)
        if copy is None or copy.signature != record.signature:
            continue
        if copy.receipt.finished == record.receipt.finished:
            differing = [name for name in Record.model_fields if getattr(copy, name) != getattr(record, name)]
            if differing:
                yield f"{other} has the same time of finishing, and differs in {', '.join(differing)}"
        elif copy.receipt.hardware == record.receipt.hardware or stage.notebook != "speed":  # timings differ between machines
            yield from (f"by another run, in {other}, {difference}" for difference in _differences(record, copy))


def _repeat(stage: Stage, project: Project) -> Record:
    """Run a stage and all its dependencies again in a temporary folder; the new record."""
    with tempfile.TemporaryDirectory(prefix="igpt-repeat-") as folder:
        copytree(project.notebooks, Path(folder) / "notebooks", ignore=ignore_patterns(".*"))
        share_names(project, Project(Path(folder)))
        command, environment = [sys.executable, "-m", "igpt", "run", stage.name], {**os.environ, "IGPT_ROOT": folder}
        process = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if process.returncode:
            reason = process.stderr.strip().splitlines()[-1:] or ["no reason was given"]
            raise StageError(f"the repetition of {stage.name} failed: {reason[0].removeprefix('igpt: ')}")
        records = map(read_record, Path(folder).glob("runs/*/record.json"))
        if record := next((each for each in records if each and each.stage == stage.name), None):
            return record
    raise StageError(f"the repetition of {stage.name} left no record")


def _differences(record: Record, again: Record) -> list[str]:
    """Values that differ between two runs of a stage; if the second has no values, whether its series differ."""
    differing = [f"{n} differs" for n, v in record.values.items() if _outcome(v, again.values.get(n)) in (DIFFERENT, MISSING)]
    differing += [f"the record lacks the value {name}" for name in again.values if name not in record.values]
    return differing + ["its series differ"] * (not again.values and again.series != record.series)


def _comparison(record: Record, again: Record) -> tuple[list[str], str]:
    """A table that compares each value with its repetition, and a sentence that counts the outcomes."""
    outcomes = {name: _outcome(value, again.values.get(name)) for name, value in record.values.items()}
    width = max(map(len, outcomes), default=0)
    table = [f"{'Value':{width}}  {'record':>12}  {'repeated':>12}"]
    for name, outcome in outcomes.items():
        repeated = f"{again.values[name].value:.6g}" if name in again.values else ""
        table.append(f"{name:{width}}  {record.values[name].value:12.6g}  {repeated:>12}  {outcome}")
    if not outcomes:
        same = SAME if again.series == record.series else DIFFERENT
        return table, f"Repeated here, its series came out {same}."
    results = list(outcomes.values())
    counts = ", ".join(f"{results.count(outcome)} {outcome}" for outcome in OUTCOMES if outcome in results)
    return table, f"Repeated here, its {len(results)} values came out: {counts}."


def _outcome(value: Value, again: Value | None) -> str:
    """The outcome of comparing a value with its repetition, one of `OUTCOMES`.

    The repetition's interval decides, since the interval in the record may be forged.
    """
    if again is None:
        return MISSING
    if value.unit != again.unit or value.images != again.images:
        return DIFFERENT
    difference = abs(value.value - again.value)
    if not difference:
        return SAME
    if again.low is None or again.high is None:
        return CLOSE if difference <= 1e-3 * max(abs(value.value), abs(again.value)) else DIFFERENT
    return WITHIN if difference <= again.high - again.low and not apart(value, again) else DIFFERENT
