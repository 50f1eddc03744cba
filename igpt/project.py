"""Where things lie in a checkout: notebooks, runs, records, book."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# How much of the paper a run is: digits; CIFAR-10 on two cores; Tiny ImageNet on one GPU; as published, on a cluster.
TIERS = ("tiny", "laptop", "small", "paper")


@dataclass(frozen=True)
class Project:
    """The folders of one checkout."""

    root: Path

    @classmethod
    def here(cls) -> Project:
        """The checkout that ``IGPT_ROOT`` names, else the one this package was installed from."""
        return cls(Path(os.environ.get("IGPT_ROOT") or Path(__file__).resolve().parents[1]))

    @property
    def notebooks(self) -> Path:
        """The notebooks' sources."""
        return self.root / "notebooks"

    @property
    def runs(self) -> Path:
        """Artifacts of stages, one folder each; ignored by git and safe to delete."""
        return self.root / "runs"

    @property
    def models(self) -> Path:
        """The published models, one folder each."""
        return self.root / "book" / "models"

    @property
    def records(self) -> Path:
        """The records that the book reads, one folder a tier."""
        return self.root / "book" / "records"
