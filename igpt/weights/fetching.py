"""How OpenAI's released weights come onto this machine, and how they are read.

A checkpoint carries a checksum of each of its variables, which is compared as each file comes and again by its reader; a
transfer must have the length that the server says. The last autoregressive weights lie at Hugging Face as well, which is
asked where OpenAI's server does not give them. What lies here in both makes must be the same weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from igpt.errors import UsageError
from igpt.fetch import Check, RemoteFile, Unavailable, fetch
from igpt.files import refuse_full_disk
from igpt.model import ImageGPT
from igpt.progress import Bar, tell
from igpt.weights.check import check_shape, shape_in_words
from igpt.weights.huggingface import TENSORS, huggingface_shape, read_huggingface, tensors_fault
from igpt.weights.released import Released
from igpt.weights.tensorflow import (
    DamagedFile,
    Index,
    index_path,
    needed_shards,
    read_index,
    read_tensorflow,
    shape_of,
    shard_fault,
)

Report = Callable[[int, int], None]

TOLERANCE = 2e-5  # between two makes of the same weights: both are float32, and one may have gone through other hands


def read_released(model: Released, *, report: Report | None = None) -> ImageGPT:
    """A released model, in evaluation mode on the CPU, downloaded where it is not at hand; ``report`` as `fetch_weights`.

    Raises UsageError as `fetch_weights` and the readers do, for another model under the name, and for a checkpoint and a
    folder of Hugging Face's that hold different weights.
    """
    places = fetch_weights(model, report=report)
    found = _read(model, places[0])
    for place in places[1:]:
        _check_same(model, found, _read(model, place))
    return found


def at_hand(model: Released) -> list[Path]:
    """Where a released model's weights lie whole on this machine: a checkpoint's prefix, Hugging Face's folder, or both.

    Raises UsageError for an index that is damaged.
    """
    found = []
    if index_path(model.prefix).exists():
        index = _index(model)
        if all(index.shard(number).exists() for number in needed_shards(index)):
            found.append(model.prefix)
    tensors = [model.mirrored / f"{name}{ending}" for name in TENSORS for ending in ("", ".index.json")]
    if model.mirror and (model.mirrored / "config.json").exists() and any(path.exists() for path in tensors):
        found.append(model.mirrored)
    return found


def fetch_weights(model: Released, *, report: Report | None = None) -> list[Path]:
    """As `at_hand`, at least one: what is not at hand is downloaded; stopped, the next call continues.

    Of OpenAI's server the index comes first. It says what every other file must hold, so that another model's checkpoint
    and a wrong shard are set aside as they come. Hugging Face is asked where that server cannot be reached or lacks a file.

    report : called with the bytes that have come and those of all weights; a bar on stderr when None
    Raises UsageError when the weights cannot be had, saying which files to put where, when what came is wrong, and when
    the disk is too full.
    """
    if found := at_hand(model):
        return found
    _check_space(model)
    try:
        _fetch_checkpoint(model, report)
        return [model.prefix]
    except Unavailable as error:
        first = str(error)
    if model.mirror is None:
        raise _cannot_be_had(model, first)
    try:
        _fetch_mirror(model, report)
        return [model.mirrored]
    except Unavailable as second:
        raise _cannot_be_had(model, f"{first}; {second}") from None


def _read(model: Released, place: Path) -> ImageGPT:
    """The model of one of the places where it lies."""
    try:
        found = read_huggingface(place) if place.is_dir() else read_tensorflow(place)
    except DamagedFile as error:
        raise _damaged(error) from None
    except UsageError as error:
        if not place.is_dir():
            raise
        raise UsageError(f"{error}; or delete {place}, and the same command fetches it again") from None
    check_shape(model.label, found.shape, model.shape)
    return found


def _check_same(model: Released, ours: ImageGPT, mirrored: ImageGPT) -> None:
    """Raise UsageError where the two makes of a model differ, naming the tensor that differs most."""
    theirs = mirrored.state_dict()
    apart = {name: float((tensor - theirs[name]).abs().max()) for name, tensor in ours.state_dict().items()}
    name = max(apart, key=lambda name: apart[name])
    if apart[name] > TOLERANCE:
        raise UsageError(
            f"the weights of {model.label} differ by up to {apart[name]:.2g} in {name} between {model.prefix.name} and"
            f" {model.mirrored}: move away the one that you trust less, and the same command goes on with the other"
        )


def _index(model: Released) -> Index:
    """The index that lies here. Raises UsageError for a damaged one."""
    try:
        return read_index(model.prefix)
    except DamagedFile as error:
        raise _damaged(error) from None


def _damaged(error: DamagedFile) -> UsageError:
    """What to say of a file that lies damaged under a released name: it alone need come again."""
    return UsageError(f"{error.path} {error.fault}: delete it, and the same command fetches it again")


def _index_fault(model: Released, path: Path) -> str:
    """What is wrong with the file at ``path`` as a model's index, or nothing."""
    try:
        found = shape_of(read_index(model.prefix, path))
    except DamagedFile as error:
        return error.fault
    except UsageError:
        return "is no index of an Image GPT"
    return "" if found == model.shape else f"is of another model ({shape_in_words(found)}), not of {model.label}"


def _fetch_checkpoint(model: Released, report: Report | None) -> None:
    """Have the index and each shard that holds weights."""
    faults = []

    def wrong_index(path: Path) -> str:
        faults.append(_index_fault(model, path))
        return faults[-1]

    folder, path = model.prefix.parent, index_path(model.prefix)
    try:
        _fetch(model, [path.name], model.address, folder, report, wrong_index)
    except UsageError as error:
        if not any(faults) or model.mirror is None:
            raise
        raise Unavailable(str(error), is_missing=False) from None  # a proxy's page, say, on the way to this address
    index = _index(model)
    check_shape(model.label, shape_of(index), model.shape)
    shards = {index.shard(number).name: number for number in needed_shards(index)}

    def wrong_shard(path: Path) -> str:
        return shard_fault(index, shards[path.name.removeprefix(".").removesuffix(".part")], path)

    _fetch(model, list(shards), model.address, folder, report, wrong_shard)


def _fetch_mirror(model: Released, report: Report | None) -> None:
    """Have Hugging Face's description and weights: safetensors, or a pickle where there are none."""
    assert model.mirror

    def wrong(path: Path) -> str:
        try:
            found = huggingface_shape(path)
        except UsageError as error:
            return f"describes no Image GPT ({error})"
        return "" if found == model.shape else f"is of another model ({shape_in_words(found)}), not of {model.label}"

    _fetch(model, ["config.json"], model.mirror, model.mirrored, report, wrong)
    safe, pickled = TENSORS
    try:
        _fetch(model, [safe], model.mirror, model.mirrored, report, partial(tensors_fault, safe, model.shape))
    except Unavailable as error:
        if not error.is_missing:
            raise
        _fetch(model, [pickled], model.mirror, model.mirrored, report, partial(tensors_fault, pickled, model.shape))


def _fetch(
    model: Released,
    names: list[str],
    address: str,
    folder: Path,
    report: Report | None,
    check: Check = lambda path: "",
) -> None:
    """Download files of a model into a folder; those that stand there are left."""
    if not (missing := [name for name in names if not (folder / name).exists()]):
        return
    what = missing[0] if len(missing) == 1 else f"{len(missing)} files"
    tell(f"igpt: fetching {model.label} ({what}) from {address} into {folder}")
    total, come = 4 * model.shape.parameters, 0  # of other files' sizes nothing is known
    with Bar(model.label, "B") as bar:

        def add(done: int, _: int | None) -> None:
            (report or bar)(min(come + done, total), total)

        for name in names:
            if name in missing:
                with refuse_full_disk(folder / name):
                    fetch(RemoteFile(name, (f"{address}/{name}",), None, None), folder, report=add, check=check)
            come += (folder / name).stat().st_size


def _check_space(model: Released) -> None:
    """Raise UsageError when what is still to come does not fit on the disk: four bytes a parameter, less what has come."""
    folder, stem = model.prefix.parent, model.prefix.name
    come = [path for pattern in (f"{stem}.data-*", f".{stem}.data-*.part") for path in folder.glob(pattern)]
    missing = 4 * model.shape.parameters - sum(path.stat().st_size for path in come)
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if missing > free:
        raise UsageError(
            f"the weights of {model.label} need {missing:,} more bytes and {folder} has {free:,} free: free"
            f" {missing - free:,} bytes, or let IGPT_WEIGHTS name a folder on another disk, then the same command continues"
        )


def _cannot_be_had(model: Released, why: str) -> UsageError:
    """What to say where no address gives the weights."""
    stem, last = model.prefix.name, model.shards - 1
    names = f"{stem}.index and {stem}.data-00000-of-{model.shards:05d} to {stem}.data-{last:05d}-of-{model.shards:05d}"
    return UsageError(
        f"the weights of {model.label} cannot be had: {why}; or put {names} from {model.address}/ into {model.prefix.parent}"
    )
