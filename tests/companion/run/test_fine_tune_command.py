"""`igpt fine-tune`: a folder that opens here and in transformers, resumed after a stop, and refused before anything is trained."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from igpt.companion.experiments.machines import CARDS
from igpt.companion.run import fine_tune as command
from igpt.companion.run.fine_tune import fine_tune_on
from igpt.data import labelled_tokens
from igpt.data.own import add_own
from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.classifier import class_logits, read_classifier
from igpt.weights.own import save_weights

COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A small network with random weights."""
    network = ImageGPT(ModelShape(n_layer=2, n_embd=16, n_head=2, n_vocab=8, n_ctx=16))
    save_weights(tmp_path / "weights", network, COLOURS)
    return str(tmp_path / "weights")


@pytest.fixture(autouse=True)
def nights(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of two classes that are easy to tell apart, and a machine that is not measured."""
    generator = np.random.default_rng(0)
    for label, level in (("day", 170), ("night", 0)):
        (tmp_path / "nights" / label).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(level, level + 60, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "nights" / label / f"{number}.png")
    add_own("nights", tmp_path / "nights", resize="squeeze")
    monkeypatch.setattr(command, "this_machine", lambda: CARDS[0])


def test_a_classifier_is_written_that_opens_here_and_in_transformers(tmp_path: Path, weights: str) -> None:
    text, code = fine_tune_on("nights", weights, out=tmp_path / "made", epochs=12, seed=0)
    assert code == 0 and text is not None
    right = re.match(r"test: ([\d.]+)% of 8 pictures \(95% interval .*\); always the commonest class: 50\.0%", text)
    assert right
    assert float(right[1]) >= 87.5
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".made")} == set()
    made = read_classifier(tmp_path / "made")
    assert (made.names, made.shifted, made.resize) == (("day", "night"), True, "squeeze")
    test = labelled_tokens("nights", "test", side=4, palette=COLOURS)
    tokens = torch.from_numpy(test[:].astype(np.int64))
    logits = class_logits(made, tokens)
    assert 100 * (logits.argmax(1).numpy() == test.labels).mean() == pytest.approx(float(right[1]))

    card = (tmp_path / "made" / "README.md").read_text()
    assert "Classes: day, night." in card and f"{right[1]}% of 8 pictures" in card and "squeezed into a square" in card
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    code_block = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code_block
    image = Image.open(tmp_path / "nights" / "day" / "0.png")
    names = {"folder": str(tmp_path / "made"), "image": image}
    exec(
        code_block[1].replace(
            "AutoImageProcessor.from_pretrained(folder", "AutoImageProcessor.from_pretrained(folder, backend='pil'"
        ),
        names,
    )
    assert transformers
    from igpt.data.resize import fitted

    ours = COLOURS.quantize(fitted(image, side=4, channels=3, resize="squeeze")[None]).reshape(1, -1).astype(np.int64)
    torch.testing.assert_close(names["logits"].detach(), class_logits(made, torch.from_numpy(ours)), atol=2e-5, rtol=0)  # type: ignore[attr-defined]


def test_a_stopped_fine_tune_resumes_to_the_same_weights(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fine_tune_on("nights", weights, out=tmp_path / "whole", epochs=2, seed=3)[1] == 0
    begun = command.fine_tune

    def stopped(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler's
        return begun(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "fine_tune", stopped)
    assert fine_tune_on("nights", weights, out=tmp_path / "again", epochs=2, seed=3) == (None, 75)
    assert not (tmp_path / "again").exists() and (tmp_path / ".again.work").exists()
    monkeypatch.setattr(command, "fine_tune", begun)
    monkeypatch.setattr(command, "search", lambda *a, search=command.search, **k: search(*a, **k))
    assert fine_tune_on("nights", weights, out=tmp_path / "again", epochs=2, seed=3)[1] == 0
    whole, again = (read_classifier(tmp_path / name) for name in ("whole", "again"))
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    assert torch.equal(whole.head, again.head)


def test_what_cannot_be_fine_tuned_is_refused_first(tmp_path: Path, weights: str, bert: ImageGPT) -> None:
    save_weights(tmp_path / "bert", bert, COLOURS)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for dataset, model, out, match in (
        ("nights", weights, "there", "there is there already: name a folder that is not"),
        ("nights", weights, "file/x", "cannot be written, since .*file is a file"),
        ("nowhere", weights, "new", r"no data set 'nowhere'; choose one of .*nights, or register your own by `igpt data add`"),
        ("cifar10", weights, "new", "CIFAR-10 is not here: `igpt data fetch cifar10`"),
        (
            "digits",
            weights,
            "new",
            "reads colour images of 4 x 4 pixels, and digits has grey images of 8 x 8 pixels: choose another",
        ),
        ("nights", str(tmp_path / "bert"), "new", "was trained with BERT's objective"),
        ("nights", str(tmp_path / "none"), "new", "there are no weights at"),
    ):
        with pytest.raises(UsageError, match=match):
            fine_tune_on(dataset, model, out=tmp_path / out, epochs=1, seed=0)
    assert {path.name for path in tmp_path.iterdir()} >= {"there", "file"}
    assert not (tmp_path / "new").exists() and not (tmp_path / ".new.work").exists()
