"""Where things lie: in a checkout its notebooks, runs, records and book; elsewhere what the user names."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from igpt.errors import UsageError

FOLDER_VARIABLES = ("IGPT_ROOT", "IGPT_DATA", "IGPT_WEIGHTS", "IGPT_RECORDS")  # variables that name a folder


def configured_folder(variable: str, default: str) -> Path:
    """The folder that an environment variable names, else the default. Raises UsageError as `whole_path` does."""
    return whole_path(variable, os.environ.get(variable) or default)


def whole_path(setting: str, value: str, base: Path | None = None) -> Path:
    """An absolute path: with the home folder, variables and ``base`` put in.

    base : what a relative path starts from, the working directory when None
    Raises UsageError for an unknown variable or user; ``setting`` is how the sentence calls the value.
    """
    unknown = f"{setting} is {value}, which names an unknown variable or user: write the full path"
    try:
        found = os.path.expandvars(Path(value).expanduser())
    except RuntimeError:
        raise UsageError(unknown) from None
    if re.search(r"\$(\w|{)", found):
        raise UsageError(unknown)
    return Path(os.path.normpath((base or Path()).absolute() / found))


def resolve_folders() -> None:
    """Make the folders that the environment names whole, so that child processes, which work elsewhere, find the same."""
    for variable in FOLDER_VARIABLES:
        if value := os.environ.get(variable):
            with suppress(UsageError):  # said where it is used
                os.environ[variable] = str(whole_path(variable, value))


@dataclass(frozen=True)
class Project:
    """The folders of one checkout."""

    root: Path

    @classmethod
    def here(cls) -> Project:
        """The checkout that ``IGPT_ROOT`` names, else the one this package was installed from.

        Raises UsageError where that variable names no folder.
        """
        root = configured_folder("IGPT_ROOT", str(Path(__file__).resolve().parents[1]))
        if not root.is_dir():
            raise UsageError(f"IGPT_ROOT is {root}, and there is no such folder: name a checkout of igpt, or unset it")
        return cls(root)

    @property
    def notebooks(self) -> Path:
        """The notebooks' sources."""
        return self.root / "notebooks"

    @property
    def runs(self) -> Path:
        """Artifacts of stages, one folder each; ignored by git and safe to delete."""
        return self.root / "runs"

    @property
    def models(self) -> Path:
        """The published models, one folder each."""
        return self.root / "book" / "models"

    @property
    def records(self) -> Path:
        """The records that the book reads, one folder a tier."""
        return self.root / "book" / "records"
