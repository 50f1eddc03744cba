"""The folder of a training as weights: while it runs, after it has ended, and damaged."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from igpt import ImageGPT
from igpt.errors import UsageError
from igpt.palette import Palette
from igpt.pretrained import open_weights
from igpt.shape import ModelShape
from igpt.train.engine import Stopped
from igpt.train.loop import pretrain, weights_name
from igpt.train.recipe import Recipe
from igpt.train.runtime import Runtime
from igpt.weights import training_run
from igpt.weights.own import load_tensors, load_weights, released_palette, save_tensors
from igpt.weights.read import read_palette, read_weights, weights_files, weights_shape
from igpt.weights.training_run import checkpoints, step_of

RECIPE = Recipe("mine", ModelShape(1, 16, 2, 8, 9), "digits", 8, batch=4, steps=12, warmup=2, learning_rate=0.01, milestones=(1,))


def train(folder: Path, palette: Palette, *, until: int = 0, recipe: Recipe = RECIPE) -> None:
    """A run with a checkpoint after every step, stopped after ``until`` steps if given."""
    images = torch.randint(recipe.shape.n_vocab, (32, 9), generator=torch.Generator().manual_seed(0))
    asked = iter([False] * (until - 1) + [bool(until)] + [False] * 99)
    runtime = Runtime(minutes=0, stop=lambda: next(asked))
    try:
        pretrain(recipe, images, images[:8], palette=palette, seed=0, folder=folder, runtime=runtime)
    except Stopped:
        assert until


def test_a_run_in_its_midst_is_read_from_its_newest_checkpoint(
    tmp_path: Path, greys: Palette, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, greys, until=7)
    newest = tmp_path / "checkpoint-0000007.safetensors"
    model = read_weights(tmp_path)
    assert capsys.readouterr().err == f"igpt: {tmp_path} holds a training, read after step 7\n"
    written, _ = load_tensors(newest)
    assert all(torch.equal(tensor, written[f"model.{name}"]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert weights_shape(tmp_path) == RECIPE.shape
    assert read_palette(tmp_path, RECIPE.shape).digest == greys.digest
    assert weights_files(tmp_path) == [newest, tmp_path / "palette.npy"]
    assert capsys.readouterr().err == ""
    images = torch.zeros(2, 9, dtype=torch.int64)
    assert torch.equal(ImageGPT.from_pretrained(tmp_path)(images), open_weights(str(tmp_path))[0](images))


def test_a_run_that_has_ended_is_read_from_its_last_milestone(
    tmp_path: Path, greys: Palette, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, greys)
    last = tmp_path / weights_name(12)
    assert weights_files(tmp_path) == weights_files(last)
    assert torch.equal(read_weights(tmp_path).wtet, load_weights(last)[0].wtet)
    assert "read after step 12" in capsys.readouterr().err
    for path in checkpoints(tmp_path):
        path.unlink()  # to save room
    (tmp_path / "palette.npy").unlink()
    assert weights_shape(tmp_path) == RECIPE.shape
    assert read_palette(tmp_path, RECIPE.shape).digest == greys.digest


def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, greys: Palette, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, greys, until=7)
    before, newest = checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    content = newest.read_bytes()
    read_weights(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"igpt: {newest} is damaged")
    assert said[0].endswith("taking the one before it")
    assert said[1].endswith("read after step 6")
    assert newest.read_bytes() == content  # it is the training's to set aside
    before.write_bytes(b"")
    with pytest.raises(UsageError, match=r"0000007\.safetensors is damaged"):
        read_weights(tmp_path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_checkpoint_that_vanishes_before_it_is_opened_is_not_missed(
    tmp_path: Path, greys: Palette, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], replaced: bool
) -> None:
    """The training goes on between listing and opening, by one checkpoint or by so many that all listed ones are gone."""
    train(tmp_path, greys, until=7)
    before, newest = checkpoints(tmp_path)
    opened = training_run.load_tensors

    def moving(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        monkeypatch.setattr(training_run, "load_tensors", opened)
        if replaced:
            shutil.copy(newest, tmp_path / "checkpoint-0000009.safetensors")
            before.unlink()
        newest.unlink()
        return opened(path)

    monkeypatch.setattr(training_run, "load_tensors", moving)
    read_weights(tmp_path)
    assert capsys.readouterr().err.endswith(f"read after step {9 if replaced else 6}\n")


def test_a_run_without_weights_yet_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    for read in (read_weights, weights_shape, weights_files):
        with pytest.raises(UsageError, match="has saved no weights yet: wait for its first checkpoint"):
            read(tmp_path)


def test_a_run_of_an_older_version_has_the_released_palette_or_must_be_given_its_own(tmp_path: Path, greys: Palette) -> None:
    recipe = replace(RECIPE, shape=replace(RECIPE.shape, n_vocab=512), palette_colours=512)
    train(tmp_path / "released", released_palette(), until=3, recipe=recipe)
    (tmp_path / "released" / "palette.npy").unlink()
    assert read_palette(tmp_path / "released", recipe.shape).digest == released_palette().digest
    train(tmp_path / "own", greys, until=3)
    for change in (lambda path: path.unlink(), lambda path: Palette(-greys.centres).save(path)):
        change(tmp_path / "own" / "palette.npy")
        with pytest.raises(UsageError, match=f"without its palette, whose digest is {greys.digest[:12]}: put"):
            read_palette(tmp_path / "own", RECIPE.shape)


@pytest.mark.parametrize(
    "run",
    [
        "of a fine-tune",
        "",
        "[" * 100_000,
        '{"shape": []} digest',
        '{"shape": {"n_layer": 1}} digest',
        '{"shape": {"n_layer": true, "n_embd": 16, "n_head": 2, "n_vocab": 8, "n_ctx": 9}} digest',
        json.dumps({"shape": RECIPE.shape.as_dict()}),
        "[] digest",
    ],
    ids=lambda run: run[:20],
)
def test_a_checkpoint_that_is_of_no_pre_training_is_refused(tmp_path: Path, run: str) -> None:
    save_tensors(tmp_path / "checkpoint-0000001.safetensors", {"model.wte": torch.zeros(8, 16)}, {"run": run})
    for read in (read_weights, weights_shape, weights_files, lambda path: read_palette(path, RECIPE.shape)):
        with pytest.raises(UsageError, match="is not a checkpoint of pre-training .*: give the folder of one"):
            read(tmp_path)


def crafted(path: Path, change: Callable[[dict[str, torch.Tensor]], object], **shape: int) -> None:
    """Change the tensors of a checkpoint, and the shape that it claims."""
    tensors, metadata = load_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    recipe, end = json.JSONDecoder().raw_decode(metadata["run"])
    recipe["shape"] |= shape
    save_tensors(path, tensors, {**metadata, "run": json.dumps(recipe) + metadata["run"][end:]})


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        (lambda tensors: None, {"n_layer": 10**9}, "describes a model of 1,000,000,000 blocks"),
        (lambda tensors: None, {"n_embd": 2**30}, "numbers, and its weights are"),
        (lambda tensors: tensors.pop("model.sos"), {}, "model.sos|sos is missing"),
        (lambda tensors: tensors.update({"model.more": torch.zeros(1)}), {}, "more is unknown"),
        (lambda tensors: tensors["model.wte"].fill_(np.nan), {}, "NaN or infinite"),
        (lambda tensors: tensors.update({"model.wte": tensors["model.wte"].half()}), {}, "a wrong kind"),
    ],
    ids=["layers", "width", "missing", "unknown", "NaN", "half"],
)
def test_a_crafted_checkpoint_is_refused_before_a_model_is_built(
    tmp_path: Path, greys: Palette, change: Callable[[dict[str, torch.Tensor]], object], shape: dict[str, int], message: str
) -> None:
    train(tmp_path, greys, until=1)
    [path] = checkpoints(tmp_path)
    crafted(path, change, **shape)
    with pytest.raises(UsageError, match=message):
        read_weights(tmp_path)


def test_names_that_only_look_like_a_runs_are_no_weights(tmp_path: Path, greys: Palette) -> None:
    train(tmp_path, greys, until=3)
    (tmp_path / "weights-9999999").write_text("a file")
    (tmp_path / "weights-best").mkdir()
    (tmp_path / "checkpoint-8888888.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "checkpoint-last.safetensors").write_bytes(b"")
    assert step_of(weights_files(tmp_path)[0]) == 3


def test_a_checkpoint_with_a_byte_of_its_header_changed_never_crashes(tmp_path: Path, greys: Palette) -> None:
    train(tmp_path, greys, until=1)
    [path] = checkpoints(tmp_path)
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[draw.randrange(int.from_bytes(content[:8], "little") + 8)] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        for read in (read_weights, weights_shape, lambda folder: read_palette(folder, RECIPE.shape)):
            with suppress(UsageError):
                read(tmp_path)
