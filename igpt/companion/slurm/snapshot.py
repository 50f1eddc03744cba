"""Snapshots: clones of the submitted commit. Jobs run these, so that later changes of the checkout have no effect."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pydantic import TypeAdapter

from igpt.companion.results.plan import Plan, PlannedStage
from igpt.companion.run.git import CODE, changes, git, head
from igpt.companion.run.local import plan_stages
from igpt.companion.run.targets import find_stages
from igpt.errors import UsageError
from igpt.files import NO_ROOM
from igpt.project import Project

PLANNED = TypeAdapter(tuple[PlannedStage, ...])


def check_clean(project: Project, *, dirty: bool) -> str:
    """The snapshot name of the checkout: its commit, with a digest of uncommitted changes if ``dirty``.

    Raises UsageError outside git, and for uncommitted changes unless ``dirty``.
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


def take_snapshot(project: Project, run_root: Project, name: str) -> Project:
    """A clone of the checkout under a snapshot name; its ``runs`` links to that of ``run_root``. Made once per name."""
    folder = run_root.runs / ".snapshots" / name
    if folder.exists():
        return Project(folder)
    partial = folder.with_name(f".{name}.{os.getpid()}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(project.root, "clone", "--quiet", "--no-checkout", str(project.root), str(partial))
        git(partial, "checkout", "--quiet", "--detach", name.partition("-")[0])
        if "-dirty-" in name:
            for path in _changed_files(project.root):
                source, target = project.root / path, partial / path
                if source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, target)
                else:
                    target.unlink(missing_ok=True)
        exclude = partial / ".git" / "info" / "exclude"
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text("/runs\n")  # git would otherwise report the link as a change
        (partial / "runs").symlink_to(run_root.runs, target_is_directory=True)
        partial.replace(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        if folder.exists():  # made by another submission meanwhile
            return Project(folder)
        reason = error.strerror if isinstance(error, OSError) else _why(error)
        raise UsageError(
            f"the code that the jobs are to run could not be copied to {folder.parent} ({reason}): fix that, by `igpt clean` or"
            " another shared_folder if its disk is full, and submit again"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Project(folder)


def _why(error: subprocess.CalledProcessError) -> str:
    """Git's reason: for a full disk the system's message alone, else the first error line."""
    no_room = [os.strerror(number) for number in NO_ROOM if os.strerror(number) in error.stderr]
    lines = [line for line in error.stderr.splitlines() if line.startswith(("fatal: ", "error: "))]
    return next(iter([*no_room, *lines, *error.stderr.splitlines()]), f"git ended with {error.returncode}")


def plan_of_snapshot(code: Project, names: list[str], environment: dict[str, str]) -> Plan:
    """The plan of the named stages, made and signed in a process that runs the snapshot's code.

    Raises UsageError if that code cannot plan the stages.
    """
    variables = {**os.environ, **environment, "IGPT_ROOT": str(code.root), "PYTHONPATH": str(code.root), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "igpt.companion.slurm.snapshot", *names]
    process = subprocess.run(command, env=variables, capture_output=True, text=True)
    try:
        process.check_returncode()
        return Plan({planned.stage: planned for planned in PLANNED.validate_json(process.stdout)})
    except (subprocess.CalledProcessError, ValueError):  # ValueError: older code, which describes plans otherwise
        reason = "".join(process.stderr.strip().splitlines()[-1:]) or "it is of another version"
        raise UsageError(f"the code in {code.root} cannot plan {names[0]} ({reason}): submit it again instead") from None


def _changed_files(root: Path) -> list[str]:
    """Tracked files that differ from the commit, and untracked files that are not ignored."""
    changed = git(root, "diff", "HEAD", "--name-only", "-z", "--no-renames", "--", *CODE)
    new = git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE)
    return sorted(path for path in (changed + new).split("\0") if path and not (root / path).is_symlink())


if __name__ == "__main__":
    here = Project.here()
    print(PLANNED.dump_json(tuple(plan_stages(here, find_stages(sys.argv[1:], None, here)))).decode())
