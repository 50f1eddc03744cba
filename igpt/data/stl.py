"""STL-10 from its binary files: images as three colour planes in column-major order, labels from 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from igpt.data.dataset import Archive, DataSet, Official, checked_bytes
from igpt.errors import UsageError

SIDE = 96


def read_stl(card: DataSet, split: Official) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (N, 96, 96, 3) and labels int64 (N,) from 0, in the files' order.

    Raises UsageError for a file that is missing, has a wrong MD5 sum, or is truncated. The 100,000
    images without labels are not used, as in the paper.
    """
    folder, sums = card.folder, card.files
    pixels = np.frombuffer(checked_bytes(folder / f"{split}_X.bin", sums[f"{split}_X.bin"]), np.uint8)
    labels = np.frombuffer(checked_bytes(folder / f"{split}_y.bin", sums[f"{split}_y.bin"]), np.uint8)
    if pixels.size != labels.size * 3 * SIDE * SIDE or not labels.size or not 1 <= labels.min() <= labels.max() <= 10:
        raise UsageError(f"{folder} does not hold {card.title}'s {split} images and labels: fetch it again")
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(images), labels.astype(np.int64) - 1


def read_names(card: DataSet) -> list[str]:
    """The classes' names, by label."""
    path = card.folder / "class_names.txt"
    try:
        names = path.read_text("ascii").split()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): fetch the data set again") from None
    except UnicodeDecodeError:
        names = []
    if len(names) != card.classes:  # no checksum of this file is published
        raise UsageError(f"{path} does not name the classes of {card.title}: fetch the data set again")
    return names


STL10 = DataSet(
    name="stl10",
    title="STL-10",
    short="STL-10",
    terms="images acquired from ImageNet; cite Coates, Lee and Ng, AISTATS 2011",
    train=5_000,
    test=8_000,
    classes=10,
    height=SIDE,
    channels=3,
    held_out=0.1,
    names=read_names,
    read=read_stl,
    split="b0de6f7496eb428579253786f72ff13baf35ea4a6551b6450686c013fb50775f",
    subfolder="stl10_binary",
    archives=(
        Archive(
            "stl10_binary.tar.gz",
            ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
            2_640_397_119,
            "md5:91f7769df0f17e558f3565bffb0c7dfb",
        ),
    ),
    unpacked_bytes=3_200_000_000,
    files={
        "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "5a34089d4802c674881badbb80307741",
        "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
    },
)
