from __future__ import annotations

from pathlib import Path

import pytest
import torch

from igpt import ImageGPT, Palette
from igpt.errors import UsageError
from igpt.model import ImageGPT as Model
from igpt.weights.own import save_weights
from igpt.weights.read import read_weights
from igpt.weights.released import RELEASED, Released


def test_a_folder_of_ours_gives_the_same_logits(model: Model, greys: Palette, tokens: torch.Tensor, tmp_path: Path) -> None:
    save_weights(tmp_path / "ours", model, greys)
    loaded = ImageGPT.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded(tokens), model(tokens))
    assert not loaded.training
    assert torch.equal(loaded.complete(tokens[:, :4], n=2, seed=1), loaded.complete(tokens[:, :4], n=2, seed=1))


def test_a_released_name_with_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path))
    fixture = Path(__file__).parent / "released_format" / "bert"
    shutil.copytree(fixture, tmp_path / "igpt-s-bert")
    shape = read_weights(fixture / "model.ckpt-1000000").shape
    monkeypatch.setitem(RELEASED, "igpt-s-bert", Released("igpt-s-bert", 4, shape))
    assert read_weights("igpt-s-bert").shape.objective == "bert"


def test_what_is_no_weights_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no weights at igpt-xxl: give a folder"):
        read_weights("igpt-xxl")
    with pytest.raises(UsageError, match=r"holds no weights: config\.json is missing"):
        read_weights(tmp_path)
