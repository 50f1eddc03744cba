"""What ``igpt run`` and ``igpt samples`` do, from the words a user typed."""

from __future__ import annotations

from pathlib import Path

from igpt.data import data_card
from igpt.errors import UsageError
from igpt.experiments import declared_stages
from igpt.files import write_atomically
from igpt.project import Project
from igpt.results.plan import Plan
from igpt.results.signature import Signer
from igpt.run.folder import run_folder
from igpt.run.local import ensure, plan_stages, run_plan
from igpt.run.targets import find_stages, parameters_of
from igpt.stage import Stage


def plan_targets(targets: list[str], tier: str | None) -> tuple[Plan, Signer]:
    """The plan of the targets, of every tier when neither targets nor tier are named."""
    project = Project.here()
    stages = find_stages(targets, tier, project) if targets or tier else declared_stages()
    return plan_stages(project, stages), Signer(project.notebooks)


def run_targets(targets: list[str], tier: str | None, overrides: list[str]) -> str:
    """Run the targets; what to say when all is done.

    Raises UsageError for an unknown target, parameter or type, before anything starts.
    """
    project = Project.here()
    stages = find_stages(targets, tier, project)
    if overrides:
        stages = [
            Stage.of(stage.notebook, **{**stage.parameters, **parameters_of(project, stage.notebook, overrides)})
            for stage in stages
        ]
    plan = plan_stages(project, stages)
    ran = run_plan(project, plan)
    done = f"{ran} stages run, {len(plan) - ran} were fresh" if ran else f"nothing to run: all {len(plan)} stages are fresh"
    if overrides:
        signer = Signer(project.notebooks)
        places = [run_folder(project, signer.canonical(s), signer.sign(s)) / "record.json" for s in stages]
        return "\n".join([done, *(f"record: {place}" for place in dict.fromkeys(places))])
    return done


def write_samples(model: str, *, n: int, seed: int, temperature: float, out: Path) -> str:
    """Sample from the pre-trained weights of ``model``, training them first if need be."""
    if out.suffix != ".png":
        raise UsageError(f"samples are written as PNG, not as {out.name}: name a file that ends in .png")
    from igpt.train.recipes import recipe

    plan = recipe(model)
    if not data_card(plan.dataset).readable:
        raise UsageError(f"{model} is not trained here: choose tiny-s, tiny-m or tiny-l")
    import math

    import numpy as np
    from PIL import Image

    from igpt.sample import sample
    from igpt.train.loop import weights_name
    from igpt.weights import load_weights

    project = Project.here()
    signer = Signer(project.notebooks)
    stage = signer.canonical(Stage.of("pretrain", model=model, objective="autoregressive", seed=0))
    ensure(project, [stage])
    weights, palette = load_weights(run_folder(project, stage, signer.sign(stage)) / weights_name(plan.steps))
    side = math.isqrt(plan.shape.n_ctx)
    images = palette.dequantize(sample(weights, n=n, seed=seed, temperature=temperature).numpy())
    columns = math.ceil(math.sqrt(n))
    sheet = np.full((math.ceil(n / columns) * (side + 1) + 1, columns * (side + 1) + 1, images.shape[-1]), 128, np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * (side + 1) + 1, (number % columns) * (side + 1) + 1
        sheet[top : top + side, left : left + side] = image.reshape(side, side, -1)
    picture = Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)
    with write_atomically(out) as stream:
        picture.resize((8 * picture.width, 8 * picture.height), Image.Resampling.NEAREST).save(stream, "PNG")
    return f"{n} samples of {model}, seed {seed}: {out}"
