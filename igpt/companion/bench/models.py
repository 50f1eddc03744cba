"""The model that the comparisons run: iGPT-S's shape, random weights, the same ones for everybody."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from igpt.data.store import HEADER, LABELS, SHARD, VERSION, Header, TokenStore, shard_path, write_header
from igpt.errors import UsageError
from igpt.files import write_array
from igpt.model import ImageGPT
from igpt.shape import SIZES, ModelShape
from igpt.weights.huggingface import write_huggingface

if TYPE_CHECKING:
    from transformers import ImageGPTForCausalImageModeling

IMAGES = 8


def shape_of(toy: bool) -> ModelShape:
    """iGPT-S's shape, or one that only shows that the comparison works."""
    return ModelShape(2, 256, 4, 64, 64) if toy else ModelShape(*SIZES["igpt-s"], 512, 1024)


def our_model(toy: bool, shape: ModelShape | None = None) -> ImageGPT:
    """The model in evaluation mode, of another shape if given; its output matrix random too, which is zero untrained."""
    model = ImageGPT(shape or shape_of(toy), seed=0).eval()
    with torch.no_grad():
        model.wtet.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    return model


def their_model(toy: bool, shape: ModelShape | None = None) -> ImageGPTForCausalImageModeling:
    """The same weights in transformers' own class. Raises UsageError when transformers is not installed."""
    try:
        from transformers import ImageGPTForCausalImageModeling, logging
    except ImportError:
        raise UsageError("the comparison is with transformers, which is not installed: pip install transformers") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_huggingface(Path(folder), our_model(toy, shape))
        model: ImageGPTForCausalImageModeling = ImageGPTForCausalImageModeling.from_pretrained(folder).eval()
    return model


def some_tokens(model: ImageGPT) -> Tensor:
    """A batch of random images, tokens int64 (8, positions)."""
    size = (IMAGES, model.shape.n_ctx)
    return torch.randint(model.shape.n_vocab, size, generator=torch.Generator().manual_seed(2))


def shifted_tokens(tokens: Tensor, start: int) -> Tensor:
    """What transformers' model wants for the same logits: the start token in front, the last one dropped."""
    return torch.cat([torch.full((len(tokens), 1), start), tokens[:, :-1]], dim=1)


def random_store(shape: ModelShape, *, shards: int) -> tuple[tempfile.TemporaryDirectory[str], TokenStore]:
    """A folder that lasts as long as it is held, and a token store of random images in it."""
    kept = tempfile.TemporaryDirectory(prefix="igpt-bench-")
    folder = Path(kept.name)
    generator = np.random.default_rng(0)
    for shard in range(shards):
        write_array(shard_path(folder, shard), generator.integers(0, shape.n_vocab, (SHARD, shape.n_ctx)).astype(np.uint16))
    write_array(folder / LABELS, np.zeros(shards * SHARD, np.int64))
    header = Header(
        version=VERSION,
        dataset="imagenet",
        split="train",
        resolution=round(shape.n_ctx**0.5),
        filter="bicubic",
        crops=0,
        seed=0,
        palette_sha256="",
        images=shards * SHARD,
        held_out_sha256="",
    )
    write_header(folder / HEADER, header)
    return kept, TokenStore(folder)
