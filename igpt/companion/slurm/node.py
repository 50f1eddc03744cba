"""What `igpt doctor` looks at on a node, in a short job started as all others are; its answers lie in a file."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import igpt
from igpt.companion.experiments.protocols import protocol
from igpt.companion.results.plan import Plan
from igpt.companion.results.signature import Signature
from igpt.companion.run.local import plan_stages
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import write_text
from igpt.machine import cores
from igpt.project import Project
from igpt.text import counted
from igpt.weights.released import Released, at_hand, released_at

Question = tuple[str, Callable[[], str]]
Answer = tuple[bool, str, str]  # whether it is well, what was asked, what is to be said of it


@dataclass(frozen=True)
class NodeCheck:
    """To be called on the node without arguments; pickled by submitit, by reference to the snapshot's code.

    stages : those that such a job would be for, as the submitting machine signs them
    code : the snapshot
    cpus, gpus : what the job has asked for
    answers : the file that is written last
    """

    stages: tuple[tuple[Stage, Signature], ...]
    code: Path
    cpus: int
    gpus: int
    answers: Path

    def __call__(self) -> str:
        """Ask all, and write the answers."""
        questions: list[Question] = [("Python", _python), ("code", self._code), ("cores", self._cores)]
        if self.gpus:
            questions.append(("GPU", _gpu))
        questions.append(("packages", self._packages))
        found = ask([*questions, *data_questions(stage for stage, _ in self.stages)])
        write_text(self.answers, json.dumps(found))
        return "asked"

    def _code(self) -> str:
        """Whether the snapshot's code is at work."""
        here = Path(igpt.__file__).resolve().parents[1]
        if here != self.code.resolve():
            raise UsageError(f"it would run the code in {here}, not the snapshot {self.code}: let python use PYTHONPATH")
        return f"of {self.code.name[:12]}, as submitted"

    def _cores(self) -> str:
        """Whether the job may use the cores that it has asked for."""
        if cores() < min(self.cpus, os.cpu_count() or 1):
            raise UsageError(
                f"the job has asked for {self.cpus} and may use {cores()}: ask the cluster's administrator how tasks are bound"
            )
        return f"{cores()} may be used"

    def _packages(self) -> str:
        """Whether the stages are the same here as where they are submitted."""
        plan: Plan = plan_stages(Project.here(), [stage for stage, _ in self.stages])
        differing = {part for stage, signed in self.stages for part in plan[stage].signature.difference(signed.parts)}
        if differing:
            raise UsageError(
                f"{', '.join(sorted(differing))} differ from those where you submit: have the same packages and data on both"
            )
        if not self.stages:
            return "not compared: no stage of the targets would run here"
        return f"the same as where you submit, for {counted(len(self.stages), 'stage')}"


def ask(questions: Iterable[Question]) -> list[Answer]:
    """An answer to each question; one that raises is not well."""
    found = []
    for what, question in questions:
        try:
            found.append((True, what, question()))
        except (UsageError, OSError) as error:
            found.append((False, what, str(error)))
    return found


def data_questions(stages: Iterable[Stage]) -> list[Question]:
    """Whether the data sets and the released weights that stages read are at hand where this is asked."""
    from igpt.companion.results.signature import Signer
    from igpt.data.cards import check_present, data_folder

    signer = Signer(Project.here().notebooks)
    datasets: set[str] = set()
    weights: dict[str, Released] = {}  # by the stage that brings them
    for stage in stages:
        given = signer.parameters(stage)
        datasets |= set(protocol(stage.notebook).prior_datasets(given))
        if stage.notebook == "weights" and given["weights"] == "released":
            weights[stage.name] = released_at(str(given["model"]), str(given["objective"]), int(given["step"]))

    def present(name: str) -> str:
        check_present(name)
        return "comes with scikit-learn" if name == "digits" else f"in {data_folder(name)}"

    def fetched(stage: str, model: Released) -> str:
        if not at_hand(model):
            raise UsageError(f"not in {model.prefix.parent}: `igpt run {stage}`, where there is internet, brings them")
        return f"in {model.prefix.parent}"

    return [
        *((f"data set {name}", lambda name=name: present(name)) for name in sorted(datasets)),
        *((f"weights {model.label}", lambda each=(name, model): fetched(*each)) for name, model in sorted(weights.items())),
    ]


def _python() -> str:
    """Which one it is, and what does the work."""
    import torch

    return f"{platform.python_version()} at {sys.executable} on {platform.node()}, torch {torch.__version__}"


def _gpu() -> str:
    """The first one that torch sees."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            f"torch {torch.__version__} sees none, though the job has one: install the build of torch for the node's driver,"
            " or let the container see it (apptainer exec --nv)"
        )
    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
