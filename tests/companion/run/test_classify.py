"""`igpt classify`: the classes of pictures as the classifier gives them, resumed after a stop, refused in a sentence."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import igpt_here as igpt
from conftest import random_model
from PIL import Image

from igpt.companion.run import classify as command
from igpt.companion.run.classify import classify
from igpt.data import folders
from igpt.data.resize import fitted
from igpt.errors import UsageError
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.classifier import ImageClassifier, class_logits, write_classifier
from igpt.weights.own import save_weights

COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32))
NAMES = ("猫", 'a "b", c', "dog")


@pytest.fixture(params=["crop", "squeeze"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> ImageClassifier:
    """A classifier with random weights, in the folder ``model``."""
    network = random_model(ModelShape(n_layer=2, n_embd=16, n_head=2, n_vocab=8, n_ctx=16))
    head = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    made = ImageClassifier(network, head, NAMES, COLOURS, shifted=True, resize=request.param)
    write_classifier(tmp_path / "model", made)
    return made


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures of several sizes, under names that are hard to quote, seen four at once."""
    names = ["it's.png", 'a "b", c.png', "new\nline.png", os.fsdecode(b"\xff.png"), *(f"{i}.png" for i in range(8))]
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number, name in enumerate(names):
        size = (5 + number, 20 - number, 3)
        pixels = np.random.default_rng(number).integers(0, 256, size, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / ("deep" if number > 8 else "") / name)
    monkeypatch.setattr(command, "images_at_once", lambda network: 4)
    monkeypatch.setattr(folders, "AT_ONCE", 3)
    monkeypatch.setattr(folders, "cores", lambda: 1)
    return tmp_path / "photos"


def read(path: Path) -> dict[str, tuple[str, float]]:
    """The rows of a written table."""
    with path.open(newline="", errors="surrogateescape") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["file", "class", "probability"]
    return {file: (name, float(p)) for file, name, p in rows}


def test_classes_are_those_of_the_classifiers_logits(tmp_path: Path, photos: Path, made: ImageClassifier) -> None:
    line = classify(tmp_path / "model", [photos], out=tmp_path / "a.csv", skip=False)
    assert line.startswith("12 pictures, ") and line.endswith("a.csv")
    rows = read(tmp_path / "a.csv")
    assert list(rows) == sorted(map(str, photos.rglob("*.png")), key=lambda file: (file.count("deep"), file))
    for file, (name, probability) in rows.items():
        pixels = fitted(Image.open(file), side=4, channels=3, resize=made.resize)[None]
        tokens = torch.from_numpy(COLOURS.quantize(pixels).reshape(1, -1).astype(np.int64))
        expected = class_logits(made, tokens).softmax(1)[0]
        assert name == NAMES[int(expected.argmax())]
        assert probability == pytest.approx(float(expected.max()), abs=2e-6)
    assert not list(tmp_path.glob(".a.csv*"))


def test_a_stopped_command_goes_on(tmp_path: Path, photos: Path, made: ImageClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    classify(tmp_path / "model", [photos], out=tmp_path / "whole.csv", skip=False)
    seen: list[int] = []

    def logits(classifier: ImageClassifier, tokens: torch.Tensor) -> torch.Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(tokens))
        return class_logits(classifier, tokens)

    monkeypatch.setattr(command, "class_logits", logits)
    with pytest.raises(KeyboardInterrupt):
        classify(tmp_path / "model", [photos], out=tmp_path / "a.csv", skip=False)
    kept = tmp_path / ".a.csv.work" / "results.jsonl"
    assert not (tmp_path / "a.csv").exists() and len(kept.read_text().splitlines()) == 9
    with kept.open("a") as stream:
        stream.write('{"value": [0, 0.')  # cut by a kill
    seen.clear()
    classify(tmp_path / "model", [photos], out=tmp_path / "a.csv", skip=False)
    assert seen == [4]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not kept.exists()


def test_results_of_another_classifier_or_of_changed_pictures_are_not_taken(
    tmp_path: Path, photos: Path, made: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = command.class_logits

    def stop(classifier: ImageClassifier, tokens: torch.Tensor) -> torch.Tensor:
        if (tmp_path / ".a.csv.work" / "results.jsonl").read_text().count("\n") > 4:
            raise KeyboardInterrupt
        return begun(classifier, tokens)

    monkeypatch.setattr(command, "class_logits", stop)
    with pytest.raises(KeyboardInterrupt):
        classify(tmp_path / "model", [photos], out=tmp_path / "a.csv", skip=False)
    monkeypatch.setattr(command, "class_logits", begun)
    other = ImageClassifier(made.network, -made.head, NAMES, COLOURS, shifted=True, resize=made.resize)
    write_classifier(tmp_path / "other", other)
    classify(tmp_path / "other", [photos], out=tmp_path / "a.csv", skip=False)
    classify(tmp_path / "other", [photos], out=tmp_path / "b.csv", skip=False)
    assert read(tmp_path / "a.csv") == read(tmp_path / "b.csv")

    def change(classifier: ImageClassifier, tokens: torch.Tensor) -> torch.Tensor:
        Image.new("RGB", (9, 9)).save(photos / "added.png")
        return begun(classifier, tokens)

    monkeypatch.setattr(command, "class_logits", change)
    with pytest.raises(UsageError, match="added, removed or changed while they were read: run the same command again"):
        classify(tmp_path / "model", [photos], out=tmp_path / "c.csv", skip=False)
    assert not (tmp_path / "c.csv").exists()
    monkeypatch.setattr(command, "class_logits", begun)
    classify(tmp_path / "model", [photos], out=tmp_path / "c.csv", skip=False)
    assert len(read(tmp_path / "c.csv")) == 13


def test_broken_pictures_are_named_and_left_out(
    tmp_path: Path, photos: Path, made: ImageClassifier, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cut.png").write_bytes((photos / "0.png").read_bytes()[:-30])
    (photos / "a.heic").touch()
    with pytest.raises(
        UsageError, match=r"(cut\.png is damaged|a\.heic is empty).*; or leave such pictures out with --skip-broken$"
    ):
        classify(tmp_path / "model", [photos], out=None, skip=False)
    text = classify(tmp_path / "model", [photos], out=None, skip=True)
    assert text.splitlines()[0].split() == ["File", "Class", "Probability"]
    assert len(text.splitlines()) == 2 + 12 and r"new\nline.png" in text
    told = capsys.readouterr().err
    assert "igpt: 2 pictures skipped:" in told and "cut.png is damaged" in told
    classify(tmp_path / "model", [photos], out=tmp_path / "grid.png", skip=True)
    assert Image.open(tmp_path / "grid.png").size == (4 * command.TILE, 3 * (command.TILE + command.CAPTION))


def test_what_cannot_be_classified_is_refused_in_a_sentence(tmp_path: Path, photos: Path, made: ImageClassifier) -> None:
    save_weights(tmp_path / "plain", made.network, COLOURS)
    (tmp_path / "none").mkdir()
    for number in range(101):
        (tmp_path / "none" / f"{number}.png").touch()
    for words, match in (
        (["photos", "--model", "plain"], "is no classifier's folder"),
        (["photos", "--model", "nothing"], "nothing holds no weights"),
        (["nothing", "--model", "model"], "there is no file or folder nothing"),
        (["model", "--model", "model"], "there are no pictures in model"),
        (["photos", "--model", "model", "--out", "a.txt"], "a.txt is neither .csv nor .png"),
        (["photos", "--model", "model", "--out", "photos/0.png/a.csv"], "is a file: name another path"),
        (["none", "--model", "model", "--out", "a.png"], "a PNG shows up to 100 pictures, not 101"),
    ):
        done = igpt("classify", *words, root=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert match in done.stderr
    assert not list(tmp_path.glob("a.*"))
