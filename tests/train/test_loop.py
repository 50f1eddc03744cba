from __future__ import annotations

import itertools
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train.loop import evaluate_loss, pretrain, schedule, weights_name
from igpt.train.recipes import Recipe
from igpt.weights.own import load_weights

RECIPE = Recipe(
    name="test",
    shape=ModelShape(1, 16, 2, 8, 9),
    dataset="digits",
    palette_colours=8,
    batch=8,
    steps=48,
    warmup=4,
    learning_rate=0.01,
)


def markov(images: int, positions: int = 9, *, seed: int = 0) -> torch.Tensor:
    """Images of a source with a known entropy: the next token is the last one plus 0 or 1, at 3 : 1, modulo 8."""
    generator = torch.Generator().manual_seed(seed)
    steps = (torch.rand(images, positions, generator=generator) < 0.25).long()
    steps[:, 0] = torch.randint(8, (images,), generator=generator)
    return steps.cumsum(1) % 8


ENTROPY = (math.log(8) + 8 * -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))) / 9  # nats per token


def run(folder: Path, greys: Palette, recipe: Recipe = RECIPE, **kwargs: object) -> list[float]:
    losses = pretrain(
        recipe, markov(256), markov(64, seed=1), palette=greys, seed=3, folder=folder, **kwargs  # type: ignore[arg-type]
    )  # fmt: skip
    return [*losses.train, *losses.validation]


def test_the_schedule_warms_up_linearly_and_falls_as_a_cosine_to_zero() -> None:
    at = [schedule(step, steps=100, warmup=10) for step in range(100)]
    assert at[0] == pytest.approx(0.1)
    assert at[9] == at[10] == 1.0
    assert at[55] == pytest.approx(0.5)
    assert 0 < at[99] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(at[10:]))


def test_training_reaches_the_entropy_of_a_known_source(tmp_path: Path, greys: Palette) -> None:
    recipe = replace(RECIPE, shape=ModelShape(2, 32, 2, 8, 9), steps=600, batch=32)
    losses = pretrain(recipe, markov(20_000), markov(4000, seed=1), palette=greys, seed=0, folder=tmp_path)
    assert losses.validation[0] == pytest.approx(math.log(8), rel=1e-5)
    assert ENTROPY - 0.01 < losses.validation[-1] < ENTROPY + 0.03


def test_weights_are_kept_at_every_milestone(tmp_path: Path, greys: Palette) -> None:
    pretrain(RECIPE, markov(64), markov(16), palette=greys, seed=0, folder=tmp_path)
    steps = [3, 6, 12, 24, 48]
    assert steps == RECIPE.milestone_steps
    assert sorted(path.name for path in tmp_path.glob("weights-*")) == [weights_name(step) for step in steps]
    kept = [load_weights(tmp_path / weights_name(step))[0].wte for step in steps]
    assert not torch.equal(kept[-1], kept[-2])


class Stop(Exception):
    pass


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
@pytest.mark.parametrize("stop", [1, 3, 13, 47])
def test_an_interrupted_run_continues_to_the_same_losses_to_the_bit(
    tmp_path: Path, greys: Palette, objective: str, stop: int
) -> None:
    recipe = replace(RECIPE, shape=replace(RECIPE.shape, objective=objective))

    def interrupt(done: int, total: int) -> None:
        if done == stop:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "interrupted", greys, recipe, report=interrupt)
    assert run(tmp_path / "interrupted", greys, recipe) == run(tmp_path / "whole", greys, recipe)
    ends = [load_weights(tmp_path / name / weights_name(48))[0].state_dict() for name in ("interrupted", "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


KILLED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import test_loop
from igpt.palette import Palette
import numpy as np
greys = Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None])
def report(done, total): print(done, flush=True)
test_loop.run(Path({folder!r}), greys, report=report)
"""


@pytest.mark.slow
def test_a_run_killed_outright_continues_to_the_same_losses_to_the_bit(tmp_path: Path, greys: Palette) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = run(tmp_path / "whole", greys)
        for number, stop in enumerate((2, 7, 25)):
            folder = tmp_path / f"killed-{number}"
            code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= stop:
                    child.send_signal(signal.SIGKILL)
                    break
            child.stdout.close()
            assert child.wait(timeout=60) in (-signal.SIGKILL, 0)
            assert run(folder, greys) == whole
    finally:
        torch.set_num_threads(threads)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, greys: Palette) -> None:
    run(tmp_path, greys)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"checkpoint\.safetensors is damaged"):
        run(tmp_path, greys)


def test_the_seed_decides_the_batches(tmp_path: Path, greys: Palette) -> None:
    ends = []
    for seed in (3, 4):
        losses = pretrain(RECIPE, markov(256), markov(64), palette=greys, seed=seed, folder=tmp_path / str(seed))
        ends.append(losses.validation[-1])
    assert ends[0] != ends[1]


def test_the_validation_loss_counts_every_image_once() -> None:
    model = ImageGPT(ModelShape(1, 16, 2, 8, 9), seed=0)
    with torch.no_grad():
        model.wtet.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    tokens = markov(50)
    assert evaluate_loss(model, tokens, batch=7) == pytest.approx(model.loss(tokens).item(), rel=1e-6)
