"""What the tests serve in place of OpenAI's files: the same bytes that TensorFlow writes, read back as the same model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from released_mirror import (
    Fault,
    random_tokens,
    release_hub,
    release_tokens,
    serving,
    trained_model,
    variables_of,
    write_checkpoint,
)

from igpt.errors import UsageError
from igpt.fetch import RemoteFile, fetch
from igpt.model import ImageGPT
from igpt.shape import ModelShape, Objective
from igpt.weights.huggingface import read_huggingface
from igpt.weights.tensorflow import read_tensorflow
from igpt.weights.tensorflow_index import read_index

GENUINE = ROOT / "tests" / "weights" / "released_format"
STEP = 1_000_000


def same(one: ImageGPT, other: ImageGPT) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return one.shape == other.shape and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["autoregressive", "bert", "classifier"])
def test_a_genuine_checkpoint_is_written_again_byte_for_byte(kind: str, tmp_path: Path) -> None:
    genuine = GENUINE / kind / f"model.ckpt-{STEP}"
    index = read_index(genuine)
    variables = variables_of(read_tensorflow(genuine))
    for name in index.variables.keys() - variables.keys():  # a class head, which no model of ours has
        found = index.variables[name]
        content = index.shard(found.shard).read_bytes()[found.offset : found.offset + found.size]
        variables[name] = np.frombuffer(content, "<f4").reshape(found.shape)
    shard_of = {name: variable.shard for name, variable in index.variables.items()}
    write_checkpoint(tmp_path, STEP, variables, shards=index.shards, shard_of=shard_of)
    written = {path.name: path.read_bytes() for path in genuine.parent.glob("model.ckpt*")}
    assert {name: (tmp_path / name).read_bytes() for name in written} == written


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_what_is_written_is_read_as_the_same_model(objective: Objective, tmp_path: Path) -> None:
    # An index with several restarts, and more shards than variables, so that some are empty.
    model = trained_model(ModelShape(5, 16, 2, 512, 64, objective), seed=3)
    prefix = write_checkpoint(tmp_path, 131_000, variables_of(model), shards=64)
    assert same(read_tensorflow(prefix), model)


@pytest.mark.parametrize("pickled", [False, True])
def test_hugging_faces_folder_holds_the_same_model(pickled: bool, tmp_path: Path) -> None:
    model = trained_model(ModelShape(2, 16, 2, 512, 64), seed=4)
    main = release_hub(tmp_path, "small", model, pickled=pickled)
    assert (main / "pytorch_model.bin").exists() is pickled
    assert same(read_huggingface(main), model)
    assert json.loads((main / "config.json").read_text())["vocab_size"] == 513


def test_labels_are_one_hot_and_tokens_of_all_splits_lie_beside_each_other(tmp_path: Path) -> None:
    release_tokens(tmp_path, "imagenet", random_tokens((7, 4, 5), positions=64), classes=3)
    names = sorted(path.name for path in (tmp_path / "datasets").iterdir())
    assert names == [f"imagenet_{split[:2]}{kind}.npy" for split in ("test", "train", "validation") for kind in "XY"]
    labels = np.load(tmp_path / "datasets" / "imagenet_trY.npy")
    assert labels.shape == (7, 3) and (labels.sum(1) == 1).all() and labels.argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_transfer_that_is_cut_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content = bytes(range(256)) * 100
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(content)
    with serving(tmp_path / "served") as mirror:
        mirror.faults["file"] = [Fault(cut=10_000), Fault(status=403)]
        file = RemoteFile("file", (f"{mirror.address}/file",), None, None)
        with pytest.raises(UsageError, match="HTTP 403.*the same command continues"):
            fetch(file, tmp_path, wait=0)
        assert fetch(file, tmp_path, wait=0).read_bytes() == content
        assert mirror.asked == [("file", None), ("file", "bytes=10000-"), ("file", "bytes=10000-")]
