"""The reader of released checkpoints, against small ones that the released code wrote under TensorFlow."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from igpt import ImageGPT
from igpt.errors import UsageError
from igpt.model import generative_loss
from igpt.weights.tensorflow import read_tensorflow
from igpt.weights.tensorflow_index import read_index

FIXTURES = Path(__file__).parent / "released_format"
KINDS = ("autoregressive", "bert", "classifier")
STEP = "model.ckpt-1000000"


def expected(kind: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / kind / "expected.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint that may be damaged; its prefix."""
    shutil.copytree(FIXTURES / "autoregressive", tmp_path / "c")
    return tmp_path / "c" / STEP


@pytest.mark.parametrize("kind", KINDS)
def test_logits_features_and_loss_are_those_of_the_released_code(kind: str) -> None:
    model, wanted = read_tensorflow(FIXTURES / kind / STEP), expected(kind)
    tokens = torch.from_numpy(wanted["tokens"])
    masked = torch.from_numpy(wanted["masked"]).bool() if kind == "bert" else None
    with torch.no_grad():
        logits = model(tokens, masked)
        features = torch.stack(list(model.features(tokens, masked=masked).values()))
    # The bound that comes with the files: two implementations in float32.
    assert_close(logits, torch.from_numpy(wanted["logits"]), atol=2e-5, rtol=0)
    assert_close(features, torch.from_numpy(wanted["features"]), atol=2e-5, rtol=0)
    assert generative_loss(logits, tokens, masked).item() == pytest.approx(float(wanted["loss"]), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shape_is_read_from_the_variables(kind: str) -> None:
    about = json.loads((FIXTURES / kind / "about.json").read_text())["hparams"]
    shape = read_tensorflow(FIXTURES / kind / STEP).shape
    for name in ("n_layer", "n_embd", "n_head", "n_vocab", "n_ctx"):
        assert getattr(shape, name) == about[name]
    assert shape.objective == ("bert" if about["bert"] else "autoregressive")


def test_the_index_lists_every_variable_with_its_shape() -> None:
    about = json.loads((FIXTURES / "classifier" / "about.json").read_text())
    found = {name: list(v.shape) for name, v in read_index(FIXTURES / "classifier" / STEP).variables.items()}
    assert found == {name.removesuffix(":0"): shape for name, shape in about["shapes"].items()}
    assert "model/clf/wclf" in found  # and it is left where it is


def test_from_pretrained_takes_the_prefix() -> None:
    model = ImageGPT.from_pretrained(FIXTURES / "autoregressive" / STEP)
    assert isinstance(model, ImageGPT)
    assert model.sample(n=2, seed=0).shape == (2, 36)


def test_a_missing_index_says_what_to_give(copy: Path) -> None:
    with pytest.raises(UsageError, match=r"other\.index is missing: give the checkpoint's path without \.index"):
        read_tensorflow(copy.with_name("other"))


def test_a_missing_shard_is_named(copy: Path) -> None:
    copy.with_name(f"{STEP}.data-00002-of-00004").unlink()
    with pytest.raises(UsageError, match="lacks 1 of its 4 shards, model.ckpt-1000000.data-00002-of-00004 first"):
        read_tensorflow(copy)


def test_a_cut_shard_is_named(copy: Path) -> None:
    shard = copy.with_name(f"{STEP}.data-00001-of-00004")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UsageError, match="data-00001-of-00004 is damaged .it is cut short at 17,407 of 17,408 bytes"):
        read_tensorflow(copy)


@pytest.mark.parametrize("place", [0, 5_000, -1])
def test_a_flipped_bit_of_a_shard_is_noticed(copy: Path, place: int) -> None:
    shard = copy.with_name(f"{STEP}.data-00000-of-00004")
    content = bytearray(shard.read_bytes())
    content[place] ^= 4
    shard.write_bytes(content)
    with pytest.raises(UsageError, match=r"data-00000-of-00004 is damaged \(model/.* does not have its checksum\)"):
        read_tensorflow(copy)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_index_is_refused_and_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((FIXTURES / "bert" / f"{STEP}.index").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / f"{STEP}.index").write_bytes(content)
    for number in range(4):
        name = f"{STEP}.data-{number:05d}-of-00004"
        if not (tmp_path / name).exists():
            shutil.copy(FIXTURES / "bert" / name, tmp_path / name)
    try:
        read_tensorflow(tmp_path / STEP)  # padding before the footer's mark may change without harm
    except UsageError as error:
        assert STEP in str(error)


@given(content=st.binary(max_size=400))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_that_end_as_an_index_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{STEP}.index").write_bytes(content + struct.pack("<Q", 0xDB4775248B80FB57))
    with pytest.raises(UsageError, match="is damaged|is a pointer of git-lfs|is a text|is a zip"):
        read_index(tmp_path / STEP)


def test_another_models_checkpoint_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from igpt.weights import tensorflow, tensorflow_index

    real = tensorflow.read_index

    def without(prefix: Path) -> tensorflow_index.Index:
        index = real(prefix)
        del index.variables["model/h1/mlp/c_fc/w"]
        index.variables["model/h9/extra"] = index.variables["model/sos"]
        matrix = index.variables["model/h0/mlp/c_fc/w"]
        index.variables["model/h0/mlp/c_fc/w"] = replace(matrix, shape=matrix.shape[::-1])  # of the same size
        return index

    monkeypatch.setattr(tensorflow, "read_index", without)
    with pytest.raises(UsageError, match="c_fc/w is missing; model/h9/extra is unknown; model/h0/mlp/c_fc/w has shape"):
        read_tensorflow(copy)
