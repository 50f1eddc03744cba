"""The commit of a checkout, and whether code or notebooks differ from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# What can change a result. All else may be new or changed: a cluster's profile, records, exported weights, a chapter.
CODE = (
    *("igpt", "notebooks", "pyproject.toml", "constraints.txt", "environment.yml", ":(glob)*.py"),
    *("book/_live", "package.json", "package-lock.json"),  # of the live panel's speed
    *(":(exclude,glob)**/.ipynb_checkpoints/**", ":(exclude)igpt/weights/published"),
)


def git(root: Path, *arguments: str) -> str:
    """What a git command prints; with ``-z`` to the last zero. Raises OSError without git, CalledProcessError when it fails."""
    # Git refuses folders of other users, whose settings could run things; here it is asked of code that runs anyway:
    # of a snapshot that another user of a shared folder submitted first, say.
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
    told = {**os.environ, "LC_ALL": "C"}  # or its errors are in the user's language
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=told)
    return done.stdout if "-z" in arguments else done.stdout.strip()


def head(root: Path) -> str:
    """The checkout's commit. Raises as `git` does."""
    return git(root, "rev-parse", "HEAD")


def changes(root: Path) -> list[str]:
    """What differs from the commit and can change a result, a path each. Raises as `git` does."""
    return [line[2:].strip() for line in git(root, "status", "--porcelain", "--", *CODE).splitlines()]


def head_and_dirt(root: Path) -> tuple[str, bool]:
    """The checkout's commit, and whether anything that can change a result differs from it; unknown outside git."""
    try:
        return head(root), bool(changes(root))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True
