"""Images and labels in a user's ``.npz`` file; pickled objects and sizes that the file does not hold are refused.

Also the writing of such files in pieces.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.files import file_size
from igpt.machine import free_memory
from igpt.text import listed, visible

# Names of the arrays of images and labels, and the part that they are; the last two are Keras' and MedMNIST's.
LONGEST = 255  # characters of a class's name
PAIRS = (
    (("images", "labels", ""),),
    (("x_train", "y_train", "train"), ("x_val", "y_val", "val"), ("x_test", "y_test", "test")),
    (("train_images", "train_labels", "train"), ("val_images", "val_labels", "val"), ("test_images", "test_labels", "test")),
)


def labelled_arrays(path: Path) -> dict[str, tuple[NDArray[np.uint8], list[str], str]]:
    """Images, labels and part (empty if it is not given) by the name of the images' array.

    Images are uint8 (N, H, W) or (N, H, W, channels) of one, three or four channels; labels are integers or text, (N,) or
    (N, 1). Raises UsageError for anything else.
    """
    try:
        file_size(path)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
            pairs = next((pairs for pairs in PAIRS if {pairs[0][0], pairs[0][1]} <= members.keys()), None)
            if pairs is None:
                raise UsageError(
                    f"{path} holds {listed(sorted(members), most=6) or 'no arrays'}: it needs images and labels, or x_train,"
                    " y_train, x_test and y_test"
                )
            if alone := [pair for pair in pairs if len({pair[0], pair[1]} & members.keys()) == 1]:
                raise UsageError(f"{path} has only one of {alone[0][0]} and {alone[0][1]}: give both, or neither")
            wanted = [pair for pair in pairs if {pair[0], pair[1]} <= members.keys()]
            size = sum(members[name].file_size for pair in wanted for name in pair[:2])
            if size > free_memory() / 2:
                raise UsageError(
                    f"{path} takes {size / 1e9:.1f} GB of memory, more than half of what is free: give a folder instead"
                )
            arrays = {name: _read(archive, members[name]) for pair in wanted for name in pair[:2]}
    except UsageError:
        raise
    except Exception as error:  # damaged archives and headers raise errors of many types
        reason = visible((str(error).splitlines() or [type(error).__name__])[0], limit=120)
        raise UsageError(f"{path} is not an .npz file of images and labels ({reason}): write it with numpy.savez") from None
    return {images: _checked(path, arrays[images], arrays[labels], images, labels, part) for images, labels, part in wanted}


def array_member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> IO[bytes]:
    """An array of an ``.npz`` file, to which its values are to be written in pieces."""
    member = archive.open(f"{name}.npy", "w", force_zip64=True)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)  # numpy's type of a file is narrower
    return member


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array. Raises ValueError for pickled objects, and for another size than its header says."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects")
        if stream.tell() + dtype.itemsize * int(np.prod(shape, dtype=object)) != member.file_size:
            raise ValueError(f"{member.filename} has another size than its header says")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _checked(
    path: Path, images: NDArray[Any], labels: NDArray[Any], image_name: str, label_name: str, part: str
) -> tuple[NDArray[np.uint8], list[str], str]:
    """Images and labels as `labelled_arrays` returns them."""
    if (
        images.dtype != np.uint8
        or not images.size
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in (1, 3, 4))
    ):
        raise UsageError(
            f"{image_name} of {path} is {images.dtype} {images.shape}: images are uint8 (N, height, width) or (N, height, width,"
            " channels) with 1, 3 or 4 channels"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuU":
        raise UsageError(
            f"{label_name} of {path} is {labels.dtype} {labels.shape}: labels are an integer or a text for each of the"
            f" {len(images):,} images"
        )
    try:
        names = [str(label) for label in labels.tolist()]
        if any(not name.strip() or len(name) > LONGEST or name.encode() != name.strip().encode() for name in names):
            raise ValueError("a name is empty, too long, or has spaces around it")
    except (ValueError, SystemError) as error:  # crafted characters
        raise UsageError(f"{label_name} of {path} are no names of classes ({error}): write others") from None
    return images, names, part
