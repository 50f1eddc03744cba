"""The tables of the post and the paper: which published numbers each holds, in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from igpt.companion.experiments.cells import Experiment, experiments
from igpt.companion.experiments.published import Published


@dataclass(frozen=True)
class Table:
    """One table of the book: its name on the command line, its caption, and the rows it takes."""

    name: str
    caption: str
    holds: Callable[[Published], bool]

    def experiments(self) -> tuple[Experiment, ...]:
        """The table's experiments in the order of the published numbers."""
        return tuple(e for e in experiments() if self.holds(e.published))


def _of(*tables: str, evaluation: str = "") -> Callable[[Published], bool]:
    """Rows of the named blocks, of one evaluation if it is named."""
    return lambda row: row.table in tables and (not evaluation or row.evaluation == evaluation)


TABLES = (
    Table("headline", "The post's headline table", _of("headline")),
    Table(
        "linear-probes",
        "Linear probes on CIFAR-10, CIFAR-100 and STL-10, from the post and the paper's text",
        _of("transfer", "probe-paper", evaluation="linear-probe"),
    ),
    Table("depth", "How deep the best layer lies: the maxima of the paper's Figure 2", _of("depth")),
    Table(
        "fine-tunes",
        "Fine-tuning, from the post and the paper's section 4.5",
        lambda row: (
            row.table in ("fine-tune-paper", "fine-tune-imagenet") or (row.table == "transfer" and row.evaluation == "fine-tune")
        ),
    ),
    Table("imagenet-probes", "Linear probes on ImageNet, with features and parameters, from the post", _of("imagenet-probe")),
    Table("imagenet-probes-paper", "The same table as the paper prints it", _of("imagenet-probe-paper")),
    Table("imagenet-scale", "Linear probes on ImageNet by model size, from the paper's section 4.4", _of("imagenet-probe-scale")),
    Table("bert", "BERT against the autoregressive objective, from the paper's section 4.6", _of("bert")),
    Table("low-data", "Few labels on CIFAR-10, from the post and the paper's section 4.7", _of("low-data", "low-data-paper")),
    Table("loss-against-probe", "Generative loss against probe accuracy: the points of the paper's Figure 3", _of("figure-3")),
    Table("released-losses", "Test losses of the released weights", _of("released-loss")),
    Table("parameters", "Numbers of parameters", _of("parameters")),
    Table("learning-rates", "Pre-training's learning rates, the paper's Table 5", _of("learning-rate")),
    Table("compute", "The cost of pre-training, as the post gives it", _of("compute")),
    Table("version-1", "Numbers of the paper's first version, which are not reproduced here", _of("version-1")),
)
