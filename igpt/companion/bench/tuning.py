"""A fine-tuning step beside a training step of the same model and images: a head and a second loss more."""

from __future__ import annotations

import math
from functools import partial

from igpt.companion.bench.models import our_model
from igpt.companion.bench.training import IMAGES, SHAPE, TOY, ours, random_tokens, work_of
from igpt.companion.bench.work import Candidate, Task, Work
from igpt.evaluate.fine_tune import Classifier, JointLoss
from igpt.train.distributed import Distributed

CLASSES = 10


def _tuning(toy: bool, *, half: bool = False) -> Work:
    """A step as fine-tuning takes it. The head starts at zero, so that the first loss is the training step's and log 10."""
    model = our_model(toy, TOY if toy else SHAPE)
    tokens = random_tokens(model.shape, IMAGES)
    loss = JointLoss(Classifier(model, CLASSES), weight=1.0)
    spread = Distributed(loss, learning_rate=1e-4, betas=(0.9, 0.95), device="cpu", compiled=not toy)
    work = work_of(partial(spread.loss, tokens, None, tokens[:, 0] % CLASSES), spread.optimizer, half=half, answers=True)
    return Work(work.run, [work.answer[0] - math.log(CLASSES)])


TASK = Task(
    "A fine-tuning and a training step on 2 images of 1,024 tokens, 8 blocks of width 256",
    (
        Candidate("a training step, tuned", ours, True),
        Candidate("a fine-tuning step, tuned", _tuning, True),
        Candidate("a training step in bfloat16, tuned", partial(ours, half=True), True, tolerance=0.01),
        Candidate("a fine-tuning step in bfloat16, tuned", partial(_tuning, half=True), True, tolerance=0.01),
    ),
)
