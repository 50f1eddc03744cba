"""The published records of a checkout, by stage."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from igpt.companion.experiments.tiers import tier_of
from igpt.companion.results.record import Record, claims_to_be_record, read_record, tell_once, usable_record
from igpt.companion.results.signature import Signer
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project


def record_path(project: Project, stage: Stage) -> Path:
    """The path of a stage's published record; ``stage`` must be canonical."""
    return project.records / tier_of(stage) / f"{stage.name}.json"


class RecordStore:
    """The published records of a checkout, each read once."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.signer = Signer(project.notebooks)
        self._read: dict[Stage, Record | None] = {}

    def path(self, stage: Stage) -> Path:
        """The path of a stage's record, whether it exists or not."""
        return record_path(self.project, self.signer.canonical(stage))

    def read(self, stage: Stage) -> Record | None:
        """A stage's record; None if it is missing or damaged. A damaged record is reported; the next run replaces it."""
        if stage not in self._read:
            self._read[stage] = usable_record(self.path(stage))
        return self._read[stage]

    def link(self, stage: Stage) -> str:
        """The path of a stage's record relative to the folder of records, as in the book's links."""
        return str(self.path(stage).relative_to(self.project.records))

    def changed(self, stage: Stage) -> list[str]:
        """Names of the inputs that changed since a stage's record was made; empty without a record."""
        record, signature = self.read(stage), self.signer.sign(stage)
        if record is None or record.signature == signature.digest:
            return []
        return signature.difference(record.parts) or ["signature"]


class ReaderStore(RecordStore):
    """A reader's own records, from a folder of any layout: as `book/records`, as ``runs/``, or all in one folder.

    Of two records of one stage the later one counts. If a stage on OpenAI's weights has no record, the record of the same
    evaluation on the reader's own weights of that model is used. Other JSON files are skipped; a damaged record is reported on
    stderr and skipped. Raises UsageError if the folder does not exist or has no records.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        super().__init__(project)
        self.folder = folder
        self.all: list[tuple[Path, Record]] = []
        if not folder.is_dir():
            raise UsageError(f"there is no folder of records at {folder}: name one that holds records as JSON files")
        damaged = []
        for path in filter(claims_to_be_record, _json_files(folder)):
            try:
                if record := read_record(path):
                    self.all.append((path, record))
            except UsageError as error:
                damaged.append(str(error))
        if not self.all:
            reason = f" that can be read ({damaged[0]})" if damaged else ""
            raise UsageError(f"{folder} holds no records{reason}: name a folder that holds records as JSON files")
        for sentence in damaged:
            tell_once(f"igpt: {sentence}; it is left out")
        in_order = sorted(self.all, key=lambda each: _finished(each[1]))
        on_own_weights = {name: each for each in in_order if (name := self._on_released(each[1]))}
        self._latest = {**on_own_weights, **{each[1].stage: each for each in in_order}}

    @property
    def label(self) -> str:
        """The title of the columns with these records."""
        return f"Yours ({self.folder.name})"

    def latest(self) -> list[Record]:
        """The latest record of each stage, sorted by the stages' names."""
        return [record for name, (_, record) in sorted(self._latest.items()) if record.stage == name]

    def _find(self, stage: Stage) -> tuple[Path, Record] | None:
        """The path of a stage's record and the record; None if there is none."""
        return self._latest.get(self.signer.canonical(stage).name)

    def _on_released(self, record: Record) -> str:
        """The stage name of the same evaluation on OpenAI's weights; empty unless the record is on the reader's own weights."""
        if not own_weights(record):
            return ""
        try:
            given = {**record.parameters, "weights": "released"}
            return self.signer.canonical(Stage.of(record.stage.partition(",")[0], **given)).name
        except UsageError:  # the notebook does not exist in this checkout
            return ""

    def changed(self, stage: Stage) -> list[str]:
        """As in the base class; for a record on the reader's own weights, of that record's stage."""
        record = self.read(stage)
        return super().changed(Stage.of(stage.notebook, **record.parameters) if record and own_weights(record) else stage)

    def read(self, stage: Stage) -> Record | None:
        """A stage's record; None if the folder has none."""
        pair = self._find(stage)
        return pair[1] if pair else None

    def path(self, stage: Stage) -> Path:
        """The path of a stage's record, whether it exists or not."""
        pair = self._find(stage)
        return pair[0] if pair else self.folder / f"{self.signer.canonical(stage).name}.json"

    def link(self, stage: Stage) -> str:
        """As in the base class, but in a folder beside the book's own records."""
        return f"../yours/{self.path(stage).relative_to(self.folder)}"


def own_weights(record: Record) -> str:
    """The name of the user's own weights that a record evaluates; empty for other records."""
    weights = str(record.parameters.get("weights", "trained"))
    return "" if weights in ("trained", "released") else weights


def _finished(record: Record) -> float:
    """Time of finishing in seconds since the epoch; minus infinity if it cannot be parsed."""
    try:
        return datetime.fromisoformat(record.receipt.finished).timestamp()
    except ValueError:
        return -math.inf


def _json_files(folder: Path) -> Iterator[Path]:
    """The JSON files below a folder, sorted, without hidden files, hidden, linked or unreadable folders."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if name.endswith(".json") and not name.startswith("."))
