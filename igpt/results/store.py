"""The published records of a checkout, by stage."""

from __future__ import annotations

from pathlib import Path

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

    def changed(self, stage: Stage) -> list[str]:
        """Names of the inputs that changed since a stage's record was made; none when there is no record."""
        record, signature = self.read(stage), self.signer.sign(stage)
        if record is None or record.signature == signature.digest:
            return []
        return signature.difference(record.parts) or ["signature"]
