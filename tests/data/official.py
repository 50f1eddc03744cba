"""Small data sets in the official formats, and what publishes them: declarations with their sizes and sums."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from igpt.data import cards, splits
from igpt.data.dataset import Archive, Official, index_digest
from igpt.data.jpegs import Jpegs, imagenet_jpegs, tiny_jpegs
from igpt.errors import UsageError
from igpt.palette import Palette

WNIDS = ["n01440764", "n01443537", "n02119789"]
PARENT = "n00001740"  # a synset with subclasses, which is no class
COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32))

Publish = Callable[..., None]


def publisher(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """A function that replaces a data set's declaration for the length of a test."""

    def publish(
        name: str, *, files: dict[str, bytes] | None = None, archive: bytes | None = None, address: str = "", **card: object
    ) -> None:
        known = cards.DATASETS[name]
        if files is not None:
            card["files"] = {path: md5(content) for path, content in files.items()}
            card["unpacked_bytes"] = sum(map(len, files.values())) + 4096
        if archive is not None:
            first = Archive(known.archives[0].name, (address,) if address else (), len(archive), f"md5:{md5(archive)}")
            card["archives"] = (first, *known.archives[1:])
        monkeypatch.setitem(cards.DATASETS, name, replace(known, **card))  # type: ignore[arg-type]
        forget()
        if known.split:
            digest = index_digest(splits.held_out(name))
            monkeypatch.setitem(cards.DATASETS, name, replace(cards.DATASETS[name], split=digest))

    forget()
    return publish


def forget() -> None:
    """Empty what is remembered of a data set."""
    splits.held_out.cache_clear()


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> str:
    """The one sentence with which a call refuses."""
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert text and "\n" not in text and ". " not in text, text
    return text


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Files below a folder."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


# CIFAR


def python2_pickle(value: object) -> bytes:
    """What Python 2's cPickle writes of dictionaries, lists, strings, small numbers and arrays of bytes, protocol 2."""
    return b"\x80\x02" + _emit(value) + b"."


def _emit(value: object) -> bytes:
    match value:
        case dict():
            return b"}(" + b"".join(_emit(key) + _emit(item) for key, item in value.items()) + b"u"
        case list():
            return b"](" + b"".join(map(_emit, value)) + b"e"
        case bytes() if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case np.ndarray():
            return array_pickle(value.tobytes(), value.shape, value.dtype.str.strip("|").encode())
    raise TypeError(type(value))


def array_pickle(content: bytes, shape: tuple[int, ...], dtype: bytes = b"u1") -> bytes:
    """An array in the middle of a pickle, with what shape and type one likes."""
    sizes = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", size) for size in shape) + b"t"
    kind = b"cnumpy\ndtype\n" + _emit(dtype) + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    begun = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return begun + b"(K\x01" + sizes + kind + b"\x89" + _emit(content) + b"tb"


def pictures(count: int, side: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """Random images uint8 (count, side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def cifar_batch(images: NDArray[np.uint8], labels: list[int], key: bytes = b"labels") -> bytes:
    """A batch as the official files have it."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    names = [b"picture_s_%06d.png" % place for place in range(len(labels))]
    batch: dict[bytes, object] = {b"batch_label": b"training batch 1 of 5", key: labels, b"data": planes, b"filenames": names}
    if key == b"fine_labels":
        batch[b"coarse_labels"] = [label // 5 for label in labels]
    return python2_pickle(batch)


def cifar10_files(train: NDArray[np.uint8], test: NDArray[np.uint8], classes: int = 10) -> dict[str, bytes]:
    """The seven files of CIFAR-10, labels in turn."""
    parts = np.array_split(np.arange(len(train)), 5)
    files = {f"data_batch_{i}": cifar_batch(train[part], (part % classes).tolist()) for i, part in enumerate(parts, start=1)}
    files["test_batch"] = cifar_batch(test, (np.arange(len(test)) % classes).tolist())
    names = [b"class%d" % label for label in range(classes)]
    files["batches.meta"] = python2_pickle({b"num_cases_per_batch": 10000, b"label_names": names, b"num_vis": 3072})
    return files


def publish_cifar10(publish: Publish, home: Path, *, train: int = 60, test: int = 20, classes: int = 10) -> None:
    """A small CIFAR-10, laid out and published."""
    files = cifar10_files(pictures(train), pictures(test, seed=1), classes)
    publish("cifar10", files=files, train=train, test=test, classes=classes)
    write(home / "cifar-10-batches-py", files)


# STL-10


def stl_files(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> dict[str, bytes]:
    """STL-10's binaries: three planes an image, each column by column; labels from 1."""
    files = {"class_names.txt": b"\n".join(b"class%d" % label for label in range(10)) + b"\n"}
    for name, images in (("train", train), ("test", test)):
        files[f"{name}_X.bin"] = b"".join(image[:, :, c].T.tobytes() for image in images for c in range(3))
        files[f"{name}_y.bin"] = bytes(1 + place % 10 for place in range(len(images)))
    return files


# ImageNet and Tiny ImageNet


def jpeg(seed: int, size: tuple[int, int] = (16, 12), mode: str = "RGB", format: str = "JPEG") -> bytes:
    """A picture in a file: from one colour to another, which its seed decides, so that crops of it differ."""
    left, right = np.random.default_rng(seed).integers(0, 256, (2, 1, 1, 3))
    way = np.add.outer(np.linspace(0, 0.5, size[1]), np.linspace(0, 0.5, size[0]))[..., None]
    out = io.BytesIO()
    Image.fromarray(np.uint8(left + way * (right - left))).convert(mode).save(out, format)
    return out.getvalue()


def tar_of(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], compression: str = "") -> bytes:
    """A tar of files, in this order; a member that is no plain file is given as its TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = info.size or len(content)
            tar.addfile(info, io.BytesIO(content) if content else None)
    return gzip.compress(out.getvalue(), mtime=0) if compression else out.getvalue()


def train_jpegs(each: int = 3) -> dict[str, list[tuple[str, bytes]]]:
    """Training pictures by class."""
    return {
        wnid: [(f"{wnid}_{10 * number}.JPEG", jpeg(100 * label + number)) for number in range(1, each + 1)]
        for label, wnid in enumerate(WNIDS)
    }


VAL_TRUTH = [2, 0, 1, 1, 2, 0]  # labels of the validation pictures


def val_jpegs() -> list[tuple[str, bytes]]:
    """Validation pictures, in the order of their names."""
    return [(f"ILSVRC2012_val_{place + 1:08d}.JPEG", jpeg(1000 + place)) for place in range(len(VAL_TRUTH))]


def devkit(truth: list[int] | None = None, *, ids: dict[str, int] | None = None) -> bytes:
    """The development kit: its numbers of the classes are not in the order of the labels, and a parent is among them."""
    from scipy.io import savemat

    numbers = ids or {WNIDS[0]: 3, WNIDS[1]: 1, WNIDS[2]: 2}
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    rows = [(number, wnid, "a thing", 0, np.array([], np.uint8)) for wnid, number in numbers.items()]
    rows.append((len(numbers) + 1, PARENT, "entity", 2, np.array([1, 2], np.uint16)))
    mat = io.BytesIO()
    savemat(mat, {"synsets": np.array(rows, dtype=fields)[:, None]}, do_compression=True)
    lines = "".join(f"{numbers[WNIDS[label]]}\n" for label in (VAL_TRUTH if truth is None else truth))
    root = "ILSVRC2012_devkit_t12"
    files = [("readme.txt", b"read me"), ("data/meta.mat", mat.getvalue())]
    files.append(("data/ILSVRC2012_validation_ground_truth.txt", lines.encode()))
    return tar_of([(f"{root}/{path}", content) for path, content in files], "gz")


def imagenet_tars(each: int = 3) -> dict[str, bytes]:
    """The three official files."""
    inner = [(f"{wnid}.tar", tar_of(files)) for wnid, files in train_jpegs(each).items()]
    return {
        "ILSVRC2012_img_train.tar": tar_of(inner),
        "ILSVRC2012_img_val.tar": tar_of(val_jpegs()),
        "ILSVRC2012_devkit_t12.tar.gz": devkit(),
    }


def imagenet_folders(each: int = 3, *, flat: bool = False) -> dict[str, bytes]:
    """The same as folders: train/<wnid>/, and val/<wnid>/ or val/ with the development kit beside it."""
    files = {f"train/{wnid}/{name}": content for wnid, found in train_jpegs(each).items() for name, content in found}
    for label, (name, content) in zip(VAL_TRUTH, val_jpegs(), strict=True):
        files[f"val/{name}" if flat else f"val/{WNIDS[label]}/{name}"] = content
    if flat:
        files["ILSVRC2012_devkit_t12.tar.gz"] = devkit()
    return files


def tiny_imagenet(each: int = 3) -> dict[str, bytes]:
    """Tiny ImageNet's tree."""
    files = {}
    for label, wnid in enumerate(WNIDS):
        names = [f"{wnid}_{number}.JPEG" for number in range(each)]
        files |= {f"train/{wnid}/images/{name}": jpeg(100 * label + k, (64, 64)) for k, name in enumerate(names)}
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"".join(b"%s\t0\t0\t62\t62\n" % name.encode() for name in names)
    files |= {f"val/images/val_{place}.JPEG": jpeg(1000 + place, (64, 64)) for place in range(len(VAL_TRUTH))}
    lines = [f"val_{place}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n" for place, label in reversed(list(enumerate(VAL_TRUTH)))]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["wnids.txt"] = "".join(f"{wnid}\n" for wnid in reversed(WNIDS)).encode()  # not sorted, as published
    return files


def publish_imagenet(publish: Publish, home: Path, files: dict[str, bytes], *, each: int = 3) -> None:
    """A small ImageNet, laid out and published."""
    kit = replace(cards.DATASETS["imagenet"].archives[2], checksum=f"md5:{md5(devkit())}")
    archives = (*cards.DATASETS["imagenet"].archives[:2], kit)
    publish("imagenet", train=3 * each, test=len(VAL_TRUTH), classes=3, archives=archives)
    write(home / "imagenet", files)


def open_jpegs(name: str, split: Official) -> Jpegs:
    """A split of ImageNet or Tiny ImageNet."""
    return (imagenet_jpegs if name == "imagenet" else tiny_jpegs)(cards.data_card(name), split)
