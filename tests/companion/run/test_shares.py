"""What stages at once take of a machine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from igpt import machine
from igpt.companion.experiments.costs import Disks
from igpt.companion.experiments.machines import GIB, H100
from igpt.companion.results.signature import Signer
from igpt.companion.run.budget import make_budget
from igpt.companion.run.local import plan_stages
from igpt.companion.run.slots import Need, Slots, default_needs, omp_threads
from igpt.companion.stage import Stage
from igpt.project import Project
from igpt.train.recipes import recipe

CARDS = ("0", "1", "2", "3", "4", "5", "6", "7")
TINY = Stage.of("pretrain", model="tiny-l", objective="autoregressive", seed=0)
LAPTOP = Stage.of("linear_probe", model="laptop-l", seed=0)
SMALL = Stage.of("pretrain", model="small-l", objective="autoregressive", seed=0)
PAPER = Stage.of("pretrain", model="igpt-l", objective="autoregressive", seed=0)
WEIGHTS = Stage.of("weights", model="igpt-l", objective="autoregressive", weights="released")
OWN = Stage.of("linear_probe", model="igpt-l", dataset="cifar10", weights="mine-0123456789ab", seed=0)
PALETTE = Stage.of("palette", dataset="cifar10")
SPEED = Stage.of("speed", task="quantise")


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "IGPT_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def at_once(stage: Stage, room: Slots) -> int:
    """How many of its kind the room holds."""
    return room.fitting([default_needs(room)(stage)] * 100)


@pytest.mark.parametrize(
    ("room", "stage", "takes", "together"),
    [
        (Slots(1), LAPTOP, (1, 0), 1),
        (Slots(2), TINY, (1, 0), 2),
        (Slots(2), LAPTOP, (1, 0), 2),  # as it was measured, a thread each
        (Slots(2), SPEED, (2, 0), 1),
        (Slots(16), TINY, (1, 0), 16),
        (Slots(16), LAPTOP, (4, 0), 4),
        (Slots(16, CARDS[:1]), SMALL, (16, 1), 1),
        (Slots(16, CARDS[:1]), TINY, (1, 0), 16),
        (Slots(16, CARDS[:1]), PALETTE, (16, 0), 1),
        (Slots(16, CARDS[:1]), SPEED, (16, 1), 1),
        (Slots(64, CARDS), LAPTOP, (8, 1), 8),
        (Slots(64, CARDS), PAPER, (8, 8), 1),
        (Slots(64, CARDS[:6]), PAPER, (10, 4), 1),  # six do not divide a batch of 128
        (Slots(4, CARDS), SMALL, (1, 1), 4),
    ],
)
def test_a_stage_takes_its_share(room: Slots, stage: Stage, takes: tuple[int, int], together: int) -> None:
    assert default_needs(room)(stage) == Need(*takes)
    assert at_once(stage, room) == together


@pytest.mark.parametrize(
    ("asked", "threads", "together"),
    [("1", 1, 16), ("8", 8, 2), ("99", 16, 1), ("4,2", 4, 4), ("0", 4, 4), ("x", 4, 4), ("", 4, 4)],
)
def test_the_threads_that_the_user_asks_for_count(
    asked: str, threads: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_needs(Slots(16))(LAPTOP) == Need(threads)
    assert at_once(LAPTOP, Slots(16)) == together
    assert omp_threads() == (int(asked[0:2].strip(",")) if asked[:1] in ("1", "8", "9", "4") else None)


@pytest.mark.parametrize("stage", [WEIGHTS, OWN], ids=["conversion", "probe"])
@pytest.mark.parametrize("asked", ["", "1", "8"])
def test_the_memory_without_gpus_holds_one_stage_on_weights_that_exist(
    stage: Stage, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_needs(Slots(16))(stage) == Need(16)
    assert at_once(stage, Slots(16)) == 1


def test_stages_at_once_have_the_memory_that_each_needs(project: Project) -> None:
    stages = [Stage.of("weights", model=f"igpt-{size}", objective=o) for size in "ml" for o in ("autoregressive", "bert")]
    plan = plan_stages(project, stages)
    room = Slots(64, CARDS, memory=64 * GIB)
    budget = make_budget(
        plan, [planned.stage for planned in plan], H100, memory=room.memory, disks=Disks(Path("runs"), lambda folder: (0, 1e13))
    )
    needs = [default_needs(room, budget)(planned.stage) for planned in plan]
    large = budget.total.memory
    for memory, together in ((64 * GIB, 4), (2 * large, 2), (large, 1)):
        assert replace(room, memory=memory).fitting(sorted(needs, key=lambda need: -need.memory)) == together
    part, rest = room.take(Need(1, 1, 60 * GIB)) or (room, room)
    assert rest.take(Need(1, 1, 5 * GIB)) is None
    assert rest.give_back(part) == replace(room, gpus=(*CARDS[1:], CARDS[0]))


def test_stages_at_once_have_the_disk_that_each_needs(project: Project) -> None:
    stages = [Stage.of("linear_probe", model="igpt-l", dataset=name, weights="released") for name in ("cifar10", "cifar100")]
    plan, room, signer = plan_stages(project, stages), Slots(64, CARDS), Signer(project.notebooks)
    model, features = 4 * recipe("igpt-l").shape.parameters, 49 * 60_000 * 1536 * 4

    def lent(free: float) -> Disks:
        return Disks(Path("runs"), lambda folder: (0, free) if folder == Path("runs") else (1, 1e13))

    budget = make_budget(plan, map(signer.canonical, stages), H100, memory=room.memory, disks=lent(1e13))
    needs = [default_needs(room, budget)(p.stage) for p in budget.stages if p.stage.notebook == "linear_probe"]
    for free, together in ((2 * features, 2), (2 * features - 1, 1), (0, 1)):
        left = replace(room, disk=budget.scratch_space(lent(model + free)))
        assert left.fitting(needs) == together
        assert left.take(needs[0])


def test_a_training_takes_as_many_devices_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_DEVICES", "2")
    assert default_needs(Slots(64, CARDS))(SMALL) == default_needs(Slots(64, CARDS))(PAPER) == Need(8, 2)
    assert default_needs(Slots(64, CARDS[:1]))(SMALL) == Need(64, 1)  # whose kernel then says that it has one
    assert default_needs(Slots(64, CARDS))(LAPTOP) == Need(8, 1)


def test_cores_are_those_that_the_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from igpt.machine import cores; print(cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("visible", "usable", "found"),
    [
        (None, "2", ["0", "1"]),
        ("3,1", "2", ["3", "1"]),
        ("GPU-4f,MIG-a", "2", ["GPU-4f", "MIG-a"]),
        ("0,-1,2", "1", ["0"]),  # CUDA stops at what is none
        ("-1", "0", []),
        ("", "2", []),
        (None, "0", []),  # a torch without CUDA, or an old driver
        (None, "x", []),
    ],
)
def test_gpus_are_those_that_torch_can_use(
    visible: str | None, usable: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(f"class cuda:\n    device_count = lambda: {usable}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(machine, "DRIVERS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine._usable.cache_clear()
    assert machine.gpus() == found
    machine._usable.cache_clear()
    monkeypatch.setattr(machine, "DRIVERS", (str(tmp_path / "none"),))
    assert machine.gpus() == []
