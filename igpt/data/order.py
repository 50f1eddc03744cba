"""Orders of images that are the same under every version of every library: by SHA-256, with nothing drawn."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def stable_order(salt: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """``indices`` in an order that depends on them and ``salt`` alone."""
    keys = [hashlib.sha256(f"{salt} {index}".encode()).digest() for index in indices.tolist()]
    return indices[sorted(range(len(indices)), key=keys.__getitem__)]


def index_digest(indices: NDArray[np.int64]) -> str:
    """SHA-256 of indices, as little-endian int64."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
