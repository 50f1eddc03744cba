"""Plans carried out with small notebooks of the tests' own: what goes wrong, and what is left afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, WriteNotebook, alive, igpt, wait_until
from filelock import FileLock

from igpt.companion.results.record import read_record
from igpt.companion.run.folder import finished_record, kernel_log, part_notebook, run_folder
from igpt.companion.run.local import plan_stages, run_plan
from igpt.companion.run.progress import Progress
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.project import Project

PARAMETERS = 'dataset = "digits"\nseed = 0'
WRITE = """
from igpt.companion.run import open_stage
stage = open_stage("{name}", dataset=dataset, seed=seed)
stage.write_record(values={{"answer": {{"value": 42.0 + seed, "unit": "none"}}}})
"""


def run(project: Project, *stages: Stage) -> int:
    return run_plan(project, plan_stages(project, stages))


def folder_of(project: Project, stage: Stage) -> Path:
    planned = next(p for p in plan_stages(project, [stage]))
    return run_folder(project, planned.stage, planned.signature)


def test_a_stage_leaves_its_record_and_its_notebook_and_later_runs_take_them(
    project: Project, write_notebook: WriteNotebook
) -> None:
    write_notebook("good", PARAMETERS, WRITE.format(name="good"), "print(1 + 1)")
    stage = Stage.of("good", seed=5)
    plan = plan_stages(project, [stage])
    assert run_plan(project, plan) == 1
    folder = folder_of(project, stage)
    record = read_record(folder / "record.json")
    assert record is not None
    assert record.values["answer"].value == 47
    assert record.receipt.command == "igpt run good,seed=5"
    assert record.receipt.notebook == "notebooks/good.ipynb"
    assert record.receipt.dirty  # outside of git nothing vouches for the code
    executed = (folder / "notebook.ipynb").read_text()
    assert '"2\\n"' in executed
    assert str(project.root) not in executed.replace(str(folder), "")
    assert not (folder / "failed.ipynb").exists()
    written = (folder / "record.json").stat().st_mtime_ns
    run_plan(project, plan)  # a plan from before another run finished the stage: it still counts it as missing
    assert run(project, stage) == 0
    assert (folder / "record.json").stat().st_mtime_ns == written
    (folder / "record.json").unlink()
    assert run(project, stage) == 1
    again = (folder / "notebook.ipynb").read_text()
    lines = ([line for line in text.splitlines() if not re.search("seconds|finished", line)] for text in (executed, again))
    assert next(lines) == next(lines)


@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        (
            "print('until now')\nraise RuntimeError('the reason')",
            StageError,
            r"bad,seed=0 failed: RuntimeError: the reason; the notebook so far is .*/failed\.ipynb",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", StageError, "its kernel was killed"),
        ("pass", StageError, "ended without a record of its signature"),
        (
            "from igpt.errors import UsageError\nclass One(UsageError): pass\nraise One('do this')",
            UsageError,
            "^do this$",
        ),  # one kind of it
        ("raise OSError(28, 'No space left on device')", StageError, "No space left on device"),
    ],
)
def test_a_notebook_that_fails_says_so_and_hurts_no_other(
    project: Project, write_notebook: WriteNotebook, cell: str, error: type[Exception], message: str
) -> None:
    write_notebook("good", PARAMETERS, WRITE.format(name="good"))
    write_notebook("bad", PARAMETERS, cell)
    with pytest.raises(error, match=message):
        run(project, Stage.of("bad"), Stage.of("good"))
    good = next(p for p in plan_stages(project, [Stage.of("good")]))
    assert finished_record(project, good.stage, good.signature) is not None
    folder = folder_of(project, Stage.of("bad"))
    assert not (folder / "record.json").exists()
    assert not (folder / "notebook.ipynb").exists()
    assert "until now" not in cell or "until now\\n" in (folder / "failed.ipynb").read_text()


@pytest.mark.parametrize("cell", ["1 / 0", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_notebook_that_fails_after_its_record_has_not_finished(
    project: Project, write_notebook: WriteNotebook, cell: str
) -> None:
    write_notebook("bad", PARAMETERS, WRITE.format(name="bad"), cell)
    for _ in range(2):  # the second time there is still everything to do
        with pytest.raises(StageError, match=r"bad,seed=0 failed: .*; the notebook so far is"):
            run(project, Stage.of("bad"))
    assert not (folder_of(project, Stage.of("bad")) / "record.json").exists()
    write_notebook("bad", PARAMETERS, WRITE.format(name="bad"))
    assert run(project, Stage.of("bad")) == 1


def test_a_stage_that_another_process_runs_is_refused(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("slow", PARAMETERS, WRITE.format(name="slow"))
    folder = folder_of(project, Stage.of("slow"))
    folder.mkdir(parents=True)
    code = (
        f"import sys, time\nfrom pathlib import Path\nfrom igpt.companion.run.folder import hold\nhold(Path({str(folder)!r}))\n"
    )
    code += "print('held', flush=True)\nsys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        writing = folder / ".layers.json.1.part"
        writing.touch()
        with pytest.raises(UsageError, match=rf"is already being run by process {holder.pid} on"):
            run(project, Stage.of("slow"))
        assert sorted(folder.glob(".*")) == [writing, folder / ".lock", folder / ".owner"]
    finally:
        holder.kill()
        holder.communicate()
    assert run(project, Stage.of("slow")) == 1
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".owner", "notebook.ipynb", "record.json"]


def test_a_run_at_work_keeps_its_files_and_a_dead_one_does_not(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("good", PARAMETERS, WRITE.format(name="good"))
    folder = folder_of(project, Stage.of("good"))
    folder.mkdir(parents=True)
    alive, dead = ([part_notebook(folder, process), kernel_log(folder, process)] for process in ("7", "8"))
    for path in (*alive, *dead):
        path.write_text("so far")
    with FileLock(alive[1]):  # as a run has it whose kernel has ended, and with it the stage's lock
        assert run(project, Stage.of("good")) == 1
        assert [path.read_text() for path in alive] == ["so far"] * 2 and not any(path.exists() for path in dead)
    assert run(project, Stage.of("good")) == 0  # killed when its record stood
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".owner", "notebook.ipynb", "record.json"]


def test_what_depends_on_a_failed_stage_is_not_run(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    palette = project.notebooks / "palette.ipynb"
    palette.write_text(palette.read_text().replace("import numpy as np", "raise RuntimeError('no palette')"))
    with pytest.raises(StageError, match="no palette"):
        run(project, Stage.of("pretrain", model="tiny-s"))
    assert re.search(r"^not run, since palette,\S* failed: pretrain,", capsys.readouterr().err, re.MULTILINE)
    assert [path.name.partition(",")[0] for path in project.runs.iterdir()] == ["palette"]


def test_data_that_are_not_here_are_said_before_anything_starts(project: Project, home: Path) -> None:
    with pytest.raises(UsageError, match=r"ImageNet \(ILSVRC 2012\) is not here: get ILSVRC2012_img_train.tar"):
        run(project, Stage.of("pretrain", model="igpt-s"))
    assert not project.runs.exists()


SLOW = """
import time
from igpt.companion.run import open_stage
from igpt.files import write_text
from igpt.measure import number
stage = open_stage("slow", dataset=dataset, seed=seed)
if not (stage.folder / "started").exists():
    write_text(stage.folder / "started", str(__import__("os").getpid()))
while not (stage.folder / "go").exists():
    time.sleep(0.05)
stage.write_record({"begun by": number(float((stage.folder / "started").read_text()), "none")})
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_can_be_started_again(project: Project, write_notebook: WriteNotebook, kill: signal.Signals) -> None:
    write_notebook("slow", PARAMETERS, SLOW)
    folder = folder_of(project, Stage.of("slow"))
    child = subprocess.Popen(
        [sys.executable, "-m", "igpt", "run", "slow"], env=dict(os.environ), stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (folder / "started").exists())
    kernel = int((folder / "started").read_text())
    if kill == signal.SIGKILL:
        (folder / "weights").mkdir()
        (folder / "weights" / ".model.safetensors.1.part").touch()  # as if the kernel had been writing it
    child.send_signal(kill)
    _, stderr = child.communicate(timeout=PATIENCE)
    if kill == signal.SIGINT:
        assert child.returncode == 130
        assert stderr.rstrip().endswith("igpt: stopped; the same command continues")
        assert "Traceback" not in stderr
        assert not (folder / "failed.ipynb").exists() and not list(folder.glob(".kernel.*"))  # it has not failed
    else:
        assert part_notebook(folder, child.pid).exists() and kernel_log(folder, child.pid).exists()
    assert not (folder / "record.json").exists()
    (folder / "go").touch()
    done = igpt("run", "slow", root=project.root)  # the kernel of the killed run may still be there for a second
    assert done.returncode == 0, done.stderr
    record = read_record(folder / "record.json")
    assert record is not None and record.values["begun by"].value == kernel  # the second run goes on with the first one's work
    left = {path.name for path in folder.rglob(".*")}
    assert left == {".lock", ".owner"} and not (folder / "failed.ipynb").exists()
    wait_for_end(kernel)


WAITS = """
from igpt.files import wait_for_lock
from igpt.companion.run import open_stage
stage = open_stage("waits", dataset=dataset, seed=seed)
with wait_for_lock(stage.project.root / "shared.lock", "the store is being made by another process"):
    stage.write_record(values={})
"""


def test_the_time_left_of_a_resumed_stage_counts_its_earlier_sessions(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    todo = list(plan_stages(project, [Stage.of("palette", seed=1), Stage.of("palette", seed=2)]))
    (tmp_path / "progress.json").write_text('{"done": 50, "total": 100, "seconds": 100}')
    with Progress(todo, lambda planned: tmp_path, lambda planned: 50.0, workers=1) as progress:
        progress.start(todo[0])
        progress.refresh()
        progress.end(todo[1], "done")
    assert capsys.readouterr().err.endswith(f"done  {todo[1].stage.name}, 1 to go, 1:40 left\n")


def test_a_run_says_what_its_notebook_waits_for(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("waits", PARAMETERS, WAITS)
    with FileLock(project.root / "shared.lock") as lock:
        command = [sys.executable, "-m", "igpt", "run", "waits"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr is not None
            said = next(line for line in child.stderr if line.startswith("igpt: "))
            assert said == "igpt: the store is being made by another process: waiting until it is done\n"
            lock.release()
            child.communicate(timeout=PATIENCE)
            assert child.returncode == 0


def wait_for_end(process: int) -> None:
    """A kernel whose parent is gone ends by itself, after a moment."""
    wait_until(lambda: not alive(process), said=lambda: "the kernel goes on after its run was killed")


def test_a_notebook_run_again_by_hand_starts_from_the_beginning(project: Project, write_notebook: WriteNotebook) -> None:
    path = write_notebook("good", PARAMETERS, WRITE.format(name="good"))
    run(project, Stage.of("good"))
    folder = folder_of(project, Stage.of("good"))
    (folder / "checkpoint-0000001.safetensors").touch()
    subprocess.run(
        [sys.executable, "-m", "papermill", str(path), str(project.root / "out.ipynb")], check=True, capture_output=True
    )
    assert not list(folder.glob("checkpoint-*"))
    record = read_record(folder / "record.json")
    assert record is not None
    assert record.receipt.notebook == "notebooks/good.ipynb, run by hand"


COUNTED = """
from igpt.companion.run import open_stage
stage = open_stage("counted", dataset=dataset, seed=seed)
with (stage.project.root / "times").open("a") as stream:
    stream.write("ran\\n")
stage.write_record(values={})
"""


def test_a_stage_that_another_run_finishes_while_it_is_waited_for_is_not_run_again(
    project: Project, write_notebook: WriteNotebook
) -> None:
    """The other run ends between this one's look at the folder and its kernel's holding it."""
    wait = "import time\nfrom pathlib import Path\nif not Path('begun').exists():\n    Path('begun').touch()\n"
    wait += "    while not Path('record.json').exists():\n        time.sleep(0.05)\n"
    write_notebook("counted", PARAMETERS, wait + COUNTED)
    folder = folder_of(project, Stage.of("counted"))
    command = [sys.executable, "-m", "igpt", "run", "counted"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as late:
        wait_until(lambda: (folder / "begun").exists())
        record = igpt("run", "counted", root=project.root)
        _, said = late.communicate(timeout=PATIENCE)
    assert (late.returncode, record.returncode) == (0, 0), said + record.stderr
    assert (project.root / "times").read_text() == "ran\n"
    assert sorted(path.name for path in folder.glob(".*")) == [".lock", ".owner"]
