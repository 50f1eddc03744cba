"""Run stages on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igpt.companion.run.notebook import open_stage as open_stage


def __getattr__(name: str) -> object:
    """Import `open_stage` on first use: `igpt sample` does not need the libraries that run notebooks."""
    if name != "open_stage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from igpt.companion.run.notebook import open_stage

    return open_stage
