"""Image GPT, made reproducible: the model, its protocols, and the book they fill."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from igpt.project import resolve_folders

if TYPE_CHECKING:
    from igpt.palette import Palette as Palette
    from igpt.pretrained import ImageGPT as ImageGPT

__version__ = "0.1.0"

# What every process of ours, and each one that it starts, needs to have in its environment before torch is loaded.
# Threads that wait for others leave the core: beside other work on two cores, sixteen samples took 13 s and not 44, and
# alone as long as before. libgomp reads this once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
resolve_folders()

# Public names and where they live; importing igpt alone stays light (no torch).
_PUBLIC = {"ImageGPT": "igpt.pretrained", "Palette": "igpt.palette"}
__all__ = ["ImageGPT", "Palette", "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'igpt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
