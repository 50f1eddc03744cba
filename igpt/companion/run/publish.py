"""The command ``igpt publish``: write a trained model's final weights in half precision, with a card and samples."""

from __future__ import annotations

import json
import shutil

from igpt.companion.results.record import Record
from igpt.companion.results.store import RecordStore
from igpt.companion.run.samples import Draw, write_samples
from igpt.companion.run.trained import trained
from igpt.companion.stage import Stage
from igpt.data import data_card
from igpt.errors import UsageError
from igpt.files import write_folder, write_text
from igpt.project import Project
from igpt.train.recipes import recipe
from igpt.weights.own import load_weights, save_weights

SAMPLES = 64  # images in samples.png
LIMIT = 20 * 2**20  # largest size in bytes of a model in the repository


def publish(model: str) -> str:
    """Write a model's folder in ``igpt/weights/published``: weights in float16, palette, card and samples.

    Returns the line to print. An earlier folder stays until the new one is complete.
    Raises UsageError for a model that has not been trained here or is too large for a repository.
    """
    project, plan = Project.here(), recipe(model)
    stage, trained_folder, record = trained(project, model)
    if record is None:
        raise UsageError(f"{model} has not been trained here as this checkout stands: igpt run {stage.name} does that")
    if (size := 2 * plan.shape.parameters) > LIMIT:
        raise UsageError(f"{model} takes {size:,} bytes in half precision, more than the {LIMIT:,} that a repository should hold")
    weights, palette = load_weights(trained_folder, plan.shape)
    folder, store = project.models / model, RecordStore(project)
    probes = [store.read(Stage.of("linear_probe", model=model, dataset=name, seed=0)) for name in ("cifar10", "tiny-imagenet")]
    card = {
        "model": model,
        "recipe": plan.as_dict(),
        "seed": 0,
        "data": data_card(plan.dataset).title,
        "terms": data_card(plan.dataset).terms,
        "precision": "float16, trained in float32 with bfloat16 products",
        "pretrain": _card(record, ("validation_loss", "parameters")),
        "probes": [_card(probe, ("accuracy", "untrained", "pixels", "colours", "indices")) for probe in probes if probe],
    }
    with write_folder(folder) as part:
        save_weights(part, weights.half(), palette)
        write_text(part / "card.json", json.dumps(card, indent=1) + "\n")
        write_samples(str(part), Draw(n=SAMPLES, seed=0), out=part / "samples.png")
        shutil.rmtree(folder, ignore_errors=True)
    return f"{model}, {size / 1e6:.1f} MB: {folder}"


def _card(record: Record, names: tuple[str, ...]) -> dict[str, object]:
    """A record's named values and receipt as JSON for the card."""
    values = {name: record.values[name].model_dump(exclude_none=True) for name in names if name in record.values}
    return {"stage": record.stage, "signature": record.signature, "values": values, "receipt": record.receipt.model_dump()}
