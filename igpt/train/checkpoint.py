"""Checkpoints: the whole state of a run in one file; a run resumes from the newest undamaged one."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from igpt.errors import UsageError
from igpt.weights.check import check_weights
from igpt.weights.own import load_tensors, save_tensors
from igpt.weights.training_run import checkpoints, step_of

KEPT = 2  # checkpoints: the newest, and the one before in case it is damaged


@dataclass
class Losses:
    """Losses along a run, nats per token: one (step, train, validation) per milestone, and for step 0 if known."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)  # mean over the steps since the last milestone
    validation: list[float] = field(default_factory=list)  # in fine-tuning the accuracy, as a fraction


@dataclass
class Progress:
    """Progress of a run: steps done, losses, and the sum of the training losses since the last milestone.

    window : losses of the steps since the last line of metrics
    lowest : the lowest window mean so far
    good : the step at the end of the last window that had not diverged
    metrics : all lines of metrics so far, so that a resumed run can rewrite its file
    """

    __pydantic_config__: ClassVar = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    step: int = 0
    losses: Losses = field(default_factory=Losses)
    running: float = 0.0
    window: list[float] = field(default_factory=list)
    lowest: float | None = None
    good: int = 0
    metrics: list[dict[str, int | float]] = field(default_factory=list)


def save_checkpoint(folder: Path, run: str, state: dict[str, Tensor], progress: Progress) -> Path:
    """Write the state after ``progress.step`` steps and return its path, then remove older checkpoints.

    The `KEPT` newest stay, and the newest that is not after the last good window, in case the run diverges.
    run : recipe, palette, data and seed; `load_checkpoint` refuses another run's checkpoint
    state : parameters as ``model.NAME``, Adam's moments as ``adam.NAME.KEY``, unsharded
    """
    path = folder / f"checkpoint-{progress.step:07d}.safetensors"
    save_tensors(path, state, {"run": run, "progress": json.dumps(asdict(progress))})
    good = [old for old in checkpoints(folder) if step_of(old) <= progress.good]
    for old in checkpoints(folder)[:-KEPT]:
        if old not in good[-1:]:
            old.unlink()
    return path


def load_checkpoint(folder: Path, run: str, shapes: dict[str, torch.Size]) -> tuple[dict[str, Tensor], Progress]:
    """State and progress of the newest good checkpoint; without one, an empty state and the progress of a new run.

    shapes : of the whole state, by name
    A damaged checkpoint (truncated, or without valid progress and finite float32 tensors of these shapes) is set aside with
    a warning. Raises UsageError when all are damaged, and for another run's checkpoint.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            tensors, metadata = load_tensors(path)
            same_run = metadata["run"] == run
            if same_run:
                progress = _progress(metadata["progress"], step_of(path))
                check_weights(tensors, shapes, path, dtypes=[torch.float32])
        except (UsageError, ValueError, KeyError) as error:
            path.replace(path.with_suffix(".damaged"))
            reason = str(error).splitlines()[0]
            warnings.warn(f"{path} is damaged ({reason}): going on from the checkpoint before it", stacklevel=2)
            continue
        if not same_run:
            raise UsageError(
                f"{path} is of another recipe, seed or data: give another folder, and --from {folder} to begin from these weights"
            )
        return tensors, progress
    if paths:
        raise UsageError(f"every checkpoint in {folder} is damaged, and was set aside: the same command trains from the start")
    return {}, Progress()


def _progress(text: str, step: int) -> Progress:
    """The progress that `save_checkpoint` wrote after ``step`` steps. Raises ValueError for anything else."""
    progress = TypeAdapter(Progress).validate_json(text)
    losses = progress.losses
    if progress.step != step or not all(0 <= earlier <= step for earlier in (progress.good, *losses.steps)):
        raise ValueError(f"its progress is not that of step {step}")
    if not len(losses.steps) == len(losses.train) == len(losses.validation):
        raise ValueError("its losses are not one per milestone")
    return progress
