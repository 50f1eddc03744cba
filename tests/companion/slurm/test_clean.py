"""What may be deleted of old runs, and what may not: each test begins with runs of every kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import igpt_here, run_of

from igpt.companion.results.record import SCHEMA
from igpt.companion.results.store import record_path
from igpt.companion.stage import Stage
from igpt.project import Project

HOLD = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]).acquire(); print('held', flush=True); input()"


def publish(project: Project, folder: Path) -> Path:
    """A run's record among the published."""
    path = record_path(project, Stage.of("palette", seed=int(folder.name.partition("seed=")[2].partition("-")[0])))
    path.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "record.json", path)
    return path


def begun(project: Project, seed: int, *files: str) -> Path:
    """A run without a record."""
    folder = project.runs / f"palette,seed={seed}-{seed:012x}"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_bytes(bytes(50_000))
    return folder


@pytest.fixture
def kept(project: Project, tmp_path: Path) -> list[Path]:
    """What no kind names."""
    fresh, published, damaged = run_of(project, 0), run_of(project, 1, code="older"), run_of(project, 2, code="older")
    records = [publish(project, folder) for folder in (published, damaged)]
    records[1].write_text("{")  # of which run it speaks cannot be known
    data = project.runs / "data" / "cifar-10-batches-py"
    own = project.runs / "my-training"
    linked = tmp_path / "elsewhere"
    for folder in (data, own, linked):
        folder.mkdir(parents=True)
        (folder / "checkpoint-0000001").write_bytes(bytes(1000))
    link = project.runs / f"palette,seed=9-{'0' * 12}"
    link.symlink_to(linked, target_is_directory=True)
    return [fresh, published, damaged, *records, data, own, linked, link]


def whole(folder: Path) -> dict[str, bytes]:
    """Each file's content; locks are no content."""
    names = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def test_without_delete_nothing_is_deleted_and_each_kind_has_its_size(project: Project, kept: list[Path]) -> None:
    run_of(project, 3, code="older")
    begun(project, 4, "failed.ipynb", "progress.json", ".owner")
    begun(project, 5, "failed.ipynb", "checkpoint-0000010")
    (kept[0] / ".model.1.part").write_bytes(bytes(2_000_000))
    before = whole(project.root)
    done = igpt_here("clean", root=project.root)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:6]] == [["stale", "1"], ["failed", "1"], ["parts", "1"], ["unfinished", "1"]]
    assert lines[4].split()[2:4] == ["1.9", "MiB"]
    assert [line.partition(",")[0] for line in lines if line.startswith("kept: ")] == [
        "kept: 1 runs whose records are fresh",
        "kept: 2 runs that published records speak of",
    ]
    assert lines[-1].endswith("can go; `igpt clean --delete` deletes it")
    assert whole(project.root) == before
    assert max(map(len, lines)) <= 80


def test_what_may_go_goes_and_the_rest_is_as_it_was(project: Project, kept: list[Path]) -> None:
    old, failed = run_of(project, 3, code="older"), begun(project, 4, "failed.ipynb", "stop")
    unfinished = begun(project, 5, "failed.ipynb", "checkpoint-0000010")
    before = {path: whole(path) if path.is_dir() else path.read_bytes() for path in [*kept, unfinished]}
    part = kept[0] / "weights-0000001" / ".model.1.part"
    part.write_bytes(bytes(1000))
    done = igpt_here("clean", "--delete", root=project.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 deleted, ")
    assert not any(path.exists() for path in (old, failed, part))
    assert {path: whole(path) if path.is_dir() else path.read_bytes() for path in [*kept, unfinished]} == before
    assert igpt_here("clean", root=project.root).stdout.splitlines()[-1] == "there is nothing to delete"
    done = igpt_here("clean", "unfinished", root=project.root)
    assert str(unfinished) in done.stdout
    assert unfinished.exists()
    assert igpt_here("clean", "unfinished", "--delete", root=project.root).stdout.startswith("1 deleted, ")
    assert not unfinished.exists()


def test_a_kind_that_is_named_goes_alone_and_one_that_does_not_exist_is_refused(project: Project) -> None:
    old, failed = run_of(project, 3, code="older"), begun(project, 4, "failed.ipynb")
    done = igpt_here("clean", "failed", "stael", "--delete", root=project.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("igpt: there is no kind 'stael'; did you mean stale")
    assert failed.exists()
    igpt_here("clean", "failed", "--delete", root=project.root)
    assert old.exists()
    assert not failed.exists()


@contextmanager
def another_process_holds(lock: Path) -> Iterator[None]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.communicate("\n")


@pytest.mark.parametrize("lock", [".lock", ".kernel.77.log", ".training.lock", "features-1/.lock"])
def test_what_a_live_process_holds_stays_and_so_does_what_it_may_read(project: Project, lock: str) -> None:
    held = begun(project, 4, "failed.ipynb", ".notebook.77.part.ipynb", ".model.1.part")
    parent = run_of(project, 3, code="older")  # the one of other code that is at work may stand on it
    (held / lock).parent.mkdir(exist_ok=True)
    everything = ["stale", "failed", "unfinished", "parts", "snapshots", "--delete"]
    with another_process_holds(held / lock):
        before = whole(project.runs)
        assert igpt_here("clean", *everything, root=project.root).stdout.startswith("0 deleted, ")
        assert whole(project.runs) == before
        said = igpt_here("clean", root=project.root).stdout
        assert "kept: 1 runs at work" in said
        assert "kept: 1 runs that what is at work, or is to be resumed, may read" in said
    assert igpt_here("clean", *everything, root=project.root).stdout.startswith("2 deleted, ")
    assert not held.exists()
    assert not parent.exists()


def test_what_begins_after_the_look_is_not_deleted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from igpt.companion.slurm.clean import Runs
    from igpt.companion.slurm.ledger import Ledger

    failed = begun(project, 4, "failed.ipynb")
    runs = Runs(project, Ledger(project))
    (item,) = runs.items()
    with another_process_holds(failed / ".lock"):
        assert runs.take_away(*item) == []
    (failed / "checkpoint-0000001").touch()  # it has run meanwhile, and holds work
    assert runs.take_away(*item) == []
    assert failed.exists()
    assert runs.take_away("unfinished", failed)


def test_what_other_users_left_in_a_shared_folder_stays(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(project, 3, code="older")
    begun(project, 4, "failed.ipynb", ".x.part")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    before = whole(project.runs)
    assert igpt_here("clean", "--delete", root=project.root).stdout.startswith("0 deleted, ")
    assert "kept: 2 runs of other users" in igpt_here("clean", root=project.root).stdout
    assert whole(project.runs) == before


def test_a_deletion_that_is_stopped_leaves_nothing_half_there_and_the_next_ends_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [run_of(project, seed, code="older") for seed in (3, 4)]

    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        done = igpt_here("clean", "--delete", root=project.root)
    assert (done.returncode, done.stderr) == (130, "igpt: stopped; the same command continues\n")
    assert not any(path.exists() for path in old)
    assert len(list(project.runs.glob(".clean-*"))) == 2
    assert igpt_here("clean", root=project.root).stdout.splitlines()[2].split()[:2] == ["parts", "2"]
    assert igpt_here("clean", "--delete", root=project.root).stdout.startswith("2 deleted, ")
    assert not list(project.runs.glob(".clean-*"))


def test_what_cannot_be_deleted_is_said_and_keeps_nothing_else(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (run_of(project, seed, code="older") for seed in (3, 4))
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == first:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    done = igpt_here("clean", "--delete", root=project.root)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("igpt: 1 deleted, ")
    assert done.stderr.endswith(
        f"1 could not be deleted, {first} (Permission denied) first: see who owns it, and run the same again\n"
    )
    assert first.exists()
    assert not second.exists()


def test_a_notebook_that_cannot_be_read_makes_no_run_stale(project: Project) -> None:
    fresh, old = run_of(project, 0), run_of(project, 3, code="older")
    notebook = project.notebooks / "palette.ipynb"
    content = notebook.read_text()
    for broken in (content[:100], content.replace("seed = 0", "seed = (")):
        notebook.write_text(broken)
        assert igpt_here("clean", "--delete", root=project.root).stdout.startswith("0 deleted, ")
        assert "kept: 2 runs of stages that this checkout does not know" in igpt_here("clean", root=project.root).stdout
    notebook.unlink()
    assert igpt_here("clean", "--delete", root=project.root).stdout.startswith("0 deleted, ")
    notebook.write_text(content)
    assert igpt_here("clean", "--delete", root=project.root).stdout.startswith("1 deleted, ")
    assert fresh.exists()
    assert not old.exists()


def test_a_damaged_record_leaves_its_run_to_be_named(project: Project) -> None:
    folder = run_of(project, 3, code="older")
    (folder / "record.json").write_text(json.dumps({"schema_version": SCHEMA}))
    assert igpt_here("clean", "--delete", root=project.root).stdout.startswith("0 deleted, ")
    assert folder.exists()
