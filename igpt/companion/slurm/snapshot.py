"""The code that jobs run: a clone of the commit that was submitted, whatever the checkout becomes meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from igpt.companion.run.git import CODE, changes, git, head
from igpt.errors import UsageError
from igpt.files import NO_ROOM
from igpt.project import Project


def check_clean(project: Project, *, dirty: bool) -> str:
    """The name of the checkout's code: its commit, and a digest of what differs when ``dirty`` allows that.

    Raises UsageError outside git, and for changes that no commit holds.
    """
    try:
        commit, changed = head(project.root), changes(project.root)
    except (OSError, subprocess.CalledProcessError):
        raise UsageError(
            f"{project.root} is no git checkout, and jobs run a commit: clone igpt, or `git init` and commit"
        ) from None
    if not changed:
        return commit
    if not dirty:
        raise UsageError(
            f"the checkout differs from its commit ({changed[0]}, {len(changed)} in all): commit first,"
            " or submit with --dirty, and the receipts will say so"
        )
    content = hashlib.sha256()
    for path in _changed_files(project.root):
        content.update(path.encode() + b"\0")
        if (project.root / path).is_file():
            content.update((project.root / path).read_bytes())
    return f"{commit}-dirty-{content.hexdigest()[:12]}"


def take_snapshot(project: Project, home: Project, name: str) -> Project:
    """A clone of the checkout under its code's name, whose ``runs`` are those of ``home``; made once."""
    folder = home.runs / ".snapshots" / name
    if folder.exists():
        return Project(folder)
    part = folder.with_name(f".{name}.{os.getpid()}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(project.root, "clone", "--quiet", "--no-checkout", str(project.root), str(part))
        git(part, "checkout", "--quiet", "--detach", name.partition("-")[0])
        if "-dirty-" in name:
            for path in _changed_files(project.root):
                source, target = project.root / path, part / path
                if source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, target)
                else:
                    target.unlink(missing_ok=True)
        exclude = part / ".git" / "info" / "exclude"
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text("/runs\n")  # or git would call the link a change
        (part / "runs").symlink_to(home.runs, target_is_directory=True)
        part.replace(folder)
    except subprocess.CalledProcessError as error:
        said = next((os.strerror(number) for number in NO_ROOM if os.strerror(number) in error.stderr), "")
        if said:
            raise _no_room(folder, said) from None
        lines = error.stderr.strip().splitlines() or [f"git ended with {error.returncode}"]
        first = next((line for line in lines if line.startswith(("fatal: ", "error: "))), lines[0])
        raise UsageError(f"the snapshot of {name[:12]} could not be made ({first}): fix the cause and submit again") from None
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _no_room(folder, os.strerror(error.errno)) from None
        if not folder.exists():  # another submission made it meanwhile
            raise UsageError(f"the snapshot could not be written ({error.strerror}): fix the cause and submit again") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Project(folder)


def _no_room(folder: Path, said: str) -> UsageError:
    """What is said of a disk that does not take the code."""
    return UsageError(
        f"the code that the jobs are to run could not be copied to {folder.parent} ({said}): make room there (`igpt clean`"
        " says what can go), or set shared_folder to a disk that can be written, and submit again"
    )


def _changed_files(root: Path) -> list[str]:
    """Tracked files that differ from the commit, and those that git neither tracks nor ignores."""
    changed = git(root, "diff", "HEAD", "--name-only", "-z", "--no-renames", "--", *CODE)
    new = git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE)
    return sorted(path for path in (changed + new).split("\0") if path and not (root / path).is_symlink())
