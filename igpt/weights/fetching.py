"""Download OpenAI's released weights, and read them.

A checkpoint contains a checksum of each variable, which is verified after each download and again on reading. The last
autoregressive weights are mirrored at Hugging Face, which is the second address. If both are on this machine, their weights
must be equal.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from igpt.errors import UsageError
from igpt.fetch import RemoteFile, Unavailable, fetch
from igpt.files import refuse_full_disk
from igpt.model import ImageGPT
from igpt.progress import Bar, tell
from igpt.shape import ModelShape
from igpt.weights.check import check_shape, shape_in_words
from igpt.weights.huggingface import check_file, huggingface_shape, read_huggingface
from igpt.weights.released import AGAIN, TENSORS, Released, at_hand
from igpt.weights.tensorflow import check_shard, read_tensorflow, shape_of
from igpt.weights.tensorflow_index import index_path, read_index

Report = Callable[[int, int], None]
Read = Callable[[Path], ModelShape | None]  # raises UsageError for a damaged file

TOLERANCE = 2e-5  # between two formats of the same weights: both are float32, and one may have been converted in between


def read_released(model: Released, *, report: Report | None = None) -> ImageGPT:
    """A released model, in evaluation mode on the CPU, downloaded if it is missing; ``report`` as in `fetch_weights`.

    Raises UsageError as `fetch_weights` and the readers do, for weights of a different shape than the name requires, and if
    the checkpoint's and Hugging Face's weights differ.
    """
    networks = []
    for path in fetch_weights(model, report=report):
        try:
            networks.append(read_huggingface(path) if path.is_dir() else read_tensorflow(path))
        except UsageError as error:
            raise UsageError(f"{error}{AGAIN}") from None
        check_shape(model.label, networks[-1].shape, model.shape)
    first, *others = networks
    for other in others:
        other_state = other.state_dict()
        differences = {name: float((tensor - other_state[name]).abs().max()) for name, tensor in first.state_dict().items()}
        name = max(differences, key=lambda name: differences[name])
        if differences[name] > TOLERANCE:
            raise UsageError(
                f"the weights of {model.label} differ by up to {differences[name]:.2g} in {name} between {model.prefix.name} and"
                f" {model.mirrored}: move away the one that you trust less, and the same command goes on with the other"
            )
    return first


def fetch_weights(model: Released, *, report: Report | None = None) -> list[Path]:
    """Paths as `at_hand`, at least one: missing weights are downloaded; the next call resumes an interrupted download.

    From OpenAI's server the index is downloaded first. It determines the content of all other files, so that the checkpoint
    of a different model and a wrong shard are set aside once received. Hugging Face is the fallback.

    report : called with the bytes received and the total bytes; a bar on stderr when None
    Raises UsageError when the download fails, with the files to put into which folder, and when the disk is full.
    """
    if paths := at_hand(model):
        return paths
    _check_space(model)
    downloads = {model.prefix: _fetch_checkpoint}
    if model.mirror:
        downloads[model.mirrored] = _fetch_mirror
    failures = []
    for path, download in downloads.items():
        with refuse_full_disk(model.prefix.parent):
            try:
                download(model, report)
                return [path]
            except UsageError as error:
                failures.append(str(error))
                if model.mirror and len(failures) == 1:
                    tell(f"igpt: {error}; downloading from Hugging Face instead")
    stem, last = model.prefix.name, model.shards - 1
    names = f"{stem}.index and {stem}.data-00000-of-{model.shards:05d} to {stem}.data-{last:05d}-of-{model.shards:05d}"
    raise UsageError(
        f"the weights of {model.label} cannot be had: {'; '.join(failures)}; or put {names} from {model.address}/ into"
        f" {model.prefix.parent}"
    )


def _fetch_checkpoint(model: Released, report: Report | None) -> None:
    """Download the index, and each shard that contains weights."""
    folder, index_file = model.prefix.parent, index_path(model.prefix)
    _fetch(model, model.address, folder, {index_file.name: lambda path: shape_of(read_index(model.prefix, path))}, report)
    index = read_index(model.prefix)
    check_shape(model.label, shape_of(index), model.shape)
    shards = {path.name: partial(check_shard, index, number) for number, path in index.weight_shards.items()}
    _fetch(model, model.address, folder, shards, report)


def _fetch_mirror(model: Released, report: Report | None) -> None:
    """Download Hugging Face's configuration and weights: safetensors, or else a pickle."""
    fetch_file = partial(_fetch, model, str(model.mirror), model.mirrored, report=report)
    fetch_file({"config.json": huggingface_shape})
    safe, pickled = ({name: partial(check_file, name, model.shape)} for name in TENSORS)
    try:
        fetch_file(safe)
    except Unavailable as error:
        if not error.is_missing:
            raise
        fetch_file(pickled)


def _fetch(model: Released, address: str, folder: Path, reads: Mapping[str, Read], report: Report | None) -> None:
    """Download the files of a model that are missing in the folder.

    reads : by file name, a function that reads a received file and returns its model's shape, if the file determines it
    """

    def fault(read: Read, path: Path) -> str:
        try:
            shape = read(path)
        except UsageError as error:
            return str(error).removeprefix(f"{path} ").rpartition(": ")[0]
        if shape is None or shape == model.shape:
            return ""
        return f"is of another model ({shape_in_words(shape)}), not of {model.label}"

    if not (missing := [name for name in reads if not (folder / name).exists()]):
        return
    what = missing[0] if len(missing) == 1 else f"{len(missing)} files"
    tell(f"igpt: fetching {model.label} ({what}) from {address} into {folder}")
    total, received = 4 * model.shape.parameters, 0  # the size of all files together is not known
    with Bar(model.label, "B") as bar:

        def add(done: int, _: int | None) -> None:
            (report or bar)(min(received + done, total), total)

        for name, read in reads.items():
            if name in missing:
                file = RemoteFile(name, (f"{address}/{name}",), None, None)
                fetch(file, folder, report=add, check=partial(fault, read))
            received += (folder / name).stat().st_size


def _check_space(model: Released) -> None:
    """Raise UsageError when the missing bytes do not fit on the disk: four per parameter, less the bytes received."""
    folder, stem = model.prefix.parent, model.prefix.name
    received = [path for pattern in (f"{stem}.data-*", f".{stem}.data-*.part") for path in folder.glob(pattern)]
    missing = 4 * model.shape.parameters - sum(path.stat().st_size for path in received)
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if missing > free:
        raise UsageError(
            f"the weights of {model.label} need {missing:,} more bytes and {folder} has {free:,} free: free"
            f" {missing - free:,} bytes, or let IGPT_WEIGHTS name a folder on another disk, then the same command continues"
        )
