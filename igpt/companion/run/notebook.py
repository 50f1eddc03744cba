"""The interface of notebooks to a running stage: its parents' outputs, its progress, its record.

The stage's folder is determined by its signature, whether the notebook is opened by hand or started by `igpt run`. Either
therefore resumes or replaces the work of the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

from igpt.companion.results.check import shown_line
from igpt.companion.results.record import SCHEMA, Receipt, Record, Value, read_record, write_record
from igpt.companion.results.signature import Signer
from igpt.companion.run.folder import PLANNED, STOP, empty, finished_record, hold, read_progress, run_folder
from igpt.companion.run.git import head_and_dirt
from igpt.companion.run.local import plan_stages, run_plan
from igpt.companion.run.own_weights import own_path, resolve_weights
from igpt.companion.stage import Literal, Stage
from igpt.data.cards import split_digest
from igpt.errors import UsageError
from igpt.files import read_json, write_text
from igpt.measure import Measured
from igpt.project import Project
from igpt.shape import Objective
from igpt.train.recipe import Recipe
from igpt.train.recipes import recipe

PARENTS = ".parents.json"  # in a stage's folder: digests of the parents' results that its work used


class Finished(Exception):
    """Another run finished the stage while this one waited for its folder."""


@dataclass(frozen=True)
class Milestone:
    """Weights saved during pre-training.

    index : position among the recipe's milestones; 0 is 65k in figure 3, and some are missing from the released weights
    loss : on held-out images, nats per token
    folder : folder of the weights, in igpt's format
    """

    index: int
    step: int
    loss: float
    folder: Path


class OpenStage:
    """A running stage. Made by `open_stage`."""

    def __init__(self, project: Project, stage: Stage, signer: Signer) -> None:
        self.project = project
        self.stage = signer.canonical(stage)
        self.signature = signer.sign(stage)
        self.folder = run_folder(project, self.stage, self.signature)
        self.parents = signer.parents(self.stage)
        self._parameters = signer.parameters(self.stage)
        self._signer = signer
        self._commit, self._dirty = head_and_dirt(project.root)
        self._planned = os.environ.get(PLANNED)
        hold(self.folder)
        if self._planned and finished_record(project, self.stage, self.signature) is not None:
            raise Finished(self.stage.name)
        if not self._planned and (self.folder / "record.json").exists():
            empty(self.folder)  # a rerun by hand starts from the beginning; its receipt notes "by hand"
        self._before = read_progress(self.folder).get("seconds", 0.0)
        self._start = self._reported = time.monotonic()

    def parent(self, notebook: str) -> Path:
        """The folder of a finished parent. The parent is run first if necessary."""
        stage = self.parents[notebook]
        signature = self._signer.sign(stage)
        if finished_record(self.project, stage, signature) is None:
            run_plan(self.project, plan_stages(self.project, [stage]), wanted=[stage])
        folder = run_folder(self.project, stage, signature)
        self._start_over_if_changed(stage, folder)
        return folder

    def parent_record(self, notebook: str) -> Record:
        """The record of a finished parent."""
        record = read_record(self.parent(notebook) / "record.json")
        assert record is not None
        return record

    def _start_over_if_changed(self, parent: Stage, folder: Path) -> None:
        """Discard earlier work of the stage if the parent's result has changed since, such as a new download of weights.

        Results are compared, since a parent's signature covers neither downloaded files nor rounding on GPUs.
        """
        record = read_record(folder / "record.json")
        assert record is not None
        result = record.model_dump(include={"values", "series"})
        digest = hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
        try:
            known = dict(read_json(self.folder / PARENTS))
        except (OSError, ValueError, TypeError):
            known = {}
        if known.get(parent.name, digest) != digest:
            empty(self.folder)
            known, self._before = {}, 0.0
        if known.get(parent.name) != digest:
            write_text(self.folder / PARENTS, json.dumps({**known, parent.name: digest}))

    def weights(self) -> Path:
        """The folder of the weights that the stage evaluates, in igpt's format: trained here, released, or a user's own.

        These are the weights after the last step.
        """
        if "pretrain" in self.parents:
            return self._weights("pretrain", self._recipe("pretrain").steps)
        return self._existing("weights")

    def milestones(self) -> list[Milestone]:
        """The weights saved during pre-training, ordered by step, each with its held-out loss."""
        if "pretrain" in self.parents:
            rows = self.parent_record("pretrain").series["losses"]
            losses = {int(row["step"]): float(row["validation"]) for row in rows}  # type: ignore[arg-type]  # both are numbers
            return [
                Milestone(index, step, losses[step], self._weights("pretrain", step))
                for index, step in enumerate(self._recipe("pretrain").milestone_steps)
            ]
        steps = sorted(int(key.removeprefix("weights-")) for key in self.parents if key.startswith("weights-"))
        known = self._recipe(f"weights-{steps[-1]}").milestone_steps
        return [
            Milestone(
                index=known.index(step),
                step=step,
                loss=self.parent_record(f"released_loss-{step}").values["nats"].value,
                folder=self._existing(f"weights-{step}"),
            )
            for step in steps
        ]

    def own_weights(self) -> Path:
        """The folder of the user's own weights in ``weights``. Raises UsageError if they were moved or changed."""
        return own_path(self.project, str(self._parameters["weights"]))

    def report(self, done: int, total: int) -> None:
        """Report progress in steps; written to disk at most twice a second."""
        now = time.monotonic()
        if now - self._reported > 0.5 or done == total:
            self._reported = now
            write_text(self.folder / "progress.json", json.dumps({"done": done, "total": total, "seconds": self._seconds()}))

    def part(self, number: int, of: int) -> Callable[[int, int], None]:
        """A `report` for part ``number`` (from 0) of ``of`` equally long parts of the work.

        It raises Stopped if a stop was requested; use it for work that saves its results as it proceeds.
        """
        from igpt.train.engine import Stopped  # imports torch, which planning does not need

        def report(done: int, total: int) -> None:
            self.report(number * total + done, of * total)
            if self.stopping():
                raise Stopped("stopped; the same command continues")

        return report

    def stopping(self) -> bool:
        """Whether a stop was requested by a file in the folder; signals do not reach kernels reliably."""
        return (self.folder / STOP).exists()

    def write_record(
        self,
        values: dict[str, Measured],
        series: dict[str, list[dict[str, float | int | str | bool | list[int]]]] | None = None,
        *,
        peers: tuple[str, ...] = (),
    ) -> Record:
        """Write the stage's record, which marks the stage finished; under `igpt run` only after its notebook has succeeded.

        Prints a line with the record's digest, by which `igpt verify` matches the executed notebook with the record.

        peers : additional packages whose versions the receipt lists
        """
        packages = ("igpt", "torch", "numpy", "scikit-learn", *peers)
        record = Record(
            schema_version=SCHEMA,
            stage=self.stage.name,
            parameters=self._parameters,
            signature=self.signature.digest,
            parts=self.signature.parts,
            values={name: Value(**measured) for name, measured in values.items()},
            series=series or {},
            receipt=Receipt(
                commit=self._commit,
                dirty=self._dirty,
                command=f"igpt run {self.stage.name}",
                # A notebook run by hand in an editor may differ from the signed file.
                notebook=f"notebooks/{self.stage.notebook}.ipynb{'' if self._planned else ', run by hand'}",
                hardware=hardware(),
                seconds=round(self._seconds(), 2),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                versions={**{name: version(name) for name in packages}, "python": platform.python_version()},
            ),
        )
        self._check_data()
        write_record(Path(self._planned or self.folder / "record.json"), record)
        print(shown_line(record))
        return record

    def _check_data(self) -> None:
        """Raise UsageError when a data set was replaced while the stage ran, since parts of the work read either."""
        for part, digest in self.signature.parts.items():
            kind, _, name = part.partition(" ")
            if kind == "data" and split_digest(name) != digest:
                raise UsageError(f"the data set {name} was added again while {self.stage.name} ran: run the same command again")

    def _recipe(self, parent: str) -> Recipe:
        """The recipe of a parent's network."""
        given = self._signer.parameters(self.parents[parent])
        return recipe(str(given["model"]), cast(Objective, given["objective"]))

    def _existing(self, parent: str) -> Path:
        """The folder of existing weights, which a parent stage has converted."""
        return self._weights(parent, int(self._signer.parameters(self.parents[parent])["step"]))

    def _weights(self, parent: str, step: int) -> Path:
        """The folder of a parent's weights after a step."""
        from igpt.train.loop import weights_name

        return self.parent(parent) / weights_name(step)

    def _seconds(self) -> float:
        """Seconds of work, including interrupted sessions."""
        return float(self._before) + time.monotonic() - self._start


def open_stage(notebook: str, **parameters: Literal) -> OpenStage:
    """Open the stage of a notebook with these parameters, and lock its folder.

    Raises UsageError for a parameter that the notebook does not declare, for missing weights, and if another process runs
    the stage.
    """
    project = Project.here()
    return OpenStage(project, resolve_weights(project, Stage.of(notebook, **parameters)), Signer(project.notebooks))


def hardware() -> str:
    """A description of the hardware: CPU, threads used, GPU if any, and whether compiling a model failed."""
    import torch

    from igpt.fast import uncompiled

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores{gpu}{'; not compiled' if uncompiled() else ''}"
