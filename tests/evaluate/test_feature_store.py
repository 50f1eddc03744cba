from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT, random_model

from igpt.errors import UsageError
from igpt.evaluate import feature_store
from igpt.evaluate.feature_store import remove_looks, store_features, store_looks
from igpt.evaluate.features import extract_features
from igpt.files import read_json
from igpt.model import ImageGPT
from igpt.shape import ModelShape

KEY = {"weights": "a", "tokens": "b"}


@pytest.fixture
def many() -> np.ndarray:
    """Tokens for the small models, uint16 (50, 9)."""
    return np.random.default_rng(0).integers(0, 8, (50, 9)).astype(np.uint16)


def test_the_store_holds_what_the_model_gives(model: ImageGPT, many: np.ndarray, tmp_path: Path) -> None:
    store = store_features(tmp_path / "f", model, many, layers=[0, 2], key=KEY, dtype="float32", batch=8)
    expected = extract_features(model, torch.from_numpy(many.astype(np.int64)))
    assert sorted(store.order.tolist()) == list(range(50))
    assert store.order.tolist() != list(range(50))
    for layer in (0, 2):
        np.testing.assert_allclose(store.layers[layer], expected[layer][store.order], rtol=1e-5, atol=1e-6)
    assert list(store.layers) == [0, 2]


class Enough(Exception):
    pass


def until(images: int) -> Callable[[int, int], None]:
    """A report that ends the work once so many images are done."""

    def report(done: int, total: int) -> None:
        if done >= images:
            raise Enough

    return report


@pytest.mark.parametrize(("at_once", "next_one"), [(8, 32), (3, 24), (1000, 32)])  # three at once: 19, 22, and a batch is full
def test_a_run_that_was_stopped_continues_and_ends_the_same(
    many: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, next_one: int
) -> None:
    model = random_model(ModelShape(2, 16, 2, 8, 9, "bert"))
    whole = store_features(tmp_path / "whole", model, many, layers=[1], key=KEY, batch=8)
    monkeypatch.setattr(feature_store, "images_at_once", lambda model: at_once)
    with pytest.raises(Enough):
        store_features(tmp_path / "cut", model, many, layers=[1], key=KEY, batch=8, report=until(20))
    done: list[int] = []
    cut = store_features(tmp_path / "cut", model, many, layers=[1], key=KEY, batch=8, report=lambda d, t: done.append(d))
    assert done[0] == next_one  # nothing that was done is done again
    # Others go through the model together: rounding, before it is halved, may differ in the last digit.
    np.testing.assert_allclose(cut.layers[1], whole.layers[1], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(cut.order, whole.order)


@pytest.mark.parametrize("damage", ["cut", "empty", "removed", "other dtype", "fewer"])
@pytest.mark.parametrize("images", [32, 50])  # stopped after these, and finished
def test_features_in_a_damaged_file_are_computed_again(
    model: ImageGPT, many: np.ndarray, tmp_path: Path, damage: str, images: int
) -> None:
    whole = store_features(tmp_path / "whole", model, many, layers=[1], key=KEY, batch=8)
    with pytest.raises(Enough):
        store_features(tmp_path / "f", model, many, layers=[1], key=KEY, batch=8, report=until(images))
    path = tmp_path / "f" / "layer-001.npy"
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 200 * (damage == "cut")])
    elif damage == "removed":
        path.unlink()
    else:
        np.save(path, np.load(path).astype(np.float32) if damage == "other dtype" else np.load(path)[:49])
    counts: list[int] = []  # what a kill would leave: none of the new file's rows are done yet

    def report(done: int, total: int) -> None:
        counts.append(read_json(tmp_path / "f" / "done.json")["piece"])

    found = store_features(tmp_path / "f", model, many, layers=[1], key=KEY, batch=8, report=report)
    assert counts[0] == 0
    np.testing.assert_array_equal(found.layers[1], whole.layers[1])


def test_features_that_are_not_finite_are_never_kept(model: ImageGPT, many: np.ndarray, tmp_path: Path) -> None:
    with torch.no_grad():
        for name, gain in model.named_parameters():
            gain.mul_(1e7 if "ln_" in name else 1)  # features too large for half precision
    with pytest.raises(UsageError, match="features of layer 0 overflow float16: compute them in float32"):
        store_features(tmp_path / "half", model, many, layers=[0], key=KEY)
    assert np.isfinite(store_features(tmp_path / "f", model, many, layers=[0], key=KEY, dtype="float32").layers[0]).all()
    with torch.no_grad():
        model.wpe[8, 0] = torch.nan
    with pytest.raises(UsageError, match="the features of layer 0 are not finite: check the weights"):
        store_features(tmp_path / "nan", model, many, key=KEY)


def test_only_features_of_the_same_weights_layers_and_precision_are_taken(
    model: ImageGPT, many: np.ndarray, tmp_path: Path
) -> None:
    store_features(tmp_path / "f", model, many, layers=[0], key=KEY)
    said: list[int] = []
    how = {"layers": [0], "key": KEY}
    for other in ({}, {"key": {**KEY, "weights": "c"}}, {"dtype": "float32"}, {"layers": [0, 1]}, {"seed": 1}, {"mask_seed": 1}):
        said.clear()
        found = store_features(tmp_path / "f", model, many, **{**how, **other}, report=lambda d, t: said.append(d))
        assert said == ([50] if other else [])
        assert list(found.layers) == other.get("layers", [0])


def test_a_disk_without_room_is_said_before_a_map_is_made(
    model: ImageGPT, many: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="the features need 1,600 more bytes and .* has 10 free"):
        store_features(tmp_path / "f", model, many, layers=[0], key=KEY)
    assert not list((tmp_path / "f").glob("*.npy"))


def test_an_unknown_precision_is_refused(model: ImageGPT, many: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="features are kept in float32 or float16, not 'bfloat16': choose one of these"):
        store_features(tmp_path / "f", model, many, key=KEY, dtype="bfloat16")
    assert not (tmp_path / "f").exists()


def test_several_sets_of_images_are_stored_in_their_order_and_continued(
    model: ImageGPT, many: np.ndarray, tmp_path: Path
) -> None:
    looks, said = [(many, 0), (many[:10], 0)], list[int]()
    with pytest.raises(Enough):
        store_looks(tmp_path, model, looks, key=KEY, layers=[0, 1], report=until(50))
    stores = store_looks(tmp_path, model, looks, key=KEY, layers=[0, 1], report=lambda d, t: said.append(d))
    assert said == [60]
    assert [store.order.tolist() for store in stores] == [list(range(50)), list(range(10))]
    remove_looks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_all_of_them_is_said_before_the_first(
    model: ImageGPT, many: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    # Room for the first set of images and not for both.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9999, 0, 4000))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"the features need 6,400 more bytes and .* has 4,000 free: make room first"):
        store_looks(tmp_path / "f", model, [(many, 0), (many, 0)], key=KEY, layers=[0])
    assert not list((tmp_path / "f").iterdir())


FILLER = """
import sys
import numpy as np
from conftest import ROOT, random_model
from igpt.evaluate.feature_store import store_features
from igpt.shape import ModelShape
import subprocess
import sys
from pathlib import Path
done = []
store_features(Path({folder!r}), random_model(ModelShape(2, 16, 2, 8, 9)), np.load({tokens!r}), layers=[0, 2], key={key},
    batch=8, report=lambda part, whole: done.append(part))
print(done)
"""


def test_a_store_that_another_process_fills_is_waited_for(
    model: ImageGPT, many: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests'}")
    np.save(tmp_path / "many.npy", many)
    code = FILLER.format(folder=str(tmp_path / "f"), tokens=str(tmp_path / "many.npy"), key=KEY)
    second: list[subprocess.Popen[str]] = []

    def report(done: int, total: int) -> None:
        if not second:
            second.append(subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True))
            assert second[0].stderr is not None
            line = second[0].stderr.readline()
            assert line == f"igpt: {tmp_path / 'f'} is being filled by another process: waiting until it is done\n"

    store_features(tmp_path / "f", model, many, layers=[0, 2], key=KEY, batch=8, report=report)
    assert second[0].communicate(timeout=PATIENCE)[0] == "[]\n" and second[0].returncode == 0
