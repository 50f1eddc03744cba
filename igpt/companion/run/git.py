"""The commit of a checkout, and whether code or notebooks differ from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Paths that can change a result. All other files may differ: a profile, records, exported weights, a chapter.
CODE = (
    *("igpt", "notebooks", "pyproject.toml", "constraints.txt", "environment.yml", ":(glob)*.py"),
    *("book/_live", "package.json", "package-lock.json"),  # these change the live panel's speed
    *(":(exclude,glob)**/.ipynb_checkpoints/**", ":(exclude)igpt/weights/published"),
)


def git(root: Path, *arguments: str) -> str:
    """The output of a git command, stripped unless with ``-z``. Raises OSError without git, CalledProcessError on failure."""
    # Git refuses folders of other users, whose settings could run commands. The code of these folders is run anyway, for
    # example a snapshot in a shared folder that another user submitted first.
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
    variables = {**os.environ, "LC_ALL": "C"}  # error messages in English
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    return process.stdout if "-z" in arguments else process.stdout.strip()


def head(root: Path) -> str:
    """The commit of a checkout. Raises as `git` does."""
    return git(root, "rev-parse", "HEAD")


def changes(root: Path) -> list[str]:
    """The paths among `CODE` that differ from the commit. Raises as `git` does."""
    return [line[2:].strip() for line in git(root, "status", "--porcelain", "--", *CODE).splitlines()]


def head_and_dirt(root: Path) -> tuple[str, bool]:
    """The commit of a checkout, and whether `CODE` differs from it; ("unknown", True) outside git."""
    try:
        return head(root), bool(changes(root))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True
