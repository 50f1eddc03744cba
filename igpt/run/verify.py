"""Whether a record can be trusted: what it says of itself against this checkout, and what a repetition finds."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copytree, ignore_patterns

from igpt.errors import StageError, UsageError
from igpt.project import Project
from igpt.results.agree import apart
from igpt.results.record import SCHEMA, Record, read_record
from igpt.results.signature import Signature, Signer
from igpt.run.git import git
from igpt.run.targets import find_stages
from igpt.stage import Stage


def verify_record(path: Path, *, repeat: bool = False) -> tuple[str, bool]:
    """What to say of a record, on one screen, and whether it can be trusted as it stands.

    repeat : run its stage afresh, in a temporary checkout with these notebooks and this code, and compare the values.
    The record names the stage only; no command out of the file is run.

    Raises UsageError for a file that is missing or no record, StageError when the repetition fails.
    """
    record = read_record(path)
    if record is None:
        raise UsageError(f"there is no record at {path}: name a record's JSON file")
    project = Project.here()
    lines = [("Record", str(path)), ("Schema", f"{record.schema_version}, which this version reads ({SCHEMA})")]
    doubts: list[str] = []
    if Signature(record.parts).digest != record.signature:
        doubts.append("its signature is not that of its parts: it was changed by hand, or cut")
    stage, state = _stage_of(record, project), "its stage is not one of this checkout's"
    if isinstance(stage, Stage):
        state, doubt = _against_checkout(record, stage, project)
        doubts += doubt
    else:
        doubts.append(stage)
    receipt = record.receipt
    if receipt.dirty:
        doubts.append("it was made with uncommitted changes, which no commit can bring back")
    if "by hand" in receipt.notebook:
        doubts.append("its notebook was run by hand, and may have differed from the file that was signed")
    known = _is_commit(project, receipt.commit)
    if not known:
        doubts.append("its commit is not in this repository: fetch it, or ask where it is from")
    notebook = receipt.notebook.partition(",")[0]
    here = "which is here" if (project.root / notebook).is_file() else "which is not here"
    lines += [
        ("Stage", record.stage),
        ("Signature", f"{record.signature[:12]}, {state}"),
        ("Checkout", f"commit {receipt.commit[:12]}, {'uncommitted changes' if receipt.dirty else 'clean'}"),
        ("Notebook", f"{receipt.notebook}, {here}"),
        ("Made", f"{receipt.finished}, in {receipt.seconds:.0f} s, on {receipt.hardware}"),
        ("Versions", ", ".join(f"{name} {found}" for name, found in receipt.versions.items())),
        ("Repeat", f"igpt run {record.stage}" if isinstance(stage, Stage) else "not from this checkout"),
    ]
    text = [f"{name:10} {said}" for name, said in lines]
    if repeat and isinstance(stage, Stage):
        again = _repeat(stage, project)
        text += ["", *_comparison(record, again)]
        doubts += [f"repeated here, {name} is another" for name in _other_values(record, again)]
    text += ["", "It can be trusted as it stands." if not doubts else f"It cannot be taken as it stands: {'; '.join(doubts)}."]
    return "\n".join(text), not doubts


def _stage_of(record: Record, project: Project) -> Stage | str:
    """The record's stage; or in words why there is none."""
    try:
        stage = Signer(project.notebooks).canonical(find_stages([record.stage], None, project)[0])
    except UsageError as error:
        return str(error)
    if stage.name != record.stage:
        return f"its stage is called {stage.name} in this checkout, not {record.stage}"
    return stage


def _against_checkout(record: Record, stage: Stage, project: Project) -> tuple[str, list[str]]:
    """The signature's state in words, and the doubts that follow."""
    signature = Signer(project.notebooks).sign(stage)
    if signature.digest == record.signature:
        return "as this checkout stands", []
    changed = signature.difference(record.parts) or ["the signature alone"]
    shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
    return f"which this checkout has not: {shown} changed", [f"{len(changed)} of its inputs differ from this checkout's"]


def _is_commit(project: Project, commit: str) -> bool:
    """Whether this repository has the commit."""
    if not commit.isalnum():
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


def _other_values(record: Record, again: Record) -> list[str]:
    """Names of values that a repetition did not find, or found beyond the intervals."""
    return [name for name in record.values if name not in again.values or _word(record, again, name) == "disagrees"]


def _word(record: Record, again: Record, name: str) -> str:
    """How a value and its repetition compare."""
    one, other = record.values[name], again.values[name]
    if one.value == other.value:
        return "the same"
    if one.low is None or other.low is None:
        return "close" if abs(one.value - other.value) <= 1e-3 * max(abs(one.value), abs(other.value)) else "disagrees"
    return "disagrees" if apart(one, other) else "within the intervals"


def _comparison(record: Record, again: Record) -> list[str]:
    """One line a value: the record's, the repetition's, and a word."""
    width = max((len(name) for name in record.values), default=0)
    lines = [f"{'Value':{width}}  {'record':>12}  {'repeated':>12}"]
    for name, value in record.values.items():
        if name in again.values:
            lines.append(f"{name:{width}}  {value.value:12.6g}  {again.values[name].value:12.6g}  {_word(record, again, name)}")
        else:
            lines.append(f"{name:{width}}  {value.value:12.6g}  {'missing':>12}")
    return lines
