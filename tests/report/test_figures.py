from __future__ import annotations

import shutil

import pytest
from conftest import ROOT
from test_tables import write_records

from igpt.errors import UsageError
from igpt.project import Project
from igpt.report.bookfigures import FIGURES, draw_figure, figure_note, figure_records
from igpt.results.store import RecordStore


def test_a_figure_without_its_records_is_not_drawn(project: Project) -> None:
    for name, figure in FIGURES.items():
        drawn = draw_figure(name, project, project.root / "figures")
        assert (drawn is None) == bool(figure.stages), name


def test_a_figure_of_several_models_shows_those_that_have_run_and_names_the_others(project: Project) -> None:
    shown = FIGURES["laptop-depth"].stages[1]
    published = ROOT / "book" / "records" / "laptop" / "linear_probe,dataset=cifar10,model=laptop-m,seed=0.json"
    path = RecordStore(project).path(shown)
    path.parent.mkdir(parents=True)
    shutil.copy(published, path)
    assert draw_figure("laptop-depth", project, project.root / "figures") is not None
    assert "Pending: laptop-s, laptop-l." in figure_note("laptop-depth", project)


def test_an_unknown_figure_is_refused(project: Project) -> None:
    with pytest.raises(UsageError, match="no figure 'dept'; did you mean depth"):
        figure_records("dept", RecordStore(project))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, ""),
        ({"dirty": True}, "Its records come from a checkout with uncommitted changes."),
        ({"signature": "0" * 64}, "Stale: its records were made before the code or its inputs changed."),
    ],
)
def test_a_caption_says_when_its_records_are_stale_or_dirty(project: Project, changes: dict[str, object], note: str) -> None:
    write_records(project, "bert-110", **changes)  # type: ignore[arg-type]
    assert figure_note("depth-bert", project) == note


def test_the_same_figure_is_the_same_bytes_in_both_modes_at_each_drawing(project: Project) -> None:
    folders = [project.root / "one", project.root / "two"]
    drawn = [draw_figure("published-depth", project, folder) for folder in folders]
    assert drawn[0] is not None
    assert drawn[1] is not None
    for mode in ("light", "dark"):
        assert drawn[0][mode].read_bytes() == drawn[1][mode].read_bytes()
    assert drawn[0]["light"].read_bytes() != drawn[0]["dark"].read_bytes()
