from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from igpt import Palette
from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.weights import existing, released
from igpt.weights.existing import content_digest, file_sums, own_weights, released_weights
from igpt.weights.own import load_weights, released_palette, save_weights
from igpt.weights.read import weights_files
from igpt.weights.released import RELEASED, Released
from igpt.weights.tensorflow import read_tensorflow

FIXTURES = Path(__file__).parent / "released_format"
STEP = f"model.ckpt-{released.LAST_STEP}"


@pytest.mark.parametrize(("name", "objective"), [("igpt-s", "autoregressive"), ("igpt-s-bert", "bert")])
def test_released_weights_are_kept_in_our_format_with_their_files_named(
    name: str, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path))
    shutil.copytree(FIXTURES / objective, tmp_path / name)
    original = read_tensorflow(tmp_path / name / STEP)
    monkeypatch.setitem(RELEASED, name, Released(name, 4, original.shape))
    found = released_weights("igpt-s", objective, released.LAST_STEP, report=lambda done, total: None)
    assert found.source.endswith(f"/checkpoints/{name}/{released.LAST_STEP}")
    for _ in range(2):  # a stage that was stopped before its record comes here again
        found.keep(tmp_path / "kept")
    kept, palette = load_weights(tmp_path / "kept", original.shape)
    assert all(torch.equal(kept.state_dict()[name], tensor) for name, tensor in original.state_dict().items())
    assert palette.digest == released_palette().digest
    sums = {row["name"]: (row["bytes"], row["sha256"]) for row in file_sums(found.files)}
    read = [path for path in (tmp_path / name).iterdir() if path.name.startswith(STEP) and path.suffix != ".meta"]
    assert sums == {path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in read}


def test_what_lies_beside_a_checkpoint_belongs_to_it(tmp_path: Path, greys: Palette) -> None:
    shutil.copytree(FIXTURES / "autoregressive", tmp_path / "c")
    before = content_digest(file_sums(weights_files(tmp_path / "c" / STEP)))
    greys.save(tmp_path / "c" / "palette.npy")
    assert content_digest(file_sums(weights_files(tmp_path / "c" / STEP))) != before


def test_own_weights_must_have_the_shape_that_they_were_taken_for(tmp_path: Path, model: ImageGPT, greys: Palette) -> None:
    save_weights(tmp_path / "w", model, greys)
    found = own_weights(tmp_path / "w", model.shape, "w-0")
    assert torch.equal(found.network.wte, model.wte) and found.palette.digest == greys.digest and found.source == "w-0"
    with pytest.raises(UsageError, match="have another shape"):
        own_weights(tmp_path / "w", read_tensorflow(FIXTURES / "bert" / STEP).shape, "w-0")


def test_a_full_disk_leaves_nothing_and_the_same_call_goes_on(
    tmp_path: Path, model: ImageGPT, greys: Palette, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(tmp_path / "w", model, greys)
    found = own_weights(tmp_path / "w", model.shape, "w-0")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(existing, "save_weights", full)
        with pytest.raises(UsageError, match=r"kept could not be written \(No space left on device\): free some room"):
            found.keep(tmp_path / "kept")
    assert not list(tmp_path.glob("*kept*"))
    found.keep(tmp_path / "kept")
    assert load_weights(tmp_path / "kept", model.shape)[1].digest == greys.digest
