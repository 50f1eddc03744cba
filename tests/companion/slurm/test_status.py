"""What is said of jobs, from what they left and what a scheduler answers; the scheduler here is a file."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import ROOT, igpt_here

from igpt.companion.results.record import Record, read_record, write_record
from igpt.companion.run.folder import run_folder
from igpt.companion.run.local import plan_stages
from igpt.companion.slurm.drill import run_drill
from igpt.companion.slurm.job_log import last_line
from igpt.companion.slurm.ledger import Array, Job, JobStatus, Ledger, Listed, run_roots
from igpt.companion.slurm.scheduler import Unreachable
from igpt.companion.slurm.status import Row, cancel_targets, log_lines, status_text, watch_status
from igpt.companion.slurm.submit import resume
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.project import Project

if TYPE_CHECKING:
    from slurm_checkout import Answers, Checkout

pytest_plugins = ("slurm_checkout",)

NAME = "palette,seed=0"


def submitted(ledger: Ledger, name: str = NAME, *, token: str = "0a", job: str = "7") -> Array:
    """A job as `igpt submit` leaves it."""
    from slurm_checkout import an_array

    array = an_array(name, token=token, job=job)
    ledger.write(array)
    (ledger.folder / token).mkdir()
    return array


def row(ledger: Ledger) -> Row:
    from slurm_checkout import rows

    (found,) = rows(ledger)
    return found


def say(ledger: Ledger, array: Array, status: JobStatus) -> None:
    """Have the job write its status."""
    Job(ledger, array, 0).status_path.write_text(status.model_dump_json())


def log(ledger: Ledger, array: Array, text: str, task: int = 0) -> None:
    """What stands in the log of one of the job's tasks."""
    (ledger.folder / array.token / f"{array.job}_{task}_log.err").write_text(text)


@pytest.fixture
def record(checkout: Checkout) -> Record:
    """A valid record of the palette, from a run on this machine."""
    checkout.submit(NAME, profile="local")
    found = read_record(checkout.folder(NAME) / "record.json")
    assert found is not None
    return found


def test_only_a_valid_record_of_the_stage_is_done(
    checkout: Checkout, record: Record, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = plan_stages(checkout.project, [Stage.of("palette", seed=0)])
    folder = run_folder(checkout.project, planned.stage, planned.signature)
    array = submitted(checkout.ledger)
    listed = Listed(name=planned.stage.name, folder=folder.name, planned=0.5)
    checkout.ledger.write(array.model_copy(update={"stages": (listed,)}))
    say(checkout.ledger, array, JobStatus(state="done"))
    assert row(checkout.ledger).state == "done"
    path = folder / "record.json"
    whole = path.read_text()
    others = [record.model_copy(update={"signature": "0" * 64}), record.model_copy(update={"stage": "palette,seed=1"})]
    for content in (whole[: len(whole) // 2], "", "{}", *(other.model_dump_json() for other in others)):
        path.write_text(content)
        assert row(checkout.ledger).state == "failed"
        assert row(checkout.ledger).why == f"{path} is not a valid record; `igpt resume` sets it aside and runs the stage again"
        (text,) = watch_status([], every=False)  # and there is nothing to wait for
        assert text.endswith("1 job: 1 failed; 0.00 GPU-hours used, 0.50 planned")
    path.unlink()
    assert (row(checkout.ledger).state, row(checkout.ledger).why) == ("lost", "its record is gone; `igpt resume` runs it again")
    write_record(path, record)
    assert row(checkout.ledger).state == "done"


@pytest.mark.parametrize(
    ("by_hand", "why"),
    [
        # As SLURM 22.05 writes it.
        (
            "srun: Job step aborted: Waiting up to 5 seconds for job step to finish.\n"
            "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-26T19:19:05 ***\n"
            "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-26T19:19:05 ***\n"
            "srun: error: n1: task 0: Terminated\n",
            "by scancel",
        ),
        ("", "by scancel"),
    ],
)
def test_a_cancelled_job_stays_so_when_the_scheduler_has_forgotten_it(
    checkout: Checkout, answers: Answers, by_hand: str, why: str
) -> None:
    ledger = checkout.ledger
    array = submitted(ledger)
    say(ledger, array, JobStatus(state="stopped", why="ended by the scheduler"))
    if by_hand:
        log(ledger, array, by_hand)
    else:
        answers.say(f"{array.title}|7|PENDING|0:00||Priority")
        assert cancel_targets([NAME]).startswith("1 job cancelled")
        assert answers.cancelled() == ["--quiet", "7"]
        answers.say()
    assert (row(ledger).state, row(ledger).why) == ("cancelled", why)


def test_what_the_scheduler_said_of_a_job_once_is_kept(checkout: Checkout, answers: Answers) -> None:
    array = submitted(checkout.ledger)
    log(checkout.ledger, array, "srun: error: n1: task 0: Killed\n")
    for state, found, why in (
        ("CANCELLED", "cancelled", "by scancel"),
        ("TIMEOUT", "lost", "its time limit came before it could stop; `igpt resume` continues it"),
        ("NODE_FAIL", "lost", "its node was lost; `igpt resume` continues it"),
        ("OUT_OF_MEMORY", "lost", "killed for memory: raise memory_gib in the profile; `igpt resume` continues it"),
        ("BOOT_FAIL", "lost", "n1: task 0: Killed; `igpt resume` continues it"),
    ):
        for line in ([f"{array.title}|7|{state}|0:00||None"], []):
            answers.say(*line)
            assert (row(checkout.ledger).state, row(checkout.ledger).why) == (found, why)


@pytest.mark.parametrize(
    ("state", "reason", "why"),
    [
        ("PENDING", "JobHeldUser", "held by its owner: `scontrol release 7` releases it (JobHeldUser)"),
        (
            "PENDING",
            "launch failed requeued held",
            "held, since it could not be started on its node: `scontrol release 7` tries again (launch failed requeued held)",
        ),
        ("PENDING", "job_requeued_in_held_state", "held: `scontrol release 7` releases it (job requeued in held state)"),
        ("SPECIAL_EXIT", "None", "held: `scontrol release 7` releases it (SPECIAL_EXIT)"),
        ("REQUEUE_HOLD", "BeginTime", "held: `scontrol release 7` releases it (BeginTime)"),
        ("PENDING", "JobHoldMaxRequeue", "held: `scontrol release 7` releases it (JobHoldMaxRequeue)"),
        ("PENDING", "JobHeldAdmin", "held by an administrator: ask for `scontrol release 7` (JobHeldAdmin)"),
        (
            "PENDING",
            "DependencyNeverSatisfied",
            "held, since a job it waits for has failed: `igpt cancel` it, then `igpt resume` (DependencyNeverSatisfied)",
        ),
        (
            "PENDING",
            "PartitionTimeLimit",
            "held, since it asks for more minutes than it may: `igpt cancel` it, change the profile and `igpt resume`"
            " (PartitionTimeLimit)",
        ),
        (
            "PENDING",
            "InvalidQOS",
            "held, since its account or QOS is refused: `igpt cancel` it, change the profile and `igpt resume` (InvalidQOS)",
        ),
        (
            "PENDING",
            "QOSMaxGRESPerJob",
            "held, since one job may not ask for so much: `igpt cancel` it, change the profile and `igpt resume` (QOSMaxGRESPerJob)",
        ),
    ],
)
def test_a_held_job_says_what_lets_it_go_on_and_nobody_waits_for_it(
    checkout: Checkout, answers: Answers, state: str, reason: str, why: str
) -> None:
    array = submitted(checkout.ledger)
    say(checkout.ledger, array, JobStatus(state="stopped", why="ended by the scheduler"))
    answers.say(f"{array.title}|7|{state}|0:00||{reason}")
    assert (row(checkout.ledger).state, row(checkout.ledger).why) == ("held", why)
    (text,) = watch_status([], every=False)
    assert text.endswith("1 job: 1 held; 0.00 GPU-hours used, 0.50 planned")
    assert resume([]) == f"nothing to resume: no job has failed or is lost; job 7 is {why}"
    answers.say(f"{array.title}|7|PENDING|0:00||BeginTime")
    assert (row(checkout.ledger).state, row(checkout.ledger).why) == ("queued", "ended by the scheduler: queued again")


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("Priority", "waits for its turn: others have a higher priority (Priority)"),
        ("Resources", "waits for free resources (Resources)"),
        (
            "PartitionDown",
            "waits, since its partition starts no jobs at present: ask the administrators for how long (PartitionDown)",
        ),
        (
            "QOSMaxJobsPerUserLimit",
            "waits, since a limit of its QOS is reached: it begins as other jobs end (QOSMaxJobsPerUserLimit)",
        ),
        ("AssocGrpGRES", "waits, since a limit of its account is reached: it begins as other jobs end (AssocGrpGRES)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n[1-2]",
            "waits for nodes that are down, drained or reserved: ask the administrators (ReqNodeNotAvail, UnavailableNodes:n[1-2])",
        ),
        ("Licenses", "waits for a free licence (Licenses)"),
        ("Reservation", "waits for its reservation to begin (Reservation)"),
        ("FrontEndDown", "waits (FrontEndDown)"),
        ("None", "waits"),
    ],
)
def test_why_a_job_waits_is_said_in_words_beside_slurms_own(checkout: Checkout, answers: Answers, reason: str, why: str) -> None:
    array = submitted(checkout.ledger)
    answers.say(f"{array.title}|7|PENDING|0:00||{reason}")
    assert (row(checkout.ledger).state, row(checkout.ledger).why) == ("queued", why)


def test_a_job_that_left_the_queue_before_it_began_is_cancelled_if_the_accounting_says_so_and_perhaps_if_none_does(
    checkout: Checkout, answers: Answers
) -> None:
    array = submitted(checkout.ledger)
    found = row(checkout.ledger)
    assert found.state == "lost"
    assert found.why == "it left the queue before it began, perhaps cancelled; `igpt resume` queues it again"
    answers.program("sacct", f"echo '{array.title}|7|PENDING|00:00:00|None assigned'")  # which has missed its end
    assert row(checkout.ledger).state == "lost"
    answers.program("sacct", f"echo '{array.title}|7|CANCELLED by 1000|00:00:00|None assigned'")
    assert (row(checkout.ledger).state, row(checkout.ledger).why) == ("cancelled", "by scancel")
    answers.program("sacct", "exit 1")
    assert row(checkout.ledger).state == "cancelled"  # asked once, and kept


MUNGE = (
    'squeue: error: Munge encode failed: Failed to access "/run/munge.socket": No such file or directory (Did you start munged?)'
)


@pytest.mark.parametrize(
    ("script", "said"),
    [  # as SLURM 22.05 prints them
        (
            "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
            "SLURM's controller, slurmctld, does not answer: try again when `scontrol ping` says that it is up"
            " (Unable to contact slurm controller (connect failure))",
        ),
        (
            "exec sleep 100",
            "SLURM's controller, slurmctld, does not answer: try again when `scontrol ping` says that it is up"
            " (timed out after 0.5 s)",
        ),
        (
            f"echo 'squeue: error: If munged is up, restart with --num-threads=10' >&2; echo '{MUNGE}' >&2; exit 1",
            "munge, by which SLURM knows who asks, does not work here: have it started (or its key and clock set right), or log in"
            ' elsewhere (Munge encode failed: Failed to access "/run/munge.socket": No such file or directory (Did you start'
            " munged?))",
        ),
        (
            "echo 'squeue: error: s_p_parse_file: cannot stat file /none/slurm.conf: No such file or directory, retrying in 1sec"
            " up to 60sec' >&2; exec sleep 100",
            "SLURM is not set up on this machine: log in where it is, or set SLURM_CONF to its slurm.conf",
        ),
        (
            "echo 'squeue: fatal: Could not establish a configuration source' >&2; exit 1",
            "SLURM is not set up on this machine: log in where it is, or set SLURM_CONF to its slurm.conf",
        ),
        (
            "echo 'squeue: error: get_addr_info: getaddrinfo() failed: Name or service not known' >&2; exit 1",
            "this machine does not find the host of SLURM's controller: see to its network, or log in elsewhere",
        ),
    ],
    ids=["down", "deaf", "munge", "conf", "source", "network"],
)
def test_a_scheduler_that_cannot_be_asked_is_said_once_and_the_rest_is_told_from_what_is_known(
    checkout: Checkout, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr("igpt.companion.slurm.status.ANSWER", 0.5)
    answers.program("squeue", f"echo >> {answers.folder}/asked; {script}")
    answers.program("sacct", "exit 1")
    first, second = checkout.ledger, share(checkout, "second", tmp_path / "second")
    for ledger in (first, second):
        array = submitted(ledger)
    found = row(first)
    assert (found.state, found.why.partition(" at ")[0]) == ("unknown", "submitted")
    say(second, array, JobStatus(state="running", host="n1", sessions=1, seconds=62.0))
    (answers.folder / "asked").unlink()
    text = status_text([], every=False)
    assert f"the scheduler could not be asked: {said}" in " ".join(text.split())
    assert text.count("could not be asked") == 1
    assert text.endswith("2 jobs: 1 running, 1 unknown; 0.00 GPU-hours used, 1.00 planned")
    assert (answers.folder / "asked").read_text() == "\n"  # once for both folders
    answers.program("sacct", f"echo '{array.title}|7|RUNNING|01:01:40|n2'")
    found = row(first)
    assert (found.state, found.node, found.elapsed_seconds) == ("running", "n2", 3700)
    say(second, array, JobStatus(state="failed", why="bad luck"))
    assert (row(second).state, row(second).why) == ("failed", "bad luck")
    if "sleep" not in script:  # which has a minute here
        with pytest.raises(Unreachable, match=re.escape(said.partition(" (")[0])):
            cancel_targets([])


def test_the_status_says_node_time_and_folder_in_a_table_of_80_columns_and_in_json(
    checkout: Checkout, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = checkout.ledger
    names = ["pretrain,model=igpt-l,objective=bert,seed=0", "linear_probe,model=igpt-l,objective=bert,seed=0"]
    arrays = [submitted(ledger, name, token=f"0{place}", job=str(place)) for place, name in enumerate(names)]
    ledger.write(arrays[0].model_copy(update={"gpus": 8}))
    say(ledger, arrays[0], JobStatus(state="running", host="n1", sessions=2, seconds=7200.0))
    folder = checkout.project.runs / arrays[0].stages[0].folder
    folder.mkdir()
    (folder / "progress.json").write_text('{"done": 1000, "total": 4000, "seconds": 3600.0}')
    (folder / "metrics.jsonl").write_text('{"loss": 2.34567}\n')
    answers.say(
        f"{arrays[0].title}|0|RUNNING|1-02:03:04|n[1-2]|None",
        f"{arrays[1].title}|1|PENDING|0:00||Dependency",
    )
    text = igpt_here("status", root=checkout.root)
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.splitlines() == [
        "State    Job    Elapsed    Stage",
        "-------  -----  ---------  -----------------------------------------------",
        "running  0      26:03:04   pretrain,model=igpt-l,objective=bert,seed=0",
        "  session 2; on n[1-2]; step 1,000 of 4,000; loss 2.3457; 3:00:00 left; 16.00 of",
        "  0.50 GPU-hours",
        f"  runs/{folder.name}",
        "queued   1                 linear_probe,model=igpt-l,objective=bert,seed=0",
        "  waits for jobs that it depends on (Dependency)",
        "",
        "2 jobs: 1 running, 1 queued; 16.00 GPU-hours used, 1.00 planned",
    ]
    assert max(map(len, text.stdout.splitlines())) <= 80
    for broken in ('{"loss": NaN}', '{"loss": "x"}', '["loss"]', ""):
        (folder / "metrics.jsonl").write_text(broken)
        done = igpt_here("status", "--json", root=checkout.root)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout, parse_constant=pytest.fail)
        assert found["jobs"][0]["loss"] is None
    chapter = (ROOT / "book" / "chapters" / "slurm.md").read_text()
    assert [key for key in (*found, *found["jobs"][0]) if f"`{key}`" not in chapter] == []
    assert {**found, "jobs": found["jobs"][:1]} == {
        "version": 1,
        "trouble": None,
        "jobs": [
            {
                "stage": names[0],
                "job": "0",
                "state": "running",
                "why": "session 2",
                "node": "n[1-2]",
                "elapsed_seconds": 93784.0,
                "folder": str(folder),
                "log": str(ledger.folder / "00" / "0_0_log.err"),
                "cell": None,
                "steps_done": 1000.0,
                "steps_total": 4000.0,
                "loss": None,
                "seconds_left": 10800.0,
                "gpu_hours_used": 16.0,
                "gpu_hours_planned": 0.5,
            }
        ],
    }
    answers.program("squeue", "echo 'squeue: error: Munge encode failed' >&2; exit 1")
    done = igpt_here("status", "--json", root=checkout.root)
    assert json.loads(done.stdout)["trouble"].startswith("the scheduler could not be asked: munge, ")
    done = igpt_here("status", "--json", "--watch", root=checkout.root)
    assert (done.returncode, done.stdout) == (2, "")


FAILED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (f"{MUNGE}\n{FAILED}Protocol authentication error", "nothing was submitted: munge, by which SLURM knows who asks, does"),
        (
            "sbatch: error: s_p_parse_file: cannot stat file /none/slurm.conf: No such file or directory\n"
            "sbatch: error: ClusterName needs to be specified\nsbatch: fatal: Unable to process configuration file",
            "nothing was submitted: SLURM is not set up on this machine: log in where it is",
        ),
        (f"{FAILED}Unable to contact slurm controller (connect failure)", "the scheduler has not said whether it takes"),
        (
            f"{FAILED}Invalid partition name specified",
            r"the scheduler refuses it \(.*\): mend the profile, `igpt doctor` says more$",
        ),
        (f"{FAILED}Invalid qos specification", r"the scheduler refuses it \(.*\): mend the profile, `igpt doctor` says more$"),
        (
            f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{FAILED}Job violates accounting/QOS policy (job submit limit, user's size"
            " and/or time limits)",
            r"the scheduler refuses it \(.*\): wait until jobs of yours have ended, or submit fewer at once$",
        ),
        (
            f"sbatch: error: QOSMaxWallDurationPerJobLimit\n{FAILED}Job violates accounting/QOS policy (job submit limit, user's"
            " size and/or time limits)",
            r"the scheduler refuses it \(.*\): mend the profile, `igpt doctor` says more$",
        ),
    ],
    ids=["munge", "conf", "down", "partition", "qos", "submit limit", "wall limit"],
)
def test_a_submission_that_fails_says_whether_the_profile_is_to_blame(
    checkout: Checkout, answers: Answers, capsys: pytest.CaptureFixture[str], printed: str, said: str
) -> None:
    (answers.folder / "printed").write_text(printed)
    answers.program("sbatch", f"cat {answers.folder}/printed >&2; exit 1")
    answers.program("squeue", f"cat {answers.folder}/printed >&2; exit 1")
    with pytest.raises(UsageError, match=f"^{said}") as told:
        checkout.submit(NAME)
    assert "\n" not in str(told.value)
    assert capsys.readouterr().err == ""  # SLURM's own words are in the sentence
    assert bool(checkout.ledger.arrays()) == said.startswith("the scheduler has not said")


def test_jobs_files_that_do_not_fit_on_the_disk_are_one_sentence(
    checkout: Checkout, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("submitit.core.utils.DelayedSubmission.dump", full)
    with pytest.raises(
        UsageError, match=r"cannot take the jobs' files \(Disk quota exceeded\): make room, or set shared_folder to a disk"
    ):
        checkout.submit(NAME)
    assert checkout.ledger.arrays() == []


def test_the_status_of_nothing_is_a_json_document_too(checkout: Checkout) -> None:
    assert json.loads(igpt_here("status", "--json", root=checkout.root).stdout) == {"version": 1, "trouble": None, "jobs": []}


def test_logs_say_where_they_will_be_and_that_they_are_gone(checkout: Checkout, answers: Answers) -> None:
    ledger = checkout.ledger
    array = submitted(ledger)
    path = ledger.folder / array.token / "7_0_log.err"
    answers.say(f"{array.title}|7|PENDING|0:00||Priority")
    for begin in (lambda: None, path.touch):
        begin()
        assert list(log_lines(NAME, follow=False)) == [f"== {NAME}: nothing yet; what it writes will be in {path}"]
    path.write_text("a line\n")
    assert list(log_lines(NAME, follow=False)) == [f"== {NAME}: {path}", "a line"]
    path.unlink()
    say(ledger, array, JobStatus(state="failed", why="bad luck"))
    answers.say()
    assert list(log_lines(NAME, follow=True)) == [f"== {NAME}: its log is gone; it was {path}"]
    ledger.write(array.model_copy(update={"job": None}))
    (found,) = log_lines(NAME, follow=False)
    assert found == f"== {NAME}: nothing yet; what it writes will be in {path.parent}"


def test_a_drill_that_cannot_go_on_leaves_no_job(checkout: Checkout, answers: Answers) -> None:
    answers.program("sbatch", f"echo >> {answers.folder}/sent; echo Submitted batch job $(wc -l < {answers.folder}/sent)")
    with pytest.raises(StageError, match=r"is lost \("):  # the queue knows none of its jobs
        run_drill(checkout.profile(), seed=0)
    sent = len((answers.folder / "sent").read_text())
    assert sent >= 2
    assert set(answers.cancelled()) == {"--quiet", *map(str, range(1, sent + 1))}


EXITED = "srun: error: n1: task 0: Exited with exit code 1\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            f"{TRACEBACK}ModuleNotFoundError: No module named 'submitit'\n{EXITED}",
            "ModuleNotFoundError: No module named 'submitit'",
        ),
        (
            f"slurmstepd-n1: error: execve(): /no/python: No such file or directory\n{EXITED}",
            "execve(): /no/python: No such file or directory",
        ),
        ("job.sh: line 9: exec: python: not found\n", "job.sh: line 9: exec: python: not found"),
        ("srun: error: n1: task 0: Segmentation fault (core dumped)\n", "n1: task 0: Segmentation fault (core dumped)"),
        ("some warning\nsrun: error: n1: task 0: Killed\n", "n1: task 0: Killed"),
        (EXITED, "n1: task 0: Exited with exit code 1"),
        (
            "srun: error: Unable to create step for job 7: Job/step already completing\n",
            "Unable to create step for job 7: Job/step already completing",
        ),
        ("some warning\n", ""),
    ],
)
def test_a_jobs_own_words_come_before_those_of_srun(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "7_0_log.err").write_text(text)
    assert last_line(tmp_path / "7_0_log.err") == why


def test_a_further_node_that_fails_is_the_reason_and_not_that_the_first_was_ended(checkout: Checkout, answers: Answers) -> None:
    ledger = checkout.ledger
    array = submitted(ledger)
    say(ledger, array, JobStatus(state="stopped", why="ended by the scheduler"))
    ended = "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026 ***\nsrun: error: n1: task 0: Exited with exit code 1\n"
    log(ledger, array, "srun: error: n2: task 1: Exited with exit code 1\n" + ended)
    log(ledger, array, f"{TRACEBACK}igpt.errors.StageError: the training processes on node 1 ended\n", task=1)
    assert (row(ledger).state, row(ledger).why) == ("failed", "igpt.errors.StageError: the training processes on node 1 ended")
    log(ledger, array, ended.replace("STEP 7.0", "JOB 7"))
    assert (row(ledger).state, row(ledger).why) == ("cancelled", "by scancel")
    log(ledger, array, ended)
    assert (row(ledger).state, row(ledger).why) == ("stopped", "ended by the scheduler; `igpt resume` continues it")


def share(checkout: Checkout, name: str, folder: Path) -> Ledger:
    """A profile of the checkout with a shared folder, and the ledger of that."""
    settings = {"shared_folder": str(folder)}
    (checkout.root / "slurm" / "profiles" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return Ledger(Project(folder))


def test_jobs_in_two_shared_folders_are_found_by_what_names_them(checkout: Checkout, answers: Answers, tmp_path: Path) -> None:
    first, second = (share(checkout, name, tmp_path / name) for name in ("first", "second"))
    arrays = [submitted(first, NAME, job="7"), submitted(second, "pretrain,model=tiny-s,seed=5", token="0b", job="8")]
    answers.say(*(f"{array.title}|{array.job}|PENDING|0:00||Priority" for array in arrays))
    for number, target in (("7", "palette"), ("7", NAME), ("7", "7"), ("8", "pretrain,model=tiny-s,seed=5"), ("8", "8")):
        assert status_text([target], every=False).splitlines()[2].split()[1] == number
        list(log_lines(target, follow=False))
        assert resume([target]).startswith("nothing to resume")
    assert status_text(["7", "8"], every=False).endswith("2 jobs: 2 queued; 0.00 GPU-hours used, 1.00 planned")
    for targets in (["9"], ["palette", "9"], ["7", "palette,seed=4"]):
        for ask in (lambda t: status_text(t, every=False), cancel_targets, resume):
            with pytest.raises(UsageError, match=f"nothing was submitted under '{targets[-1]}'"):
                ask(targets)
    assert cancel_targets(["8"]).startswith("1 job cancelled")
    assert answers.cancelled() == ["--quiet", "8"]


def test_another_clone_sees_the_jobs_of_the_shared_folder_of_its_profiles(
    checkout: Checkout, answers: Answers, tmp_path: Path
) -> None:
    shared = share(checkout, "shared", tmp_path / "shared")
    other = tmp_path / "other"
    shutil.copytree(checkout.root, other)
    with pytest.MonkeyPatch.context() as patch:  # ends before the checkout's own does, which sets the same
        patch.setenv("IGPT_ROOT", str(other))
        assert run_roots(Project(other)) == [Project(other)]  # nothing was submitted there yet
        submitted(shared)
        (other / "slurm" / "profiles" / "broken.yaml").write_text("stages: [")
        (tmp_path / "again").symlink_to(tmp_path / "shared")
        share(type(checkout)(other), "again", tmp_path / "again")  # the same by another path counts once
        assert len(run_roots(Project(other))) == 2
        assert "1 job: " in status_text([NAME], every=False)


def test_another_clone_sees_the_jobs_that_it_would_have_submitted(checkout: Checkout, answers: Answers, tmp_path: Path) -> None:
    shared = Ledger(Project(tmp_path / "shared"))  # of a profile that lies outside of the checkout
    (planned,) = plan_stages(checkout.project, [Stage.of("palette", seed=0)])
    folder = run_folder(shared.run_root, planned.stage, planned.signature).name
    array = submitted(shared)
    shared.write(array.model_copy(update={"stages": (Listed(name=planned.stage.name, folder=folder, planned=0.5),)}))
    answers.say(f"{array.title}|7|PENDING|0:00||Priority")
    said = checkout.submit(NAME, profile=checkout.profile(shared_folder=str(shared.run_root.root)))
    assert said == "nothing to submit: 0 of 1 stage finished, 1 queued or running"
    assert status_text([], every=False).endswith("1 job: 1 queued; 0.00 GPU-hours used, 0.50 planned")
