"""`igpt score`: each picture's loss as the model gives it, the least likely first, whatever the files are called."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import igpt_here as igpt
from conftest import random_model
from PIL import Image
from safetensors.torch import load_file, save_file

from igpt.companion.run import score as command
from igpt.companion.run.score import write_scores
from igpt.data import folders
from igpt.data.resize import fitted
from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.classifier import ImageClassifier, write_classifier
from igpt.weights.own import save_weights

COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32))
SHAPE = ModelShape(2, 16, 2, 8, 16)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small model's folder; pictures are read and seen some at once, in this process."""
    save_weights(tmp_path / "model", random_model(SHAPE), COLOURS)
    monkeypatch.setattr(folders, "AT_ONCE", 3)
    monkeypatch.setattr(folders, "cores", lambda: 1)
    monkeypatch.setattr(command, "_at_once", lambda shape: 4)
    return str(tmp_path / "model")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Fourteen pictures of two classes, under names that are hard to quote; two are equal."""
    names = ['a "b", c.png', "new\nline.png", "猫.png", os.fsdecode(b"\xff.png"), "0.png", "1.png", "=1.png"]
    for number, name in enumerate(names):
        for label in ("cats", "dogs, too"):
            path = tmp_path / "photos" / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (5 + number, 20 - number, 3)
            seed = 1 if name in ("0.png", "1.png") else number + 10 * len(label)
            pixels = np.random.default_rng(seed).integers(0, 256, size if seed > 1 else (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a written table."""
    with path.open(newline="", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("resize", ["crop", "squeeze"])
def test_scores_are_the_models_losses_the_highest_first(tmp_path: Path, photos: Path, model: str, resize: str) -> None:
    line = write_scores(model, [photos], out=tmp_path / "s.csv", resize=resize, skip=False)  # type: ignore[arg-type]
    assert line.startswith("14 pictures, ") and line.endswith("/s: " + str(tmp_path / "s.csv"))
    found, network = rows(tmp_path / "s.csv"), random_model(SHAPE)
    assert sorted(row["file"] for row in found) == sorted(map(str, photos.rglob("*.png")))
    for row in found:
        assert list(row) == ["file", "label", "nats_per_token", "bits_per_pixel"]
        pixels = fitted(Image.open(row["file"]), side=4, channels=3, resize=resize)[None]  # type: ignore[arg-type]
        tokens = torch.from_numpy(COLOURS.quantize(pixels).reshape(1, -1).astype(np.int64))
        nats = network.loss(tokens).item()
        assert float(row["nats_per_token"]) == pytest.approx(nats, abs=1e-6)
        assert float(row["bits_per_pixel"]) == pytest.approx(nats / math.log(2), abs=1e-6)
        assert row["label"] == Path(row["file"]).parent.name
    values = [float(row["nats_per_token"]) for row in found]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]
    write_scores(model, [photos / "cats"], out=tmp_path / "t.csv", resize="crop", skip=False)
    assert list(rows(tmp_path / "t.csv")[0]) == ["file", "nats_per_token", "bits_per_pixel"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos", "s.csv", "t.csv"]


def test_a_stopped_command_goes_on(tmp_path: Path, photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("cats", "dogs, too"):
        Image.new("RGB", (3, 9)).save(photos / label / "00.png")
        (photos / label / "01.png").write_bytes(b"some")
    words = ("score", "photos", "--model", model, "--skip-broken", "--out")
    expected = igpt(*words, "whole.csv", root=tmp_path)
    assert expected.stderr.splitlines()[:2] == [
        "igpt: 2 small pictures: enlarged to the model's size",
        "igpt: 2 pictures skipped:",
    ]
    seen: list[int] = []
    losses = command.token_losses

    def stopping(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens))
        if sum(seen) == 12:
            raise KeyboardInterrupt
        return losses(logits, tokens)

    monkeypatch.setattr(command, "token_losses", stopping)
    done = igpt(*words, "s.csv", root=tmp_path)
    assert (done.returncode, done.stderr) == (130, "igpt: stopped; the same command continues\n")
    assert not (tmp_path / "s.csv").exists()
    unskipped = igpt(*[word for word in words if word != "--skip-broken"], "s.csv", root=tmp_path)
    assert unskipped.returncode == 2 and "01.png is not an image" in unskipped.stderr
    seen[:] = [-100]
    done = igpt(*words, "s.csv", root=tmp_path)
    assert (done.returncode, sum(seen), done.stderr) == (0, -100 + 18 - 8, expected.stderr)
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_other_weights_do_not_go_on(tmp_path: Path, photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "_write_csv", stop)
        with pytest.raises(KeyboardInterrupt):
            write_scores(model, [photos], out=tmp_path / "s.csv", resize="crop", skip=False)
    other = ImageGPT(SHAPE)
    save_weights(tmp_path / "model", other, COLOURS)
    write_scores(model, [photos], out=tmp_path / "s.csv", resize="crop", skip=False)
    assert {row["nats_per_token"] for row in rows(tmp_path / "s.csv")} == {f"{math.log(8):.7f}"}  # its output matrix is zero


def test_what_has_no_likelihood_is_said(tmp_path: Path, photos: Path, model: str) -> None:
    save_weights(tmp_path / "bert", random_model(ModelShape(2, 16, 2, 8, 16, "bert")), COLOURS)
    with pytest.raises(UsageError, match="BERT's objective, which gives no likelihood: choose autoregressive weights"):
        write_scores(str(tmp_path / "bert"), [photos], out=tmp_path / "s.csv", resize="crop", skip=False)
    write_classifier(tmp_path / "classifier", ImageClassifier(random_model(SHAPE), torch.zeros(2, 16), ("a", "b"), COLOURS, True))
    tensors = load_file(tmp_path / "classifier" / "model.safetensors")
    del tensors["lm_head.weight"]  # as transformers writes a classifier
    save_file(tensors, tmp_path / "classifier" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="they have no output matrix: choose those of a generative model"):
        write_scores(str(tmp_path / "classifier"), [photos], out=tmp_path / "s.csv", resize="crop", skip=False)
    with pytest.raises(UsageError, match="scores are written as .csv, not as s.txt: name a file that ends in .csv"):
        write_scores(model, [photos], out=tmp_path / "s.txt", resize="crop", skip=False)
    assert not (tmp_path / "s.csv").exists()
