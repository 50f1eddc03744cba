"""Carry out one stage: papermill in a fresh kernel, the executed notebook kept beside the record."""

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

# What kernels have in their environment, where the user has not said otherwise. glibc told to keep its memory saves a
# fifth of a training step at the tiny sizes (measured on two cores).
ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class StageStopped(StageError):
    """A stage that was asked to stop and has, at a checkpoint: to be continued, not failed."""


class Kernels:
    """The kernels now running, so that an interrupt can end them: signals do not reach them by themselves."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._managers: list[AsyncKernelManager] = []
        self.stopped = False

    def manager_class(self, log: Path, environment: Mapping[str, str]) -> type[AsyncKernelManager]:
        """A kernel manager that enters itself here; what the kernel says on stderr goes to ``log``.

        environment : what this kernel is told beside `ENVIRONMENT` and this process's own
        """
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager

        kernels = self

        class Manager(AsyncKernelManager):
            """As the base class, and known to `Kernels`; what it starts is this Python."""

            @property
            def kernel_spec(self) -> KernelSpec:
                """Not the kernel that a user or a site has installed under the notebook's name, with another Python."""
                from ipykernel.kernelspec import get_kernel_dict

                return KernelSpec(**get_kernel_dict())

            async def _async_start_kernel(self, **kw: object) -> None:
                told = {**ENVIRONMENT, **os.environ, **environment}
                with log.open("wb") as stream:
                    await super()._async_start_kernel(**{**kw, "stderr": stream, "env": told})
                with kernels._lock:
                    kernels._managers.append(self)
                if kernels.stopped:
                    kernels.stop()

            start_kernel = _async_start_kernel

        return Manager

    def stop(self) -> None:
        """Kill every kernel; checkpoints are whole at any moment, so nothing else is owed."""
        self.stopped = True
        with self._lock:
            for manager in self._managers:
                process = getattr(manager.provisioner, "process", None)
                if process is not None and process.poll() is None:
                    process.kill()


def execute(planned: PlannedStage, project: Project, kernels: Kernels, *, environment: Mapping[str, str] | None = None) -> Record:
    """Run a stage's notebook and return its record.

    environment : what its kernel is told beside this process's own: which devices, how many nodes

    The record comes last, once the notebook has ended well and is kept: of a stage that failed there is none.

    Raises UsageError for what the notebook refused as the user's mistake, StageStopped for training that was asked to
    stop, StageError for a cell that raised, a kernel that died, or a notebook that ended without a valid record.
    """
    folder = run_folder(project, planned.stage, planned.signature)
    earlier = finished_record(project, planned.stage, planned.signature)
    if earlier is not None:
        return earlier  # another run has carried it out since the plan was made
    folder.mkdir(parents=True, exist_ok=True)
    log = kernel_log(folder, os.getpid())
    with try_lock(log, seconds=1) or nullcontext():  # by which others see that this run lives
        return _carry_out(planned, project, folder, kernels, environment or {}, log)


def _carry_out(
    planned: PlannedStage, project: Project, folder: Path, kernels: Kernels, environment: Mapping[str, str], log: Path
) -> Record:
    """As `execute`, in the stage's folder; what the kernel says is kept in ``log``."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it has to say, the errors below say better
    name = planned.stage.name
    part, failed = part_notebook(folder, os.getpid()), folder / "failed.ipynb"
    # Sockets in a folder of their own, with a short path: a shared one mixes up kernels that start together.
    with tempfile.TemporaryDirectory(prefix="igpt") as sockets:
        written = Path(sockets) / "record.json"
        # IPython without the user's own start-up files and history, which may hold anything, or lie where nothing can be written.
        ours = {"IPYTHONDIR": f"{sockets}/ipython", "IGPT_ROOT": str(project.root), PLANNED: str(written)}
        try:
            papermill.execute_notebook(
                project.notebooks / f"{planned.stage.notebook}.ipynb",
                part,
                parameters=planned.stage.parameters,
                kernel_name="python3",
                kernel_manager_class=kernels.manager_class(log, {**environment, **ours}),
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}}),
                cwd=str(folder),
                progress_bar=False,
                log_output=False,
                stderr_file=_Waits(),
                record_timing=False,
            )
        except PapermillExecutionError as error:
            if error.ename in ("UsageError", "Stopped", "Finished"):
                part.unlink(missing_ok=True)
                log.unlink(missing_ok=True)
            record = finished_record(project, planned.stage, planned.signature) if error.ename == "Finished" else None
            if record is not None:
                return record
            if error.ename == "UsageError":
                raise UsageError(error.evalue) from None
            if error.ename == "Stopped":
                raise StageStopped(f"{name} {error.evalue}") from None
            cause = error.evalue if error.ename == "StageError" else f"{error.ename}: {error.evalue}"
            raise StageError(f"{name} failed: {cause}{_keep(part, failed)}") from None
        except DeadKernelError:
            raise StageError(
                f"{name} failed: its kernel was killed (out of memory, perhaps){_keep(part, failed)};"
                " run the same command again to continue it"
            ) from None
        except RuntimeError as error:  # how jupyter_client says that a kernel did not come up
            raise StageError(f"{name} failed: its kernel did not start ({error}); run the same command again") from None
        except OSError as error:  # a full disk, say, on which the notebook is in part
            part.unlink(missing_ok=True)
            log.unlink(missing_ok=True)
            raise StageError(f"{name} failed: {error.strerror or error}; earlier results are as they were") from None
        record = read_record(written)
    if record is None or record.signature != planned.signature.digest:
        raise StageError(
            f"{name} ended without a record of its signature: the code changed while it ran, or its notebook"
            f" writes none{_keep(part, failed)}"
        )
    try:
        write_text(folder / "notebook.ipynb", _clean(part))
        part.unlink()
        failed.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        write_record(folder / "record.json", record)
    except OSError as error:
        raise StageError(
            f"{name} failed: its notebook or record could not be kept ({error.strerror or error}); run the same command again"
        ) from None
    return record


class _Waits:
    """A stream for what notebooks say on stderr: passes on what a person has to know, such as what is waited for."""

    def write(self, text: str) -> None:
        """Lines of ours go to this process's stderr; those of libraries stay in the notebook."""
        for line in text.splitlines():
            if line.startswith("igpt: "):
                tell(line)

    def flush(self) -> None:
        """Nothing is kept back."""


def _keep(part: Path, failed: Path) -> str:
    """Keep the notebook as far as it came; where to find it, to end a sentence."""
    if not part.exists():
        return ""
    part.replace(failed)
    return f"; the notebook so far is {failed}"


def _clean(path: Path) -> str:
    """A notebook without what differs from run to run: times, random cell ids, folders of this machine."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    return f"{nbformat.writes(notebook)}\n"
