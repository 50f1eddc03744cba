"""The folder of a pre-training as weights: those of its newest checkpoint or milestone, also while it is running.

`igpt.train.loop` writes ``checkpoint-STEP.safetensors``, of which old ones are removed as the run goes on, ``weights-STEP``
folders in our format, and ``palette.npy``. A checkpoint holds the weights as ``model.NAME``, and in its metadata as ``run``
the recipe in JSON, the palette's digest, and what else identifies the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from igpt.errors import UsageError
from igpt.files import cannot_read
from igpt.model import ImageGPT
from igpt.palette import RELEASED, Palette
from igpt.progress import tell
from igpt.shape import ModelShape
from igpt.weights.check import check_fits, check_weights, shapes_of
from igpt.weights.own import load_tensors, load_weights, read_config, released_palette

METRICS = "metrics.jsonl"  # written when a training starts
Result = TypeVar("Result")


def is_training(path: Path) -> bool:
    """Whether a path is the folder of a training, and not of weights."""
    return not (path / "config.json").exists() and ((path / METRICS).exists() or bool(_saved(path)))


def read_training(folder: Path) -> tuple[ImageGPT, int]:
    """The newest weights in the folder of a training, in evaluation mode on the CPU; and their step, which is also printed.

    A damaged checkpoint is passed over, which is printed too. Raises UsageError when there are no weights yet, and when all
    are damaged.
    """
    model, path, damaged = _newest(folder, _read)
    for fault in damaged:
        tell(f"igpt: {fault}; taking the one before it")
    tell(f"igpt: {folder} holds a training, read after step {step_of(path):,}")
    return model, step_of(path)


def training_shape(folder: Path) -> ModelShape:
    """The shape of a training's model. Raises as `read_training` does."""
    return _newest(folder, _described)[0][0]


def training_palette(folder: Path) -> Palette:
    """The palette of a training's tokens. Raises as `read_training` does, and for a palette that is not in the folder."""
    digest = _newest(folder, _described)[0][1]
    for path in (folder / "palette.npy", *(saved / "palette.npy" for saved in _saved(folder) if saved.is_dir())):
        if path.exists() and (palette := Palette.load(path)).digest == digest:
            return palette
    if digest != RELEASED:
        raise UsageError(
            f"{folder} holds a training without its palette, whose digest is {digest[:12]}: put its palette.npy there"
        )
    return released_palette()


def training_files(folder: Path) -> list[Path]:
    """The files of the weights that `read_training` reads, and of their palette if there is one. Raises as it does."""
    path = _newest(folder, _described)[1]
    if path.is_dir():
        return [path / name for name in ("config.json", "model.safetensors", "palette.npy")]
    return [path, *(file for file in [folder / "palette.npy"] if file.exists())]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*.safetensors") if path.stem[11:].isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    """The number of steps in the name of a checkpoint or a milestone's folder."""
    return int(path.stem.rpartition("-")[2])


def _saved(folder: Path) -> list[Path]:
    """Checkpoints and milestones' folders, the newest first; of the same step the folder first."""
    milestones = [path for path in folder.glob("weights-*") if path.name[8:].isdecimal() and path.is_dir()]
    found = [path for path in checkpoints(folder) if path.exists()] + milestones
    return sorted(found, key=lambda path: (step_of(path), path.is_dir()), reverse=True)


def _newest(folder: Path, read: Callable[[Path], Result]) -> tuple[Result, Path, list[str]]:
    """What ``read`` returns of the newest weights that it can read; their path; and the faults of newer ones.

    A checkpoint may vanish between listing and reading, since a running training removes old ones.
    """
    while saved := _saved(folder):
        faults: list[str] = []
        for path in saved:
            try:
                return read(path), path, faults
            except UsageError as error:
                if path.exists():
                    faults.append(str(error))
        if faults:
            raise UsageError(faults[0])
    raise UsageError(f"the training in {folder} has saved no weights yet: wait for its first checkpoint or milestone")


def _read(path: Path) -> ImageGPT:
    """The model in a checkpoint or a milestone's folder. Raises UsageError when it is damaged."""
    if path.is_dir():
        return load_weights(path)[0]
    tensors, metadata = load_tensors(path)
    shape, _ = _identified(path, metadata)
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    check_fits(path, shape, tensors=len(weights), size=sum(tensor.nbytes for tensor in weights.values()))
    with torch.device("meta"):
        model = ImageGPT(shape)
    check_weights(weights, shapes_of(model), path, dtypes=[torch.float32])
    model.to_empty(device="cpu").load_state_dict(weights)
    return model.eval()


def _described(path: Path) -> tuple[ModelShape, str]:
    """The shape of the weights in a checkpoint or a milestone's folder, and their palette's digest."""
    if path.is_dir():
        shape, digest = read_config(path)
        return shape, str(digest)
    return _identified(path, load_tensors(path)[1])


def _identified(path: Path, metadata: dict[str, str]) -> tuple[ModelShape, str]:
    """Shape and palette's digest in a checkpoint's metadata. Raises UsageError for another kind of training's."""
    try:
        run = metadata["run"]
        recipe, end = json.JSONDecoder().raw_decode(run)
        return ModelShape(**recipe["shape"]), run[end:].split()[0]
    except (KeyError, IndexError, ValueError, TypeError, RecursionError) as error:
        raise cannot_read(path, error, "is not a checkpoint of pre-training", advice="give the folder of one") from None
