from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE
from conftest import igpt_here as igpt

from igpt.companion.run.training import product_rate, token_flops, train
from igpt.data.store import HEADER, LABELS, Header, shard_path, write_header
from igpt.errors import UsageError
from igpt.files import write_array
from igpt.palette import Palette
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.train.engine import Stopped
from igpt.train.memory import USED, Step
from igpt.train.recipes import recipe
from igpt.train.runtime import Runtime
from igpt.weights.own import load_weights


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, Path]:
    """A train store of random tokens as of the digits, for tiny-s; and its palette."""
    palette = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    palette.save(tmp_path / "palette.npy")
    folder = tmp_path / "store"
    tokens = np.random.default_rng(0).integers(0, 16, (1437, 64)).astype(np.uint16)
    write_array(shard_path(folder, 0), tokens)
    write_array(folder / LABELS, np.arange(1437) % 10)
    header = Header(
        version=1,
        dataset="digits",
        split="train",
        resolution=8,
        filter="bicubic",
        crops=0,
        seed=0,
        palette_sha256=palette.digest,
        images=1437,
        held_out_sha256="",
    )
    write_header(folder / HEADER, header)
    return folder, tmp_path / "palette.npy"


def words(store: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    return ["train", "tiny-s", "--data", str(store[0]), "--out", str(out), "--palette", str(store[1]), *more]


def test_a_recipe_trains_on_a_store_and_again_finds_it_done(project: Project, store: tuple[Path, Path], tmp_path: Path) -> None:
    done = igpt(*words(store, tmp_path / "out", "--steps", "60"), root=project.root)
    assert done.returncode == 0, done.stderr
    assert "nats per token held out; weights in" in done.stdout
    assert "step 50 of 60: loss" in done.stderr
    model, palette = load_weights(tmp_path / "out" / "weights-0000060")
    assert (model.shape.n_ctx, len(palette)) == (64, 16)
    again = igpt(*words(store, tmp_path / "out", "--steps", "60"), root=project.root)
    assert again.stdout == done.stdout
    assert "step 50" not in again.stderr


@pytest.mark.slow
def test_a_signal_writes_a_checkpoint_says_so_by_its_code_and_the_same_command_continues(
    project: Project, store: tuple[Path, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "igpt", *words(store, tmp_path / "cut", "--steps", "400")]
    environment = {**os.environ, "IGPT_ROOT": str(project.root), "OMP_NUM_THREADS": "1"}
    for number in (signal.SIGTERM, signal.SIGUSR1):
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert child.stderr is not None
        said = ""
        for line in child.stderr:
            said += line
            if line.startswith("step"):
                child.send_signal(number)
                break
        said += child.stderr.read()
        assert child.wait(timeout=PATIENCE) == 75
        assert "of 400 steps; the same command continues" in said
        assert list((tmp_path / "cut").glob("checkpoint-*"))
    subprocess.run(command, env=environment, check=True, capture_output=True)
    whole = [sys.executable, "-m", "igpt", *words(store, tmp_path / "whole", "--steps", "400")]
    subprocess.run(whole, env=environment, check=True, capture_output=True)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cut", "whole")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


def test_mistakes_are_one_sentence(project: Project, store: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = [
        (["train", "igpt-q", *words(store, out)[2:]], "there is no autoregressive model 'igpt-q'"),
        (["train", "igpt-s", *words(store, out)[2:]], "the model takes 32 x 32: tokenise again"),
        (["train", "tiny-s", "--data", str(tmp_path), "--out", str(out)], "is not a finished token store"),
        (["train", "tiny-s", "--data", str(store[0]), "--out", str(out)], "tokenised with another palette than the model's"),
        (words(store, out, "--micro-batch", "5"), "a batch of 16 images cannot be cut into pieces of 5"),
    ]
    for command, message in cases:
        done = igpt(*command, root=project.root)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize(("holds", "taken"), [(16, None), (15, 8), (5, 4), (1, 1)])
def test_as_many_images_go_through_at_once_as_fit(
    holds: int, taken: int | None, store: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, machines = recipe("tiny-s").shape, []

    def stopped(*_: object, runtime: Runtime, **__: object) -> None:
        machines.append(runtime)
        raise Stopped("seen")

    room = Step(shape, images=holds, half=Runtime.here(shape).bfloat16).memory + 1
    monkeypatch.setattr("igpt.train.runtime.free_memory", lambda: room / USED)
    monkeypatch.setattr("igpt.train.runtime.cores", torch.get_num_threads)  # no part of it is for others
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("igpt.companion.run.training.train_store", stopped)
    asked = {"data": store[0], "out": tmp_path / "out", "steps": 1, "seed": 0, "palette": store[1], "devices": 1}
    for micro_batch in (None, 2):
        assert train("tiny-s", "autoregressive", **asked, micro_batch=micro_batch) == (None, 75)
    assert [runtime.micro_batch for runtime in machines] == [taken, 2]
    assert not any(runtime.recompute for runtime in machines)
    monkeypatch.setattr("igpt.train.runtime.free_memory", lambda: 0.0)
    with pytest.raises(UsageError, match="does not fit into the 0.0 GiB that the device has for it: take"):
        train("tiny-s", "autoregressive", **asked, micro_batch=None)


@pytest.mark.parametrize("half", [False, True])
def test_the_peak_of_this_machine_is_a_rate(half: bool) -> None:
    assert 1e7 < product_rate(Runtime(bfloat16=half)) < 1e16


def test_a_step_counts_what_causal_attention_computes() -> None:
    shape = ModelShape(8, 256, 8, 512, 1024)
    weights = 8 * 12 * 256**2 + 512 * 256
    causal = 3 * (2 * weights + 2 * 8 * 256 * 1024)  # of 4, the half that is not masked
    assert token_flops(shape) == pytest.approx(causal, rel=0.02)
    assert token_flops(replace(shape, objective="bert")) == pytest.approx(causal + 3 * 2 * 8 * 256 * 1024, rel=0.02)
