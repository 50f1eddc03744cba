"""A fine-tuning step beside a training step of the same model and images: a head and a second loss more."""

from __future__ import annotations

import math
from functools import partial

from igpt.bench.models import our_model
from igpt.bench.training import IMAGES, SHAPE, TOY, ours, random_tokens, work_of
from igpt.bench.work import Contestant, Task, Work
from igpt.evaluate.fine_tune import Classifier, JointLoss
from igpt.train.spread import Spread

CLASSES = 10


def _tuning(toy: bool, *, half: bool = False) -> Work:
    """A step as fine-tuning takes it. The head starts at zero, so that the first loss is the training step's and log 10."""
    model = our_model(toy, TOY if toy else SHAPE)
    tokens = random_tokens(model.shape, IMAGES)
    loss = JointLoss(Classifier(model, CLASSES), weight=1.0)
    spread = Spread(loss, learning_rate=1e-4, betas=(0.9, 0.95), device="cpu", compiled=not toy)
    work = work_of(partial(spread.loss, tokens, None, tokens[:, 0] % CLASSES), spread.optimizer, half=half, answers=True)
    return Work(work.run, [work.answer[0] - math.log(CLASSES)])


TASK = Task(
    "A fine-tuning and a training step on 2 images of 1,024 tokens, 8 blocks of width 256",
    (
        Contestant("a training step, tuned", ours, True),
        Contestant("a fine-tuning step, tuned", _tuning, True),
        Contestant("a training step in bfloat16, tuned", partial(ours, half=True), True, tolerance=0.01),
        Contestant("a fine-tuning step in bfloat16, tuned", partial(_tuning, half=True), True, tolerance=0.01),
    ),
)
