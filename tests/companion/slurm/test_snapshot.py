"""The code that jobs run, and what is refused before a job is one. No scheduler is needed here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE, ROOT

from igpt.companion.run.git import head_and_dirt
from igpt.companion.slurm.doctor import examine
from igpt.companion.slurm.job_log import scheduler_reason
from igpt.companion.slurm.ledger import Job, JobStatus, Ledger
from igpt.companion.slurm.snapshot import check_clean, take_snapshot
from igpt.errors import UsageError
from igpt.project import Project

if TYPE_CHECKING:
    from slurm_checkout import Checkout

pytest_plugins = ("slurm_checkout",)


def test_a_snapshot_is_the_commit_and_shares_the_runs(checkout: Checkout) -> None:
    name = check_clean(checkout.project, dirty=False)
    (checkout.root / "igpt" / "model.py").write_text("raise SystemExit\n")
    code = take_snapshot(checkout.project, checkout.project, name)
    assert (code.root / "igpt" / "model.py").read_text() == (ROOT / "igpt" / "model.py").read_text()
    assert code.runs.resolve() == checkout.project.runs.resolve()
    status = subprocess.run(["git", "-C", str(code.root), "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert status.stdout == ""  # so that receipts say clean
    before = code.root.stat().st_ino
    assert take_snapshot(checkout.project, checkout.project, name).root.stat().st_ino == before


def test_a_snapshot_of_another_user_has_its_commit(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    name = check_clean(checkout.project, dirty=False)
    code = take_snapshot(checkout.project, checkout.project, name)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to play another user
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    plain = subprocess.run(["git", "-C", code.root, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert "dubious ownership" in plain.stderr
    assert head_and_dirt(code.root) == (name, False)


def test_changes_are_refused_or_taken_along(checkout: Checkout) -> None:
    clean = check_clean(checkout.project, dirty=False)
    (checkout.root / "igpt" / "model.py").write_text("changed = True\n")
    (checkout.root / "igpt" / "new.py").write_text("new = True\n")
    (checkout.root / "igpt" / "palette.py").unlink()
    with pytest.raises(
        UsageError, match=r"differs from its commit \(igpt/model.py, 3 in all\): commit first, or submit with --dirty"
    ):
        check_clean(checkout.project, dirty=False)
    name = check_clean(checkout.project, dirty=True)
    assert name.startswith(f"{clean}-dirty-")
    code = take_snapshot(checkout.project, checkout.project, name)
    assert (code.root / "igpt" / "model.py").read_text() == "changed = True\n"
    assert (code.root / "igpt" / "new.py").exists()
    assert not (code.root / "igpt" / "palette.py").exists()
    (checkout.root / "igpt" / "new.py").write_text("new = False\n")
    assert check_clean(checkout.project, dirty=True) != name


def no_code_of(checkout: Checkout) -> None:
    """There is no snapshot, whole or in part."""
    folder = checkout.project.runs / ".snapshots"
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_disk_too_small_for_the_code_is_one_sentence_and_nothing_half_written(
    checkout: Checkout, small_disk: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")  # whose git says it in German, where it is installed
    (checkout.root / "igpt" / "new.bin").write_bytes(os.urandom(400_000))
    checkout.commit()
    name = check_clean(checkout.project, dirty=False)
    for size in ("60k", "300k", "600k"):  # too small for the folders, for git's objects, for the files
        small_disk(checkout.project.runs, size)
        with pytest.raises(
            UsageError, match=r"could not be copied to .*\(No space left on device\): fix that, by `igpt clean`"
        ) as told:
            take_snapshot(checkout.project, checkout.project, name)
        assert "\n" not in str(told.value)
        no_code_of(checkout)


@pytest.mark.parametrize("word", ["Disk quota exceeded", "Read-only file system", "No space left on device"])
def test_of_what_git_prints_when_it_cannot_write_one_sentence_is_left(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    name = check_clean(checkout.project, dirty=False)
    lines = "; ".join(f"echo 'error: unable to create file igpt/{n}.py: {word}' >&2" for n in range(140))
    folder = tmp_path / "git"
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\nmkdir -p {checkout.project.runs}/.snapshots\n{lines}; exit 1\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    with pytest.raises(UsageError, match=rf"^the code that the jobs are to run could not be copied to \S+ \({word}\): [^\n]*$"):
        take_snapshot(checkout.project, checkout.project, name)
    no_code_of(checkout)


@pytest.mark.parametrize(
    "path",
    [
        "book/records/new.json",
        "slurm/profiles/mycluster.yaml",
        "slurm/profiles/plain.yaml",
        "graph/model.onnx",
        "igpt/weights/published/mine/config.json",
        "data/store/tokens.bin",
        "photo.jpg",
        "out.csv",
        "book/chapters/mine.md",
        "notebooks/.ipynb_checkpoints/pretrain-checkpoint.ipynb",
        "igpt/.ipynb_checkpoints/model-checkpoint.py",
        ".ipynb_checkpoints/x.py",
        ".idea/workspace.xml",
        "README.md",
    ],
)
def test_what_changes_no_result_is_no_change(checkout: Checkout, path: str) -> None:
    before = check_clean(checkout.project, dirty=False)
    (checkout.root / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout.root / path).write_text("{}")
    assert head_and_dirt(checkout.root) == (before, False)
    assert check_clean(checkout.project, dirty=False) == before
    assert check_clean(checkout.project, dirty=True) == before


@pytest.mark.parametrize(
    "path", ["igpt/new/part.py", "notebooks/mine.ipynb", "igpt/published.csv", "numpy.py", "pyproject.toml", "book/_live/x.js"]
)
def test_what_can_change_a_result_is_a_change(checkout: Checkout, path: str) -> None:
    (checkout.root / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout.root / path).write_text("")
    assert head_and_dirt(checkout.root)[1]
    name = check_clean(checkout.project, dirty=True)
    assert (take_snapshot(checkout.project, checkout.project, name).root / path).exists()


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no git checkout, and jobs run a commit"):
        check_clean(Project(tmp_path), dirty=True)


def igpt(checkout: Checkout, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, where no program of SLURM is to be found."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": git_alone(checkout.root.parent)}
    command = [sys.executable, "-m", "igpt", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout.root, timeout=PATIENCE)


def git_alone(folder: Path) -> str:
    """A folder of programs that has git only."""
    import shutil

    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    link = programs / "git"
    if not link.exists():
        link.symlink_to(str(shutil.which("git")))
    return str(programs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "palette", "--profile", "nowhere"], "there is no profile 'nowhere'"),
        (
            ["submit", "palettes", "--profile", "plain"],
            "there is no experiment, table or notebook 'palettes'; did you mean palette or",
        ),
        (
            ["submit", "palette", "--profile", "plain"],
            "there is no SLURM here: log in where sbatch is, or run slurm/local-cluster up",
        ),
        (["drill", "--profile", "plain"], "there is no SLURM here"),
        (["drill", "--profile", "local"], "a drill needs a scheduler that kills jobs"),
        (["logs", "palette"], "nothing was submitted under 'palette'"),
        (["submit", "linear-probes", "--profile", "slurm/profiles/plain.yml"], "there is no profile 'slurm/profiles/plain.yml'"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(checkout: Checkout, words: list[str], said: str) -> None:
    done = igpt(checkout, *words)
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"igpt: {said}")
    assert done.stderr.count("\n") == 1
    assert not checkout.project.runs.exists()


def test_status_reads_well_where_nothing_was_submitted_and_where_no_scheduler_answers(checkout: Checkout) -> None:
    from slurm_checkout import an_array

    assert igpt(checkout, "status").stdout == "no job was submitted from here: `igpt submit TARGETS --profile NAME` does\n"
    checkout.ledger.write(an_array())
    done = igpt(checkout, "status")
    assert done.returncode == 0, done.stderr
    assert "the scheduler could not be asked: there is no SLURM here: log in where sbatch is" in " ".join(done.stdout.split())


def test_the_ledger_gives_back_what_it_was_given(tmp_path: Path) -> None:
    from slurm_checkout import an_array

    ledger, array = Ledger(Project(tmp_path)), an_array("palette,seed=0", "palette,seed=1")
    ledger.write(array)
    assert ledger.arrays() == [array]
    assert [array.job_of(index) for index in range(2)] == ["7_0", "7_1"]
    (ledger.folder / "cut.json").write_text('{"token": "1')
    with pytest.raises(UsageError, match="does not describe jobs: move it away"):
        ledger.arrays()


def test_which_job_is_the_last_is_no_question_of_clocks(tmp_path: Path) -> None:
    from slurm_checkout import an_array

    ledger = Ledger(Project(tmp_path))
    ledger.write(an_array())
    ledger.write(an_array(token="0b", number=2, submitted="1970"))
    assert {job.array.token for job in ledger.latest().values()} == {"0b"}


def test_a_mark_that_is_damaged_is_no_word(tmp_path: Path) -> None:
    from slurm_checkout import an_array

    job = Job(Ledger(Project(tmp_path)), an_array(), 0)
    job.logs.mkdir(parents=True)
    for content in ("", "{", '{"state": "unheard of"}', "\x00"):
        job.status_path.write_text(content)
        assert job.status is None
    job.status_path.write_text(JobStatus(state="done").model_dump_json())
    assert job.status == JobStatus(state="done")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("slurmstepd-n1: error: Exceeded job memory limit", "killed for memory: raise memory_gib in the profile"),
        (
            "slurmstepd: error: Step 5.0 exceeded memory limit (1 > 0), being killed",
            "killed for memory: raise memory_gib in the profile",
        ),
        ("slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***", "its time limit came"),
        ("slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT 2026 DUE TO NODE FAILURE ***", "its node was lost"),
        ("slurmstepd-n1: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-26T19:19:05 ***", "by scancel"),
        ("slurmstepd-n1: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-11-26T19:19:05 ***", ""),  # since another task failed
        ("slurmstepd-n1: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-26T19:19:05 DUE TO JOB REQUEUE ***", ""),
        ("python: error: exceeded memory limit", ""),
        ("OSError: [Errno 28] No space left on device", "its disk was full: make room"),
    ],
)
def test_the_schedulers_word_is_read_from_the_log(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "log").write_text(f"before\n{line}\nafter\n")
    assert scheduler_reason(tmp_path / "log") == why


def test_the_doctor_examines_this_machine(checkout: Checkout) -> None:
    text, code = examine("local")
    assert code == 0, text
    assert "cores" in text
    (checkout.root / "igpt" / "new.py").write_text("")
    text, code = examine("local")
    assert code == 1
    assert "wrong  checkout: the checkout differs from its commit (igpt/new.py, 1 in all)" in text


def test_the_doctor_looks_for_data_and_weights_here(checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IGPT_DATA", "IGPT_WEIGHTS"):
        monkeypatch.setenv(name, "elsewhere")  # and as it was afterwards
    local = tmp_path / "here.yaml"
    local.write_text(f"scheduler: local\nenvironment: {{IGPT_DATA: {tmp_path}, IGPT_WEIGHTS: {tmp_path}}}\n")
    text, code = examine(str(local), ["palette,dataset=cifar10", "palette", "weights"])
    assert code == 1
    assert f"wrong  data set cifar10: CIFAR-10 is not here: `igpt data fetch cifar10` brings it into {tmp_path}/" in text
    assert "ok     data set digits: comes with scikit-learn" in text
    said = (
        f"wrong  weights igpt-s: not in {tmp_path / 'igpt-s'}: `igpt run weights,model=igpt-s`, where there is internet, fetches"
    )
    assert said in text
    shutil.copytree(ROOT / "tests" / "weights" / "released_format" / "autoregressive", tmp_path / "igpt-s")
    assert f"ok     weights igpt-s: in {tmp_path / 'igpt-s'}" in examine(str(local), ["weights"])[0]
