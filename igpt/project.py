"""The folders of a checkout, and folders configured by environment variables."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from igpt.errors import UsageError

REPOSITORY = "https://github.com/igpt-book/igpt"
FOLDER_VARIABLES = ("IGPT_ROOT", "IGPT_DATA", "IGPT_WEIGHTS", "IGPT_RECORDS")  # variables that name a folder


def configured_folder(variable: str, default: Path | str) -> Path:
    """The folder that an environment variable names, else the default. Raises UsageError as `whole_path` does."""
    return whole_path(variable, os.environ.get(variable) or str(default))


def whole_path(setting: str, value: str, base: Path | None = None) -> Path:
    """An absolute path, with the home folder and environment variables expanded.

    setting : source of the value, for the error message
    base : folder that a relative path is relative to; the working directory if None
    Raises UsageError for an unknown variable or user.
    """
    unknown = f"{setting} is {value}, which names an unknown variable or user: write the full path"
    try:
        path = os.path.expandvars(Path(value).expanduser())
    except RuntimeError:
        raise UsageError(unknown) from None
    if re.search(r"\$(\w|{)", path):
        raise UsageError(unknown)
    return Path(os.path.normpath((base or Path()).absolute() / path))


def resolve_folders() -> None:
    """Make the folders that the environment names absolute: child processes run in other working directories."""
    for variable in FOLDER_VARIABLES:
        if value := os.environ.get(variable):
            with suppress(UsageError):  # raised again where the folder is used
                os.environ[variable] = str(whole_path(variable, value))


@dataclass(frozen=True)
class Project:
    """The folders of one checkout."""

    root: Path

    @classmethod
    def here(cls, who: str = "this command") -> Project:
        """The checkout that ``IGPT_ROOT`` names, else the one that this package is imported from.

        who : what needs the checkout, for the error message
        Raises UsageError if there is no checkout.
        """
        root = configured_folder("IGPT_ROOT", Path(__file__).resolve().parents[1])
        if not root.is_dir():
            raise UsageError(f"IGPT_ROOT is {root}, and there is no such folder: name a checkout of igpt, or unset it")
        if not (root / "notebooks").is_dir():
            raise UsageError(f"{who} needs a checkout of the project: clone it ({REPOSITORY}), or set IGPT_ROOT")
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
        """The published models, one folder each; wheels contain them too."""
        return self.root / "igpt" / "weights" / "published"

    @property
    def records(self) -> Path:
        """The records that the book reads, one folder per tier."""
        return self.root / "book" / "records"
