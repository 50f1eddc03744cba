"""The tiers: the scales at which the paper is reproduced. Each is one declaration; all else is derived from it.

The criteria of a tier (see `igpt.companion.experiments.measures`) were written before the records that they judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from igpt.companion.experiments.measures import Value, of
from igpt.companion.stage import Literal, Stage
from igpt.train.recipes import LAPTOP, PAPER, SMALL, TINY
from igpt.weights.released import STEPS


@dataclass(frozen=True)
class Tier:
    """One tier.

    title : heading of its column; takes : its data and time, as a phrase
    seeds : one run per seed
    recipes : the models that it trains; each recipe belongs to one tier
    models : recipes by published model and resolution, such as ``iGPT-L 32x32``
    stands_for : for each published data set the one used instead; data sets that are not listed have no counterpart
    overrides : parameters that differ from the notebook's defaults, by notebook
    weights : the weights that evaluations read: ``trained`` here, or ``released`` by OpenAI
    numbers : whether cells are compared with the published numbers; otherwise the claims behind them are tested
    lacks : measures without a counterpart, by name in published.csv, with reasons
    unpublished : published models without a counterpart, by name as in ``models``, with reasons
    instead : values that replace the value of a measure
    cores : whether the cost of pending cells is estimated for two cores instead of a card
    extra : stages that only fill figures
    """

    name: str
    title: str
    takes: str
    seeds: tuple[int, ...]
    models: Mapping[str, str]
    stands_for: Mapping[str, str]
    recipes: Iterable[str] = ()
    overrides: Mapping[str, Mapping[str, Literal]] = field(default_factory=dict)
    weights: str = "trained"
    numbers: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    unpublished: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, Value] = field(default_factory=dict)
    cores: bool = False
    extra: tuple[Stage, ...] = ()

    def stage(self, notebook: str, /, **given: Literal) -> Stage:
        """A stage of a notebook with the tier's overrides."""
        return Stage.of(notebook, **{**given, **self.overrides.get(notebook, {})})

    def figure_stages(self, notebook: str = "") -> tuple[Stage, ...]:
        """The stages that only fill figures, of one notebook or all."""
        return tuple(self.stage(s.notebook, **s.parameters) for s in self.extra if notebook in ("", s.notebook))


def _sizes(prefix: str) -> dict[str, str]:
    """Our recipes by published model; the largest also stands for iGPT-XL."""
    sizes = {"iGPT-S 32x32": "s", "iGPT-M 32x32": "m", "iGPT-L 32x32": "l", "iGPT-XL 64x64": "l"}
    return {published: f"{prefix}-{size}" for published, size in sizes.items()}


def _extra(tier: str, dataset: str) -> tuple[Stage, ...]:
    """Stages of a tier's largest model: samples, the probe settings that the paper leaves open, a user's own pictures."""
    large = f"{tier}-l"
    notebooks = ("probe_settings", "own_pictures")
    return Stage.of("samples", model=large), *(Stage.of(name, model=large, dataset=dataset) for name in notebooks)


def _searches(tier: str) -> tuple[Stage, ...]:
    """The searches for a tier's learning rates: for each size, and for BERT at the largest size."""
    sizes = tuple(Stage.of("rate_search", model=f"{tier}-{size}", seed=100) for size in "sml")
    return (*sizes, Stage.of("rate_search", model=f"{tier}-l", seed=100, objective="bert"))


PUBLISHED_SETS = ("cifar10", "cifar100", "stl10")

TIERS = {
    tier.name: tier
    for tier in (
        Tier(
            "tiny",
            title="Tiny tier (digits)",
            takes="digits, minutes",
            seeds=(0, 1, 2),
            recipes=TINY,
            models=_sizes("tiny"),
            stands_for={"cifar10": "digits", "imagenet": "digits"},
            lacks=dict.fromkeys(("few-4000", "few-4000-deviation"), "the digits hold too few images for so many labels"),
            cores=True,
            extra=_extra("tiny", "digits"),
        ),
        Tier(
            "laptop",
            title="Laptop tier (CIFAR-10, 16x16)",
            takes="CIFAR-10, hours of two cores",
            seeds=(0,),
            recipes=LAPTOP,
            models=_sizes("laptop"),
            stands_for={"cifar10": "cifar10", "imagenet": "cifar10"},
            # Fine-tuning on all of CIFAR-10 takes hours on two cores; the book shows more samples than the default.
            overrides={
                "fine_tune": {"images": 6_000, "epochs": 2},
                "loss_against_probe": {"images": 10_000},
                "own_pictures": {"classes": "3,5"},  # cats and dogs
                "samples": {"images": 32},
            },
            cores=True,
            extra=(*_extra("laptop", "cifar10"), *_searches("laptop")),
        ),
        Tier(
            "small",
            title="Small tier (Tiny ImageNet)",
            takes="Tiny ImageNet, a GPU-hour",
            seeds=(0,),
            recipes=SMALL,
            models=_sizes("small"),
            stands_for={"cifar10": "cifar10", "imagenet": "tiny-imagenet"},
            # Fine-tuning on more would take two hours of the tier's GPU.
            overrides={
                "fine_tune": {"images": 10_000, "epochs": 3},
                "own_pictures": {"classes": "3,5"},
                "rate_search": {"steps": 200},
                "samples": {"images": 32},
            },
            extra=(*_extra("small", "cifar10"), *_searches("small")),
        ),
        Tier(
            "released",
            title="Released weights",
            takes="OpenAI's weights, evaluated on one GPU",
            seeds=(0,),
            models={"iGPT-S 32x32": "igpt-s", "iGPT-M 32x32": "igpt-m", "iGPT-L 32x32": "igpt-l"},
            stands_for={**{name: name for name in PUBLISHED_SETS}, "imagenet": "imagenet-tokens", "": ""},
            weights="released",
            numbers=True,
            lacks=dict.fromkeys(("probe@0", "loss@0"), "weights after 65,000 steps were not published"),
            unpublished={
                "iGPT-L 48x48": "the weights of the 48x48 model were not published",
                "iGPT-XL 64x64": "iGPT-XL's weights were not published",
                "iGPT-XL 32x32": "iGPT-XL's weights were not published",
            },
            overrides={"samples": {"images": 32}},
            instead={
                "parameters": of("weights.parameters"),
                **{f"loss@{i}": of("released_loss.nats", step=step) for i, step in enumerate(STEPS, start=1)},
            },
            extra=(
                # Samples on ImageNet images, which are tokens; depth curves of the two sizes that figure 2 omits.
                Stage.of("samples", model="igpt-l", weights="released", dataset="imagenet-tokens"),
                *(
                    Stage.of("linear_probe", model=model, dataset="cifar10", weights="released", seed=0)
                    for model in ("igpt-s", "igpt-m")
                ),
            ),
        ),
        Tier(
            "paper",
            title="Paper's scale",
            takes="as published, from nothing",
            seeds=(0,),
            recipes=PAPER,
            models={
                "iGPT-S 32x32": "igpt-s",
                "iGPT-M 32x32": "igpt-m",
                "iGPT-L 32x32": "igpt-l",
                "iGPT-L 48x48": "igpt-l-48",
                "iGPT-XL 64x64": "igpt-xl",
                "iGPT-XL 32x32": "igpt-xl",  # only the number of parameters is published
            },
            stands_for={name: name for name in (*PUBLISHED_SETS, "imagenet", "")},
            numbers=True,
        ),
    )
}
_TIER_OF = {model: tier.name for tier in TIERS.values() for model in tier.recipes}
OWN = "own"  # instead of a tier, for stages on a user's own weights or recipes


def tier_of(stage: Stage) -> str:
    """The tier of a stage; ``speed`` for a speed comparison, `OWN` for a stage of no tier."""
    given = stage.parameters
    if stage.notebook == "speed":
        return "speed"
    default = "released" if stage.notebook in ("weights", "released_loss") else "trained"
    weights = given.get("weights", default)
    if weights != "trained":
        return "released" if weights == "released" else OWN
    if "model" in given:
        return _TIER_OF.get(str(given["model"]), OWN)
    return "tiny" if stage.notebook != "parameters" and given.get("dataset", "digits") == "digits" else "paper"
