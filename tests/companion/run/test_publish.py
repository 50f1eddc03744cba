from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import pytest
import torch
from conftest import random_model, some_record
from PIL import Image

from igpt.companion.results.record import Value, write_record
from igpt.companion.run.publish import publish
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.pretrained import open_weights
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.train.loop import weights_name
from igpt.train.recipes import recipe
from igpt.weights.own import save_weights


def train(project: Project, shape: ModelShape) -> ImageGPT:
    """A finished run folder of tiny-s with a random model of this shape."""
    stage = Stage.of("pretrain", model="tiny-s", seed=0)
    record, folder = some_record(project, stage, {"validation_loss": Value(value=1.25, unit="nats per token")})
    trained = random_model(shape)
    save_weights(folder / weights_name(recipe("tiny-s").steps), trained, greys(shape.n_vocab))
    write_record(folder / "record.json", record)
    return trained


def greys(colours: int) -> Palette:
    return Palette(torch.linspace(-1, 1, colours)[:, None].numpy())


OTHERS = [{"n_layer": 3}, {"n_embd": 8}, {"n_head": 2}, {"n_vocab": 8}, {"n_ctx": 16}, {"objective": "bert"}]


def test_another_model_in_a_recipes_run_folder_is_refused(project: Project) -> None:
    train(project, replace(recipe("tiny-s").shape, n_layer=3))
    for use in (publish, open_weights):
        with pytest.raises(UsageError, match=r"the weights found as .* have another shape"):
            use("tiny-s")
    assert not (project.models / "tiny-s").exists()


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_another_model_published_under_a_recipes_name_is_refused(project: Project, change: dict[str, object]) -> None:
    shape = replace(recipe("tiny-s").shape, **change)  # type: ignore[arg-type]
    save_weights(project.models / "tiny-s", random_model(shape), greys(shape.n_vocab))
    with pytest.raises(
        UsageError, match=r"another shape \(.*\) than they need \(2 blocks of width 16, 1 heads, 16 colours, 64 positions"
    ):
        open_weights("tiny-s")
    save_weights(project.models / "tiny-s", random_model(recipe("tiny-s").shape), greys(16))
    assert open_weights("tiny-s")[0].shape == recipe("tiny-s").shape


def test_a_model_that_was_trained_is_published_with_its_card_and_found_by_its_name(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igpt.companion.run.publish.SAMPLES", 3)
    stage, plan = Stage.of("pretrain", model="tiny-s", seed=0), recipe("tiny-s")
    record, folder = some_record(project, stage, {})
    trained = train(project, plan.shape)
    assert publish("tiny-s").startswith("tiny-s, 0.0 MB: ")
    card = json.loads((project.models / "tiny-s" / "card.json").read_text())
    assert card["recipe"]["steps"] == plan.steps
    assert card["pretrain"]["values"]["validation_loss"]["value"] == 1.25
    assert card["pretrain"]["receipt"]["command"] == f"igpt run {record.stage}"
    found, _ = open_weights("tiny-s")
    tokens = torch.arange(64)[None] % 16
    assert torch.allclose(found(tokens), trained(tokens), atol=0.03)  # float16
    assert Image.open(project.models / "tiny-s" / "samples.png").size[0] > 100

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path.name: path.read_bytes() for path in (project.models / "tiny-s").iterdir()}
    with torch.no_grad():
        trained.wtet.zero_()
    save_weights(folder / weights_name(recipe("tiny-s").steps), trained, greys(16))
    monkeypatch.setattr(Image.Image, "save", full)  # the disk is full when the sheet is written, which comes last
    with pytest.raises(OSError, match="No space left"):
        publish("tiny-s")
    assert {path.name: path.read_bytes() for path in (project.models / "tiny-s").iterdir()} == before
    assert [path.name for path in project.models.iterdir()] == ["tiny-s"]


def test_what_was_not_trained_is_not_published(project: Project) -> None:
    with pytest.raises(
        UsageError, match="tiny-m has not been trained here as this checkout stands: igpt run pretrain,model=tiny-m"
    ):
        publish("tiny-m")
    assert not (project.models / "tiny-m").exists()
