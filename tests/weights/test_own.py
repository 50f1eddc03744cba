from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape, Objective
from igpt.weights.own import load_tensors, load_weights, released_palette, save_tensors, save_weights


@pytest.fixture
def folder(model: ImageGPT, greys: Palette, tmp_path: Path) -> Path:
    save_weights(tmp_path / "weights", model, greys)
    return tmp_path / "weights"


def test_saved_weights_give_the_same_logits(folder: Path, model: ImageGPT, greys: Palette, tokens: torch.Tensor) -> None:
    loaded, palette = load_weights(folder)
    assert loaded.shape == model.shape
    assert palette.digest == greys.digest
    assert torch.equal(loaded(tokens), model(tokens))


def test_weights_without_biases_are_described_as_they_always_were(folder: Path, model: ImageGPT) -> None:
    fields = ["n_layer", "n_embd", "n_head", "n_vocab", "n_ctx", "objective", "palette_sha256"]
    assert list(json.loads((folder / "config.json").read_text())) == fields
    assert load_weights(folder)[0].shape.biases is False


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_weights_with_biases_come_back_with_them(
    greys: Palette, tokens: torch.Tensor, tmp_path: Path, objective: Objective
) -> None:
    biased = random_model(ModelShape(2, 16, 2, 8, 9, objective, biases=True))
    save_weights(tmp_path, biased, greys)
    assert json.loads((tmp_path / "config.json").read_text())["biases"] is True
    assert torch.equal(load_weights(tmp_path, biased.shape)[0](tokens), biased(tokens))


def test_bert_weights_come_back_as_bert(bert: ImageGPT, greys: Palette, tmp_path: Path) -> None:
    save_weights(tmp_path, bert, greys)
    assert load_weights(tmp_path)[0].shape.objective == "bert"


@pytest.mark.parametrize("name", ["config.json", "palette.npy", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UsageError, match=name):
        load_weights(folder)


def test_the_palette_of_other_weights_is_refused(folder: Path) -> None:
    Palette(Palette.load(folder / "palette.npy").centres[::-1].copy()).save(folder / "palette.npy")
    with pytest.raises(UsageError, match="is not the palette of these weights"):
        load_weights(folder)


@pytest.mark.parametrize(
    "change",
    [{"n_head": 0}, {"n_layer": 0}, {"n_layer": -1}, {"n_layer": 2.0}, {"n_vocab": True}, {"n_embd": 2**62}, {"objective": "gpt"},
     {"biases": 1}, {"biases": "true"}, {"biases": None}, {"biases": []}],
)  # fmt: skip
def test_a_config_of_impossible_numbers_is_refused(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UsageError, match=r"config\.json does not describe an Image GPT") as caught:
        load_weights(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_than_the_recipes_are_refused(folder: Path, model: ImageGPT) -> None:
    assert load_weights(folder, model.shape)[0].shape == model.shape
    for change in ({"n_layer": 3}, {"n_head": 4}, {"objective": "bert"}, {"biases": True}):
        with pytest.raises(UsageError, match=f"the weights found as {folder} have another shape .* than they need"):
            load_weights(folder, replace(model.shape, **change))


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"n_layer": "two"}', "\x00"])
def test_a_config_of_something_else_is_refused(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(UsageError, match="does not describe an Image GPT|is empty"):
        load_weights(folder)


def test_biases_that_the_tensors_do_not_have_are_missing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "biases": True}))
    with pytest.raises(UsageError, match=r"blocks\.0\.attn\.qkv\.bias is missing, and 7 more"):
        load_weights(folder)


def test_a_config_with_an_unknown_field_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.1}))
    with pytest.raises(UsageError, match="dropout"):
        load_weights(folder)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_tensor_file_never_crashes(data: st.DataObject) -> None:
    model, greys = random_model(ModelShape(1, 4, 2, 4, 4)), Palette(torch.linspace(-1, 1, 4)[:, None].numpy())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(folder, model, greys)
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            content[data.draw(st.integers(0, min(len(content) - 1, 1200)))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            load_weights(folder)  # a flipped bit of a weight cannot be noticed
        except UsageError as error:
            assert str(folder) in str(error)


def test_other_colours_in_place_of_the_released_ones_are_refused(
    greys: Palette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(released_palette()) == 512
    greys.save(tmp_path / "released_palette.npy")
    monkeypatch.setattr("igpt.weights.own.files", lambda package: tmp_path)
    with pytest.raises(UsageError, match="has the digest .*: install the package again"):
        released_palette()


def test_tensors_are_written_byte_for_byte_as_safetensors_does(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.int64, torch.float16, torch.bfloat16, torch.float64)
    shapes = ((), (3,), (2, 3), (0, 4), (5, 1, 2))
    tensors = {
        f"{letter}.{k}": torch.ones(s, dtype=kind)
        for k, kind in enumerate(kinds)
        for letter, s in zip("dbcae", shapes, strict=True)
    }
    tensors["turned é"] = torch.arange(6.0).reshape(2, 3).T
    for metadata in (None, {"run": 'a "b"\n'}):
        save_tensors(tmp_path / "ours", tensors, metadata)
        theirs = save({name: t.contiguous() for name, t in tensors.items()}, metadata)
        assert (tmp_path / "ours").read_bytes() == theirs
        found, read = load_tensors(tmp_path / "ours")
        assert read == (metadata or {}) and all(torch.equal(found[name], t) for name, t in tensors.items())
