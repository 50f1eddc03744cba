from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_model

from igpt import ImageGPT, Palette
from igpt.errors import UsageError
from igpt.model import ImageGPT as Model
from igpt.pretrained import open_weights
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.train.recipes import recipe
from igpt.weights.classifier import ImageClassifier, write_classifier
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import load_tensors, save_weights
from igpt.weights.read import read_weights
from igpt.weights.released import RELEASED, Released


def test_a_folder_of_ours_gives_the_same_logits(model: Model, greys: Palette, tokens: torch.Tensor, tmp_path: Path) -> None:
    save_weights(tmp_path / "ours", model, greys)
    loaded = ImageGPT.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded(tokens), model(tokens))
    assert not loaded.training
    assert torch.equal(loaded.complete(tokens[:, :4], n=2, seed=1), loaded.complete(tokens[:, :4], n=2, seed=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", ["ours", "safetensors", "bin"])
def test_half_precision_in_a_folder_of_any_name_is_read_as_the_same_numbers(
    biased: Model, greys: Palette, tokens: torch.Tensor, tmp_path: Path, make: str, dtype: torch.dtype
) -> None:
    folder = tmp_path / "mes poids 我的 'w\neights\" 100%"
    half = copy.deepcopy(biased).to(dtype)
    (save_weights if make == "ours" else write_huggingface)(folder, half, greys)
    if make == "bin":
        torch.save(load_tensors(folder / "model.safetensors")[0], folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    for found in (ImageGPT.from_pretrained(folder), open_weights(str(folder))[0]):
        assert found.wte.dtype == torch.float32 and found.shape.biases
        assert torch.equal(found(tokens), half.float()(tokens))
    assert open_weights(str(folder))[1].digest == greys.digest


def test_a_classifiers_folder_gives_features_and_its_colours(
    biased: Model, greys: Palette, tokens: torch.Tensor, tmp_path: Path
) -> None:
    expected = biased.features(tokens)
    biased.register_parameter("wtet", None)
    write_classifier(tmp_path / "pets", ImageClassifier(biased, torch.ones(2, 16), ("cat", "dog"), greys, shifted=True))
    network, palette = open_weights(str(tmp_path / "pets"))
    assert network.wtet is None and palette.digest == greys.digest
    for found in (network, ImageGPT.from_pretrained(tmp_path / "pets")):
        assert all(torch.equal(features, expected[layer]) for layer, features in found.features(tokens).items())


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


def test_a_recipes_name_is_found_by_the_library_as_by_the_commands(
    project: Project, greys: Palette, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    for read in (ImageGPT.from_pretrained, open_weights):
        with pytest.raises(UsageError, match=r"laptop-m has neither been published nor trained in .*: igpt run pretrain,"):
            read("laptop-m")
    with pytest.raises(UsageError, match=r"tiny-s has neither been published nor trained in .*, in minutes; or set IGPT_ROOT"):
        ImageGPT.from_pretrained("tiny-s")  # the library trains nothing
    plan = recipe("tiny-s")
    published = random_model(plan.shape)
    sixteen = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    save_weights(project.models / "tiny-s", published, sixteen)
    save_weights(Path("tiny-s"), random_model(replace(plan.shape, n_layer=1)), greys)  # a recipe comes before a folder
    for found in (ImageGPT.from_pretrained("tiny-s"), open_weights("tiny-s")[0]):
        assert torch.equal(found.wtet, published.wtet)
    save_weights(project.models / "tiny-s", random_model(replace(plan.shape, n_head=2)), sixteen)
    for read in (ImageGPT.from_pretrained, open_weights):
        with pytest.raises(UsageError, match="the weights found as .*tiny-s have another shape"):
            read("tiny-s")


def test_where_there_is_no_checkout_a_recipes_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_ROOT", str(tmp_path))
    for read in (ImageGPT.from_pretrained, open_weights):
        for name in ("laptop-m", "tiny-s"):
            with pytest.raises(
                UsageError, match=f"{name}, which is not among .* needs a checkout .*: clone it .*, or set IGPT_ROOT"
            ):
                read(name)


@pytest.mark.parametrize(("positions", "channels"), [(8, 1), (7, 3), (9, 2), (9, 4)])
def test_what_makes_no_picture_is_refused_by_the_commands(positions: int, channels: int, tmp_path: Path) -> None:
    colours = Palette(np.random.default_rng(0).uniform(-1, 1, (8, channels)).astype(np.float32))
    save_weights(tmp_path / "w", random_model(ModelShape(1, 8, 1, 8, positions)), colours)
    with pytest.raises(UsageError, match=f"has {positions} positions and colours of {channels} channels"):
        open_weights(str(tmp_path / "w"))
