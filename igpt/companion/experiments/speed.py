"""The aims for speed: the factor by which igpt should be faster than each peer. Written before the records, after first trials.

Factors are for two cores without a GPU, except for tasks whose name ends in ``_gpu``. Peers run with default settings, and
with glibc's allocator tuned, which helps them more than igpt. If the aim is a fraction of the machine's limit, the limit is
measured in the same run.
"""

from __future__ import annotations

from dataclasses import dataclass

from igpt.companion.stage import Stage

# The module of `igpt.companion.bench` with each task, by the task's name.
MODULES = {
    "sampling": "sampling",
    "features": "features",
    "pictures": "pictures",
    "quantise": "tokenise",
    "tokenise": "tokenise",
    "loading": "loading",
    "tokens": "loading",
    "training": "training",
    "training_s": "training",
    "tuning": "training",
    "probe": "probe",
    "probe_layers": "probe",
    "sampling_gpu": "sampling",
    "features_gpu": "features",
    "training_gpu": "training",
}


@dataclass(frozen=True)
class Aim:
    """``peer`` should take at least ``factor`` times as long as ``ours``, both named as in `igpt.companion.bench`."""

    task: str
    ours: str
    peer: str
    factor: float

    @property
    def stage(self) -> Stage:
        """The stage whose record decides the aim."""
        return Stage.of("speed", task=self.task)


AIMS = (
    Aim("sampling", "igpt", "transformers", 3.5),
    Aim("sampling", "igpt, tuned", "transformers, tuned", 1.7),
    Aim("sampling", "igpt", "a full forward pass a pixel", 150),
    Aim("features", "igpt", "transformers", 1.7),
    Aim("features", "igpt, tuned", "transformers, tuned", 1.25),
    Aim("features", "igpt, tuned", "limit: matrix products", 0.8),
    Aim("features", "igpt in bfloat16, tuned", "transformers, tuned", 2.8),
    Aim("pictures", "igpt, from the files", "igpt, from stored tokens", 0.9),
    Aim("quantise", "igpt", "transformers", 100),
    Aim("probe", "igpt", "scikit-learn to the same objective", 5),
    Aim("probe_layers", "reading the layer's features", "igpt", 20),
    Aim("loading", "loading the batch", "a training step on it", 100),
    Aim("tokens", "reading the batch", "a training step on it", 100),
    Aim("tokens", "reading it from the disk", "a training step on it", 2),
    Aim("training", "igpt, tuned", "nanoGPT's step, tuned", 1.0),
    Aim("training", "igpt, tuned", "transformers, tuned", 1.4),
    Aim("training", "igpt in bfloat16, tuned", "nanoGPT's step in bfloat16, tuned", 1.15),
    Aim("training", "the loop around a step", "igpt, tuned", 50),
    Aim("training_s", "igpt, tuned", "nanoGPT's step, tuned", 1.0),
    Aim("training_s", "igpt in bfloat16, tuned", "nanoGPT's step in bfloat16, tuned", 1.0),
    Aim("tuning", "a fine-tuning step, tuned", "a training step, tuned", 0.95),
    Aim("tuning", "a fine-tuning step in bfloat16, tuned", "a training step in bfloat16, tuned", 0.95),
    Aim("tokenise", "igpt", "the same decoding and resizing, no tokens", 0.9),
    # On a GPU, in bfloat16; written without access to one.
    Aim("sampling_gpu", "igpt", "transformers", 3.5),
    Aim("sampling_gpu", "igpt", "limit: copying the memory", 0.3),
    Aim("features_gpu", "igpt", "transformers", 1.25),
    Aim("features_gpu", "igpt", "limit: matrix products", 0.45),
    Aim("training_gpu", "iGPT-S", "limit: matrix products of iGPT-S", 0.45),
    Aim("training_gpu", "iGPT-L", "limit: matrix products of iGPT-L", 0.45),
    Aim("training_gpu", "fine-tuning iGPT-S", "iGPT-S", 0.95),
    Aim("training_gpu", "fine-tuning iGPT-L", "iGPT-L", 0.95),
)
SPEED_STAGES = tuple(dict.fromkeys(aim.stage for aim in AIMS))
