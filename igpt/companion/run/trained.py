"""The weights of recipes trained in a checkout."""

from __future__ import annotations

from pathlib import Path

from igpt.companion.results.record import Record
from igpt.companion.results.signature import Signer
from igpt.companion.run.folder import finished_record, run_folder
from igpt.companion.run.local import plan_stages, run_plan
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project
from igpt.train.loop import weights_name
from igpt.train.recipes import TINY, recipe


def trained(project: Project, name: str) -> tuple[Stage, Path, Record | None]:
    """The stage that trains a recipe's first seed, its folder of weights, and its record (None before it has finished)."""
    signer = Signer(project.notebooks)
    stage = signer.canonical(Stage.of("pretrain", model=name, objective="autoregressive", seed=0))
    signature = signer.sign(stage)
    folder = run_folder(project, stage, signature) / weights_name(recipe(name).steps)
    return stage, folder, finished_record(project, stage, signature)


def trained_weights(project: Project, name: str, *, train: bool) -> Path:
    """The folder of a trained recipe's weights. If it is not trained: trains it with ``train``, else raises UsageError."""
    stage, folder, record = trained(project, name)
    if record is None and train:
        run_plan(project, plan_stages(project, [stage]), wanted=[stage])
    elif record is None:
        time = "minutes" if name in TINY else "hours"
        raise UsageError(
            f"{name} has neither been published nor trained in {project.root}: igpt run {stage.name} trains it there, in {time};"
            " or set IGPT_ROOT to a checkout that has it"
        )
    return folder
