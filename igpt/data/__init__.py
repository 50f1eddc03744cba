"""Data sets by name: images and labels, the splits of section 3.1, and tokens on disk."""

from __future__ import annotations

from igpt.data.augment import shifted
from igpt.data.cards import DATASETS, data_card, split_digest
from igpt.data.dataset import DataSet, SplitName
from igpt.data.labelled import LabelledTokens
from igpt.data.splits import Split, held_out, load_split, low_data_subset, subsample, tokenize
from igpt.data.tokens import labelled_tokens

__all__ = [
    "DATASETS",
    "DataSet",
    "LabelledTokens",
    "Split",
    "SplitName",
    "data_card",
    "held_out",
    "labelled_tokens",
    "load_split",
    "low_data_subset",
    "shifted",
    "split_digest",
    "subsample",
    "tokenize",
]
