from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, igpt_here

from igpt import sample
from igpt.companion.experiments.costs import (
    Cost,
    Disks,
    downloads,
    lacking,
    run_hours,
    run_room,
    stage_cost,
    stage_hours,
    with_parents,
)
from igpt.companion.experiments.demand import DRAWN, PYTHON, expected_iterations, probe_work
from igpt.companion.experiments.machines import A100, GIB, H100, RTX_4090, TWO_CORES, many_cores, this_machine
from igpt.companion.experiments.protocols import PROTOCOLS, stage_demand
from igpt.companion.report.costs import recipe_table
from igpt.companion.results.plan import PlannedStage
from igpt.companion.results.record import read_record
from igpt.companion.results.signature import Signer
from igpt.companion.stage import Literal, Stage
from igpt.data import data_card
from igpt.evaluate.logistic import ITERATIONS
from igpt.project import Project
from igpt.train.recipe import forward_flops
from igpt.train.recipes import recipe

RELEASED_FORMAT = ROOT / "tests" / "weights" / "released_format" / "autoregressive"
SIGNER = Signer(ROOT / "notebooks")
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def full(notebook: str, **given: Literal) -> Stage:
    return SIGNER.in_full(Stage.of(notebook, **given))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_has_a_price_of_its_own_and_none_without_its_parameters(notebook: str) -> None:
    hours = stage_hours(full(notebook))
    assert (hours > 0) == (PROTOCOLS[notebook].demand is not None) == (notebook not in ("palette", "parameters", "speed"))
    if hours:
        with pytest.raises(KeyError):  # what is not named is not assumed
            stage_hours(Stage.of(notebook))
    assert stage_hours(Stage.of("my_own", model="small-s")) == 0


PROBES = ["linear_probe", "concatenated_features", "loss_against_probe", "low_data", "probe_settings", "sgd_probe"]


@pytest.mark.parametrize("notebook", PROBES)
def test_every_notebook_that_solves_probes_pays_for_solving_them(notebook: str) -> None:
    ten, more = (stage_demand(full(notebook, model="small-l", dataset=name)).work for name in ("cifar10", "cifar100"))
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
        stage_demand(full("linear_probe", model="small-l", dataset="cifar10", objective=o)).work
        for o in ("autoregressive", "bert")
    )
    shape = recipe("small-l", "bert").shape
    more = 2 * 4 * data_card("cifar10").test * forward_flops(shape)  # four more views of test, of two networks
    assert bert.half - plain.half == pytest.approx(more, rel=0.02)


def test_hours_add_up_and_another_machine_has_its_own_rates() -> None:
    stage = full("linear_probe", model="laptop-l", dataset="cifar10")
    work = stage_demand(stage).work
    parts = sum(run_hours(with_parents([stage], SIGNER.in_full), TWO_CORES))
    pretraining = stage_hours(full("pretrain", model="laptop-l"), TWO_CORES)
    assert parts == pytest.approx(pretraining + work.hours(TWO_CORES.rates))
    assert (work + work).hours(H100.rates) == pytest.approx(2 * work.hours(H100.rates))
    assert work.hours(H100.rates) < work.hours(TWO_CORES.rates)


def test_a_planned_stage_has_all_its_parameters_and_so_its_price(project: Project) -> None:
    named = Stage.of("linear_probe", model="small-l", dataset="cifar10", seed=3)
    signer = Signer(project.notebooks)
    planned = PlannedStage(signer.canonical(named), signer.sign(named), (), None)
    assert planned.in_full == signer.in_full(named)
    assert stage_hours(planned.in_full) == stage_hours(full("linear_probe", model="small-l", dataset="cifar10", seed=3))


def test_the_table_of_recipes_prices_each_ones_probe() -> None:
    table = recipe_table(Project(ROOT))
    column = table.columns.index("Probe: solving (s)")
    seconds = {row[0].text: row[column].text for row in table.rows}
    work = stage_demand(full("linear_probe", model="igpt-l", dataset="cifar10")).work
    solving = 3600 * work.hours(H100.rates) - work.half / H100.rates.half
    assert float(seconds["igpt-l"]) == pytest.approx(solving, rel=0.05)
    assert float(seconds["igpt-xl"].replace(",", "")) > float(seconds["igpt-l"])


def test_every_notebook_with_a_network_says_what_it_needs() -> None:
    for notebook in NOTEBOOKS:
        found = stage_cost(full(notebook), H100)
        assert found.memory >= PYTHON
        assert (found.card > 0) == (notebook not in ("palette", "parameters", "speed", "weights"))


def test_the_features_of_all_layers_are_the_disk_that_a_probe_needs() -> None:
    found = stage_cost(full("linear_probe", model="igpt-l", dataset="cifar10"), H100)
    assert found.disk == 49 * 60_000 * 1536 * 4  # 18 GB
    voted = stage_cost(full("linear_probe", model="igpt-l", dataset="cifar10", objective="bert"), H100)
    assert voted.disk == 49 * 100_000 * 1536 * 4


def test_some_layers_cost_less_and_half_precision_half_the_disk() -> None:
    whole = full("linear_probe", model="igpt-l", dataset="cifar10")
    some = full("linear_probe", model="igpt-l", dataset="cifar10", layers="10-12", precision="float16")
    assert stage_cost(some, H100).disk == 3 * 60_000 * 1536 * 2
    assert stage_demand(some).work.half == pytest.approx(stage_demand(whole).work.half / 4)
    assert stage_demand(some).work.double < stage_demand(whole).work.double / 4


def test_training_takes_what_a_card_has_and_what_does_not_fit_is_said() -> None:
    large, small = (stage_cost(full("fine_tune", model=f"igpt-{size}", dataset="cifar10"), H100) for size in "ls")
    assert 0.3 * 80 < large.card / GIB < 0.9 * 80
    assert lacking(large, H100) == lacking(small, H100) == ""
    full_disk = Disks(Path("runs"), lambda folder: (0, 1e9))
    less = stage_cost(full("fine_tune", model="igpt-s", dataset="cifar10"), replace(H100, gib=12))
    assert less.card < 0.9 * 12 * GIB < small.card
    too_large = stage_cost(full("fine_tune", model="igpt-l", dataset="cifar10"), RTX_4090)
    assert lacking(too_large, RTX_4090).startswith("it needs 23.2 GiB on the card, of whose 24 GiB 90%")
    assert lacking(small, H100, memory=GIB).startswith("it needs 3.7 GiB of memory, and 1.0 GiB are free")
    assert lacking(small, H100, memory=64 * GIB, disks=full_disk).startswith("it needs 4.0 GB of the disk of runs, and 1.0 GB")


def test_a_processor_holds_everything_in_the_machines_memory() -> None:
    stage = full("linear_probe", model="igpt-s", dataset="cifar10")
    card, cores = stage_cost(stage, H100), stage_cost(stage, many_cores(8))
    assert (cores.card, cores.disk, cores.downloads) == (0, card.disk, card.downloads)
    assert cores.memory > card.memory + card.card / 2


def test_what_is_downloaded_counts_once() -> None:
    first, second = (stage_cost(full("linear_probe", model="laptop-l", dataset="cifar10", seed=seed), H100) for seed in (0, 1))
    both = first + second
    assert both.to_fetch == first.to_fetch == 170_498_071
    assert both.exact
    assert both.disk == first.disk  # the features of one are removed before the other's come
    assert both.room == both.disk + sum(each.disk for each in first.downloads)
    assert both.memory == max(first.memory, second.memory)
    assert stage_cost(full("linear_probe", model="laptop-l"), H100).to_fetch == 0  # the digits are here
    assert stage_cost(full("sgd_probe", model="igpt-s", dataset="imagenet"), H100).downloads == frozenset()  # by hand


def test_what_stays_of_stages_adds_up_and_what_passes_counts_once() -> None:
    sizes = ("igpt-s", "igpt-m", "igpt-l")
    weights = [full("weights", model=size) for size in sizes]
    probes = [full("linear_probe", model=size, dataset="cifar10", weights="released") for size in sizes]
    tunes = [full("fine_tune", model=size, dataset="cifar10", weights="released") for size in sizes]
    whole = sum((stage_cost(stage, H100) for stage in (*weights, *probes, *tunes)), Cost())
    models = sum(4 * recipe(size).shape.parameters for size in sizes)
    assert whole.kept == models
    _, disk = run_room([*weights, *probes, *tunes])
    assert disk == whole.disk + sum(each.disk for each in whole.downloads)
    assert whole.disk == models + 12 * recipe("igpt-l").shape.parameters * 4
    assert whole.scratch == stage_cost(tunes[-1], H100).disk > stage_cost(probes[-1], H100).disk


def test_released_weights_are_four_bytes_a_parameter_to_download() -> None:
    stage = Stage.of("weights", model="igpt-l", objective="bert", step=1_000_000, weights="released")
    [found] = [each for each in downloads(stage) if each.name == "igpt-l-bert"]
    assert found.bytes == 4 * recipe("igpt-l", "bert").shape.parameters
    assert not found.here


@pytest.mark.parametrize("make", ["checkpoint", "safetensors", "pickle", "shards"])
def test_released_weights_are_here_in_whatever_format(make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_WEIGHTS", str(tmp_path))
    names = {
        "checkpoint": [f"model.ckpt-1000000.{end}" for end in ("index", *(f"data-{n:05d}-of-00004" for n in range(4)))],
        "safetensors": ["huggingface/config.json", "huggingface/model.safetensors"],
        "pickle": ["huggingface/config.json", "huggingface/pytorch_model.bin"],
        "shards": ["huggingface/config.json", "huggingface/model.safetensors.index.json"],
    }[make]
    stage = Stage.of("weights", model="igpt-s", objective="autoregressive", step=1_000_000, weights="released")
    for name in names:
        assert [each.here for each in downloads(stage)] == [False]
        path = tmp_path / "igpt-s" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((RELEASED_FORMAT / name).read_bytes() if make == "checkpoint" else b"")
    assert stage_cost(stage, H100).to_fetch == 0
    if make != "checkpoint":
        other = Stage.of("weights", model="igpt-s", objective="bert", step=1_000_000, weights="released")
        assert [each.here for each in downloads(other)] == [False]


def test_the_token_files_are_priced_as_the_list_of_data_sets_says() -> None:
    [found] = [each for each in downloads(full("sgd_probe", model="igpt-s", dataset="imagenet-tokens")) if not each.exact]
    assert found.bytes == data_card("imagenet-tokens").loose_bytes


def test_cards_have_their_data_sheets_rates() -> None:
    assert H100.rates.half == pytest.approx(0.4 * 989e12)
    assert A100.rates.half / H100.rates.half == pytest.approx(312 / 989)
    assert RTX_4090.rates.double < A100.rates.double / 10  # a consumer's card
    eight = many_cores(8)
    assert eight.rates.double == 4 * TWO_CORES.rates.double
    assert [card.measured for card in (H100, A100, RTX_4090, eight, TWO_CORES)] == [False] * 4 + [True]


RECORDS = [path for path in sorted((ROOT / "book" / "records" / "laptop").glob("*.json")) if "samples" not in path.name]


def expected_and_measured(path: Path) -> tuple[float, float]:
    """Expected and measured seconds of a record."""
    record = read_record(path)
    assert record is not None
    cores = int(record.receipt.hardware.rpartition(", ")[2].split()[0])
    stage = full(record.stage.partition(",")[0], **record.parameters)
    return 3600 * stage_hours(stage, many_cores(cores)), record.receipt.seconds


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_what_a_stage_of_the_laptop_tier_took_was_expected_within_a_factor(path: Path) -> None:
    expected, measured = expected_and_measured(path)
    assert measured / 5 < expected < 3 * measured  # a machine with other work may have made the record


def test_what_the_laptop_tier_took_was_expected_within_a_factor_of_two_and_a_half() -> None:
    expected, measured = map(sum, zip(*map(expected_and_measured, RECORDS), strict=True))
    assert measured / 2.5 < expected < 2.5 * measured


def test_samples_are_priced_as_they_are_drawn() -> None:
    assert DRAWN == sample.AT_ONCE
    few, many = (stage_demand(full("samples", model="igpt-l", images=images)).work for images in (16, 32))
    assert many.bytes > few.bytes > 4 * recipe("igpt-l").shape.parameters * 1024


def test_a_plan_by_cost_measures_this_machine_once_in_a_process_of_its_own(project: Project) -> None:
    done = igpt_here("plan", "headline-001", "--tier", "released", "--cost", root=project.root)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^here: measured now on .+", done.stdout, re.MULTILINE)
    assert re.search(r"^headline-001 +5\.6 ", done.stdout, re.MULTILINE)  # the weights and CIFAR-10
    found = this_machine()
    assert found is this_machine()
    assert found.measured
    assert all(10**8 < rate < 10**16 for rate in vars(found.rates).values())
