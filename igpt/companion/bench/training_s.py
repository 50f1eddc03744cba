"""A training step at iGPT-S's shape, float32 and bfloat16, against nanoGPT's."""

from __future__ import annotations

from functools import partial

from igpt.companion.bench.training import ours, peers, products
from igpt.companion.bench.work import Candidate, Task
from igpt.shape import SIZES, ModelShape

S = ModelShape(*SIZES["igpt-s"], 512, 1024)

TASK = Task(
    "A training step on an image of 1,024 tokens, iGPT-S's shape",
    (
        Candidate("igpt, tuned", partial(ours, shape=S, images=1), True),
        Candidate("nanoGPT's step, tuned", partial(peers, shape=S, images=1), True),
        Candidate("igpt in bfloat16, tuned", partial(ours, half=True, shape=S, images=1), True, tolerance=0.01),
        Candidate("nanoGPT's step in bfloat16, tuned", partial(peers, half=True, shape=S, images=1), True),
        Candidate("limit: matrix products", partial(products, shape=S, images=1)),
        Candidate("limit: matrix products in bfloat16", partial(products, half=True, shape=S, images=1)),
    ),
)
