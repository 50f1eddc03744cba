"""OpenAI's released checkpoints by name: their addresses, their local paths, and which are on this machine.

Sizes and checksums of the files are not published. `igpt.weights.fetching` downloads them; this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from igpt.errors import UsageError
from igpt.fetch import OPENAI
from igpt.project import configured_folder
from igpt.shape import SIZES, ModelShape, Objective
from igpt.weights.tensorflow_index import index_path, read_index

STEPS = (131_000, 262_000, 524_000, 1_000_000)
LAST_STEP = STEPS[-1]
POSITIONS, COLOURS = 1024, 512
MIRROR = "https://huggingface.co/openai"
MIRRORED = {"igpt-s": "imagegpt-small", "igpt-m": "imagegpt-medium", "igpt-l": "imagegpt-large"}  # after the last step
TENSORS = ("model.safetensors", "pytorch_model.bin")  # Hugging Face's; the second is a pickle, read only if the first is missing
AGAIN = "; or delete the file, and the same command downloads it again"


@dataclass(frozen=True)
class Released:
    """One released model after one of its steps: its name, number of shards, and shape."""

    name: str
    shards: int
    shape: ModelShape
    step: int = LAST_STEP

    @property
    def label(self) -> str:
        """The name in commands, such as ``igpt-s@131000``."""
        return self.name if self.step == LAST_STEP else f"{self.name}@{self.step}"

    @property
    def prefix(self) -> Path:
        """The local path of the checkpoint, without ``.index``."""
        return weights_home() / self.name / f"model.ckpt-{self.step}"

    @property
    def address(self) -> str:
        """The address of the checkpoint's folder on OpenAI's server."""
        return f"{OPENAI}/checkpoints/{self.name}/{self.step}"

    @property
    def mirror(self) -> str | None:
        """The address of the same weights' folder at Hugging Face; None if they are not mirrored."""
        if self.name not in MIRRORED or self.step != LAST_STEP:
            return None
        return f"{MIRROR}/{MIRRORED[self.name]}/resolve/main"

    @property
    def mirrored(self) -> Path:
        """The local folder of Hugging Face's files."""
        return self.prefix.parent / "huggingface"


OBJECTIVES: dict[str, Objective] = {"": "autoregressive", "-bert": "bert"}
RELEASED = {
    f"{size}{ending}": Released(f"{size}{ending}", shards, ModelShape(*SIZES[size], COLOURS, POSITIONS, objective))
    for size, shards in (("igpt-s", 32), ("igpt-m", 32), ("igpt-l", 64))
    for ending, objective in OBJECTIVES.items()
}


def weights_home() -> Path:
    """The folder of released weights: ``IGPT_WEIGHTS``, else ``~/.cache/igpt/weights``."""
    return configured_folder("IGPT_WEIGHTS", "~/.cache/igpt/weights")


def at_hand(model: Released) -> list[Path]:
    """Local paths of a released model that are complete: a checkpoint's prefix, Hugging Face's folder, both or none.

    Raises UsageError for a damaged index.
    """
    paths = []
    if index_path(model.prefix).exists():
        try:
            index = read_index(model.prefix)
        except UsageError as error:
            raise UsageError(f"{error}{AGAIN}") from None
        if all(path.exists() for path in index.weight_shards.values()):
            paths.append(model.prefix)
    tensors = [model.mirrored / f"{name}{ending}" for name in TENSORS for ending in ("", ".index.json")]
    if model.mirror and (model.mirrored / "config.json").exists() and any(path.exists() for path in tensors):
        paths.append(model.mirrored)
    return paths


def released_model(name: str) -> Released | None:
    """The released model called ``igpt-s``, ``igpt-s-bert``, ``igpt-s@131000`` and so on; None for any other name.

    Raises UsageError for a step after which no weights were released.
    """
    model, separator, step = name.partition("@")
    if model not in RELEASED:
        return None
    if not separator:
        return RELEASED[model]
    if step not in map(str, STEPS):
        raise UsageError(f"{model} was not released after {step or 'no'} steps: write {model}@ and {_listed(STEPS)}")
    return replace(RELEASED[model], step=int(step))


def released_at(model: str, objective: str, step: int) -> Released:
    """The released weights of a recipe after a step. Raises UsageError if there are none."""
    ending = "-bert" if objective == "bert" else ""
    if model not in RELEASED or model.endswith("-bert"):
        names = [name for name, known in RELEASED.items() if known.shape.objective == "autoregressive"]
        raise UsageError(f"OpenAI released no {objective} weights of {model}: choose one of {', '.join(names)}")
    if step not in STEPS:
        raise UsageError(f"OpenAI released no weights of {model} after {step:,} steps: choose {_listed(STEPS)}")
    return replace(RELEASED[f"{model}{ending}"], step=step)


def _listed(steps: tuple[int, ...]) -> str:
    """Steps in words."""
    return f"{', '.join(map(str, steps[:-1]))} or {steps[-1]}"
