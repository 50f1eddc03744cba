"""Image GPT made reproducible: the model, the paper's evaluations, and the book of their results."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from igpt.project import resolve_folders

if TYPE_CHECKING:
    from igpt.palette import Palette as Palette
    from igpt.pretrained import ImageGPT as ImageGPT

__version__ = "0.1.0"

# Set before torch is imported, for this process and its children: waiting OpenMP threads sleep instead of spinning.
# Beside other work on two cores, sixteen samples then took 13 s instead of 44; alone, as long as before. libgomp reads
# the variable once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
resolve_folders()

# Public names and their modules, imported on first use, so that `import igpt` does not import torch.
_PUBLIC = {"ImageGPT": "igpt.pretrained", "Palette": "igpt.palette"}
__all__ = ["ImageGPT", "Palette", "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'igpt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
