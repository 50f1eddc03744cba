"""What a stage at work is given: the weights it evaluates, wherever they come from."""

from __future__ import annotations

import pytest
from conftest import Rows, some_record

from igpt.companion.results.record import Value, write_record
from igpt.companion.results.signature import Signer
from igpt.companion.results.store import record_path
from igpt.companion.run.folder import release
from igpt.companion.run.notebook import open_stage
from igpt.companion.stage import Stage
from igpt.project import Project
from igpt.train.recipes import recipe


def finish(project: Project, stage: Stage, values: dict[str, Value], losses: Rows | None = None) -> str:
    """Let a stage have ended, with its record published; its folder's name."""
    record, folder = some_record(project, stage, values, {"losses": losses or []})
    write_record(folder / "record.json", record)
    write_record(record_path(project, Signer(project.notebooks).canonical(stage)), record)
    return folder.name


def loss(value: float) -> dict[str, Value]:
    """A loss, as a record has it."""
    return {"nats": Value(value=value, unit="nats per token")}


def test_weights_that_were_trained_here_are_those_of_the_last_step(project: Project) -> None:
    steps = recipe("tiny-s").milestone_steps
    rows: Rows = [{"step": step, "train": 1.0, "validation": 2.0 - index / 10} for index, step in enumerate(steps)]
    finish(project, Stage.of("palette", dataset="digits", colours=16), {})
    folder = finish(project, Stage.of("pretrain", model="tiny-s", seed=1), {}, rows)
    stage = open_stage("loss_against_probe", model="tiny-s", seed=1)
    assert stage.weights() == project.runs / folder / f"weights-{steps[-1]:07d}"
    assert [(m.index, m.step, m.loss, m.folder.name) for m in stage.milestones()] == [
        (index, step, pytest.approx(2.0 - index / 10), f"weights-{step:07d}") for index, step in enumerate(steps)
    ]


def test_released_milestones_keep_their_places_in_figure_3(project: Project) -> None:
    steps = (131_000, 262_000, 524_000, 1_000_000)
    folders = {}
    for index, step in enumerate(steps):
        folders[step] = finish(project, Stage.of("weights", model="igpt-s", step=step), {})
        finish(project, Stage.of("released_loss", model="igpt-s", step=step), loss(2.1 - index / 100))
    found = open_stage("loss_against_probe", model="igpt-s", dataset="cifar10", weights="released").milestones()
    assert [(m.index, m.step, m.loss) for m in found] == [
        (index + 1, step, pytest.approx(2.1 - index / 100)) for index, step in enumerate(steps)
    ]
    assert [m.folder for m in found] == [project.runs / folders[step] / f"weights-{step:07d}" for step in steps]


def test_an_evaluation_stands_on_the_last_released_weights(project: Project) -> None:
    folder = finish(project, Stage.of("weights", model="igpt-m", objective="bert"), {})
    stage = open_stage("linear_probe", model="igpt-m", objective="bert", dataset="cifar10", weights="released")
    assert stage.weights() == project.runs / folder / "weights-1000000"


def test_work_begins_anew_on_another_result_of_a_parent_and_goes_on_upon_the_same(project: Project) -> None:
    parent = Stage.of("weights", model="igpt-m")
    finish(project, parent, loss(2.0))
    stage = open_stage("linear_probe", model="igpt-m", dataset="cifar10", weights="released", seed=0)
    stage.weights()
    piece = stage.folder / "trained" / "probe.json"
    piece.parent.mkdir()
    piece.write_text("{}")
    release(stage.folder)
    finish(project, parent, loss(2.0))  # made again, from the same files
    again = open_stage("linear_probe", model="igpt-m", dataset="cifar10", weights="released", seed=0)
    again.weights()
    assert piece.exists()
    release(again.folder)
    finish(project, parent, loss(2.1))
    other = open_stage("linear_probe", model="igpt-m", dataset="cifar10", weights="released", seed=0)
    other.weights()
    assert not piece.exists()
    piece.parent.mkdir()
    piece.write_text("{}")
    other.weights()
    assert piece.exists()
