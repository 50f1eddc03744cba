from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from igpt.model import ImageGPT
from igpt.report.costs import CARD_GIB, fitting
from igpt.shape import ModelShape
from igpt.train.memory import GIB, USED, kept_per_image, step_memory
from igpt.train.recipes import PAPER, recipe

SHAPE = ModelShape(8, 256, 4, 512, 1024)

# One process takes two steps and says by how much its memory grew at the most. The allocator hands back what is freed.
PROGRAM = """
import gc, json, sys
import torch
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.train.spread import GenerativeLoss, Spread

def status(name):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

def steps(shape, images, recompute):
    spread = Spread(GenerativeLoss(ImageGPT(shape)), learning_rate=0.1, betas=(0.9, 0.95), device="cpu", recompute=recompute)
    for _ in range(2):
        spread.optimizer.zero_grad()
        spread.loss(torch.zeros(images, shape.n_ctx, dtype=torch.int64)).backward()
        spread.optimizer.step()

steps(ModelShape(1, 64, 1, 16, 64), 1, False)  # what libraries take once
gc.collect()
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
steps(ModelShape(*json.loads(sys.argv[1])), 2, sys.argv[2] == "recompute")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not say a process's memory")
@pytest.mark.parametrize("recompute", [False, True])
def test_a_real_step_takes_the_memory_that_is_foretold(recompute: bool) -> None:
    shape = [8, 256, 4, 512, 1024]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(shape), "recompute" if recompute else "keep"],
        capture_output=True,
        text=True,
        check=True,
        env={"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    foretold = step_memory(SHAPE, images=2, recompute=recompute, half=False).total
    assert int(done.stdout) == pytest.approx(foretold, rel=0.1)


@pytest.mark.parametrize("name", PAPER)
def test_the_state_is_that_of_the_model_on_the_meta_device(name: str) -> None:
    shape = recipe(name).shape
    with torch.device("meta"):
        weights = sum(p.numel() for p in ImageGPT(shape).parameters())
    assert step_memory(shape, images=1).state == 16 * weights  # weights, gradients, two moments
    assert step_memory(shape, images=1, devices=8, shard=True).state == 2 * weights


def test_what_a_block_keeps_is_counted_as_by_hand() -> None:
    """float32: both norms' inputs and outputs, q, k, v and what attention gives (twice), and the MLP's three of four widths."""
    by_hand = 4 * (4 + 3 + 2 + 12)  # bytes a position and unit of width; the norms' and attention's sums are the rest
    assert kept_per_image(SHAPE, half=False).block / 1024 / 256 == pytest.approx(by_hand, rel=0.06)


def test_a_way_that_fits_is_found_for_every_published_model() -> None:
    for name in PAPER:
        for devices in (8, 32):
            fit = fitting(recipe(name), devices)
            assert fit is not None
            assert fit.memory.total <= USED * CARD_GIB * GIB
            assert recipe(name).batch // devices % fit.images == 0
    xl = fitting(recipe("igpt-xl"), 8)
    assert xl is not None and xl.shard
    assert fitting(recipe("igpt-xl"), 1) is None  # its state alone is more than a card
    assert fitting(recipe("igpt-xl"), 256) is None  # 64 images cannot be shared
    assert step_memory(recipe("igpt-xl").shape, images=1).state > CARD_GIB * GIB
