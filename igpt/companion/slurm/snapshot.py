"""The code that jobs run: a clone of the commit that was submitted, so later changes of the checkout do not matter."""

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


def take_snapshot(project: Project, run_root: Project, name: str) -> Project:
    """A clone of the checkout under its code's name, whose ``runs`` are those of ``run_root``; made once."""
    folder = run_root.runs / ".snapshots" / name
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
        (part / "runs").symlink_to(run_root.runs, target_is_directory=True)
        part.replace(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        if folder.exists():  # another submission has made it meanwhile
            return Project(folder)
        reason = error.strerror if isinstance(error, OSError) else _why(error)
        raise UsageError(
            f"the code that the jobs are to run could not be copied to {folder.parent} ({reason}): fix that, by `igpt clean` or"
            " another shared_folder if its disk is full, and submit again"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Project(folder)


def _why(error: subprocess.CalledProcessError) -> str:
    """Git's own message: of a full disk its reason alone, else the first line that names an error."""
    no_room = [os.strerror(number) for number in NO_ROOM if os.strerror(number) in error.stderr]
    lines = [line for line in error.stderr.splitlines() if line.startswith(("fatal: ", "error: "))]
    return next(iter([*no_room, *lines, *error.stderr.splitlines()]), f"git ended with {error.returncode}")


def plan_of_snapshot(code: Project, names: list[str], environment: dict[str, str]) -> Plan:
    """The plan of stages by name, made and signed by a process that runs the snapshot's code.

    Raises UsageError when that code cannot plan them.
    """
    given = {**os.environ, **environment, "IGPT_ROOT": str(code.root), "PYTHONPATH": str(code.root), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "igpt.companion.slurm.snapshot", *names]
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise UsageError(f"the code in {code.root} cannot plan {names[0]} ({' '.join(last)}): submit it again instead")
    return Plan({planned.stage: planned for planned in PLANNED.validate_json(done.stdout)})


def _changed_files(root: Path) -> list[str]:
    """Tracked files that differ from the commit, and those that git neither tracks nor ignores."""
    changed = git(root, "diff", "HEAD", "--name-only", "-z", "--no-renames", "--", *CODE)
    new = git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE)
    return sorted(path for path in (changed + new).split("\0") if path and not (root / path).is_symlink())


if __name__ == "__main__":
    here = Project.here()
    print(PLANNED.dump_json(tuple(plan_stages(here, find_stages(sys.argv[1:], None, here)))).decode())
