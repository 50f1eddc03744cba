"""The released palette as the book's pages have it."""

from __future__ import annotations

import json
from importlib.resources import as_file, files

import numpy as np

from igpt.palette import Palette


def released_palette_json() -> str:
    """The 512 released colours as text: ``centres`` in [-1, 1] and ``colours`` in 0 .. 255, by token."""
    with as_file(files("igpt.weights") / "released_palette.npy") as path:
        palette = Palette.load(path)
    centres = [[float(c) for c in centre] for centre in palette.centres]
    return json.dumps({"centres": centres, "colours": palette.dequantize(np.arange(len(palette))).tolist()}) + "\n"
