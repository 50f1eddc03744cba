"""The protocols, one per notebook: its parents, what decides its result, what it demands of a machine, and its figures.

To add an evaluation, add a notebook, an entry here and a chapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from igpt.companion.experiments import demand
from igpt.companion.experiments.demand import Demand, Given
from igpt.companion.experiments.speed import MODULES
from igpt.companion.stage import Stage
from igpt.data.cards import data_card
from igpt.train.recipe import Recipe
from igpt.train.recipes import PAPER, recipe

Parents = dict[str, Stage]  # by the name under which a notebook asks for one


def none(given: Given) -> list[str]:
    """No data sets, no modules."""
    return []


def no_parents(given: Given) -> Parents:
    """No parents."""
    return {}


def no_recipes(given: Given) -> list[Recipe]:
    """No recipes."""
    return []


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
    parents: Parents = {}
    for step in demand.released_steps(given):
        chosen = {"model": given["model"], "step": step, "weights": given["weights"]}
        parents |= {f"{notebook}-{step}": Stage.of(notebook, **chosen) for notebook in ("weights", "released_loss")}
    return parents


def probed(given: Given) -> Parents:
    """The weights, and the linear probe that has chosen a layer of them."""
    chosen = {name: given[name] for name in ("dataset", "seed", "weights") if name in given}
    named = {"model": _plan(given).name, "objective": given.get("objective", "autoregressive")}
    return {**trained(given), "linear_probe": Stage.of("linear_probe", **named, **chosen)}


def its_recipe(given: Given) -> list[Recipe]:
    """The recipe of the model that is named."""
    return [_plan(given)] if "model" in given else []


def its_dataset(given: Given) -> list[str]:
    """The data set that is named, else the recipe's."""
    return [str(given["dataset"])] if given.get("dataset") else [plan.dataset for plan in its_recipe(given)]


def _plan(given: Given) -> Recipe:
    """The recipe of a stage's model."""
    return recipe(str(given["model"]), str(given.get("objective", "autoregressive")))  # type: ignore[arg-type]  # refused there


EVALUATION = ("model", "objective", "dataset", "weights", "seed")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One notebook. Functions of ``Given`` take all parameters of a stage.

    takes : which of `EVALUATION` a table's cell gives it; its other parameters keep their defaults
    demand : what a stage takes of a machine; None where that is little, or not known
    seconds : of a stage of the tiny tier on two cores, by its records; there the demand foretells too little
    figures : functions of `igpt.companion.report.figures` that draw its records, the first unless another is named
    parents : the stages whose outputs it reads; datasets : sets whose content decides its result; recipes : likewise
    modules : those that a parameter chooses; modules that the notebook imports need not be named
    network : whether it runs a network, and so gains from a GPU
    test_only : whether it reads images of test alone, and no labels
    spreads : whether it uses all devices of its job, and continues in the next one after its time limit
    """

    takes: tuple[str, ...] = EVALUATION
    demand: Callable[[Given, Recipe], Demand] | None = None
    seconds: float = 4.0
    figures: tuple[str, ...] = ()
    parents: Callable[[Given], Parents] = trained
    datasets: Callable[[Given], list[str]] = its_dataset
    recipes: Callable[[Given], list[Recipe]] = its_recipe
    modules: Callable[[Given], list[str]] = none
    network: bool = True
    test_only: bool = False
    spreads: bool = False

    def chosen_modules(self, given: Given) -> list[str]:
        """The modules that parameters choose, the readers of the data sets among them."""
        return sorted({*(data_card(name).reader for name in self.datasets(given)), *self.modules(given)})

    def prior_datasets(self, given: Given) -> list[str]:
        """The data sets that must be there before a stage begins; single files that a stage reads it downloads itself."""
        return [name for name in self.datasets(given) if not (self.test_only and data_card(name).loose)]


PROTOCOLS = {
    "palette": Protocol(figures=("palette",), parents=no_parents, recipes=no_recipes, network=False),
    "pretrain": Protocol(
        takes=("model", "objective", "seed"),
        demand=demand.pretrain,
        seconds=32.0,
        figures=("losses", "compute"),
        parents=palette,
        spreads=True,
    ),
    "rate_search": Protocol(
        takes=("model", "objective", "seed"),
        demand=demand.rate_search,
        figures=("rate_search",),
        parents=no_parents,
        recipes=lambda given: [replace(_plan(given), learning_rate=0.0)],  # which is what it searches
    ),
    # OpenAI's weights, or a user's own: fetched, verified and converted; no recipe of ours decides them.
    "weights": Protocol(
        takes=("model", "objective", "weights"),
        demand=demand.weights,
        parents=no_parents,
        datasets=none,
        recipes=no_recipes,
        network=False,
    ),
    "released_loss": Protocol(
        takes=("model", "weights"),
        demand=demand.released_loss,
        datasets=lambda given: ["imagenet-tokens"],
        recipes=no_recipes,
        test_only=True,
    ),
    "samples": Protocol(
        takes=("model", "weights", "seed"),
        demand=demand.samples,
        figures=("samples", "completions"),
        test_only=True,
    ),
    "linear_probe": Protocol(demand=demand.linear_probe, figures=("depth", "bert")),
    "probe_settings": Protocol(demand=demand.settings, figures=("probe_settings",), parents=probed),
    "sgd_probe": Protocol(demand=demand.sgd_probe),
    "loss_against_probe": Protocol(
        takes=("model", "dataset", "weights", "seed"),
        demand=demand.milestones,
        figures=("loss_against_probe",),
        parents=milestones,
    ),
    "concatenated_features": Protocol(demand=demand.concatenated, parents=probed),
    "fine_tune": Protocol(demand=demand.fine_tune, seconds=70.0, figures=("search", "bert"), spreads=True),
    "low_data": Protocol(demand=demand.low_data, figures=("low_data",), parents=probed),
    "parameters": Protocol(
        takes=(),
        parents=no_parents,
        datasets=none,
        recipes=lambda given: [recipe(name) for name in PAPER],
        network=False,
    ),
    "speed": Protocol(
        takes=(),
        seconds=600.0,  # on any machine
        parents=no_parents,
        datasets=none,
        recipes=no_recipes,
        modules=lambda given: [f"igpt.companion.bench.{MODULES.get(str(given['task']), given['task'])}"],
    ),
}
OWN = Protocol(takes=())  # a notebook of a user's own: it depends on the weights and the data that its parameters name


def protocol(notebook: str) -> Protocol:
    """The protocol of a notebook."""
    return PROTOCOLS.get(notebook, OWN)


def stage_demand(stage: Stage) -> Demand:
    """What one stage, all of whose parameters are named, takes of a machine; nothing is known of a user's own notebook.

    Raises KeyError for a stage without the parameters that decide it: none has a cost by default.
    """
    function = protocol(stage.notebook).demand
    return function(stage.parameters, _plan(stage.parameters)) if function else Demand()
