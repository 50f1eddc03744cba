"""A training and a fine-tuning step on a GPU, against the card's rate of products: iGPT-S and iGPT-L."""

from __future__ import annotations

from functools import partial

import torch

from igpt.companion.bench.gpu import multiplying, place, waited
from igpt.companion.bench.models import our_model
from igpt.companion.bench.training import TOY
from igpt.companion.bench.work import Candidate, Task, Work
from igpt.evaluate.fine_tune import Classifier, JointLoss
from igpt.shape import SIZES, ModelShape
from igpt.train.cost import training_flops
from igpt.train.distributed import Distributed, GenerativeLoss

IMAGES = {"igpt-s": 64, "igpt-l": 8}  # at once, of each model


def _ours(toy: bool, *, size: str, classes: int = 0) -> Work:
    """A training step; with ``classes``, a fine-tuning step."""
    device = place(toy)
    model = our_model(toy, _shape(toy, size))
    size_of_batch = (2 if toy else IMAGES[size], model.shape.n_ctx)
    tokens = torch.randint(model.shape.n_vocab, size_of_batch, generator=torch.Generator().manual_seed(2)).to(device)
    batch = (tokens, None, tokens[:, 0] % classes) if classes else (tokens,)
    loss = JointLoss(Classifier(model, classes), weight=1.0) if classes else GenerativeLoss(model)
    spread = Distributed(loss, learning_rate=1e-4, betas=(0.9, 0.95), device=device, compiled=not toy)

    def run() -> None:
        spread.optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            found = spread.loss(*batch)
        found.backward()
        spread.optimizer.step()

    run()
    run()
    return waited(run, device, [])


def _products(toy: bool, *, size: str) -> Work:
    """As many operations in square products, attention in full as it is usually counted."""
    total = training_flops(_shape(toy, size), 2 if toy else IMAGES[size])
    return multiplying(place(toy), toy=toy, total=total)


def _shape(toy: bool, size: str) -> ModelShape:
    """A published size at 32x32, or one that only shows that the comparison works."""
    return TOY if toy else ModelShape(*SIZES[size], 512, 1024)


TASK = Task(
    "A training step on a GPU, bfloat16, at 32x32: iGPT-S on 64 images, iGPT-L on 8",
    tuple(
        candidate
        for size, name in (("igpt-s", "iGPT-S"), ("igpt-l", "iGPT-L"))
        for candidate in (
            Candidate(name, partial(_ours, size=size)),
            Candidate(f"fine-tuning {name}", partial(_ours, size=size, classes=10)),
            Candidate(f"limit: matrix products of {name}", partial(_products, size=size)),
        )
    ),
)
