"""A network's linear probe, from tokens to the result: features of its layers on disk, the probes of these, and the disk freed.

Cut at any moment, the same call goes on: features are noted every minute, and each layer's probe as it is solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from igpt.data import LabelledTokens
from igpt.evaluate.feature_store import Look, Report, remove_looks, say_effort, store_looks
from igpt.evaluate.kept import Kept
from igpt.evaluate.linear_probe import ProbeResult, probe_layers
from igpt.files import remove_parts
from igpt.model import ImageGPT

Splits = Sequence[LabelledTokens]  # train, validation, test


def probe_network(
    folder: Path,
    model: ImageGPT,
    splits: Splits,
    *,
    weights: str,
    layers: Sequence[int],
    mask_seed: int = 0,
    views: int = 1,
    precision: str = "float32",
    device: str = "cpu",
    report: Report = lambda done, total: None,
) -> ProbeResult:
    """The probe of some layers, computed, continued, or as it was kept in ``folder``, where nothing else stays.

    weights : what identifies them
    views : looks at the test images, each with other masks of BERT's; an autoregressive model takes one
    precision : of the features on disk, as `store_features` has it. float16 changed 6 to 35 of 6,000 predictions a layer of
    laptop-l's on CIFAR-10, no test accuracy by more than 0.0005, no strength, and not the layer that was chosen
    """
    looks = _looks(model, splits, mask_seed, views)
    images = sum(len(tokens) for tokens, _ in looks)
    digests = {f"split {number}": split.digest for number, split in enumerate(splits)}
    key = {"weights": weights, "layers": str(list(layers)), "precision": precision, "masks": f"{mask_seed} {views}", **digests}
    kept = Kept(folder, key)

    def compute() -> dict[str, object]:
        stores = store_looks(
            folder,
            model,
            looks,
            key=key,
            layers=layers,
            dtype=precision,
            report=lambda done, _: report(done, 2 * images),  # the probes take about as long
        )
        features = [store.every_layer() for store in stores]
        return probe_layers(
            (features[0], features[1], features[2:]),
            (splits[0].labels, splits[1].labels),
            layers=layers,
            device=device,
            kept=kept,
            report=lambda done, total: report(images + images * done // total, 2 * images),
        ).as_json()

    found = ProbeResult.from_json(kept.of("probe", compute))
    remove_looks(folder)
    remove_parts(folder, "search-*.json", "refit-*.json")
    return found


def say_probes(
    folders: Sequence[Path],
    model: ImageGPT,
    splits: Splits,
    *,
    layers: Sequence[int],
    views: int = 1,
    precision: str = "float32",
) -> None:
    """`say_effort` of `probe_network` for several networks of the model's shape, one after the other."""
    begun = [folder for folder in folders if not (folder / "probe.json").exists()]
    for folder in set(folders) - set(begun):
        remove_looks(folder)  # of a process that was killed before it could
    say_effort(begun, model, _looks(model, splits, 0, views), layers=layers, dtype=precision)


def _looks(model: ImageGPT, splits: Splits, mask_seed: int, views: int) -> list[Look]:
    """Train, validation, and the views of test, whose masks are others than those of the first two."""
    count = views if model.shape.objective == "bert" else 1
    return [(splits[0], mask_seed), (splits[1], mask_seed), *((splits[2], mask_seed + 1 + view) for view in range(count))]
