from __future__ import annotations

import pytest
from conftest import ROOT

from igpt.data import data_card
from igpt.evaluate.logistic import ITERATIONS
from igpt.experiments.costs import run_hours, stage_hours, stage_work
from igpt.experiments.machines import H100, TWO_CORES
from igpt.experiments.work import expected_iterations, probe_work
from igpt.project import Project
from igpt.report.costs import recipe_table
from igpt.results.plan import PlannedStage
from igpt.results.signature import Signer
from igpt.stage import Stage
from igpt.train.cost import forward_flops
from igpt.train.recipes import recipe

SIGNER = Signer(ROOT / "notebooks")
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def full(notebook: str, **given: str | int) -> Stage:
    return SIGNER.in_full(Stage.of(notebook, **given))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_has_a_price_of_its_own_and_none_without_its_parameters(notebook: str) -> None:
    hours = stage_hours(full(notebook))
    assert hours is not None
    assert (hours > 0) == (notebook not in ("palette", "parameters", "speed"))
    if hours:
        assert stage_hours(Stage.of(notebook)) is None  # what is not named is not assumed
    assert stage_hours(Stage.of("my_own", model="small-s")) is None


PROBES = ["linear_probe", "concatenated_features", "loss_against_probe", "low_data", "probe_settings", "sgd_probe"]


@pytest.mark.parametrize("notebook", PROBES)
def test_every_notebook_that_solves_probes_pays_for_solving_them(notebook: str) -> None:
    ten, more = (stage_work(full(notebook, model="small-l", dataset=name)) for name in ("cifar10", "cifar100"))
    assert 0 < ten.double < more.double
    assert 0 < ten.bytes < more.bytes
    assert ten.eigen > 0
    if notebook != "low_data":  # whose labels grow with the classes
        assert ten.half == more.half


def test_a_probes_operations_are_two_products_a_look() -> None:
    images, width, classes = 1000, 20, 10
    turns = expected_iterations(1.0, classes)
    found = probe_work(images=images, width=width, classes=classes, strengths=(1.0,))
    assert found.double == pytest.approx(turns * 2 * (2 * images * width * classes) + 2 * (2 * images * width**2))
    assert found.bytes > turns * 2 * 8 * images * width  # the features, twice
    assert found.half == 0


def test_a_probe_costs_more_by_images_classes_width_problems_and_strengths() -> None:
    least = {"images": 5000, "width": 64, "classes": 10}
    for name in ("images", "width", "classes"):
        assert probe_work(**{**least, name: 2 * least[name]}).double > 1.5 * probe_work(**least).double
    one, five = (probe_work(**least, problems=problems) for problems in (1, 5))
    assert (five.double, five.bytes, five.eigen) == (5 * one.double, 5 * one.bytes, 5 * one.eigen)
    path, alone = probe_work(**least, strengths=(1.0, 1.0)), probe_work(**least, strengths=(1.0,))
    assert alone.bytes < path.bytes < 2 * alone.bytes  # the features are read once for both


def test_no_more_iterations_are_expected_than_there_are() -> None:
    assert expected_iterations(1e12, 1000) == ITERATIONS
    assert expected_iterations(0.01, 10) < expected_iterations(0.1, 10) < expected_iterations(0.1, 100)


def test_few_images_of_many_features_cost_what_their_span_costs() -> None:
    few, square = (probe_work(images=40, width=width, classes=10) for width in (3072, 40))
    assert few.eigen == square.eigen


def test_masks_that_vote_are_passes_that_are_paid() -> None:
    plain, bert = (
        stage_work(full("linear_probe", model="small-l", dataset="cifar10", objective=o)) for o in ("autoregressive", "bert")
    )
    shape = recipe("small-l", "bert").shape
    more = 2 * 4 * data_card("cifar10").test * forward_flops(shape)  # four more views of test, of two networks
    assert bert.half - plain.half == pytest.approx(more, rel=0.02)


def test_hours_add_up_and_another_machine_has_its_own_rates() -> None:
    stage = full("linear_probe", model="laptop-l", dataset="cifar10")
    work = stage_work(stage)
    parts = sum(run_hours([stage], SIGNER.in_full, TWO_CORES))
    pretraining = stage_work(full("pretrain", model="laptop-l")).hours(TWO_CORES.rates)
    assert parts == pytest.approx(pretraining + work.hours(TWO_CORES.rates))
    assert (work + work).hours(H100.rates) == pytest.approx(2 * work.hours(H100.rates))
    assert work.hours(H100.rates) < work.hours(TWO_CORES.rates)


def test_a_planned_stage_has_all_its_parameters_and_so_its_price(project: Project) -> None:
    named = Stage.of("linear_probe", model="small-l", dataset="cifar10", seed=3)
    signer = Signer(project.notebooks)
    planned = PlannedStage(signer.canonical(named), signer.sign(named), (), None, "missing", ())
    assert planned.in_full == signer.in_full(named)
    assert stage_hours(planned.in_full) == stage_hours(full("linear_probe", model="small-l", dataset="cifar10", seed=3))


def test_the_table_of_recipes_prices_each_ones_probe() -> None:
    table = recipe_table(Project(ROOT))
    column = table.columns.index("Probe: solving (s)")
    seconds = {row[0].text: row[column].text for row in table.rows}
    work = stage_work(full("linear_probe", model="igpt-l", dataset="cifar10"))
    solving = 3600 * work.hours(H100.rates) - work.half / H100.rates.half
    assert float(seconds["igpt-l"]) == pytest.approx(solving, rel=0.05)
    assert float(seconds["igpt-xl"].replace(",", "")) > float(seconds["igpt-l"])
