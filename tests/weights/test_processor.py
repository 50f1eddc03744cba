"""The colours and the filter of Hugging Face's folders, against the real library's image processor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import igpt_here as igpt
from PIL import Image

from igpt.companion.run.samples import Draw, export_weights, write_completions
from igpt.data.resize import fitted
from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.pretrained import open_weights
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import released_palette
from igpt.weights.processor import read_colours, read_resample
from igpt.weights.read import read_weights


@pytest.fixture
def folder(model: ImageGPT, tmp_path: Path) -> Path:
    """Weights of 8 colours and 3 by 3 pixels, without a palette."""
    write_huggingface(tmp_path / "hf", model)
    return tmp_path / "hf"


def palette_of(seed: int, *, colours: int = 8, channels: int = 3) -> Palette:
    return Palette(np.random.default_rng(seed).uniform(-1, 1, (colours, channels)).astype(np.float32))


def processor(folder: Path, **settings: object) -> None:
    """Write the configuration of an image processor as transformers writes it."""
    library = pytest.importorskip("transformers.models.imagegpt.image_processing_pil_imagegpt", reason="no transformers")
    library.ImageGPTImageProcessorPil(**settings).save_pretrained(folder)


def test_a_folders_own_colours_are_those_of_its_processor(folder: Path) -> None:
    reds = np.stack([np.linspace(0, 1, 8), np.full(8, -1), np.full(8, -1)], axis=1).astype(np.float32)
    processor(folder, clusters=reds.tolist())
    found, palette = open_weights(str(folder))
    assert found.shape.n_vocab == 8
    np.testing.assert_array_equal(palette.centres, reds)


def test_colours_in_the_newer_nested_configuration_come_first(folder: Path) -> None:
    nested, flat = palette_of(0), palette_of(1)
    processor(folder, clusters=flat.centres.tolist())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"clusters": nested.centres.tolist()}}))
    assert open_weights(str(folder))[1].digest == nested.digest
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Other"}))
    assert open_weights(str(folder))[1].digest == flat.digest


def test_without_colours_in_the_folder_its_number_decides(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"has 8 colours and no palette beside it; only the 512 released ones"):
        open_weights(str(folder))
    processor(folder)  # clusters are null
    with pytest.raises(UsageError, match=r"has 8 colours and no palette beside it"):
        open_weights(str(folder))


def test_two_palettes_that_differ_are_refused_and_equal_ones_agree(folder: Path) -> None:
    ours = palette_of(0)
    ours.save(folder / "palette.npy")
    processor(folder, clusters=[[round(float(c), 6) for c in centre] for centre in ours.centres])
    assert open_weights(str(folder))[1].digest == ours.digest
    processor(folder, clusters=palette_of(1).centres.tolist())
    with pytest.raises(UsageError, match=r"has two palettes that differ"):
        open_weights(str(folder))


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (palette_of(0, colours=7).centres.tolist(), "8 colours, and the palette beside it 7"),
        (palette_of(0, channels=2).centres.tolist(), r"shape \(8, 2\), not \(colours, 3\)"),
        ([0.5] * 8, r"shape \(8,\)"),
        ([[0.0, 0.0, 0.0]] * 7 + [[0.0]], "does not hold a palette"),
        ([], "does not hold a palette"),
        ([["red", "red", "red"]] * 8, "its clusters are not numbers"),
        ({"red": 1}, "its clusters are not numbers"),
        ([[0.0, 0.0, float("nan")]] * 8, "the clusters of .* are no palette: a palette is finite"),
        ([[0.0, 0.0, 10**400]] * 8, "not numbers|no palette"),
        ([[0.0, 0.0, 1e300]] * 8, "the clusters of .* are no palette: a palette is finite"),
        ([[255.0, 0.0, 0.0]] * 8, r"lie in \[-1, 1\], these reach from 0 to 255"),
    ],
)
def test_damaged_colours_are_refused_in_one_sentence(folder: Path, clusters: object, message: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"clusters": clusters}))
    with pytest.raises(UsageError, match=message) as caught:
        open_weights(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"\xff", b'{"clusters": '])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_a_damaged_configuration_of_the_processor_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} does not describe an image processor"):
        open_weights(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_normalize", False),
        ("do_rescale", False),
        ("do_color_quantize", False),
        ("rescale_factor", 1 / 127.5),
        ("image_mean", [0.485, 0.456, 0.406]),
        ("image_std", 0.25),
    ],
)
def test_a_processor_that_makes_other_values_of_pixels_is_refused(folder: Path, key: str, value: object) -> None:
    processor(folder, clusters=palette_of(0).centres.tolist(), **{key: value})
    with pytest.raises(UsageError, match=f"preprocessor_config.json has {key} "):
        open_weights(str(folder))


def test_a_processor_of_the_first_version_is_read(folder: Path) -> None:
    ours = palette_of(0)
    old = {
        "feature_extractor_type": "ImageGPTFeatureExtractor",
        "do_normalize": True,
        "do_resize": True,
        "resample": 2,
        "size": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps({**old, "clusters": ours.centres.tolist(), "image_mean": 0.5}))
    assert open_weights(str(folder))[1].digest == ours.digest


@pytest.mark.parametrize("channels", [1, 3])
def test_their_processor_opens_our_export_and_makes_our_tokens(tmp_path: Path, model: ImageGPT, channels: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    ours = palette_of(0, channels=channels)
    write_huggingface(tmp_path / "hf", model, ours)
    assert open_weights(str(tmp_path / "hf"))[1].digest == ours.digest
    library = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf", backend="pil")
    assert (library.size["height"], library.size["width"]) == (3, 3)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, channels)).astype(np.uint8)
    pictures = [Image.fromarray(image) for image in np.broadcast_to(images, (4, 3, 3, 3))]
    np.testing.assert_array_equal(library(pictures, return_tensors="np").input_ids, ours.quantize(images).reshape(4, 9))
    for number, size in enumerate([(300, 240), (7, 500), (2, 2)]):  # squeezed, as their processor resizes pictures
        levels = np.random.default_rng(number).integers(0, 256, (*size, channels)).astype(np.uint8)
        picture = Image.fromarray(np.broadcast_to(levels, (*size, 3)))
        squeezed = fitted(picture, side=3, channels=channels, resize="squeeze")[None]
        np.testing.assert_array_equal(library(picture, return_tensors="np").input_ids, ours.quantize(squeezed).reshape(1, 9))


def test_the_released_colours_written_with_fewer_digits_are_the_released_palette(tmp_path: Path) -> None:
    rounded = [[round(float(c), 7) for c in centre] for centre in released_palette().centres]
    processor(tmp_path, clusters=rounded)
    found = read_colours(tmp_path)
    assert found is not None
    assert found.digest == released_palette().digest


def test_samples_of_a_folder_of_reds_are_red_and_its_colours_go_through_every_command(folder: Path, tmp_path: Path) -> None:
    reds = np.stack([np.linspace(0, 1, 8), np.full(8, -1), np.full(8, -1)], axis=1)
    processor(folder, clusters=reds.tolist(), size={"height": 3, "width": 3})
    done = igpt("sample", "--model", str(folder), "--n", "4", "--out", "a.png", root=tmp_path)
    assert done.returncode == 0, done.stderr
    levels = np.rint(127.5 * (reds[:, 0] + 1))
    shown = {tuple(map(int, colour)) for colour in np.asarray(Image.open(tmp_path / "a.png")).reshape(-1, 3)} - {(128, 128, 128)}
    assert len(shown) > 3
    assert shown <= {(int(level), 0, 0) for level in levels}

    given = np.zeros((3, 3, 3), np.uint8)
    given[..., 0] = levels[[0, 3, 7]]
    Image.fromarray(given).save(tmp_path / "given.png")
    done = igpt("complete", "given.png", "--model", str(folder), "--n", "1", "--keep", "0.4", "--out", "b.png", root=tmp_path)
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(tmp_path / "b.png"))
    scale = sheet.shape[0] // 5
    np.testing.assert_array_equal(sheet[scale // 2 :: scale, scale // 2 :: scale][1:4, -4:-1], given)  # the original's tokens

    done = igpt("evaluate-loss", str(folder), root=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has other colours than the released tokens" in done.stderr


@pytest.mark.parametrize("filter_", [0, 1, 2, 3, 4, 5])
def test_a_picture_is_reduced_by_the_filter_that_the_processor_names(folder: Path, tmp_path: Path, filter_: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make install")
    ours = palette_of(0)
    processor(folder, clusters=ours.centres.tolist(), size={"height": 3, "width": 3}, resample=filter_)
    given = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8))
    given.save(tmp_path / "given.png")
    library = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = ours.dequantize(library([given], return_tensors="np").input_ids[0]).reshape(3, 3, 3)
    write_completions(str(folder), [tmp_path / "given.png"], Draw(n=1, seed=0), keep="top", out=tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    scale = sheet.shape[0] // 5
    np.testing.assert_array_equal(sheet[scale // 2 :: scale, scale // 2 :: scale][1:4, -4:-1], expected)


@pytest.mark.parametrize("filter_", [6, -1, "bicubic", 2.0, True])
def test_a_filter_that_does_not_exist_is_refused(folder: Path, filter_: object) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"resample": filter_}))
    with pytest.raises(UsageError, match=r"preprocessor_config\.json has resample"):
        read_resample(folder)


def test_damaged_colours_end_a_command_with_one_sentence_and_no_file(folder: Path, tmp_path: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"clusters": [[0.0, 0.0, 2.0]] * 8}))
    for words in (["sample", "--out", "a.png"], ["export", "exported", "--to", "huggingface"]):
        done = igpt(*words, "--model", str(folder), root=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "preprocessor_config.json" in done.stderr
    assert not (tmp_path / "a.png").exists()
    assert not (tmp_path / "exported").exists()


def test_a_tensorflow_checkpoint_has_the_palette_beside_it(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parent / "released_format" / "autoregressive", tmp_path / "tf")
    prefix = next((tmp_path / "tf").glob("*.index")).with_suffix("")
    colours = read_weights(prefix).shape.n_vocab
    palette_of(0, colours=colours).save(prefix.parent / "palette.npy")
    assert open_weights(str(prefix))[1].digest == palette_of(0, colours=colours).digest


def test_an_export_of_an_export_keeps_the_colours(folder: Path, tmp_path: Path) -> None:
    ours = palette_of(0)
    processor(folder, clusters=ours.centres.tolist())
    for to in ("ours", "huggingface"):
        export_weights(str(folder), tmp_path / to, to=to)
        assert open_weights(str(tmp_path / to))[1].digest == ours.digest
    (tmp_path / "huggingface" / "palette.npy").unlink()
    assert open_weights(str(tmp_path / "huggingface"))[1].digest == ours.digest
