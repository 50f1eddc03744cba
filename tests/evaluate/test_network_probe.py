"""A network's probe, cut at moments of its work and continued: nothing that was done is done again, and the result is the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT, random_model

from igpt.data import LabelledTokens, labelled_tokens
from igpt.errors import UsageError
from igpt.evaluate import feature_store
from igpt.evaluate.features import extract_features
from igpt.evaluate.linear_probe import ProbeResult, probe_layers
from igpt.evaluate.network_probe import probe_network
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape

SHAPE = ModelShape(2, 16, 2, 8, 16, "bert")
LAYERS = [0, 2]
IMAGES = 60 + 40 + 2 * 40


def splits() -> list[LabelledTokens]:
    """A few digits of four pixels a side."""
    palette = Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None])
    names = (("train", 60), ("validation", 40), ("test", 40))
    return [labelled_tokens("digits", name, side=4, palette=palette).take(np.arange(count)) for name, count in names]


def probe(folder: Path, **how: Any) -> ProbeResult:
    return probe_network(folder, random_model(SHAPE), splits(), weights="a", layers=LAYERS, views=2, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ProbeResult:
    """The probe, uninterrupted."""
    return probe(tmp_path_factory.mktemp("whole"))


def test_the_probe_is_that_of_the_networks_features(whole: ProbeResult) -> None:
    model, parts = random_model(SHAPE), splits()
    # Masks depend on the seed alone within the first batch.
    found = [
        extract_features(model, torch.from_numpy(parts[place][:].astype(np.int64)), mask_seed=seed * 1_000_003)[LAYERS]
        for place, seed in ((0, 0), (1, 0), (2, 1), (2, 2))
    ]
    expected = probe_layers((found[0], found[1], found[2:]), (parts[0].labels, parts[1].labels), layers=LAYERS)
    assert [layer.layer for layer in whole.layers] == LAYERS
    assert whole.as_json() == expected.as_json()


CUT = """
import os, signal
from pathlib import Path
from igpt.evaluate import feature_store
from test_network_probe import probe
import torch
torch.set_num_threads({threads})
feature_store.SECONDS = 0.0
feature_store.images_at_once = lambda model: 16
def report(done, total):
    print(done, flush=True)
    if done >= {moment}:
        os.kill(os.getpid(), signal.SIGKILL)
probe(Path({folder!r}), report=report)
"""


# In the features of test, and at the first layer's fit on train and validation, when all choices are made.
@pytest.mark.parametrize("moment", [116, IMAGES + 3 * IMAGES // 4])
def test_a_probe_whose_process_is_killed_goes_on_and_ends_the_same(
    whole: ProbeResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: int,
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests'}:{ROOT / 'tests' / 'evaluate'}")
    code = CUT.format(folder=str(tmp_path), moment=moment, threads=torch.get_num_threads())
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = list(map(int, killed.stdout.split()))
    assert done == sorted(done) and done[-1] == moment
    monkeypatch.setattr(feature_store, "images_at_once", lambda model: 16)
    went_on: list[int] = []
    again = probe(tmp_path, report=lambda now, total: went_on.append(now))
    assert went_on[0] > moment and went_on[-1] == 2 * IMAGES
    assert again.as_json() == whole.as_json()
    assert [path.name for path in tmp_path.iterdir()] == ["probe.json"]
    went_on.clear()
    assert probe(tmp_path, report=lambda now, total: went_on.append(now)).as_json() == whole.as_json()
    assert went_on == []


def test_other_weights_layers_and_precisions_are_not_taken_for_these(tmp_path: Path, whole: ProbeResult) -> None:
    probe(tmp_path)
    half = probe(tmp_path, precision="float16")
    assert [layer.layer for layer in half.layers] == LAYERS
    one = probe_network(tmp_path, random_model(SHAPE), splits(), weights="a", layers=[1], views=2)
    assert [layer.layer for layer in one.layers] == [1]
    other = probe_network(tmp_path, ImageGPT(SHAPE, seed=5), splits(), weights="b", layers=LAYERS, views=2)
    assert other.as_json() != whole.as_json()


def test_a_disk_too_small_for_the_features_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=f"the features need {IMAGES * 2 * 16 * 4:,} more bytes and .* has 10 free"):
        probe(tmp_path)
