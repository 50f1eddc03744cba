from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from igpt.companion.report import costs
from igpt.companion.report.costs import CARD_GIB
from igpt.errors import UsageError
from igpt.machine import free_memory
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.train.memory import GIB, USED, Step, fitting, kept_per_image
from igpt.train.recipes import PAPER, recipe
from igpt.train.runtime import Launch, Runtime

SHAPE = ModelShape(8, 256, 4, 512, 1024)

# One process takes two steps and says by how much its memory grew at the most. The allocator hands back what is freed.
PROGRAM = """
import gc, json, sys
import torch
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.evaluate.fine_tune import Classifier, JointLoss
from igpt.train.distributed import GenerativeLoss, Distributed

def status(name):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

def steps(shape, images, recompute, classes):
    model = ImageGPT(shape)
    loss = JointLoss(Classifier(model, classes), weight=1.0) if classes else GenerativeLoss(model)
    spread = Distributed(loss, learning_rate=0.1, betas=(0.9, 0.95), device="cpu", recompute=recompute)
    tokens = torch.zeros(images, shape.n_ctx, dtype=torch.int64)
    batch = (tokens, None, tokens[:, 0]) if classes else (tokens,)
    for _ in range(2):
        spread.optimizer.zero_grad()
        spread.loss(*batch).backward()
        spread.optimizer.step()

classes = int(sys.argv[3])
steps(ModelShape(1, 64, 1, 16, 64), 1, False, classes)  # what libraries take once
gc.collect()
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
steps(ModelShape(*json.loads(sys.argv[1])), 2, sys.argv[2] == "recompute", classes)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not say a process's memory")
@pytest.mark.parametrize(("recompute", "classes"), [(False, 0), (True, 10_000)])
def test_a_real_step_takes_the_memory_that_is_foretold(recompute: bool, classes: int) -> None:
    shape = [8, 256, 4, 512, 1024]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(shape), "recompute" if recompute else "keep", str(classes)],
        capture_output=True,
        text=True,
        check=True,
        env={"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    foretold = Step(SHAPE, images=2, recompute=recompute, half=False, classes=classes).memory
    assert int(done.stdout) == pytest.approx(foretold, rel=0.1)


@pytest.mark.parametrize("name", PAPER)
def test_the_state_is_that_of_the_model_on_the_meta_device(name: str) -> None:
    shape = recipe(name).shape
    with torch.device("meta"):
        weights = sum(p.numel() for p in ImageGPT(shape).parameters())
    assert Step(shape, images=1).state == 16 * weights  # weights, gradients, two moments
    assert Step(shape, images=1, devices=8, shard=True).state == 2 * weights


def test_what_a_block_keeps_is_counted_as_by_hand() -> None:
    """float32: both norms' inputs and outputs, q, k, v and what attention gives (twice), and the MLP's three of four widths."""
    by_hand = 4 * (4 + 3 + 2 + 12)  # bytes a position and unit of width; the norms' and attention's sums are the rest
    assert kept_per_image(SHAPE, half=False).block / 1024 / 256 == pytest.approx(by_hand, rel=0.06)


def test_a_way_that_fits_is_found_for_every_published_model() -> None:
    for name in PAPER:
        for devices in (8, 32):
            fit = costs.fitting(recipe(name), devices)
            assert fit is not None
            assert fit.memory <= USED * CARD_GIB * GIB
            assert recipe(name).batch // devices % fit.images == 0
    xl = costs.fitting(recipe("igpt-xl"), 8)
    assert xl is not None and xl.shard
    assert costs.fitting(recipe("igpt-xl"), 1) is None  # its state alone is more than a card
    assert costs.fitting(recipe("igpt-xl"), 256) is None  # 64 images cannot be shared
    assert Step(recipe("igpt-xl").shape, images=1).state > CARD_GIB * GIB


@pytest.mark.parametrize(("name", "gib", "recompute"), [("igpt-l", 80, False), ("igpt-m", 24, False), ("igpt-s", 12, False)])
def test_fine_tuning_fits_on_one_card_with_a_part_of_its_batch_at_once(name: str, gib: int, recompute: bool) -> None:
    shape = recipe(name).shape
    fit = fitting(Step(shape, classes=10), batch=128, room=USED * gib * GIB)
    assert fit is not None
    assert (fit.recompute, 128 % fit.images) == (recompute, 0)
    assert fit.images >= 4
    larger = replace(fit, images=2 * fit.images)
    assert fit.memory <= USED * gib * GIB < larger.memory


def test_as_little_memory_as_there_is_decides_how_a_step_is_taken() -> None:
    kept, again = (Step(SHAPE, images=1, classes=10, recompute=r, half=False).memory for r in (False, True))
    one = fitting(Step(SHAPE, classes=10, half=False), batch=8, room=kept)
    assert one is not None and (one.images, one.recompute) == (1, False)
    less = fitting(Step(SHAPE, classes=10, half=False), batch=8, room=again)
    assert less is not None and (less.images, less.recompute) == (1, True)
    assert fitting(Step(SHAPE, classes=10, half=False), batch=8, room=again - 1) is None
    whole = fitting(Step(SHAPE, classes=10), batch=8, room=1e15)
    assert whole is not None and whole.images == 8
    shared = fitting(Step(SHAPE, devices=4, classes=10), batch=10, room=1e15)
    assert shared is not None and shared.images == 3  # of ten, three at most fall to one


def test_a_machine_takes_what_fits_and_says_when_nothing_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def room(free: float) -> None:
        monkeypatch.setattr("igpt.train.runtime.free_memory", lambda: free / USED)

    monkeypatch.setattr("igpt.train.runtime.cores", torch.get_num_threads)
    runtime = Runtime(minutes=1.0)
    room(Step(SHAPE, images=4, classes=10, half=False).memory + 4 * SHAPE.parameters + 1)  # beside what is tuned
    assert runtime.fitted(SHAPE, batch=8, classes=10, folder=tmp_path) == replace(runtime, micro_batch=4)
    with monkeypatch.context() as less:
        less.setattr("igpt.train.runtime.cores", lambda: 4 * torch.get_num_threads())  # so that others have three parts
        assert runtime.fitted(SHAPE, batch=8, classes=10, folder=tmp_path / "other").recompute
    room(1e15)
    assert runtime.fitted(SHAPE, batch=8, classes=10, folder=tmp_path).micro_batch == 4  # as it began there
    assert runtime.fitted(SHAPE, batch=8, classes=11, folder=tmp_path).micro_batch == 8
    room(2 * Step(SHAPE, images=1, devices=2, recompute=True, half=False).memory + 1)
    assert runtime.fitted(SHAPE, batch=8, launch=Launch(devices=2), folder=tmp_path) == replace(
        runtime, micro_batch=1, recompute=True
    )
    room(GIB / 1024)
    with pytest.raises(
        UsageError, match=r"6,820,352 parameters\) does not fit into the 0.0 GiB that the device has for it: take"
    ):
        runtime.fitted(SHAPE, batch=8, folder=tmp_path)


def test_free_memory_is_a_number_of_bytes() -> None:
    assert free_memory() > 2**20
