from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT, some_receipt
from matplotlib.figure import Figure
from test_tables import write_records

from igpt.companion.report.bookfigures import FIGURES, draw_figure, figure_note, figure_records
from igpt.companion.report.figures import published_depth, published_loss
from igpt.companion.report.style import BASELINE, colour
from igpt.companion.results.record import SCHEMA, Record, write_record
from igpt.companion.results.store import RecordStore
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project


def test_a_figure_without_its_records_is_not_drawn(project: Project) -> None:
    for name, figure in FIGURES.items():
        drawn = draw_figure(name, RecordStore(project), project.root / "figures")
        assert (drawn is None) != figure.published, name


def test_a_figure_of_several_models_shows_those_that_have_run_and_names_the_others(project: Project) -> None:
    shown = FIGURES["laptop-depth"].stages[1]
    published = ROOT / "book" / "records" / "laptop" / "linear_probe,dataset=cifar10,model=laptop-m,seed=0.json"
    path = RecordStore(project).path(shown)
    path.parent.mkdir(parents=True)
    shutil.copy(published, path)
    assert draw_figure("laptop-depth", RecordStore(project), project.root / "figures") is not None
    assert "Pending: laptop-s, laptop-l." in figure_note("laptop-depth", RecordStore(project))


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
    assert figure_note("depth-bert", RecordStore(project)) == note


def test_the_same_figure_is_the_same_bytes_in_both_modes_at_each_drawing(project: Project) -> None:
    folders = [project.root / "one", project.root / "two"]
    drawn = [draw_figure("published-depth", RecordStore(project), folder) for folder in folders]
    assert drawn[0] is not None
    assert drawn[1] is not None
    for mode in ("light", "dark"):
        assert drawn[0][mode].read_bytes() == drawn[1][mode].read_bytes()
    assert drawn[0]["light"].read_bytes() != drawn[0]["dark"].read_bytes()


def released(stage: Stage, **series: Any) -> Record:
    """A record of the released weights, by hand."""
    return Record(
        schema_version=SCHEMA,
        stage=stage.name,
        parameters=stage.parameters,
        signature="0" * 64,
        parts={},
        values={},
        series=series,
        receipt=some_receipt(stage),
    )


DEPTH = released(
    Stage.of("linear_probe", model="igpt-l", dataset="cifar100", weights="released"),
    trained=[{"layer": layer, "accuracy": 0.5 + layer / 100} for layer in range(49)],
)
LOSS = released(
    Stage.of("loss_against_probe", model="igpt-m", dataset="cifar10", weights="released"),
    milestones=[{"step": 131_000, "loss": 2.1, "accuracy": 0.9}, {"step": 262_000, "loss": 2.05, "accuracy": 0.95}],
)


@pytest.mark.parametrize(
    ("draw", "record", "x", "y", "ours"),
    [
        (published_depth, DEPTH, range(49), range(50, 99), colour("iGPT-L")),
        (published_loss, LOSS, (2.1, 2.05), (90, 95), colour("igpt-m")),
    ],
)
def test_our_curve_lies_over_the_papers_which_stays_thin_and_grey(
    draw: Callable[[Sequence[Record]], Figure], record: Record, x: Sequence[float], y: Sequence[float], ours: str
) -> None:
    before, after = draw([]), draw([record])
    grey = [line for line in before.axes[0].lines if len(np.atleast_1d(line.get_xdata())) > 1]
    assert {line.get_color() for line in grey} == {BASELINE}
    lines = [line for line in after.axes[0].lines if len(np.atleast_1d(line.get_xdata())) > 1]
    assert [line.get_color() for line in lines] == [*[BASELINE] * len(grey), ours]
    np.testing.assert_allclose(np.array(lines[-1].get_data()), [x, y], rtol=1e-12)
    assert all(line.get_linewidth() < lines[-1].get_linewidth() for line in grey)
    said = [after.legends[0].get_title().get_text(), *[text.get_text() for text in after.legends[0].get_texts()]]
    assert "digitised from the paper's Figure" in said[0]
    assert any("reproduced" in text for text in said[1:])
    plt.close(before)
    plt.close(after)


@pytest.mark.parametrize(
    ("name", "place", "record", "note"),
    [
        ("published-depth", 1, DEPTH, "Pending: CIFAR-10, STL-10."),
        ("published-loss", 1, LOSS, "Pending: igpt-s, igpt-l."),
    ],
)
def test_a_record_of_the_released_tier_enters_the_papers_figure_and_the_caption_names_what_is_pending(
    project: Project, name: str, place: int, record: Record, note: str
) -> None:
    before = draw_figure(name, RecordStore(project), project.root / "before")
    store = RecordStore(project)
    stage = store.signer.canonical(FIGURES[name].stages[place])
    signed = store.signer.sign(stage)
    found = record.model_copy(update={"stage": stage.name, "signature": signed.digest, "parts": signed.parts})
    write_record(store.path(stage), found)
    after = draw_figure(name, RecordStore(project), project.root / "after")
    assert before is not None
    assert after is not None
    for mode in ("light", "dark"):
        assert "reproduced" not in before[mode].read_text()
        assert "reproduced" in after[mode].read_text()
    assert figure_note(name, RecordStore(project)) == note
