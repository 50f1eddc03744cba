"""`igpt complete --keep`: which part of a picture is given, and what it changes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import igpt_here, random_model
from PIL import Image

from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.own import save_weights

LINE = 128


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small colour model of 8 x 8 pixels, untrained but for its output."""
    centres = np.random.default_rng(0).uniform(-1, 1, (12, 3)).astype(np.float32)
    save_weights(tmp_path / "weights", random_model(ModelShape(2, 16, 2, 12, 64)), Palette(centres))
    for seed, size in enumerate([(8, 8), (40, 60)]):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photo-{seed}.png")
    return tmp_path / "weights"


def complete(weights: Path, keep: str, *, photo: int = 0, n: int = 2) -> subprocess.CompletedProcess[str]:
    """The command in this process, in the folder of the weights."""
    words = ("--model", str(weights), "--keep", keep, "--n", str(n), "--out", "out.png")
    return igpt_here("complete", f"photo-{photo}.png", *words, root=weights.parent)


def cells(weights: Path) -> list[np.ndarray]:
    """The images of the one row: the given part, completions, the original."""
    sheet = np.asarray(Image.open(weights.parent / "out.png"))[6::12, 6::12]
    return [sheet[1:9, 1 + 9 * x : 9 + 9 * x] for x in range(sheet.shape[1] // 9)]


def given(weights: Path) -> np.ndarray:
    """Which pixels are given, as the sheet shows it, bool (8, 8); completions are checked to keep them."""
    part, *completed, original = cells(weights)
    kept = (part != LINE).any(-1)
    assert not (original == LINE).all(-1).any()
    for image in completed:
        assert (image[kept] == original[kept]).all()
    assert (completed[0] != completed[1]).any(-1)[~kept].mean() > 0.5
    return kept


CHECKERED = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((2, 2))).astype(bool)


@pytest.mark.parametrize("scale", [1, 3, 12])
@pytest.mark.parametrize("photo", [0, 1])
def test_a_mask_of_any_size_gives_what_is_white(weights: Path, tmp_path: Path, scale: int, photo: int) -> None:
    Image.fromarray(np.kron(255 * CHECKERED, np.ones((scale, scale))).astype(np.uint8)).save(tmp_path / "mask.png")
    done = complete(weights, "mask.png", photo=photo)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The model looks back only: " in done.stdout
    assert (given(weights) == CHECKERED).all()


def test_a_mask_is_reduced_to_the_nearest_pixels_and_not_to_means(weights: Path, tmp_path: Path) -> None:
    mask = np.kron(~CHECKERED, np.ones((3, 3), bool))
    mask[1::3, 1::3] = CHECKERED  # the middle of each block, against its other eight pixels
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert complete(weights, "mask.png").returncode == 0
    assert (given(weights) == CHECKERED).all()


def test_a_mask_is_cut_as_the_picture_is(weights: Path, tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 10:30] = 255  # the left half of the central square
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert complete(weights, "mask.png", photo=1).returncode == 0
    left = np.zeros((8, 8), bool)
    left[:, :4] = True
    assert (given(weights) == left).all()


def test_a_half_and_its_mask_give_the_same_completions(weights: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 8, 4))
    mask.save(tmp_path / "mask.png")
    done = complete(weights, "top")
    expected = (tmp_path / "out.png").read_bytes()
    assert complete(weights, "mask.png").stdout == done.stdout
    assert (tmp_path / "out.png").read_bytes() == expected


ROWS = np.repeat(np.arange(8), 8).reshape(8, 8)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16", "CMYK"])
def test_masks_of_any_kind_are_cut_at_half_white(weights: Path, tmp_path: Path, mode: str) -> None:
    levels = np.array([0, 255, 127, 128, 0, 255, 100, 200], np.uint8)[ROWS]
    if mode == "1":
        levels = np.where(levels >= 128, np.uint8(255), np.uint8(0))
    picture = Image.fromarray(257 * levels.astype(np.uint16)) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    picture.save(tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png"))
    done = complete(weights, "mask.tif" if mode == "CMYK" else "mask.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (given(weights) == (levels >= 128)).all()


def test_what_is_transparent_in_a_mask_is_not_given(weights: Path, tmp_path: Path) -> None:
    white, black = np.full((8, 8), 255, np.uint8), np.zeros((8, 8), np.uint8)
    alpha = np.array([0, 255, 120, 135, 0, 255, 0, 255], np.uint8)[ROWS]
    for name, grey in (("white.png", white), ("black.png", black)):
        Image.fromarray(np.stack([grey, grey, grey, alpha], 2)).save(tmp_path / name)
    assert complete(weights, "white.png").returncode == 0
    assert (given(weights) == (alpha >= 128)).all()
    done = complete(weights, "black.png")
    assert done.returncode == 2
    assert done.stderr.startswith("igpt: black.png keeps nothing of a picture of 8 x 8 pixels: make white what is given")
    for mode, name, one in (("L", "grey.png", 200), ("I;16", "deep.png", 60_000)):  # one level is the transparent one
        levels = np.where(ROWS < 4, one, 0).astype(np.uint16 if mode == "I;16" else np.uint8)
        levels[2:4] = one - 1
        Image.fromarray(levels).save(tmp_path / name, transparency=one)
        assert complete(weights, name).returncode == 0
        assert (given(weights) == ((ROWS == 2) | (ROWS == 3))).all(), mode


@pytest.mark.parametrize(("level", "word"), [(255, "everything"), (0, "nothing")])
def test_a_mask_that_keeps_everything_or_nothing_is_refused(weights: Path, tmp_path: Path, level: int, word: str) -> None:
    mask = np.full((80, 80), level, np.uint8)
    mask[0, 0] = 255 - level  # which no pixel of the model's sees
    Image.fromarray(mask).save(tmp_path / "mask.png")
    done = complete(weights, "mask.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"igpt: mask.png keeps {word} of a picture of 8 x 8 pixels: make white what is given, and black or transparent what is"
        " to be drawn\n"
    )
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("mask.png", "--keep takes top, left, right, bottom, a fraction from 0 up to but not 1, or a mask's file, and no file is"
         " called 'mask.png': choose one of them"),
        ("", "--keep takes top, left, right, bottom, "),
        ("Top", "--keep takes "),
        ("nan", "--keep takes "),
        ("-0.5", "--keep takes "),
        ("1.0", "--keep takes "),
        ("\x00", "--keep takes "),
        ("text.png", "text.png is not an image that can be read: give a PNG, a JPEG or the like"),
        ("empty.png", "empty.png is empty: copy it again"),
        ("cut.png", "cut.png is damaged ("),
        ("drawing.svg", "drawing.svg is a drawing, not pixels: export it as PNG"),
        (".", ". cannot be read (it is a folder): "),
        ("pipe", "pipe cannot be read (it is no regular file): "),
        ("large.png", "large.png has 2.0 million pixels, and up to 1 million are opened: reduce it, or set IGPT_MAX_MEGAPIXELS=2 "),
        ("0.5", "--keep 0.5 is a fraction and also a file here: give ./0.5 for the file, or move it away"),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_one_sentence_before_weights_are_opened(
    weights: Path, tmp_path: Path, keep: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_MAX_MEGAPIXELS", "1")
    monkeypatch.setattr("igpt.companion.run.samples.open_weights", lambda model: 1 / 0)
    Image.fromarray((255 * CHECKERED).astype(np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "0.5").write_bytes((tmp_path / "cut.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    Image.new("L", (2000, 1000)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("a text")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe")
    done = complete(weights, keep)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"igpt: {message}"), done.stderr
    assert not (tmp_path / "out.png").exists()


def test_a_mask_with_a_fractions_name_is_taken_by_its_path(weights: Path, tmp_path: Path) -> None:
    Image.fromarray((255 * CHECKERED).astype(np.uint8)).save(tmp_path / "0.5", "PNG")
    assert complete(weights, "./0.5").returncode == 0
    assert (given(weights) == CHECKERED).all()


@pytest.mark.parametrize("keep", ["right", "bottom"])
def test_what_comes_later_does_not_change_what_is_drawn_before(weights: Path, keep: str) -> None:
    drawn = []
    for photo in (0, 1):
        assert complete(weights, keep, photo=photo).returncode == 0
        drawn.append(np.stack(cells(weights)[1:-1]))
    words = ("sample", "--model", str(weights), "--n", "2", "--out", "out.png")
    assert igpt_here(*words, root=weights.parent).returncode == 0
    free = np.stack(cells(weights))
    before = (slice(None), slice(1), slice(4)) if keep == "right" else (slice(None), slice(4))
    assert (drawn[0][before] == drawn[1][before]).all()
    assert (drawn[0][before] == free[before]).all()
    if keep == "right":
        assert (drawn[0][:, 1:, :4] != drawn[1][:, 1:, :4]).any(), "the row above is given, and changes what is drawn"


@pytest.mark.parametrize("side", [1, 3, 5])
def test_halves_of_odd_sides_are_of_one_size(tmp_path: Path, side: int) -> None:
    from igpt.companion.run.samples import _kept

    kept = {keep: _kept(keep, side=side).reshape(side, side) for keep in ("top", "bottom", "left", "right")}
    assert (kept["top"] == kept["bottom"][::-1, ::-1]).all()
    assert (kept["left"] == kept["right"][:, ::-1]).all()
    assert not (kept["top"] & kept["bottom"]).any()
    assert not (kept["left"] & kept["right"]).any()
