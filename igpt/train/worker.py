"""``python -m igpt.train.worker FILE``: one process of a group, as `igpt.train.launch` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from igpt.train.launch import work

if __name__ == "__main__":
    work(Path(sys.argv[1]))
