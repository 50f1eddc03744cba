"""A training step: ours, nanoGPT's and transformers', float32 and bfloat16, and what our loop does around one."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.companion.bench.models import our_model, random_store, shifted_tokens, their_model
from igpt.companion.bench.work import Candidate, Task, Work, both
from igpt.fast import Linear, compile_module, prepacked
from igpt.shape import ModelShape
from igpt.train.distributed import Distributed, GenerativeLoss
from igpt.train.engine import Runtime, Stopped, _Run
from igpt.train.engine import Task as Training
from igpt.train.loop import draw_batch
from igpt.train.recipe import Recipe

SHAPE = ModelShape(8, 256, 8, 512, 1024)
TOY = ModelShape(2, 64, 2, 64, 64)
IMAGES = 2
SIDE, REPEATS = 2048, 20
LOOPS = 200


class Peer(nn.Module):
    """nanoGPT's model as its description has it: GPT-2's blocks without biases, PyTorch's fused attention and GELU."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.wte = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.wpe = nn.Embedding(shape.n_ctx, shape.n_embd)
        self.blocks = nn.ModuleList(PeerBlock(shape) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd, bias=False)
        self.head = nn.Linear(shape.n_embd, shape.n_vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss, as if these were the next tokens."""
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


def ours(toy: bool, *, shape: ModelShape = SHAPE, images: int = IMAGES, half: bool = False) -> Work:
    """A step as `igpt train` takes it: compiled."""
    model = our_model(toy, TOY if toy else shape)
    tokens = random_tokens(model.shape, images)
    spread = Distributed(GenerativeLoss(model), learning_rate=1e-4, betas=(0.9, 0.95), device="cpu", compiled=not toy)
    return work_of(partial(spread.loss, tokens), spread.optimizer, half=half, answers=True)


def peers(toy: bool, *, shape: ModelShape = SHAPE, images: int = IMAGES, half: bool = False, compiled: bool = False) -> Work:
    """nanoGPT's step, with its fused AdamW; it is another model, so it answers nothing."""
    shape = TOY if toy else shape
    model = Peer(shape)
    if compiled and not toy:
        compile_module(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return work_of(partial(model, random_tokens(shape, images)), optimizer, half=half, answers=False)


def _theirs(toy: bool) -> Work:
    """transformers' model on our weights."""
    shape = TOY if toy else SHAPE
    model = their_model(toy, shape).train()
    tokens = random_tokens(shape, IMAGES)
    given = shifted_tokens(tokens, shape.n_vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def loss() -> Tensor:
        logits = model(given, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    return work_of(loss, optimizer, half=False, answers=True)


def work_of(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, *, half: bool, answers: bool) -> Work:
    """A step of a loss; its answer is the loss before the first one."""

    def run() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = loss()
        found.backward()
        optimizer.step()
        return float(found.detach())

    first = run()
    run()
    return Work(run, [first] if answers else [])


def random_tokens(shape: ModelShape, images: int) -> Tensor:
    """Random images, tokens int64 (images, positions)."""
    return torch.randint(shape.n_vocab, (images, shape.n_ctx), generator=torch.Generator().manual_seed(2))


def products(toy: bool, *, shape: ModelShape = SHAPE, images: int = IMAGES, half: bool = False) -> Work:
    """As many operations as a step has in square products, on weights that oneDNN has laid out: the fastest found here."""
    shape, side = (TOY, 256) if toy else (shape, SIDE)
    dtype = torch.bfloat16 if half else torch.float32
    weights = shape.n_layer * 12 * shape.n_embd**2 + shape.n_vocab * shape.n_embd
    token = 2 * weights + shape.n_layer * 2 * shape.n_embd * shape.n_ctx  # attention's half, as the other is masked
    product, a = Linear(side, side).to(dtype), torch.ones(side, side, dtype=dtype)

    def run() -> None:
        with prepacked(product):
            for _ in range(REPEATS):
                product(a)

    return Work(run, [], times=3 * images * shape.n_ctx * token / (REPEATS * 2 * side**3))


def _loop(toy: bool) -> Work:
    """What the loop does besides the model's step: batches from memory maps, guards, metrics; its start and end with it."""
    shape = TOY if toy else SHAPE
    kept, store = random_store(shape, shards=1)
    model = our_model(toy, shape)
    recipe = Recipe("bench", shape, "imagenet", shape.n_vocab, IMAGES, 10**6, 10, 1e-4)

    def run() -> object:
        taken = itertools.count(1)
        runtime = Runtime(stop=lambda: next(taken) == LOOPS)
        with tempfile.TemporaryDirectory(dir=kept.name) as folder, suppress(Stopped):
            task = Training(
                name="bench",
                loss=GenerativeLoss(model),
                steps=recipe.steps,
                batch=recipe.batch,
                positions=shape.n_ctx,
                betas=recipe.betas,
                rate=lambda step: recipe.learning_rate,
                draw=lambda step: draw_batch(recipe, store, seed=0, step=step),
            )
            loop = _Run(task, Path(folder), runtime, lambda done, total: None)
            loop._step = lambda step: float(len(task.draw(step)))  # type: ignore[method-assign]
            loop.finish()
        return kept

    run()
    return Work(run, [], times=1 / LOOPS)


TASK = Task(
    "A training step on 2 images of 1,024 tokens, 8 blocks of width 256",
    (
        *both("igpt", ours),
        *both("nanoGPT's step", peers),
        Candidate("nanoGPT's step compiled, tuned", partial(peers, compiled=True), True),
        *both("transformers", _theirs),
        Candidate("igpt in bfloat16, tuned", partial(ours, half=True), True, tolerance=0.01),
        Candidate("nanoGPT's step in bfloat16, tuned", partial(peers, half=True), True),
        Candidate("the loop around a step", _loop),
        Candidate("limit: matrix products", products),
        Candidate("limit: matrix products in bfloat16", partial(products, half=True)),
    ),
)
