"""The published records of a checkout, by stage."""

from __future__ import annotations

from pathlib import Path

from igpt.errors import UsageError
from igpt.project import Project
from igpt.results.record import Record, read_record
from igpt.results.signature import Signer
from igpt.stage import Stage, tier_of


def record_path(project: Project, stage: Stage) -> Path:
    """Where the record of a stage, under its canonical name, is published."""
    return project.records / tier_of(stage) / f"{stage.name}.json"


class RecordStore:
    """Reads each published record once."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.signer = Signer(project.notebooks)
        self._read: dict[Stage, Record | None] = {}

    def path(self, stage: Stage) -> Path:
        """Where a stage's record is, or would be."""
        return record_path(self.project, self.signer.canonical(stage))

    def read(self, stage: Stage) -> Record | None:
        """A stage's record; None when there is none. Raises UsageError for a file that is not one."""
        if stage not in self._read:
            self._read[stage] = read_record(self.path(stage))
        return self._read[stage]

    def place(self, stage: Stage) -> str:
        """Where a stage's record is, as the book's links have it: below its folder of records."""
        return str(self.path(stage).relative_to(self.project.records))

    def changed(self, stage: Stage) -> list[str]:
        """Names of the inputs that changed since a stage's record was made; none when there is no record."""
        record, signature = self.read(stage), self.signer.sign(stage)
        if record is None or record.signature == signature.digest:
            return []
        return signature.difference(record.parts) or ["signature"]


class ReaderStore(RecordStore):
    """A reader's own records, from a folder of any layout: of `book/records`, of ``runs/``, or all in one place.

    Of two records of one stage the later one counts. Raises UsageError for a folder that is none or holds no record,
    and for a JSON file in it that is not one.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        super().__init__(project)
        self.folder = folder
        self.all: list[tuple[Path, Record]] = []
        if not folder.is_dir():
            raise UsageError(f"there is no folder of records at {folder}: name one that holds records as JSON files")
        for path in sorted(folder.rglob("*.json")):
            if path.name in ("progress.json", "schema.json", "config.json") or path.name.startswith("."):
                continue  # what lies beside records in runs/ and in a built book
            record = read_record(path)
            if record is not None:
                self.all.append((path, record))
        if not self.all:
            raise UsageError(f"{folder} holds no records: name a folder that holds records as JSON files")
        self._latest = {
            record.stage: (path, record) for path, record in sorted(self.all, key=lambda found: found[1].receipt.finished)
        }

    @property
    def label(self) -> str:
        """What its columns are called."""
        return f"Yours ({self.folder.name})"

    def read(self, stage: Stage) -> Record | None:
        """A stage's record; None when the folder has none."""
        found = self._latest.get(self.signer.canonical(stage).name)
        return found[1] if found else None

    def path(self, stage: Stage) -> Path:
        """Where a stage's record is, or would be."""
        name = self.signer.canonical(stage).name
        return self._latest[name][0] if name in self._latest else self.folder / f"{name}.json"

    def place(self, stage: Stage) -> str:
        """Where the book puts it: never among its own."""
        return f"../yours/{self.path(stage).relative_to(self.folder)}"
