"""Checkpoints: everything that a continued run needs, in one file; the newest good one is where it goes on."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from igpt.errors import UsageError
from igpt.weights.check import check_weights
from igpt.weights.own import load_tensors, save_tensors

KEPT = 2  # the newest, and the one before in case it is damaged


class OtherRun(UsageError):
    """A checkpoint of another run."""


@dataclass
class Losses:
    """Losses along a run, nats per token: one (step, train, validation) a milestone, step 0 included where they are known."""

    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)  # mean over the steps since the last milestone
    validation: list[float] = field(default_factory=list)  # of a fine-tune the accuracy, a fraction


@dataclass
class Progress:
    """How far a run is: steps done, the losses kept, and the sum of the losses since the last of these.

    window : losses of the steps since the last line of the metrics; lowest : the lowest mean of a line so far
    good : the step of the last line whose mean was as it should be
    metrics : the lines so far, whole, so that a continued run can write those of its folder anew
    """

    step: int = 0
    losses: Losses = field(default_factory=Losses)
    running: float = 0.0
    window: list[float] = field(default_factory=list)
    lowest: float | None = None
    good: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(folder: Path, run: str, state: dict[str, Tensor], progress: Progress) -> Path:
    """Write the state after ``progress.step`` steps, then remove older ones; where it is.

    The `KEPT` newest stay, and the newest from before the last good losses, in case the later ones are of a run that
    diverges. run : recipe, palette, data and seed; another run's checkpoint is refused by `load_checkpoint`
    state : parameters as ``model.NAME``, Adam's moments as ``adam.NAME.KEY``, whole
    """
    path = folder / f"checkpoint-{progress.step:07d}.safetensors"
    progress_text = json.dumps({**vars(progress), "losses": vars(progress.losses)})
    save_tensors(path, state, {"run": run, "progress": progress_text})
    before = [old for old in checkpoints(folder) if step_of(old) <= progress.good]
    for old in checkpoints(folder)[:-KEPT]:
        if old not in before[-1:]:
            old.unlink()
    return path


def load_checkpoint(folder: Path, run: str, shapes: dict[str, torch.Size]) -> tuple[dict[str, Tensor], Progress]:
    """The newest good checkpoint's state, and how far it is; nothing, and a run that has not begun, where there is none.

    shapes : of the whole state, by name
    A damaged one is set aside for the one before, with a warning; what is noticed is one that is cut short or does not
    hold what it should: these tensors in float32, all finite, and the progress of the step in its name. Raises UsageError
    when all are damaged, and for one of another run.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            tensors, metadata = load_tensors(path)
            if metadata["run"] != run:
                raise OtherRun(f"{path} is of another recipe, seed or data: give another folder")
            progress = _progress(metadata["progress"], step_of(path))
            check_weights(tensors, shapes, path, dtypes=[torch.float32])
        except OtherRun:
            raise
        except (UsageError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            path.replace(path.with_suffix(".damaged"))
            says = str(error).splitlines()[0]
            warnings.warn(f"{path} is damaged ({says}): going on from the checkpoint before it", stacklevel=2)
            continue
        return tensors, progress
    if found:
        raise UsageError(f"every checkpoint in {folder} is damaged, and was set aside: the same command trains from the start")
    return {}, Progress()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*.safetensors") if path.stem[11:].isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    """The steps that a checkpoint is after."""
    return int(path.stem.rpartition("-")[2])


def _progress(text: str, step: int) -> Progress:
    """What `save_checkpoint` wrote after ``step`` steps. Raises ValueError, KeyError or TypeError for something else."""
    kept = json.loads(text)
    found = Progress(**{**kept, "losses": Losses(**kept["losses"])})
    losses = found.losses
    numbers = [*losses.train, *losses.validation, found.running, *found.window, *([] if found.lowest is None else [found.lowest])]
    steps = [found.step, found.good, *losses.steps]
    if not all(type(number) is int for number in steps) or not all(type(number) is float for number in numbers):
        raise ValueError("its progress is not in numbers")
    if found.step != step or not all(0 <= number <= step for number in steps) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"its progress is not that of step {step}")
    if not len(losses.steps) == len(losses.train) == len(losses.validation):
        raise ValueError("its losses are not one per milestone")
    if not all(type(number) in (int, float) and math.isfinite(number) for line in found.metrics for number in line.values()):
        raise ValueError("its metrics are not lines of numbers")
    return found
