"""Run a stage as a SLURM job: the code on the node. A job has succeeded if it wrote a valid record, whatever SLURM reports.

The notebook runs in a second thread, so that the main thread handles signals at once. On the signal before a time limit or a
preemption, the job requests a checkpoint with a stop file, waits for the checkpoint, and is requeued.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

import igpt
from igpt.companion.results.plan import PlannedStage
from igpt.companion.results.signature import Signature
from igpt.companion.run.execute import Kernels, StageStopped, execute
from igpt.companion.run.folder import STOP, finished_record, run_folder
from igpt.companion.run.local import plan_stages
from igpt.companion.slurm.ledger import QUEUED_AGAIN, Job, JobStatus, State
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.files import write_text
from igpt.progress import tell
from igpt.project import Project
from igpt.text import counted

SPARE = 10.0  # seconds before the kill that are reserved for work after the checkpoint
FRUITLESS = 2  # consecutive time limits without a new checkpoint after which a stage fails
EVERY = 0.2  # polling interval in seconds
LOCK_LEFT = 300.0  # seconds to wait for the lock of a lost node
STATUS_EVERY = 30.0  # seconds between status updates of a running job
AFTERWARDS = 5.0  # seconds for the processes of other nodes to end once the stage is done


@dataclass
class StageJob:
    """One stage, called on the node without arguments; pickled by submitit, by reference to the snapshot's code.

    job : the entry in the ledger
    fruitless : consecutive time limits reached without a new checkpoint
    """

    stage: Stage
    signature: Signature
    job: Job
    signal_seconds: int
    fruitless: int = 0
    _session: _Session | None = field(default=None, init=False, repr=False)

    def __call__(self) -> str:
        """Run the stage, or on a node other than the first its further processes; a one-line summary.

        Raises StageError or UsageError with the reason of a failure.
        """
        if int(os.environ.get("SLURM_PROCID", 0)):
            return _take_part(self)
        self._session = _Session(self)
        return self._session.run()

    def checkpoint(self) -> object:
        """Called by submitit on the signal to stop; the job to requeue, or None."""
        from submitit.helpers import DelayedSubmission

        requeued = self._session.stop() if self._session else None
        return DelayedSubmission(requeued) if requeued else None

    def check_code(self) -> None:
        """Raise UsageError unless the snapshot's code is running; a Python that ignores PYTHONPATH imports other code."""
        here, code = Path(igpt.__file__).resolve().parents[1], Path(self.job.array.snapshot)
        if here != code.resolve():
            raise UsageError(
                f"{self.stage.name} was submitted with the code in {code}, but this job would run the code in {here}:"
                " let the profile's python use PYTHONPATH, and submit again if the first folder is gone"
            )

    def devices(self) -> dict[str, str]:
        """Environment variables with nodes, devices and rendezvous for the training launcher; empty for one node."""
        array = self.job.array
        if array.nodes == 1:
            return {}
        # srun runs on the first node and exports its address to all. Neighbouring jobs and their sessions get other ports.
        port = 20_000 + (31 * int(os.environ["SLURM_JOB_ID"]) + int(os.environ.get("SLURM_RESTART_COUNT", 0))) % 12_000
        devices = {"IGPT_DEVICES": str(array.gpus)} if array.gpus else {}
        rendezvous = {"IGPT_RENDEZVOUS": f"{os.environ['SLURM_LAUNCH_NODE_IPADDR']}:{port}"}
        return {"IGPT_NODES": str(array.nodes), **rendezvous, **devices}


class _Session:
    """One session of a job, on its first node: from its start to its end or requeue."""

    def __init__(self, stage_job: StageJob) -> None:
        self.stage_job, self.job = stage_job, stage_job.job
        self.project = Project.here()
        self.kernels = Kernels()
        self.begun = self.written = time.monotonic()
        # Before the setup lines, in seconds since the epoch: the time limit counts these too.
        self.job_begun = float(os.environ.get("IGPT_JOB_BEGUN") or time.time())
        self.earlier = self.job.status or JobStatus(state="stopped")
        self.before = _kept_work(self.job.folder)
        self.ended = False  # whether the working thread has ended; a plain flag, since a signal handler reads it
        self.failure: BaseException | None = None
        self.given_up = False  # after too many time limits without a checkpoint
        self.terminated = False  # by SIGTERM

    def run(self) -> str:
        """Work until the record is written, the stage fails, or SLURM ends the job; a one-line summary."""
        from submitit.core.utils import UncompletedJobError

        self.write_status("running")
        signal.signal(signal.SIGTERM, self._terminate)  # the kernel receives it too and ends
        threading.Thread(target=self._work, daemon=True).start()
        try:
            while not self.ended:
                time.sleep(EVERY)
                if time.monotonic() - self.written > STATUS_EVERY:  # the hours of a killed job are counted
                    self.write_status("running")
        except UncompletedJobError:  # raised by submitit if `stop` returned None
            if self.given_up:
                raise StageError(self.in_vain()) from None
        error = self.failure
        if error is None:
            self.write_status("done")
            return f"{self.job.name} is done"
        if isinstance(error, _Cancelled):
            self.write_status("cancelled", str(error))
        elif isinstance(error, StageStopped):
            self.write_status("stopped", str(error))
            return str(error)
        elif self.terminated:
            self.write_status("stopped", "ended by the scheduler")
        else:
            known = isinstance(error, StageError | UsageError)
            self.write_status("failed", str(error) if known else f"{type(error).__name__}: {error}")
        raise error

    def stop(self) -> StageJob | None:
        """Request a checkpoint and wait for it, until shortly before the kill; the job to requeue, or None."""
        deadline = time.monotonic() + max(self.stage_job.signal_seconds - SPARE, 3.0)
        while not self.ended and time.monotonic() < deadline:
            with suppress(OSError):  # repeatedly: a notebook that opens its stage now removes the file
                (self.job.folder / STOP).touch()
            time.sleep(EVERY)
        if self.ended and not isinstance(self.failure, StageStopped):
            (self.job.folder / STOP).unlink(missing_ok=True)
            return None  # done, or failed for another reason
        self.kernels.stop()
        at_limit = time.time() - self.job_begun + self.stage_job.signal_seconds + 60 >= 60 * self.job.array.minutes
        advanced = _kept_work(self.job.folder) != self.before
        fruitless = self.stage_job.fruitless + 1 if at_limit and not advanced else 0
        if fruitless >= FRUITLESS:
            self.given_up = True
            self.write_status("failed", self.in_vain())
            return None
        self.write_status("stopped", f"{'its time limit came' if at_limit else 'preempted'}{QUEUED_AGAIN}")
        return replace(self.stage_job, fruitless=fruitless)

    def in_vain(self) -> str:
        """Why the job is not requeued."""
        return (
            f"{self.job.name} has reached its limit of {counted(self.job.array.minutes, 'minute')} {FRUITLESS} times without a"
            " new checkpoint: raise minutes in the profile and submit again"
        )

    def write_status(self, state: State, why: str = "") -> None:
        """Write the job's status. If that fails, as on a full disk, print the error and continue."""
        self.written = time.monotonic()
        seconds = round(self.earlier.seconds + self.written - self.begun, 1)
        host = os.environ.get("SLURMD_NODENAME") or platform.node()
        status = JobStatus(state=state, why=why, host=host, sessions=self.earlier.sessions + 1, seconds=seconds)
        try:
            write_text(self.job.status_path, json.dumps(status.model_dump()) + "\n")
        except OSError as error:
            tell(f"igpt: {error.filename}: {error.strerror}; the stage continues")

    def _work(self) -> None:
        """Run the stage, with SIGUSR2 blocked in this thread: the kernel inherits the mask, and SIGUSR2 would kill it."""
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
            self.stage_job.check_code()
            planned = self._planned()
            self.job.folder.mkdir(parents=True, exist_ok=True)
            # Wait for the lock of an earlier session: if its node is lost, a shared disk may keep the lock for a while.
            with suppress(Timeout), FileLock(self.job.folder / ".lock", timeout=LOCK_LEFT):
                pass
            execute(planned, self.project, self.kernels, environment=self.stage_job.devices())
        except BaseException as error:
            self.failure = error
        finally:
            self.ended = True

    def _planned(self) -> PlannedStage:
        """The stage as planned on this node. Raises UsageError if its signature differs, _Cancelled without a parent."""
        stage = self.stage_job.stage
        plan = plan_stages(self.project, [stage])
        planned = plan[stage]
        if planned.signature.digest != self.stage_job.signature.digest:
            parts = planned.signature.difference(self.stage_job.signature.parts)
            raise UsageError(
                f"{stage.name} has another signature on this node than where it was submitted ({', '.join(parts)} differ):"
                " have the same packages and data on both"
            )
        for parent in planned.parents:
            if finished_record(self.project, parent, plan[parent].signature) is None:
                raise _Cancelled(f"it depends on {parent.name}, which {self._fate(plan[parent])}")
        return planned

    def _fate(self, parent: PlannedStage) -> str:
        """How a parent without a record ended, as the end of a sentence."""
        job = self.job.ledger.latest().get(run_folder(self.project, parent.stage, parent.signature).name)
        status = job.status if job else None
        if status is None or status.state in ("running", "stopped", "done"):
            return "has ended without a record"
        return f"{'failed' if status.state == 'failed' else 'was not run'}: {status.why}"

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: stop the kernel if it is still running, so that the job ends before SIGKILL."""
        self.terminated = True
        self.kernels.stop()


def _take_part(stage_job: StageJob) -> str:
    """Run the processes of a node other than the first until the stage is done; a one-line summary.

    Raises StageError if they fail, on which srun ends all nodes, and UsageError for other code than submitted.
    """
    stage_job.check_code()
    job = stage_job.job
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # only the first node handles it
    child = subprocess.Popen(
        [sys.executable, "-m", "igpt.train.launch", str(job.folder)],
        env={**os.environ, **stage_job.devices()},
        process_group=0,  # so that its children can be killed too
    )
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    while child.poll() is None and job.state != "done":
        time.sleep(EVERY)
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(AFTERWARDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    if code and job.state != "done":
        node = os.environ.get("SLURM_NODEID", "?")
        raise StageError(f"{job.name}: the training processes on node {node} ended with exit code {code}")
    return "the training processes of this node have ended"


class _Cancelled(StageError):
    """The stage was not started, since a parent has no record."""


def _kept_work(folder: Path) -> dict[Path, int]:
    """Files from which a session resumes (checkpoints, parts of an evaluation), with times of modification in ns."""
    kept: dict[Path, int] = {}
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.json")]:
        if path != folder / "progress.json" and not path.name.startswith("."):
            with suppress(OSError):  # deleted meanwhile
                kept[path] = path.stat().st_mtime_ns
    return kept
