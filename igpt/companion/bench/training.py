"""A training step (ours, nanoGPT's and transformers'), a fine-tuning step, and the overhead of our loop per step."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.companion.bench.models import S, our_model, products, random_store, random_tokens, shifted_tokens, their_model
from igpt.companion.bench.work import Candidate, Task, Work, both, device_of
from igpt.evaluate.fine_tune import Classifier, JointLoss
from igpt.fast import compile_module
from igpt.shape import SIZES, ModelShape
from igpt.train import engine
from igpt.train.distributed import Distributed, GenerativeLoss, Loss
from igpt.train.loop import draw_batch
from igpt.train.recipe import Recipe, training_flops
from igpt.train.runtime import Runtime

L = ModelShape(*SIZES["igpt-l"], 512, 1024)
SHAPE = ModelShape(8, 256, 8, 512, 1024)
TOY = ModelShape(2, 64, 2, 64, 64)
IMAGES = 2
CLASSES = 10
LOOPS = 200


class Peer(nn.Module):
    """nanoGPT's model, written from its description: GPT-2's blocks without biases, PyTorch's fused attention and GELU."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.wte = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.wpe = nn.Embedding(shape.n_ctx, shape.n_embd)
        self.blocks = nn.ModuleList(PeerBlock(shape) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd, bias=False)
        self.head = nn.Linear(shape.n_embd, shape.n_vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss with the input tokens as targets, not shifted, which takes the same time."""
        h = self.wte(tokens) + self.wpe.weight
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy(self.head(self.ln_f(h)).flatten(0, 1), tokens.flatten())


class PeerBlock(nn.Module):
    """A block of `Peer`."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width, self.n_head = shape.n_embd, shape.n_head
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.fc, self.out = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.qkv(self.ln_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.proj(y)
        h: Tensor = x + self.out(F.gelu(self.fc(self.ln_2(x))))
        return h


def _ours(
    toy: bool, *, shape: ModelShape = SHAPE, images: int = IMAGES, classes: int = 0, half: bool = False, gpu: bool = False
) -> Work:
    """A step as in `igpt train`: compiled. With ``classes``, a fine-tuning step.

    The head starts at zero, so that fine-tuning's first loss is the training step's plus log ``classes``. On a GPU
    models of several sizes take turns, so their answers are not compared.
    """
    device = device_of(toy, gpu=gpu)
    model = our_model(TOY if toy else shape)
    tokens = random_tokens(model.shape, 2 if toy else images).to(device)
    loss: Loss = JointLoss(Classifier(model, classes), weight=1.0) if classes else GenerativeLoss(model)
    batch = (tokens, None, tokens[:, 0] % classes) if classes else (tokens,)
    distributed = Distributed(loss, learning_rate=1e-4, betas=(0.9, 0.95), device=device, compiled=not toy)
    less = math.log(classes) if classes else 0.0
    work = _steps(lambda: distributed.loss(*batch), distributed.optimizer, device=device, half=half, less=less)
    return replace(work, answer=[]) if gpu else work


def _peers(toy: bool, *, shape: ModelShape = SHAPE, images: int = IMAGES, half: bool = False, compiled: bool = False) -> Work:
    """nanoGPT's step, with its fused AdamW; the model is a different one, so its answer is not compared."""
    shape = TOY if toy else shape
    model = Peer(shape)
    if compiled and not toy:
        compile_module(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return replace(_steps(partial(model, random_tokens(shape, images)), optimizer, half=half), answer=[])


def _theirs(toy: bool) -> Work:
    """transformers' model on our weights."""
    shape = TOY if toy else SHAPE
    model = their_model(shape).train()
    tokens = random_tokens(shape, IMAGES)
    shifted = shifted_tokens(tokens, shape.n_vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def loss() -> Tensor:
        logits = model(shifted, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    return _steps(loss, optimizer)


def _steps(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, *, device: str = "cpu", half: bool = False, less: float = 0.0
) -> Work:
    """Optimizer steps on a loss; the answer is the loss before the first step, minus ``less``."""

    def run() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=device == "cpu"):
            mean = loss()
        mean.backward()
        optimizer.step()
        return mean.detach()

    first = float(run())
    run()
    return Work(run, [first - less], device=device)


def _limit(toy: bool, *, shape: ModelShape = SHAPE, images: int = IMAGES, half: bool = False) -> Work:
    """The same number of operations as a step, as products of square matrices."""
    shape = TOY if toy else shape
    weights = shape.n_layer * 12 * shape.n_embd**2 + shape.n_vocab * shape.n_embd
    per_token = 2 * weights + shape.n_layer * 2 * shape.n_embd * shape.n_ctx  # attention's half: it is causal
    return products(3 * images * shape.n_ctx * per_token, toy=toy, dtype=torch.bfloat16 if half else torch.float32)


def _gpu_limit(toy: bool, *, shape: ModelShape, images: int) -> Work:
    """The same on a GPU, with attention counted in full, as is usual."""
    total = training_flops(TOY if toy else shape, 2 if toy else images)
    return products(total, toy=toy, device=device_of(toy, gpu=True), dtype=torch.bfloat16)


class _Idle(Loss):
    """A loss that takes almost no time: the mean of one small parameter, the only one that is trained."""

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        return next(p for p in self.network.parameters() if p.requires_grad).mean()


def _loop(toy: bool) -> Work:
    """The loop without the model's step: batches from memory maps, divergence checks, metrics, and the loop's start and end."""
    shape = TOY if toy else SHAPE
    directory, store = random_store(shape, shards=1)
    model = our_model(shape).requires_grad_(False)
    min(model.parameters(), key=Tensor.numel).requires_grad_(True)
    recipe = Recipe("bench", shape, "imagenet", shape.n_vocab, IMAGES, 10**6, 10, 1e-4)

    def run() -> object:
        calls = itertools.count(1)
        with tempfile.TemporaryDirectory(dir=directory.name) as folder, suppress(engine.Stopped):
            task = engine.Task(
                name="bench",
                loss=_Idle(model),
                steps=recipe.steps,
                batch=recipe.batch,
                positions=shape.n_ctx,
                betas=recipe.betas,
                rate=lambda step: recipe.learning_rate,
                draw=lambda step: draw_batch(recipe, store, seed=0, step=step),
            )
            engine.train(task, folder=Path(folder), runtime=Runtime(stop=lambda: next(calls) == LOOPS))
        return directory

    run()
    return Work(run, [], times=1 / LOOPS)


_on_gpu = partial(_ours, half=True, gpu=True)

TASKS = {
    "training": Task(
        "A training step on 2 images of 1,024 tokens, 8 blocks of width 256",
        (
            *both("igpt", _ours),
            *both("nanoGPT's step", _peers),
            Candidate("nanoGPT's step compiled, tuned", partial(_peers, compiled=True), True),
            *both("transformers", _theirs),
            Candidate("igpt in bfloat16, tuned", partial(_ours, half=True), True, tolerance=0.01),
            Candidate("nanoGPT's step in bfloat16, tuned", partial(_peers, half=True), True),
            Candidate("the loop around a step", _loop),
            Candidate("limit: matrix products", _limit),
            Candidate("limit: matrix products in bfloat16", partial(_limit, half=True)),
        ),
    ),
    "training_s": Task(
        "A training step on an image of 1,024 tokens, iGPT-S's shape",
        (
            Candidate("igpt, tuned", partial(_ours, shape=S, images=1), True),
            Candidate("nanoGPT's step, tuned", partial(_peers, shape=S, images=1), True),
            Candidate("igpt in bfloat16, tuned", partial(_ours, half=True, shape=S, images=1), True, tolerance=0.01),
            Candidate("nanoGPT's step in bfloat16, tuned", partial(_peers, half=True, shape=S, images=1), True),
            Candidate("limit: matrix products", partial(_limit, shape=S, images=1)),
            Candidate("limit: matrix products in bfloat16", partial(_limit, half=True, shape=S, images=1)),
        ),
    ),
    "tuning": Task(
        "A fine-tuning and a training step on 2 images of 1,024 tokens, 8 blocks of width 256",
        (
            Candidate("a training step, tuned", _ours, True),
            Candidate("a fine-tuning step, tuned", partial(_ours, classes=CLASSES), True),
            Candidate("a training step in bfloat16, tuned", partial(_ours, half=True), True, tolerance=0.01),
            Candidate("a fine-tuning step in bfloat16, tuned", partial(_ours, half=True, classes=CLASSES), True, tolerance=0.01),
        ),
    ),
    "training_gpu": Task(
        "A training step on a GPU, bfloat16, at 32x32: iGPT-S on 64 images, iGPT-L on 8",
        tuple(
            candidate
            for name, shape, images in (("iGPT-S", S, 64), ("iGPT-L", L, 8))
            for candidate in (
                Candidate(name, partial(_on_gpu, shape=shape, images=images)),
                Candidate(f"fine-tuning {name}", partial(_on_gpu, shape=shape, images=images, classes=CLASSES)),
                Candidate(f"limit: matrix products of {name}", partial(_gpu_limit, shape=shape, images=images)),
            )
        ),
    ),
}
