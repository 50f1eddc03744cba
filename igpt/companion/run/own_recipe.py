"""A recipe of the user's own: a small YAML file of sizes and settings, alone or as changes to a recipe with a name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shortly
from typing import Annotated, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igpt.companion.results.notebooks import near_misses
from igpt.companion.settings import StrictYaml
from igpt.data import data_card
from igpt.errors import UsageError
from igpt.files import cannot_read, read_whole
from igpt.palette import MOST as MOST_COLOURS
from igpt.shape import ModelShape, Objective
from igpt.text import listed, visible
from igpt.train.recipe import Recipe
from igpt.train.recipes import recipe

LARGEST = 2**16  # bytes of a recipe's file; one with a thousand classes has about 20 KB
MOST = 10**9  # steps
Size = Annotated[int, Field(ge=1, le=100_000)]


@dataclass(frozen=True)
class OwnRecipe:
    """A recipe, and the classes whose images it trains on, by name or index; all if empty."""

    recipe: Recipe
    classes: tuple[str | int, ...]


class Fields(BaseModel):
    """The fields of a recipe's file, in the words of the help."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    base: str | None = None
    layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    width: Size | None = None
    heads: Size | None = None
    side: Annotated[int, Field(ge=1, le=1024)] | None = None  # pixels
    colours: Annotated[int, Field(ge=1, le=MOST_COLOURS)] | None = None
    batch: Size | None = None  # images
    steps: Annotated[int, Field(ge=1, le=MOST)] | None = None
    warmup: Annotated[int, Field(ge=0, le=MOST)] | None = None  # steps
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    objective: Objective | None = None
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = None
    mask_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    classes: Annotated[tuple[str | int, ...], Field(min_length=1)] | None = None


NEEDED = ("layers", "width", "heads", "side", "colours", "batch", "steps", "warmup", "learning_rate")  # without a base
LISTS = {
    "betas": "should be two numbers from 0 to below 1, such as [0.9, 0.95]",
    "classes": "should be a list of names or numbers of classes, such as [cat, 3]; a name may need quotes",
}
SIZES = {"layers": "n_layer", "width": "n_embd", "heads": "n_head", "colours": "n_vocab"}


class _Recipe(StrictYaml):
    """Strict YAML without aliases, by which a small file becomes a large value; 3e-4 is a number."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """The next node. Raises YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(problem="it has an alias", problem_mark=mark)
        return super().compose_node(parent, index)  # type: ignore[arg-type]


_Recipe.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def is_recipe_file(word: str) -> bool:
    """Whether a word is the path of a recipe's file, and not the name of a recipe."""
    return word.endswith((".yaml", ".yml"))


def own_recipe(path: Path, objective: str | None = None) -> OwnRecipe:
    """The recipe in a file, named like the file without its ending.

    objective : instead of the file's
    Raises UsageError when the file is missing, too large, no YAML, or has an unknown or wrong field.
    """
    if objective not in (None, *get_args(Objective)):
        raise UsageError(f"there is no objective {objective!r}; choose autoregressive or bert")
    fields, name = _read(path), visible(path.stem, limit=80)
    chosen = cast(Objective, objective or fields.objective or "autoregressive")
    given = fields.model_dump(exclude_none=True)
    sizes = {size: given[name] for name, size in SIZES.items() if name in given}
    sizes |= {"n_ctx": given["side"] ** 2} if "side" in given else {}
    try:
        if fields.base is None:
            if missing := [name for name in NEEDED if name not in given]:
                raise UsageError(
                    f"{path} has no {listed(missing, most=len(missing))}: add {_them(missing)}, or name a base: igpt-s"
                )
            shape = ModelShape(**sizes, objective=chosen)
            plan = Recipe(name, shape, "", shape.n_vocab, given["batch"], given["steps"], given["warmup"], given["learning_rate"])
        else:
            base = _base(path, fields.base, chosen)
            shape = replace(base.shape, **sizes)
            plan = replace(base, name=name, shape=shape, dataset="", palette_colours=shape.n_vocab, shifts=False)
    except ValueError as error:
        raise UsageError(f"{path} describes no model: {error}; correct it") from None
    plan = replace(plan, **{name: given[name] for name in ("batch", "learning_rate", "betas", "mask_rate") if name in given})
    if "steps" in given:
        plan = shortened(plan, given["steps"])
    if "warmup" in given:
        plan = replace(plan, warmup=given["warmup"])
    if "mask_rate" in given and "bert" not in (chosen, fields.objective):
        raise UsageError(f"{path} has a mask_rate, which is BERT's, and the objective is {chosen}: remove it, or write bert")
    if plan.warmup > plan.steps:
        raise UsageError(f"{path} has a warmup of {plan.warmup:,} steps and {plan.steps:,} steps in all: shorten the warmup")
    return OwnRecipe(plan, fields.classes or ())


def shortened(plan: Recipe, steps: int) -> Recipe:
    """The recipe with a schedule of so many steps, at most a twentieth of them as warm-up."""
    return replace(plan, steps=steps, warmup=min(plan.warmup, max(steps // 20, 1)))


def class_labels(classes: Sequence[str | int], dataset: str) -> list[int]:
    """The labels of classes that are given by name or index; a number that is also a name is the name.

    Raises UsageError for a class that the data set does not have, and for a name that several classes have.
    """
    if not classes:
        return []
    card = data_card(dataset)
    names, labels = card.names(card), set[int]()
    for given in classes:
        found = [label for label, name in enumerate(names) if name == str(given)]
        if len(found) > 1:
            numbers = listed([str(label) for label in found], most=9)
            raise UsageError(f"{card.title} has {len(found)} classes called {given}: give their numbers ({numbers})")
        if not found and isinstance(given, int) and 0 <= given < card.classes:
            found = [given]
        if not found:
            known = near_misses(str(given), names) or f"; they are numbered from 0 to {card.classes - 1}"
            raise UsageError(f"{card.title} has no class {visible(repr(given), limit=80)} among its {card.classes:,}{known}")
        labels |= set(found)
    return sorted(labels)


def _read(path: Path) -> Fields:
    """The fields of a recipe's file."""
    try:
        content = read_whole(path, most=LARGEST)
    except FileNotFoundError:
        raise UsageError(f"there is no recipe at {path}: write one, or give a recipe's name such as igpt-s") from None
    except OSError as error:
        raise cannot_read(path, error) from None
    except ValueError as error:
        raise UsageError(f"{path} is no recipe ({error}): give a file of a few lines of 'name: value'") from None
    try:
        settings = yaml.load(content, _Recipe)  # a SafeLoader
        text = json.dumps(settings)  # strict mode accepts lists for tuples only in JSON
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, LookupError) as error:
        raise UsageError(f"{path} is not YAML as recipes are written ({_problem(error)}): correct it") from None
    if not isinstance(settings, dict):
        raise UsageError(
            f"{path} holds {shortly(settings)}, and a recipe one 'name: value' a line, such as 'base: igpt-s': correct it"
        )
    if empty := [str(name) for name, value in settings.items() if value is None]:
        raise UsageError(f"{path} has {visible(empty[0], limit=80)} without a value: write one, or remove the line")
    try:
        return Fields.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # a text with half of a surrogate pair
            raise UsageError(f"{path} is not YAML as recipes are written ({first['msg']}): correct it") from None
        name, value = visible(str(first["loc"][0]), limit=80), shortly(settings.get(first["loc"][0]))
        if first["type"] == "extra_forbidden":
            known = near_misses(name, list(Fields.model_fields)) or f"; the fields are {', '.join(Fields.model_fields)}"
            raise UsageError(f"{path} has the unknown field {name}{known}") from None
        message = LISTS.get(name) or first["msg"].removeprefix("Input ")
        raise UsageError(f"{path} has {name} {value}, which {message}: correct it") from None


def _problem(error: Exception) -> str:
    """The problem of a file that is no YAML, with its line if known."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return visible(f"{error.problem}, in line {error.problem_mark.line + 1}", limit=200)
    return visible(" ".join(str(error).split()), limit=200)


def _base(path: Path, name: str, objective: Objective) -> Recipe:
    """The recipe that a file changes."""
    try:
        return recipe(name, objective)
    except UsageError as error:
        raise UsageError(f"{path} has a base that is none: {error}") from None


def _them(names: Sequence[str]) -> str:
    """The pronoun of one thing or several."""
    return "it" if len(names) == 1 else "them"
