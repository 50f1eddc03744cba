"""STL-10 out of its binary files: images as three planes, each column by column; labels from 1."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from igpt.data.cards import data_card, data_files, data_folder
from igpt.data.cifar import checked_bytes
from igpt.errors import UsageError

SIDE = 96


def read_stl(name: str, split: Literal["train", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (N, 96, 96, 3) and labels int64 (N,) from 0, in the files' order.

    Raises UsageError for a file that is missing, has another sum than published, or is cut short. The 100,000
    images without labels are left alone, as in the paper.
    """
    folder, sums = data_folder(name), data_files(name).files
    pixels = np.frombuffer(checked_bytes(folder / f"{split}_X.bin", sums[f"{split}_X.bin"]), np.uint8)
    labels = np.frombuffer(checked_bytes(folder / f"{split}_y.bin", sums[f"{split}_y.bin"]), np.uint8)
    if pixels.size != labels.size * 3 * SIDE * SIDE or not labels.size or not 1 <= labels.min() <= labels.max() <= 10:
        raise UsageError(f"{folder} does not hold {data_card(name).title}'s {split} images and labels: fetch it again")
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(images), labels.astype(np.int64) - 1


def read_names(name: str) -> list[str]:
    """The classes' names, by label."""
    path = data_folder(name) / "class_names.txt"
    try:
        found = path.read_text("ascii").split()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: fetch the data set again") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): fetch the data set again") from None
    except UnicodeDecodeError:
        found = []
    if len(found) != data_card(name).classes:  # no sum of this file is published
        raise UsageError(f"{path} does not name the classes of {data_card(name).title}: fetch the data set again")
    return found
