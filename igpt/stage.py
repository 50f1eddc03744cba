"""A stage: one notebook with one set of parameters; and which stages, data and seeds it stands on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from igpt.project import TIERS

if TYPE_CHECKING:
    from igpt.train.recipe import Recipe

Literal = str | int | float | bool
ALWAYS_SAID = ("model", "seed", "task")  # in a stage's name


@dataclass(frozen=True, order=True)
class Stage:
    """A notebook and the parameters given to it; those left out have the notebook's defaults."""

    notebook: str
    given: tuple[tuple[str, Literal], ...] = ()

    @classmethod
    def of(cls, notebook: str, /, **parameters: Literal) -> Stage:
        """A stage from keyword arguments."""
        return cls(notebook, tuple(sorted(parameters.items())))

    @property
    def parameters(self) -> dict[str, Literal]:
        """The given parameters by name."""
        return dict(self.given)

    @property
    def name(self) -> str:
        """The stage's name, in files and on the command line: ``linear_probe,model=tiny-l,seed=1``."""
        return ",".join([self.notebook, *(f"{name}={value}" for name, value in self.given)])

    def canonical(self, defaults: dict[str, Literal]) -> Stage:
        """The same stage under its one name: model, seed and task always said, other defaults left out.

        So a parameter that is added later renames nothing.
        """
        full = {**{k: v for k, v in defaults.items() if k in ALWAYS_SAID}, **self.parameters}
        return Stage.of(
            self.notebook,
            **{k: v for k, v in full.items() if k in ALWAYS_SAID or k not in defaults or v != defaults[k]},
        )


def needed_stages(notebook: str, parameters: dict[str, Literal]) -> dict[str, Stage]:
    """The stages whose outputs a notebook reads, by notebook, given all of its parameters.

    The one place that says what is built on what; a notebook asks for its parents by these names.
    """
    if not (plans := needed_recipes(notebook, parameters)) or notebook in ("parameters", "rate_search"):
        return {}
    [plan] = plans
    model, objective = plan.name, plan.shape.objective
    if notebook == "pretrain":
        return (
            {} if plan.released_palette else {"palette": Stage.of("palette", dataset=plan.dataset, colours=plan.palette_colours)}
        )
    trained = {"model": model, "objective": objective, "seed": parameters["seed"]}
    pretrain = {"pretrain": Stage.of("pretrain", **trained)}
    if notebook in ("concatenated_features", "low_data", "probe_settings"):
        probe = Stage.of("linear_probe", dataset=parameters["dataset"], **trained)
        return {**pretrain, "linear_probe": probe}
    return pretrain


def chosen_modules(notebook: str, parameters: dict[str, Literal]) -> list[str]:
    """The modules that a notebook picks by a parameter; those that it imports itself need not be named."""
    from igpt.data.cards import data_card

    if notebook == "speed":
        return [f"igpt.bench.{parameters['task']}"]
    return sorted({data_card(name).reader for name in needed_datasets(notebook, parameters)} - {""})


def needed_datasets(notebook: str, parameters: dict[str, Literal]) -> list[str]:
    """The data sets whose content a notebook's result depends on."""
    if "dataset" in parameters:
        return [str(parameters["dataset"])]
    return [] if notebook == "parameters" else [plan.dataset for plan in needed_recipes(notebook, parameters)]


def needed_recipes(notebook: str, parameters: dict[str, Literal]) -> list[Recipe]:
    """The recipes that decide a notebook's result; the rate is what a search is for, so none is part of it."""
    from igpt.train.recipes import PAPER, recipe

    if notebook == "parameters":
        return [recipe(name) for name in PAPER]
    if "model" not in parameters or notebook == "released_loss":  # which reads the released weights
        return []
    objective = str(parameters.get("objective", "autoregressive"))
    plan = recipe(str(parameters["model"]), objective)  # type: ignore[arg-type]  # refused there when it is no objective
    return [replace(plan, learning_rate=0.0)] if notebook == "rate_search" else [plan]


def tier_of(stage: Stage) -> str:
    """How much of the paper a stage is: by its model's name, or by its data set; speed comparisons are apart."""
    given = stage.parameters
    if stage.notebook == "speed":
        return "speed"
    named = str(given.get("model", "")).partition("-")[0]
    if named in TIERS:
        return named
    if "model" not in given and stage.notebook != "parameters" and given.get("dataset", "digits") == "digits":
        return "tiny"
    return "paper"
