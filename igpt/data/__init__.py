"""Data sets by name: images and labels, the splits of section 3.1, and tokens on disk."""

from __future__ import annotations

from igpt.data.augment import shifted
from igpt.data.cards import DATASETS, DataCard, data_card, split_digest
from igpt.data.splits import Split, SplitName, a_part, held_out, load_split, low_data_subset, split_indices, tokenize

__all__ = [
    "DATASETS",
    "DataCard",
    "Split",
    "SplitName",
    "a_part",
    "data_card",
    "held_out",
    "load_split",
    "low_data_subset",
    "shifted",
    "split_digest",
    "split_indices",
    "tokenize",
]
