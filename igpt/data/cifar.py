"""CIFAR-10 and CIFAR-100 from the official Python batches.

The batches are pickles, so their MD5 sums are checked before reading, and the unpickler constructs numpy arrays only.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.data.dataset import Archive, DataSet, Official, checked_bytes
from igpt.errors import UsageError

PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10": {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "cifar100": {"train": ("train",), "test": ("test",)},
}
LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
NAMES = {"cifar10": ("batches.meta", b"label_names"), "cifar100": ("meta", b"fine_label_names")}
SIDE = 32


def read_cifar(card: DataSet, split: Official) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,), in the files' order.

    Raises UsageError for a batch that is missing, has a wrong MD5 sum, or is not a batch.
    """
    images, labels = [], []
    for name in PARTS[card.name][split]:
        path = card.folder / name
        batch = read_batch(path, checked_bytes(path, card.files[name]))
        try:
            data: NDArray[np.uint8] = batch[b"data"]  # type: ignore[assignment]
            batch_labels = _labels(batch[LABELS[card.name]], card.classes)
            images.append(data.astype(np.uint8, casting="no").reshape(len(batch_labels), 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is not a batch of {card.title} ({error}): fetch it again") from None
        labels.append(batch_labels)
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


def _labels(labels: object, classes: int) -> NDArray[np.int64]:
    """Labels int64 (N,). Raises ValueError for anything but a list of class numbers."""
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise ValueError("its labels are not class numbers")
    return np.array(labels, dtype=np.int64)


def read_names(card: DataSet) -> list[str]:
    """The classes' names, by label."""
    part, key = NAMES[card.name]
    path = card.folder / part
    names = read_batch(path, checked_bytes(path, card.files[part])).get(key)
    if not isinstance(names, list) or len(names) != card.classes:
        raise UsageError(f"{path} does not name the classes of {card.title}: fetch it again")
    return [name.decode() for name in names]


def read_batch(path: Path, content: bytes) -> dict[object, object]:
    """The dictionary in a batch's pickle. Raises UsageError for any other content."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except UsageError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise errors of many types
        raise UsageError(f"{path} is not a batch of CIFAR ({type(error).__name__}): fetch it again") from None
    if not isinstance(batch, dict):
        raise UsageError(f"{path} is not a batch of CIFAR (it holds a {type(batch).__name__}): fetch it again")
    return batch


class _Unpickler(pickle.Unpickler):
    """An unpickler that constructs numpy arrays only."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            module = "numpy._core.multiarray"  # the module's name since numpy 2
        elif (module, name) not in {("numpy", "ndarray"), ("numpy", "dtype")}:
            raise UsageError(f"a batch of CIFAR asks for {module}.{name}, which none does: it is not the official file")
        return super().find_class(module, name)


TERMS = "no explicit licence; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
CIFAR10 = DataSet(
    name="cifar10",
    title="CIFAR-10",
    short="CIFAR-10",
    terms=TERMS,
    train=50_000,
    test=10_000,
    classes=10,
    height=SIDE,
    channels=3,
    held_out=0.1,
    names=read_names,
    read=read_cifar,
    split="7f11483b808e23c3a6b8929b0dc17b475484649c576bc81efd430b887dfff2fb",
    subfolder="cifar-10-batches-py",
    archives=(
        Archive(
            "cifar-10-python.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            170_498_071,
            "md5:c58f30108f718f92721af3b95e74349a",
        ),
    ),
    unpacked_bytes=200_000_000,
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
CIFAR100 = DataSet(
    name="cifar100",
    title="CIFAR-100",
    short="CIFAR-100",
    terms=TERMS,
    train=50_000,
    test=10_000,
    classes=100,
    height=SIDE,
    channels=3,
    held_out=0.1,
    names=read_names,
    read=read_cifar,
    split="554b0b35b5c4634f158b046ff2b380c80a45a4d4a8cf4b3ec5bd83aa3eda1aca",
    subfolder="cifar-100-python",
    archives=(
        Archive(
            "cifar-100-python.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            169_001_437,
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
        ),
    ),
    unpacked_bytes=200_000_000,
    files={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)
