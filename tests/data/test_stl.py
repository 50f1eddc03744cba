from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from official import Publish, pictures, refusal, stl_files, write

from igpt.data import data_card, load_split
from igpt.data.fetching import check_dataset
from igpt.data.stl import read_names, read_stl

SUMMED = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")


def publish_stl(publish: Publish, home: Path, **other: bytes) -> Path:
    """A small STL-10; files may be given other content, by their names with a _ for the dot."""
    files = stl_files(pictures(20, 96), pictures(10, 96, seed=1))
    files |= {name.replace("_bin", ".bin").replace("_txt", ".txt"): content for name, content in other.items()}
    publish("stl10", files={name: files[name] for name in SUMMED}, train=20, test=10)
    write(home / "stl10_binary", files)
    return home / "stl10_binary"


def test_images_are_turned_upright_and_labels_begin_at_0(home: Path, publish: Publish) -> None:
    folder = publish_stl(publish, home)
    images, labels = read_stl(data_card("stl10"), "train")
    np.testing.assert_array_equal(images, pictures(20, 96))
    assert labels.tolist() == 2 * list(range(10)) and labels.dtype == np.int64
    # the second byte of the file is the pixel below the first, not the one beside it
    assert (folder / "train_X.bin").read_bytes()[1] == images[0, 1, 0, 0]
    assert read_names(data_card("stl10"))[9] == "class9"
    assert len(load_split("stl10", "validation")) == 2
    assert load_split("stl10", "test", side=32).images.shape == (10, 32, 32, 3)
    assert len(check_dataset("stl10")) == 4


@pytest.mark.parametrize(
    "other",
    [
        {"test_y_bin": bytes([0] + [1] * 9)},
        {"test_y_bin": bytes([11] + [1] * 9)},
        {"test_y_bin": bytes([1] * 9)},
        {"test_y_bin": b""},
        {"test_X_bin": b""},
        {"test_X_bin": bytes(10 * 96 * 96 * 3 - 1)},
        {"test_X_bin": b"", "test_y_bin": b""},
    ],
    ids=["label 0", "label 11", "fewer labels", "no labels", "no images", "cut short", "nothing"],
)
def test_what_does_not_fit_together_is_refused(home: Path, publish: Publish, other: dict[str, bytes]) -> None:
    publish_stl(publish, home, **other)
    assert "does not hold STL-10's test images and labels" in refusal(read_stl, data_card("stl10"), "test")


def test_one_flipped_bit_and_a_missing_file_are_seen(home: Path, publish: Publish) -> None:
    folder = publish_stl(publish, home)
    content = bytearray((folder / "train_y.bin").read_bytes())
    content[3] ^= 1
    (folder / "train_y.bin").write_bytes(content)
    assert "train_y.bin is damaged or another file" in refusal(load_split, "stl10", "train")
    (folder / "test_X.bin").unlink()
    assert "`igpt data fetch stl10` brings it" in refusal(load_split, "stl10", "test")


@pytest.mark.parametrize("content", [None, b"", b"airplane\nbird\n", b"\xff\xfe\x00"], ids=["missing", "empty", "short", "bytes"])
def test_names_that_are_none_are_refused(home: Path, publish: Publish, content: bytes | None) -> None:
    path = publish_stl(publish, home) / "class_names.txt"
    path.unlink() if content is None else path.write_bytes(content)
    assert refusal(read_names, data_card("stl10")).startswith(str(path))
    refusal(check_dataset, "stl10")
