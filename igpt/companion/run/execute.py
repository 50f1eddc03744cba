"""Run one stage: papermill executes its notebook in a fresh kernel; the executed notebook is kept beside the record."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from igpt.companion.results.plan import PlannedStage
from igpt.companion.results.record import Record, read_record, write_record
from igpt.companion.run.folder import PLANNED, finished_record, kernel_log, part_notebook, run_folder
from igpt.errors import StageError, UsageError
from igpt.files import try_lock, write_text
from igpt.progress import tell
from igpt.project import Project

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

# Environment variables of kernels, unless the user sets them. The glibc settings make malloc keep freed memory, which saves a
# fifth of a training step at tiny sizes (measured on two cores).
ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
NOT_KEPT = ("UsageError", "Stopped", "Finished")  # errors after which the notebook is not kept


class StageStopped(StageError):
    """A stage stopped at a checkpoint on request. It can be resumed and has not failed."""


class Kernels:
    """The running kernels, so that an interrupt can kill them: signals do not reach them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._managers: list[AsyncKernelManager] = []
        self.stopped = False

    def manager_class(self, log: Path, environment: Mapping[str, str]) -> type[AsyncKernelManager]:
        """A kernel manager class that registers its kernels here and writes their stderr to ``log``.

        environment : variables in addition to `ENVIRONMENT` and this process's own
        """
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager

        kernels = self

        class Manager(AsyncKernelManager):
            """A kernel manager that starts kernels of this Python."""

            @property
            def kernel_spec(self) -> KernelSpec:
                """The kernel of this Python; an installed kernel of the same name may use a different Python."""
                from ipykernel.kernelspec import get_kernel_dict

                return KernelSpec(**get_kernel_dict())

            async def _async_start_kernel(self, **kw: object) -> None:
                env = {**ENVIRONMENT, **os.environ, **environment}
                with log.open("wb") as stream:
                    await super()._async_start_kernel(**{**kw, "stderr": stream, "env": env})
                with kernels._lock:
                    kernels._managers.append(self)
                if kernels.stopped:
                    kernels.stop()

            start_kernel = _async_start_kernel

        return Manager

    def stop(self) -> None:
        """Kill all kernels. Checkpoints are atomic, so only the work since the last checkpoint is lost."""
        self.stopped = True
        with self._lock:
            for manager in self._managers:
                process = getattr(manager.provisioner, "process", None)
                if process is not None and process.poll() is None:
                    process.kill()


def execute(planned: PlannedStage, project: Project, kernels: Kernels, *, environment: Mapping[str, str] | None = None) -> Record:
    """Run a stage's notebook in a fresh kernel and return its record.

    environment : additional variables of the kernel, such as its devices and number of nodes

    The record is written last, after the executed notebook, so that a failed stage has no record.

    Raises UsageError if the notebook raised one, StageStopped for training stopped on request, and StageError for any other
    error in a cell, a dead kernel, or a notebook that ended without a valid record.
    """
    earlier = finished_record(project, planned.stage, planned.signature)
    if earlier is not None:
        return earlier  # finished by another run since the plan was made
    from papermill.exceptions import PapermillExecutionError

    folder = run_folder(project, planned.stage, planned.signature)
    folder.mkdir(parents=True, exist_ok=True)
    log, part, failed = kernel_log(folder, os.getpid()), part_notebook(folder, os.getpid()), folder / "failed.ipynb"
    with try_lock(log, seconds=1) or nullcontext():  # the lock shows other processes that this run is alive
        try:
            record = _run_notebook(planned, project, kernels, environment or {}, part, log)
            write_text(folder / "notebook.ipynb", _clean(part))
            for path in (part, failed, log):
                path.unlink(missing_ok=True)
            write_record(folder / "record.json", record)
            return record
        except (PapermillExecutionError, RuntimeError, OSError, StageError) as error:
            failure = _failure(planned.stage.name, error)
            if part.exists() and not (kernels.stopped or _kind(error) in NOT_KEPT or isinstance(error, OSError)):
                part.replace(failed)
                raise StageError(f"{failure}; the notebook so far is {failed}") from None
            part.unlink(missing_ok=True)  # it may have filled the disk
            log.unlink(missing_ok=True)
            if _kind(error) == "Finished" and (other := finished_record(project, planned.stage, planned.signature)):
                return other
            raise failure from None


def _run_notebook(
    planned: PlannedStage, project: Project, kernels: Kernels, environment: Mapping[str, str], part: Path, log: Path
) -> Record:
    """Run the notebook into ``part``; return the record, which it writes outside the run folder."""
    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # `_failure` has clearer messages
    # The sockets are in a new folder with a short path: in a shared folder, kernels that start together are confused.
    with tempfile.TemporaryDirectory(prefix="igpt") as scratch:
        record_path = Path(scratch) / "record.json"
        # IPython without the user's start-up files and history: these can have side effects, and the home may be read-only.
        variables = {"IPYTHONDIR": f"{scratch}/ipython", "IGPT_ROOT": str(project.root), PLANNED: str(record_path)}
        papermill.execute_notebook(
            project.notebooks / f"{planned.stage.notebook}.ipynb",
            part,
            parameters=planned.stage.parameters,
            kernel_name="python3",
            kernel_manager_class=kernels.manager_class(log, {**environment, **variables}),
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{scratch}/k"}}),
            cwd=str(part.parent),
            progress_bar=False,
            log_output=False,
            stderr_file=_OurLines(),
            record_timing=False,
        )
        record = read_record(record_path)
    if record is None or record.signature != planned.signature.digest:
        raise StageError(
            f"{planned.stage.name} ended without a record of its signature: the code changed while it ran, or its notebook"
            " writes none"
        )
    return record


class _OurLines:
    """A stream for the stderr of notebooks that prints only lines of igpt; lines of libraries stay in the notebook."""

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if line.startswith("igpt: "):
                tell(line)

    def flush(self) -> None:
        pass


def _kind(error: Exception) -> str:
    """The class name of the exception that a cell raised; empty for other errors."""
    return str(getattr(error, "ename", ""))


def _failure(name: str, error: Exception) -> Exception:
    """The exception to raise for a stage whose notebook failed."""
    from nbclient.exceptions import DeadKernelError

    if kind := _kind(error):
        value = error.evalue  # type: ignore[attr-defined]  # papermill's
        if kind == "UsageError":
            return UsageError(value)
        if kind == "Stopped":
            return StageStopped(f"{name} {value}")
        return StageError(f"{name} failed: {value if kind == 'StageError' else f'{kind}: {value}'}")
    if isinstance(error, DeadKernelError):
        why = "its kernel was killed (out of memory, perhaps); run the same command again to resume it"
    elif isinstance(error, RuntimeError):  # raised by jupyter_client
        why = f"its kernel did not start ({error}); run the same command again"
    elif isinstance(error, OSError):
        why = f"{error.strerror or error}; earlier results are as they were"
    else:
        return error
    return StageError(f"{name} failed: {why}")


def _clean(path: Path) -> str:
    """A notebook as JSON, without data that differs between runs: times, random cell ids, paths of this machine."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    return f"{nbformat.writes(notebook)}\n"
