"""``igpt fine-tune``: a classifier of a data set, from weights that exist, as a folder that transformers opens too."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from igpt import __version__
from igpt.companion.experiments.machines import this_machine
from igpt.companion.run.training import STOPPED, stop_by_signal
from igpt.data import LabelledTokens, data_card, labelled_tokens, split_digest
from igpt.data.cards import check_fits, check_present
from igpt.errors import UsageError
from igpt.evaluate.fine_tune import Search, fine_tune, search, settings_grid
from igpt.files import check_writable, wait_for_lock, write_folder, write_text
from igpt.measure import LEVEL, Measured, accuracy
from igpt.pretrained import open_weights
from igpt.progress import Bar, tell
from igpt.text import counted, visible
from igpt.train.engine import Stopped
from igpt.train.recipe import training_flops
from igpt.train.recipes import model_of, recipe
from igpt.train.runtime import Runtime
from igpt.weights.classifier import ImageClassifier, check_names, write_classifier

COMPILING_PAYS = 50_000  # images and epochs of training, beyond which compiling saves time
CARD = """# A classifier of {dataset}

Made by `igpt fine-tune {dataset} --model {model} --epochs {epochs} --seed {seed}`, igpt {version}, torch {torch}.

- Classes: {classes}.
- Pictures: {train} to train, {validation} held out to choose, {test} to test; {resize}. Data set's digest {digest}.
- Begun from {model} ({parameters} parameters, {side} x {side} pixels, {colours} colours), all weights trained, on the
  generative and the classification loss together (section 2.3 of the paper).
- Chosen on the held-out pictures, among learning rates {rates}: rate {rate:g}, {chosen} of at most {epochs} epochs, with
  {held_out:.1%} right. Then trained again on the training and held-out pictures together, without looking at the test.
- On the test pictures, looked at once: {accuracy}. Always saying the commonest class: {commonest:.1%}.

Here: `igpt classify PICTURES --model FOLDER`. In transformers, the network's input is shifted behind the start token:

```python
import torch
from transformers import AutoImageProcessor, ImageGPTForImageClassification

processor = AutoImageProcessor.from_pretrained(folder)
model = ImageGPTForImageClassification.from_pretrained(folder).eval()
tokens = processor(image, return_tensors="pt").input_ids  # {squeezed}
start = torch.full_like(tokens[:, :1], model.config.vocab_size - 1)
logits = model(torch.cat([start, tokens[:, :-1]], dim=1)).logits
```
"""


def fine_tune_on(dataset: str, model: str, *, out: Path, epochs: int, seed: int) -> tuple[str | None, int]:
    """Fine-tune a model on a data set and write the classifier; the lines to print, and the exit code.

    The learning rate and the number of epochs, at most ``epochs``, are chosen on the validation images. The same call resumes.
    Raises UsageError for a folder that exists, weights of BERT, a data set that does not fit the weights or is missing, and when
    a step does not fit into memory.
    """
    card = data_card(dataset)
    if out.exists():
        raise UsageError(f"{out} is there already: name a folder that is not")
    check_writable(out, is_folder=True)
    check_present(dataset)
    names = card.names(card)
    check_names(names, dataset)
    digest = split_digest(dataset)
    network, palette = open_weights(model)
    shape, side = network.shape, math.isqrt(network.shape.n_ctx)
    if shape.objective == "bert":
        raise UsageError(f"{model} was trained with BERT's objective, for which transformers has no classifier: give others")
    if network.wtet is None:
        raise UsageError(f"{model} has no output matrix, which the generative loss needs: give the weights of a generative model")
    check_fits(dataset, model, side=side, channels=palette.centres.shape[1], palette=palette.digest)
    splits = [labelled_tokens(dataset, part, side=side, palette=palette) for part in ("train", "validation", "test")]
    grid = settings_grid(dataset, recipe(model_of(shape), shape.objective).learning_rate, epochs=epochs)
    images = epochs * (len(grid) * len(splits[0]) + len(splits[0]) + len(splits[1]))
    work = out.with_name(f".{out.name}.work")
    runtime = Runtime.here(shape)
    runtime = replace(runtime, compiled=runtime.compiled and images > COMPILING_PAYS)
    runtime = runtime.fitted(shape, batch=grid[0].batch, folder=work, classes=card.classes)
    rates = this_machine().rates
    rate = rates.half if runtime.bfloat16 else rates.single
    hours = training_flops(shape, images) / rate / 3600
    tell(f"igpt: {len(grid)} learning rates, then the best again: up to {_duration(hours)} on this machine")
    work.mkdir(parents=True, exist_ok=True)
    network.to(runtime.device)
    with wait_for_lock(work / ".lock", f"{out} is being made by another process"):
        if out.exists():
            raise UsageError(f"{out} was made by another process meanwhile: name another folder")
        try:
            with stop_by_signal() as stopping, Bar(dataset, " parts") as bar:
                runtime = replace(runtime, stop=lambda: bool(stopping))
                train, validation, test = splits
                steps, runs = 1000, len(grid) + 1

                def report(begun: int, of: int, done: int, total: int) -> None:
                    bar(round(steps * (begun + of * done / max(total, 1))), steps * runs)

                chosen = search(
                    network,
                    train,
                    validation,
                    settings=grid,
                    seed=seed,
                    folder=work,
                    runtime=runtime,
                    report=lambda done, total: report(0, len(grid), done, total),
                )
                classifier = fine_tune(
                    network,
                    train + validation,
                    settings=chosen.settings,
                    seed=seed,
                    folder=work / "refit",
                    runtime=runtime,
                    report=lambda done, total: report(len(grid), 1, done, total),
                )
                measured = accuracy(classifier.predict(test), test.labels)
        except Stopped as stopped:
            tell(str(stopped))
            return None, STOPPED
        if split_digest(dataset) != digest:
            raise UsageError(f"the data set {dataset} was added again meanwhile: run the same command again")
        made = ImageClassifier(
            classifier.model.cpu().eval(),
            classifier.head.weight.detach().float().cpu(),
            tuple(names),
            palette,
            shifted=True,
            resize=card.resize,
        )
        with write_folder(out) as part:
            write_classifier(part, made)
            write_text(part / "README.md", _card(dataset, model, made, splits, chosen, measured, epochs=epochs, seed=seed))
    shutil.rmtree(work, ignore_errors=True)
    return "\n".join(
        [
            f"test: {_percent(measured)}; always the commonest class: {_commonest(test):.1%}",
            f"the classifier of {counted(len(names), 'class', 'classes')}: {out}",
            f"use it: igpt classify PICTURES --model {out}",
        ]
    ), 0


def _card(
    dataset: str,
    model: str,
    made: ImageClassifier,
    splits: list[LabelledTokens],
    chosen: Search,
    measured: Measured,
    *,
    epochs: int,
    seed: int,
) -> str:
    """The text of a classifier's README.md."""
    shape, sizes = made.network.shape, [f"{len(split):,}" for split in splits]
    return CARD.format(
        dataset=dataset,
        model=model,
        epochs=epochs,
        seed=seed,
        version=__version__,
        torch=torch.__version__,
        classes=", ".join(visible(name) for name in made.names),
        train=sizes[0],
        validation=sizes[1],
        test=sizes[2],
        resize="squeezed into a square" if made.resize == "squeeze" else "the central square of each",
        squeezed="the whole picture, as here" if made.resize == "squeeze" else "give it the central square, as here",
        digest=split_digest(dataset)[:12],
        parameters=f"{shape.parameters:,}",
        side=math.isqrt(shape.n_ctx),
        colours=shape.n_vocab,
        rates=", ".join(f"{rate:g}" for rate in dict.fromkeys(rate for rate, _, _ in chosen.seen)),
        rate=chosen.settings.learning_rate,
        chosen=chosen.settings.epochs,
        held_out=chosen.validation,
        accuracy=_percent(measured),
        commonest=_commonest(splits[2]),
    )


def _percent(measured: Measured) -> str:
    """An accuracy with its interval, in words."""
    interval = f"{LEVEL:.0%} interval {measured['low']:.1%} to {measured['high']:.1%}"
    return f"{measured['value']:.1%} of {measured['images']:,} pictures ({interval})"


def _commonest(split: LabelledTokens) -> float:
    """The fraction of the commonest class."""
    return float(np.bincount(split.labels).max() / len(split))


def _duration(hours: float) -> str:
    """A rough time in words."""
    if hours >= 1:
        return f"{hours:.0f} hours" if round(hours) > 1 else "an hour"
    return counted(max(round(60 * hours), 1), "minute")
