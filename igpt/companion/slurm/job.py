"""A stage as a job: what runs on the node. Success is a valid record; nothing the scheduler says counts for it.

The notebook runs in a second thread, so that the first hears the scheduler's signals at once. Asked to stop (a time limit
that comes, a preemption), the job leaves the file that training looks for, waits for the checkpoint, and is queued again.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

import igpt
from igpt.companion.results.plan import PlannedStage
from igpt.companion.results.signature import Signature
from igpt.companion.run.execute import Kernels, StageStopped, execute
from igpt.companion.run.folder import STOP, finished_record, run_folder
from igpt.companion.run.local import plan_stages
from igpt.companion.slurm.ledger import JobStatus, Ledger, State
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.files import write_text
from igpt.project import Project

SPARE = 10.0  # of the seconds between signal and kill: for what comes after the checkpoint
FRUITLESS = 2  # time limits in a row that a stage may reach without a new checkpoint
LOOK = 0.2  # seconds between two looks
HELD = 300.0  # seconds that a lost node's lock may outlive it
SAID_EVERY = 30.0  # seconds between two words on a running job
AFTERWARDS = 5.0  # seconds that the other nodes' processes have to end once the record stands


@dataclass(frozen=True)
class StageJob:
    """One stage, to be called on the node without arguments; pickled by submitit, by reference to the snapshot's code.

    home : the folder whose ``runs`` all nodes share
    token, index : where it stands in the ledger
    fruitless : time limits in a row that it has reached without a new checkpoint
    code : the snapshot that it is to run
    """

    stage: Stage
    signature: Signature
    home: Path
    token: str
    index: int
    minutes: int
    signal_seconds: int
    gpus: int = 0
    nodes: int = 1
    fruitless: int = 0
    code: Path | None = None  # None for jobs submitted before this field existed

    def __call__(self) -> str:
        """Carry the stage out; one line on it. Raises StageError with the reason when it fails."""
        if int(os.environ.get("SLURM_PROCID", 0)):
            return _Member(self).join()
        session = _Session(self)
        object.__setattr__(self, "_session", session)
        return session.run()

    def checkpoint(self) -> object:
        """Called by submitit when the scheduler asks to stop; what is to be queued again, None when nothing is."""
        from submitit.helpers import DelayedSubmission

        session: _Session = self._session  # type: ignore[attr-defined]
        again = session.stop()
        return DelayedSubmission(again) if again else None

    def __getstate__(self) -> dict[str, object]:
        """Without what belongs to a session."""
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)


class _Session:
    """One attempt at a job, on its first node."""

    def __init__(self, job: StageJob) -> None:
        self.job = job
        self.project = Project.here()
        self.ledger = Ledger(Project(job.home))
        self.folder = run_folder(Project(job.home), job.stage, job.signature)
        self.kernels = Kernels()
        self.begun = self.marked = time.monotonic()
        self.earlier = self.ledger.mark(job.token, job.index) or JobStatus(state="stopped")
        self.before = _kept_work(self.folder)
        self.ended = False  # of the thread at work; a plain flag, since a signal's handler reads it
        self.failure: BaseException | None = None
        self.given_up = False  # since it would never end within its limit
        self.terminated = False  # by SIGTERM

    def run(self) -> str:
        """Work until the record stands, the work has failed, or the scheduler ends it."""
        from submitit.core.utils import UncompletedJobError

        self.mark("running")
        signal.signal(signal.SIGTERM, self._terminate)  # as the kernel hears it too, the work ends by itself
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            while not self.ended:
                time.sleep(LOOK)
                if time.monotonic() - self.marked > SAID_EVERY:  # so that of a job that is killed the hours are known
                    self.mark("running")
        except UncompletedJobError:  # it was not to be queued again, since `stop` found it ended, or in vain
            if self.given_up:
                raise StageError(self.in_vain()) from None
        error = self.failure
        if error is None:
            self.mark("done")
            return f"{self.job.stage.name} is done"
        if isinstance(error, _Cancelled):
            self.mark("cancelled", str(error))
        elif isinstance(error, StageStopped):
            self.mark("stopped", str(error))
            return str(error)
        elif self.terminated:
            self.mark("stopped", "ended by the scheduler")
        else:
            self.mark("failed", str(error) if isinstance(error, StageError | UsageError) else f"{type(error).__name__}: {error}")
        raise error

    def stop(self) -> StageJob | None:
        """Ask for a checkpoint and wait for it, no longer than the scheduler does; the job to queue again."""
        deadline = time.monotonic() + max(self.job.signal_seconds - SPARE, 3.0)
        while not self.ended and time.monotonic() < deadline:
            with suppress(OSError):  # again and again: a notebook that opens its stage only now removes it
                (self.folder / STOP).touch()
            time.sleep(LOOK)
        if self.ended and not isinstance(self.failure, StageStopped):
            (self.folder / STOP).unlink(missing_ok=True)
            return None  # done, or failed for a reason of its own
        self.kernels.stop()
        limited = time.monotonic() - self.begun + self.job.signal_seconds + 60 >= 60 * self.job.minutes
        advanced = _kept_work(self.folder) != self.before
        fruitless = self.job.fruitless + 1 if limited and not advanced else 0
        if fruitless >= FRUITLESS:
            self.given_up = True
            self.mark("failed", self.in_vain())
            return None
        self.mark("stopped", "its time limit came: queued again" if limited else "preempted: queued again")
        return replace(self.job, fruitless=fruitless)

    def in_vain(self) -> str:
        """Why it is not queued again."""
        return (
            f"{self.job.stage.name} has reached its limit of {self.job.minutes} minutes {FRUITLESS} times without a new"
            " checkpoint: raise minutes in the profile and submit again"
        )

    def mark(self, state: State, why: str = "") -> None:
        """Say what becomes of it; a full disk keeps nobody from the work."""
        self.marked = time.monotonic()
        seconds = round(self.earlier.seconds + self.marked - self.begun, 1)
        mark = JobStatus(state=state, why=why, host=_host(), sessions=self.earlier.sessions + 1, seconds=seconds)
        try:
            write_text(self.ledger.mark_path(self.job.token, self.job.index), json.dumps(mark.model_dump()) + "\n")
        except OSError as error:
            print(f"igpt: {error.filename}: {error.strerror}; the work goes on", file=sys.stderr)

    def _work(self) -> None:
        """The stage, in a thread and under a mask that its kernel inherits: the signal to stop would kill that."""
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
            _check_code(self.job)
            planned = self._planned()
            self._wait_until_free()
            execute(planned, self.project, self.kernels, environment=self._environment())
        except BaseException as error:
            self.failure = error
        finally:
            self.ended = True

    def _planned(self) -> PlannedStage:
        """The stage as this node sees it. Raises when that is not what was submitted, or a parent is not there."""
        stage = self.job.stage
        plan = plan_stages(self.project, [stage])
        planned = plan[stage]
        if planned.signature.digest != self.job.signature.digest:
            parts = planned.signature.difference(self.job.signature.parts)
            raise UsageError(
                f"{stage.name} would be another here than where it was submitted ({', '.join(parts)} differ):"
                " have the same packages and data on both"
            )
        for parent in planned.parents:
            if finished_record(self.project, parent, plan[parent].signature) is None:
                raise _Cancelled(f"it stands on {parent.name}, which {self._fate(plan[parent])}")
        return planned

    def _wait_until_free(self) -> None:
        """Wait for the lock of a session before this one, which a shared disk may keep for a while when its node is lost."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(self.folder / ".lock", timeout=HELD):
            pass

    def _fate(self, parent: PlannedStage) -> str:
        """What became of a parent, to end a sentence."""
        folder = run_folder(self.project, parent.stage, parent.signature).name
        array, index = self.ledger.latest().get(folder, (None, 0))
        mark = self.ledger.mark(array.token, index) if array else None
        if mark is None or mark.state in ("running", "stopped", "done"):
            return "has ended without a record"
        return f"{'failed' if mark.state == 'failed' else 'was not run'}: {mark.why}"

    def _environment(self) -> dict[str, str]:
        """What the kernel is told beside the usual: how the stage spreads over nodes."""
        if self.job.nodes == 1:
            return {}
        with socket.socket() as listening:
            listening.bind(("", 0))
            port = listening.getsockname()[1]
        address = f"{_address()}:{port}"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / MEETING, json.dumps({"session": _session_name(), "address": address}))
        return _spread(self.job, address)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM: end the kernel, if it has not heard it itself; then the job, before it is killed."""
        self.terminated = True
        self.kernels.stop()


MEETING = ".meeting.json"  # in the run folder: where the first node's group is to be found


class _Member:
    """One of the further nodes of a job: it joins the first one's group and ends with it."""

    def __init__(self, job: StageJob) -> None:
        self.job = job
        self.folder = run_folder(Project(job.home), job.stage, job.signature)

    def join(self) -> str:
        """Wait for the first node's address, then run the group's other members.

        Raises StageError when they fail, UsageError where the code is not what was submitted.
        """
        _check_code(self.job)
        address = self._meet()
        if address is None:
            return "the first node had nothing to share"
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # only the first node answers to it
        child = subprocess.Popen(
            [sys.executable, "-m", "igpt.train.launch", str(self.folder)],
            env={**os.environ, **_spread(self.job, address)},
            process_group=0,  # to be ended with all that it started
        )
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        while child.poll() is None and not self._done():
            time.sleep(LOOK)
        _end(child)
        code = child.wait()
        if code and not self._done():
            raise StageError(
                f"{self.job.stage.name}: node {os.environ.get('SLURM_NODEID', '?')} left the group with exit code {code}"
            )
        return "the group has ended"

    def _meet(self) -> str | None:
        """The first node's address; None when it ended without a group."""
        while not self._done():
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads((self.folder / MEETING).read_text())
                if found["session"] == _session_name():
                    return str(found["address"])
            time.sleep(LOOK)
        return None

    def _done(self) -> bool:
        """Whether the stage is; when it fails, srun ends all of its nodes."""
        mark = Ledger(Project(self.job.home)).mark(self.job.token, self.job.index)
        return mark is not None and mark.state == "done"


class _Cancelled(StageError):
    """The stage was not begun, since something that it stands on is not there."""


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started: they wait for a group that is no more."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(AFTERWARDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _check_code(job: StageJob) -> None:
    """Raise UsageError when the code at work is not the snapshot's: a Python that is told to ignore PYTHONPATH, say."""
    here = Path(igpt.__file__).resolve().parents[1]
    if job.code is not None and here != job.code.resolve():
        raise UsageError(
            f"{job.stage.name} was submitted with the code in {job.code}, but this job would run the code in {here}:"
            " let the profile's python use PYTHONPATH, and submit again if the first folder is gone"
        )


def _spread(job: StageJob, address: str) -> dict[str, str]:
    """How a stage spreads, in the words that the training's launcher reads."""
    devices = {"IGPT_DEVICES": str(job.gpus)} if job.gpus else {}
    return {"IGPT_NODES": str(job.nodes), "IGPT_RENDEZVOUS": address, **devices}


def _address() -> str:
    """A name or number by which the other nodes reach this one."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        raise UsageError(
            f"this node's own name {name} leads nowhere, so no other can join it: ask the cluster's administrator"
        ) from None
    return name


def _session_name() -> str:
    """What tells this attempt at a job from others."""
    return f"{os.environ.get('SLURM_JOB_ID')} {os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _host() -> str:
    """The node's name at the scheduler, else its own."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _kept_work(folder: Path) -> dict[Path, int]:
    """What a stage's later session goes on from, and when it was written: checkpoints, and the pieces of an evaluation."""
    kept: dict[Path, int] = {}
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.json")]:
        # Not what says how far the work is, or, hidden, where the nodes of this session meet.
        if path != folder / "progress.json" and not path.name.startswith("."):
            with suppress(OSError):  # removed meanwhile
                kept[path] = path.stat().st_mtime_ns
    return kept
