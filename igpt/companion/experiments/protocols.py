"""The protocols, one per notebook: its parents, the inputs of its result, its demand on a machine, and its figures.

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

Parents = dict[str, Stage]  # by the name that notebooks use


def none(given: Given) -> list[str]:
    """No data sets or modules."""
    return []


def no_parents(given: Given) -> Parents:
    """No parents."""
    return {}


def no_recipes(given: Given) -> list[Recipe]:
    """No recipes."""
    return []


def palette(given: Given) -> Parents:
    """The palette stage of the model's recipe, unless it uses the released palette."""
    if "model" not in given or (plan := _plan(given)).released_palette:
        return {}
    return {"palette": Stage.of("palette", dataset=plan.dataset, colours=plan.palette_colours)}


def trained(given: Given) -> Parents:
    """The stage of the evaluated weights: pre-training here, or conversion of existing weights."""
    if "model" not in given:
        return {}
    named = {"model": _plan(given).name, "objective": given.get("objective", "autoregressive")}
    if given.get("weights", "trained") == "trained":
        return {"pretrain": Stage.of("pretrain", **named, seed=given["seed"])}
    step = {"step": given["step"]} if "step" in given else {}
    return {"weights": Stage.of("weights", **named, **step, weights=given["weights"])}


def milestones(given: Given) -> Parents:
    """The stages of weights and losses during pre-training: one run here, or two stages per released step."""
    if given.get("weights", "trained") == "trained":
        return trained(given)
    parents: Parents = {}
    for step in demand.released_steps(given):
        chosen = {"model": given["model"], "step": step, "weights": given["weights"]}
        parents |= {f"{notebook}-{step}": Stage.of(notebook, **chosen) for notebook in ("weights", "released_loss")}
    return parents


def probed(given: Given) -> Parents:
    """The stage of the weights, and the linear probe that chooses their layer."""
    chosen = {name: given[name] for name in ("dataset", "seed", "weights") if name in given}
    named = {"model": _plan(given).name, "objective": given.get("objective", "autoregressive")}
    return {**trained(given), "linear_probe": Stage.of("linear_probe", **named, **chosen)}


def its_recipe(given: Given) -> list[Recipe]:
    """The recipe of the parameter ``model``, if there is one."""
    return [_plan(given)] if "model" in given else []


def its_dataset(given: Given) -> list[str]:
    """The parameter ``dataset``, or else the recipe's data set."""
    return [str(given["dataset"])] if given.get("dataset") else [plan.dataset for plan in its_recipe(given)]


def _plan(given: Given) -> Recipe:
    """The recipe of a stage's model."""
    return recipe(str(given["model"]), str(given.get("objective", "autoregressive")))  # type: ignore[arg-type]  # `recipe` refuses unknown objectives


EVALUATION = ("model", "objective", "dataset", "weights", "seed")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One notebook. Functions of ``Given`` take all parameters of a stage.

    takes : parameters from `EVALUATION` that a table's cell sets; all others keep their defaults
    demand : the demand of a stage; None if it is small or unknown
    seconds : for a tiny-tier stage on two cores, from its records; the demand underestimates these
    figures : functions of `igpt.companion.report.figures` that draw its records; the first is the default
    parents : the stages whose outputs it reads
    datasets, recipes : the data sets and recipes that its result depends on
    modules : the modules that a parameter selects, in addition to those that the notebook imports
    network : whether it runs a network and is faster on a GPU
    test_only : whether it reads only test images, without labels
    spreads : whether it uses all devices of its job, and resumes in a new job after the time limit
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
        """The modules that parameters select, including the readers of the data sets."""
        return sorted({*(data_card(name).reader for name in self.datasets(given)), *self.modules(given)})

    def prior_datasets(self, given: Given) -> list[str]:
        """The data sets required before a stage starts; single files of loose data sets are downloaded by the stage."""
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
        recipes=lambda given: [replace(_plan(given), learning_rate=0.0)],  # the quantity that is searched
    ),
    # OpenAI's weights, or a user's own: fetched, verified and converted; independent of our recipes.
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
    "own_pictures": Protocol(
        takes=("model", "dataset", "seed"),
        demand=demand.own_pictures,
        seconds=60.0,
        figures=("own_pictures",),
        modules=lambda given: [
            *("igpt.data.own", "igpt.data.folders", "igpt.evaluate.feature_store", "igpt.evaluate.fine_tune"),
            "igpt.weights.classifier",
        ],
    ),
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
OWN = Protocol(takes=())  # a user's own notebook: it depends on the weights and data sets in its parameters


def protocol(notebook: str) -> Protocol:
    """The protocol of a notebook; `OWN` for a user's own notebook."""
    return PROTOCOLS.get(notebook, OWN)


def stage_demand(stage: Stage) -> Demand:
    """The demand of a stage that names all its parameters; an empty one for a user's own notebook.

    Raises KeyError if a required parameter is missing: there are no default costs.
    """
    function = protocol(stage.notebook).demand
    return function(stage.parameters, _plan(stage.parameters)) if function else Demand()


def known_demand(stage: Stage) -> Demand:
    """The demand of a stage; an empty one if a required parameter is missing, as in a notebook that its user has edited."""
    try:
        return stage_demand(stage)
    except KeyError:
        return Demand()
