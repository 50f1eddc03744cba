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
from igpt.evaluate.feature_store import FeatureStore, remove_looks, say_effort, store_features, store_looks
from igpt.evaluate.features import extract_features
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
    assert len(store) == 50
    assert sorted(store.order.tolist()) == list(range(50))
    assert store.order.tolist() != list(range(50))
    for layer in (0, 2):
        np.testing.assert_allclose(store.layer(layer), expected[layer][store.order], rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=r"has layers \[0, 2\], not 1"):
        store.layer(1)


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
    with pytest.raises(UsageError, match="not a finished store"):
        FeatureStore(tmp_path / "cut")
    done: list[int] = []
    cut = store_features(tmp_path / "cut", model, many, layers=[1], key=KEY, batch=8, report=lambda d, t: done.append(d))
    assert done[0] == next_one  # nothing that was done is done again
    # Others go through the model together: rounding, before it is halved, may differ in the last digit.
    np.testing.assert_allclose(cut.layer(1), whole.layer(1), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(cut.order, whole.order)


@pytest.mark.parametrize("damage", ["cut", "removed", "other dtype"])
def test_a_continued_run_whose_file_is_damaged_starts_over(
    model: ImageGPT, many: np.ndarray, tmp_path: Path, damage: str
) -> None:
    whole = store_features(tmp_path / "whole", model, many, layers=[1], key=KEY, batch=8)

    with pytest.raises(Enough):
        store_features(tmp_path / "f", model, many, layers=[1], key=KEY, batch=8, report=until(32))
    path = tmp_path / "f" / "layer-001.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "removed":
        path.unlink()
    else:
        np.save(path, np.load(path).astype(np.float32))
    found = store_features(tmp_path / "f", model, many, layers=[1], key=KEY, batch=8)
    np.testing.assert_array_equal(found.layer(1), whole.layer(1))


def test_features_that_are_not_finite_are_never_kept(model: ImageGPT, many: np.ndarray, tmp_path: Path) -> None:
    with torch.no_grad():
        model.wpe[8, 0] = torch.nan
    with pytest.raises(UsageError, match="the features of layer 0 are not finite: check the weights"):
        store_features(tmp_path / "f", model, many, key=KEY)
    with pytest.raises(UsageError, match="not a finished store"):
        FeatureStore(tmp_path / "f")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_stored_feature_that_is_not_finite_is_refused(model: ImageGPT, many: np.ndarray, tmp_path: Path, number: float) -> None:
    store = store_features(tmp_path / "f", model, many, layers=[0, 1], key=KEY)
    features = np.load(tmp_path / "f" / "layer-001.npy")
    features[49, 15] = number
    np.save(tmp_path / "f" / "layer-001.npy", features)
    assert store.layer(0).shape == (50, 16)
    with pytest.raises(UsageError, match=r"layer-001\.npy has features that are NaN or infinite: move its folder away"):
        FeatureStore(tmp_path / "f").layer(1)
    with pytest.raises(UsageError, match="NaN or infinite"):
        store_features(tmp_path / "f", model, many, layers=[0, 1], key=KEY).every_layer()


@pytest.mark.parametrize(
    "features",
    [np.zeros((50, 16), np.int64), np.zeros((50, 16)), np.zeros(50, np.float16), np.zeros((49, 16), np.float16)],
    ids=["int64", "float64", "one axis", "fewer"],
)  # fmt: skip
def test_other_features_under_a_layers_name_are_refused(
    model: ImageGPT, many: np.ndarray, tmp_path: Path, features: np.ndarray
) -> None:
    store = store_features(tmp_path / "f", model, many, layers=[1], key=KEY)
    np.save(tmp_path / "f" / "layer-001.npy", features)
    with pytest.raises(UsageError, match=r"layer-001\.npy (is damaged|has features of 49 images, not 50)"):
        store.layer(1)


@pytest.mark.parametrize("size", [0, 50, 128, 1000])
def test_a_file_cut_short_is_refused(model: ImageGPT, many: np.ndarray, tmp_path: Path, size: int) -> None:
    store = store_features(tmp_path / "f", model, many, layers=[1], key=KEY)
    for name, read in (("layer-001.npy", lambda: store.layer(1)), ("order.npy", lambda: FeatureStore(tmp_path / "f"))):
        path = tmp_path / "f" / name
        path.write_bytes(path.read_bytes()[: min(size, path.stat().st_size - 1)])
        with pytest.raises(UsageError, match=f"{name} is damaged") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [np.zeros(50, np.int64), np.arange(1, 51), np.arange(50.0), np.arange(50)[None]])
def test_an_order_that_is_none_is_refused(model: ImageGPT, many: np.ndarray, tmp_path: Path, order: np.ndarray) -> None:
    store_features(tmp_path / "f", model, many, layers=[1], key=KEY)
    np.save(tmp_path / "f" / "order.npy", order)
    with pytest.raises(UsageError, match=r"order\.npy is damaged"):
        FeatureStore(tmp_path / "f")


def test_a_finished_store_is_not_computed_again(model: ImageGPT, many: np.ndarray, tmp_path: Path) -> None:
    store_features(tmp_path / "f", model, many, layers=[0], key=KEY)
    said: list[int] = []
    store_features(tmp_path / "f", model, many, layers=[0], key=KEY, report=lambda d, t: said.append(d))
    assert said == []


def test_features_of_other_weights_or_precision_are_refused(model: ImageGPT, many: np.ndarray, tmp_path: Path) -> None:
    store_features(tmp_path / "f", model, many, layers=[0], key=KEY)
    with pytest.raises(UsageError, match="features of another weights: compute them again"):
        store_features(tmp_path / "f", model, many, layers=[0], key={**KEY, "weights": "c"})
    with pytest.raises(UsageError, match="features of another dtype"):
        store_features(tmp_path / "f", model, many, layers=[0], key=KEY, dtype="float32")
    with pytest.raises(UsageError, match=r"has layers \[0\], not \[1\]: move it away"):
        store_features(tmp_path / "f", model, many, layers=[0, 1], key=KEY)


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


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a quarter of an image a second."""
    monkeypatch.setattr(feature_store, "images_per_second", lambda model, tokens: 0.25)


@pytest.mark.usefixtures("slow")
def test_hours_and_disk_are_said_of_what_is_left(
    model: ImageGPT, many: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, looks = [tmp_path / "a", tmp_path / "b"], [(many, 0), (many[:10], 0)]
    say_effort(folders, model, looks, layers=[0, 1])
    said = "igpt: features of {} images: about {} minutes expected at 0.25 images a second (cpu, float32), 0.0 GB on disk\n"
    assert capsys.readouterr().err == said.format(120, 8)
    with pytest.raises(Enough):
        store_looks(tmp_path / "a", model, looks, key=KEY, layers=[0, 1], report=until(60))
    with pytest.raises(Enough):
        store_looks(tmp_path / "b", model, looks, key=KEY, layers=[0, 1], report=until(50))
    say_effort(folders, model, looks, layers=[0, 1])
    assert capsys.readouterr().err == ""  # ten images more are not worth a word
    say_effort([tmp_path / "c", *folders], model, looks, layers=[0, 1])
    assert capsys.readouterr().err == said.format(70, 5)
    assert [store.order.tolist() for store in store_looks(tmp_path / "b", model, looks, key=KEY, layers=[0, 1])] == [
        list(range(50)),
        list(range(10)),
    ]
    remove_looks(tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_the_rate_is_measured_on_the_images_themselves(model: ImageGPT, many: np.ndarray) -> None:
    assert feature_store.images_per_second(model, many) > 0


@pytest.mark.usefixtures("slow")
def test_a_disk_without_room_for_all_of_them_is_said_before_the_first(
    model: ImageGPT, many: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    # Room for the first set of images and not for both.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9999, 0, 4000))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"the features need 6,400 more bytes and .* has 4,000 free: make room first"):
        say_effort([tmp_path / "f"], model, [(many, 0), (many, 0)], layers=[0])
    assert capsys.readouterr().err == ""


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
