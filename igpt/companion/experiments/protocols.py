"""The protocols: what each notebook stands on, what decides its result, what it costs, how long it takes, how it is drawn.

One entry a notebook, and the one place that knows it; an evaluation that is added is a notebook, an entry here and a chapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from igpt.companion.experiments import needs, work
from igpt.companion.experiments.needs import Needs
from igpt.companion.experiments.work import Given, Work
from igpt.companion.stage import Stage
from igpt.data.cards import data_card
from igpt.train.recipe import Recipe
from igpt.train.recipes import PAPER, recipe

Parents = dict[str, Stage]  # by the name under which a notebook asks for one


def nothing(given: Given) -> Parents:
    """No parents."""
    return {}


def palette(given: Given) -> Parents:
    """The palette that a recipe's tokens need, where it is not the released one."""
    if "model" not in given or (plan := _plan(given)).released_palette:
        return {}
    return {"palette": Stage.of("palette", dataset=plan.dataset, colours=plan.palette_colours)}


def trained(given: Given) -> Parents:
    """The weights that are evaluated: trained here, or existing ones."""
    if "model" not in given:
        return {}
    named = {"model": _plan(given).name, "objective": given.get("objective", "autoregressive")}
    if given.get("weights", "trained") == "trained":
        return {"pretrain": Stage.of("pretrain", **named, seed=given["seed"])}
    step = {"step": given["step"]} if "step" in given else {}
    return {"weights": Stage.of("weights", **named, **step, weights=given["weights"])}


def milestones(given: Given) -> Parents:
    """The weights along pre-training, with their losses: of one run here, or as released, step by step."""
    if given.get("weights", "trained") == "trained":
        return trained(given)
    found: Parents = {}
    for step in work.released_steps(given):
        chosen = {"model": given["model"], "step": step, "weights": given["weights"]}
        found |= {f"weights-{step}": Stage.of("weights", **chosen), f"released_loss-{step}": Stage.of("released_loss", **chosen)}
    return found


def probed(given: Given) -> Parents:
    """The weights, and the linear probe that has chosen a layer of them."""
    chosen = {name: given[name] for name in ("dataset", "seed", "weights") if name in given}
    named = {"model": _plan(given).name, "objective": given.get("objective", "autoregressive")}
    return {**trained(given), "linear_probe": Stage.of("linear_probe", **named, **chosen)}


def its_dataset(given: Given) -> list[str]:
    """The data set that is named, else the recipe's."""
    return [str(given["dataset"])] if given.get("dataset") else [plan.dataset for plan in its_recipe(given)]


def its_recipe(given: Given) -> list[Recipe]:
    """The recipe of the model that is named."""
    return [_plan(given)] if "model" in given else []


@dataclass(frozen=True)
class Protocol:
    """One notebook.

    takes : what a table's cell says of it, of model, objective, dataset, weights and seed; the rest is its defaults
    work : the time that it costs, see `experiments.work`; needs : memory and disk, see `experiments.needs`
    seconds : what a stage is taken for until a record says better: what one took on two cores when first run
    figures : functions of `igpt.companion.report.figures` that draw its records, the first unless another is named
    parents : the stages whose outputs it reads; datasets : sets whose content decides its result; recipes : likewise
    modules : those that it picks by a parameter; what it imports itself need not be named
    network : whether it runs a network, and so is worth a GPU
    test_only : whether it reads images of test alone, and no labels
    spreads : whether it uses all devices of its job, and continues in the next one after its time limit
    """

    notebook: str
    takes: tuple[str, ...]
    work: Work | Callable[[Given, Recipe], Work]
    seconds: float = 8
    figures: tuple[str, ...] = ()
    parents: Callable[[Given], Parents] = trained
    datasets: Callable[[Given], list[str]] = its_dataset
    recipes: Callable[[Given], list[Recipe]] = its_recipe
    modules: Callable[[Given], list[str]] = lambda given: []
    needs: Callable[[Given, Recipe], Needs] = needs.nothing
    network: bool = True
    test_only: bool = False
    spreads: bool = False


def _none(given: Given) -> list[str]:
    """No data set."""
    return []


EVALUATION = ("model", "objective", "dataset", "weights", "seed")

PROTOCOLS = {
    protocol.notebook: protocol
    for protocol in (
        Protocol("palette", (), Work(), 6, ("palette",), nothing, recipes=lambda given: [], network=False),
        Protocol(
            "pretrain",
            ("model", "objective", "seed"),
            work.pretrain,
            25,
            ("losses", "compute"),
            palette,
            needs=needs.pretrain,
            spreads=True,
        ),
        Protocol(
            "rate_search",
            ("model", "objective", "seed"),
            work.rate_search,
            figures=("rate_search",),
            parents=nothing,
            recipes=lambda given: [replace(_plan(given), learning_rate=0.0)],  # which it is there to find
            needs=needs.rate_search,
        ),
        # OpenAI's weights, or a user's own: fetched, verified and converted; no recipe of ours decides them.
        Protocol(
            "weights",
            ("model", "objective", "weights"),
            work.weights,
            parents=nothing,
            datasets=_none,
            recipes=lambda given: [],
            needs=needs.weights,
            network=False,
        ),
        Protocol(
            "released_loss",
            ("model", "weights"),
            work.released_loss,
            datasets=lambda given: ["imagenet-tokens"],
            recipes=lambda given: [],
            needs=needs.released_loss,
            test_only=True,
        ),
        Protocol(
            "samples",
            ("model", "weights", "seed"),
            work.samples,
            figures=("samples", "completions"),
            needs=needs.samples,
            test_only=True,
        ),
        Protocol("linear_probe", EVALUATION, work.linear_probe, figures=("depth", "bert"), needs=needs.linear_probe),
        Protocol("probe_settings", EVALUATION, work.settings, figures=("probe_settings",), parents=probed, needs=needs.settings),
        Protocol("sgd_probe", EVALUATION, work.sgd_probe, needs=needs.sgd_probe),
        Protocol(
            "loss_against_probe",
            ("model", "dataset", "weights", "seed"),
            work.milestones,
            12,
            ("loss_against_probe",),
            milestones,
            needs=needs.milestones,
        ),
        Protocol("concatenated_features", EVALUATION, work.concatenated, parents=probed, needs=needs.concatenated),
        Protocol("fine_tune", EVALUATION, work.fine_tune, 45, ("search", "bert"), needs=needs.fine_tune, spreads=True),
        Protocol("low_data", EVALUATION, work.low_data, figures=("low_data",), parents=probed, needs=needs.low_data),
        Protocol(
            "parameters",
            (),
            Work(),
            parents=nothing,
            datasets=_none,
            recipes=lambda given: [recipe(name) for name in PAPER],
            network=False,
        ),
        Protocol(
            "speed",
            (),
            Work(),  # of minutes, whatever the machine
            parents=nothing,
            datasets=_none,
            recipes=lambda given: [],
            modules=lambda given: [f"igpt.companion.bench.{given['task']}"],
        ),
    )
}


def needed_stages(notebook: str, parameters: Given) -> Parents:
    """The stages whose outputs a notebook reads, given all of its parameters, by the names it asks for them."""
    return _protocol(notebook).parents(parameters)


def needed_datasets(notebook: str, parameters: Given) -> list[str]:
    """The data sets whose content a notebook's result depends on."""
    return _protocol(notebook).datasets(parameters)


def needed_recipes(notebook: str, parameters: Given) -> list[Recipe]:
    """The recipes that decide a notebook's result."""
    return _protocol(notebook).recipes(parameters)


def chosen_modules(notebook: str, parameters: Given) -> list[str]:
    """The modules that a notebook picks by a parameter, the readers of its data sets among them."""
    readers = {data_card(name).reader for name in needed_datasets(notebook, parameters)}
    return sorted({*readers, *_protocol(notebook).modules(parameters)})


def expected_seconds(notebook: str) -> float:
    """What a stage of a notebook is taken for until a record says better."""
    return _protocol(notebook).seconds


def spreads(stage: Stage) -> bool:
    """Whether a stage uses all devices of its job, and continues in the next one after its time limit."""
    return _protocol(stage.notebook).spreads


def prior_datasets(notebook: str, parameters: Given) -> list[str]:
    """The data sets that have to be at hand before a stage begins; single files that a stage reads it downloads itself."""
    by_file = _protocol(notebook).test_only
    return [name for name in needed_datasets(notebook, parameters) if not (by_file and data_card(name).loose)]


def test_only(stage: Stage) -> bool:
    """Whether a stage reads images of test alone, and no labels."""
    return _protocol(stage.notebook).test_only


def uses_network(stage: Stage) -> bool:
    """Whether a stage runs a network, and so is worth a GPU."""
    return _protocol(stage.notebook).network


def _protocol(notebook: str) -> Protocol:
    """A notebook's protocol; one of a user's own stands on the weights and the data that its parameters name."""
    return PROTOCOLS.get(notebook) or Protocol(notebook, (), Work())


def _plan(given: Given) -> Recipe:
    """The recipe of a stage's model."""
    return recipe(str(given["model"]), str(given.get("objective", "autoregressive")))  # type: ignore[arg-type]  # refused there
