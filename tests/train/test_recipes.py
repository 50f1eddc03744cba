from __future__ import annotations

from dataclasses import fields, replace

import pytest

from igpt.companion.experiments.published import published_rows
from igpt.errors import UsageError
from igpt.shape import ModelShape, Objective
from igpt.train.recipe import Recipe, forward_flops
from igpt.train.recipes import LAPTOP, PAPER, SMALL, TINY, model_of, recipe


@pytest.mark.parametrize("name", [*TINY, *LAPTOP, *SMALL, *PAPER])
def test_a_recipe_knows_itself(name: str) -> None:
    plan = recipe(name)
    assert plan.name == name
    assert plan.milestone_steps[-1] == plan.steps
    assert plan.warmup < plan.steps
    assert plan.betas == (0.9, 0.95)


def test_the_papers_recipe_sees_128_million_images() -> None:
    assert {recipe(name).batch * recipe(name).steps for name in PAPER} == {128_000_000}


def test_the_rates_are_those_of_the_published_table() -> None:
    names = {("iGPT-L", "48x48"): "igpt-l-48"}
    rows = [row for row in published_rows() if row.metric == "learning rate"]
    assert len(rows) == 8
    for row in rows:
        objective = "bert" if "BERT" in row.method else "autoregressive"
        name = names.get((row.model, row.resolution), row.model.lower())
        assert recipe(name, objective).learning_rate == float(row.value), row.row_id


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        ("igpt-xxl", "autoregressive", "no autoregressive model 'igpt-xxl'; choose one of tiny-s"),
        ("igpt-xl", "bert", "no bert model 'igpt-xl'"),
        ("tiny-s", "gan", "no objective 'gan'; choose autoregressive or bert"),
    ],
)
def test_what_the_paper_does_not_have_is_refused(model: str, objective: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(model, objective)  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
@pytest.mark.parametrize(("sizes", "name"), [((24, 512, 8, 512, 1024), "igpt-s"), ((2, 16, 4, 8, 9), "custom-2x16x4-8-9")])
def test_a_shape_with_biases_is_never_called_as_one_without(sizes: tuple[int, ...], name: str, objective: Objective) -> None:
    shape = ModelShape(*sizes, objective)  # type: ignore[arg-type]
    biased = replace(shape, biases=True)
    custom = f"custom-{'x'.join(map(str, sizes[:3]))}-{sizes[3]}-{sizes[4]}-biases"
    assert (model_of(shape), model_of(biased)) == (name, custom)
    assert recipe(name, objective).shape == shape
    assert recipe(custom, objective).shape == biased


@pytest.mark.parametrize("name", ["custom-2x16x4-8-9-bias", "custom-02x16x4-8-9-biases", "custom-2x16x3-8-9-biases"])
def test_a_name_that_is_nearly_one_of_a_shape_with_biases_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        recipe(name)


def test_a_recipe_without_biases_is_written_as_before_they_existed() -> None:
    shape = recipe("tiny-s").as_dict()["shape"]
    assert shape == {"n_layer": 2, "n_embd": 16, "n_head": 1, "n_vocab": 16, "n_ctx": 64, "objective": "autoregressive"}
    biased = recipe("custom-2x16x4-8-9-biases").as_dict()
    assert biased["shape"]["biases"] is True  # type: ignore[index]
    assert set(biased) == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(("name", "flops"), [("igpt-s", 7.9e19), ("igpt-m", 4.2e20), ("igpt-l", 1.2e21), ("igpt-xl", 2.6e22)])
def test_the_cost_is_that_worked_out_by_hand_from_the_paper(name: str, flops: float) -> None:
    assert recipe(name).flops == pytest.approx(flops, rel=0.03)  # the reference has two digits


def test_a_forward_pass_costs_what_its_products_cost() -> None:
    shape = recipe("tiny-l").shape
    t, c = shape.n_ctx, shape.n_embd
    block = 2 * t * c * 3 * c + 2 * t * c * c + 2 * 2 * t * c * 4 * c + 2 * 2 * t * t * c
    products = shape.n_layer * block + 2 * t * c * shape.n_vocab
    assert forward_flops(shape) == pytest.approx(products, rel=0.01)  # norms, embeddings and sums are the rest
