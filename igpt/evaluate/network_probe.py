"""The linear probe of a network, from tokens to the result: store features on disk, probe each layer, remove the features.

An interrupted call resumes: the progress of features is saved every minute, and each layer's probe once it is solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from igpt.data import LabelledTokens
from igpt.evaluate.feature_store import Look, Report, remove_looks, store_looks
from igpt.evaluate.kept import Kept
from igpt.evaluate.linear_probe import ProbeResult, probe_layers
from igpt.files import remove_parts
from igpt.model import ImageGPT


def probe_network(
    folder: Path,
    model: ImageGPT,
    splits: Sequence[LabelledTokens],
    *,
    weights: str,
    layers: Sequence[int],
    mask_seed: int = 0,
    views: int = 1,
    precision: str = "float32",
    device: str = "cpu",
    report: Report = lambda done, total: None,
) -> ProbeResult:
    """Probe some layers on train, validation and test; the result is read from ``folder``, or resumed or computed.

    weights : identifies the model's weights
    views : of the test images with different masks, BERT only; they differ from the masks of train and validation
    precision : of the features on disk. float16 changed 6 to 35 of 6,000 predictions of each layer of laptop-l on CIFAR-10,
    no test accuracy by more than 0.0005, no C, and not the chosen layer
    """
    train, validation, test = splits
    count = views if model.shape.objective == "bert" else 1
    looks: list[Look] = [(train, mask_seed), (validation, mask_seed), *((test, mask_seed + 1 + view) for view in range(count))]
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
        features = [list(store.layers.values()) for store in stores]
        return probe_layers(
            (features[0], features[1], features[2:]),
            (train.labels, validation.labels),
            layers=layers,
            device=device,
            kept=kept,
            report=lambda done, total: report(images + images * done // total, 2 * images),
        ).as_json()

    result = ProbeResult.from_json(kept.of("probe", compute))
    remove_looks(folder)
    remove_parts(folder, "search-*.json", "refit-*.json")
    return result
