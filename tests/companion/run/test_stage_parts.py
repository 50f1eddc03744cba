from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import PATIENCE

from igpt.companion.run import open_stage
from igpt.companion.run.folder import STOP, read_progress, release
from igpt.companion.run.notebook import OpenStage
from igpt.project import Project
from igpt.train.engine import Stopped


@pytest.fixture
def stage(project: Project) -> Iterator[OpenStage]:
    opened = open_stage("palette", seed=7)
    yield opened
    release(opened.folder)


def test_parts_of_the_work_add_up_to_the_whole(stage: OpenStage) -> None:
    for part in range(3):
        stage.part(part, 3)(2, 2)
        stage._reported = 0.0  # long ago
        stage.part(part, 3)(1, 2)
        assert read_progress(stage.folder) == {"done": 2 * part + 1, "total": 6, "seconds": pytest.approx(0, abs=PATIENCE)}
    stage.part(2, 3)(2, 2)
    assert read_progress(stage.folder)["done"] == 6


def test_a_part_that_is_asked_to_stop_raises_so_at_its_next_report(stage: OpenStage) -> None:
    report = stage.part(0, 2)
    report(1, 1)
    (stage.folder / STOP).touch()
    with pytest.raises(Stopped, match="stopped; the same command continues"):
        report(1, 1)
