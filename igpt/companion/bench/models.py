"""Models and data of the comparisons, random but the same for every candidate, and the limits of the machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from igpt.companion.bench.work import Work
from igpt.data.store import HEADER, LABELS, SHARD, VERSION, Header, TokenStore, shard_path, write_header
from igpt.errors import UsageError
from igpt.fast import Linear, prepacked
from igpt.files import write_array
from igpt.model import ImageGPT
from igpt.shape import SIZES, ModelShape
from igpt.weights.huggingface import write_huggingface

if TYPE_CHECKING:
    from transformers import ImageGPTForCausalImageModeling

IMAGES = 8  # per batch, in features and samples
S = ModelShape(*SIZES["igpt-s"], 512, 1024)
TOY = ModelShape(2, 256, 4, 64, 64)  # only shows that the comparison works
REPEATS = 20  # of a limit's operation, per measurement


def our_model(shape: ModelShape) -> ImageGPT:
    """The model in evaluation mode, the same for every candidate; the output matrix, initially zero, is random too."""
    model = ImageGPT(shape, seed=0).eval()
    with torch.no_grad():
        model.wtet.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    return model


def their_model(shape: ModelShape) -> ImageGPTForCausalImageModeling:
    """The same weights in transformers' own class. Raises UsageError when transformers is not installed."""
    try:
        from transformers import ImageGPTForCausalImageModeling, logging
    except ImportError:
        raise UsageError("the comparison is with transformers, which is not installed: pip install transformers") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_huggingface(Path(folder), our_model(shape))
        model: ImageGPTForCausalImageModeling = ImageGPTForCausalImageModeling.from_pretrained(folder).eval()
    return model


def random_tokens(shape: ModelShape, images: int) -> Tensor:
    """Random images, tokens int64 (images, positions)."""
    return torch.randint(shape.n_vocab, (images, shape.n_ctx), generator=torch.Generator().manual_seed(2))


def shifted_tokens(tokens: Tensor, start: int) -> Tensor:
    """The input with which transformers' model gives the same logits: the start token prepended, the last one dropped."""
    return torch.cat([torch.full((len(tokens), 1), start), tokens[:, :-1]], dim=1)


def random_store(shape: ModelShape, *, shards: int) -> tuple[tempfile.TemporaryDirectory[str], TokenStore]:
    """A temporary directory, removed when garbage-collected, and a token store of random images in it."""
    directory = tempfile.TemporaryDirectory(prefix="igpt-bench-")
    folder = Path(directory.name)
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
    return directory, TokenStore(folder)


def products(total: float, *, toy: bool, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Work:
    """``total`` operations as products of square matrices: the limit of arithmetic.

    On a CPU the weights are in oneDNN's layout, which is the fastest. Values are random: some cards are faster on ones.
    """
    side = 256 if toy else 8192 if device == "cuda" else 2048
    a, product = torch.randn(side, side).to(device, dtype), Linear(side, side).to(dtype)

    def run() -> None:
        with prepacked(product):
            for _ in range(REPEATS):
                product(a) if device == "cpu" else a @ a

    return Work(run, [], total / (REPEATS * 2 * side**3), device)


def reading(total: float, *, toy: bool, device: str = "cpu") -> Work:
    """Move ``total`` bytes: the limit of memory bandwidth. On a CPU they are read, on a GPU copied."""
    a = torch.randn(2**20 if toy else 2**28, device=device)
    b = torch.empty_like(a) if device == "cuda" else None

    def run() -> None:
        for _ in range(REPEATS):
            a.sum() if b is None else b.copy_(a)

    return Work(run, [], total / (REPEATS * (1 if b is None else 2) * 4 * a.numel()), device)
