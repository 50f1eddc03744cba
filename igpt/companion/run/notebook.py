"""A stage at work, as its notebook sees it: its parents' outputs, its progress, its record.

A notebook opened by hand and one run by `igpt run` do the same: they find their folder from what they
are, so the one continues or replaces what the other did.
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
from igpt.companion.run.local import ensure
from igpt.companion.run.own_weights import own_path, resolve_weights
from igpt.companion.stage import Literal, Stage
from igpt.files import read_json, write_text
from igpt.measure import Measured
from igpt.project import Project
from igpt.shape import Objective
from igpt.train.recipe import Recipe
from igpt.train.recipes import recipe

PARENTS = ".parents.json"  # in a stage's folder: what its parents had found when its work began


class Finished(Exception):
    """Another run has finished the stage while this one waited for its folder."""


@dataclass(frozen=True)
class Milestone:
    """Weights kept along pre-training.

    index : place among the recipe's milestones, which released weights do not all have; figure 3's 65k is 0
    loss : held out, nats per token
    folder : of the weights, in our own format
    """

    index: int
    step: int
    loss: float
    folder: Path


class OpenStage:
    """One stage at work. Made by `open_stage`."""

    def __init__(self, project: Project, stage: Stage, signer: Signer) -> None:
        self.project = project
        self.stage = signer.canonical(stage)
        self.signature = signer.sign(stage)
        self.folder = run_folder(project, self.stage, self.signature)
        self._parameters = signer.parameters(self.stage)
        self._signer = signer
        self.parents = signer.parents(self.stage)
        self._commit, self._dirty = head_and_dirt(project.root)
        hold(self.folder)
        if os.environ.get(PLANNED) and finished_record(project, self.stage, self.signature) is not None:
            raise Finished(self.stage.name)
        if (self.folder / "record.json").exists() and not os.environ.get(PLANNED):
            empty(self.folder)  # run again by hand: from the start, as its receipt will say
        self._before = read_progress(self.folder).get("seconds", 0.0)
        self._start = self._reported = time.monotonic()

    def parent(self, notebook: str) -> Path:
        """The folder of a finished parent; it is run first when it has not been."""
        stage = self.parents[notebook]
        ensure(self.project, [stage])
        folder = run_folder(self.project, stage, self._signer.sign(stage))
        self._continue_on(stage, folder)
        return folder

    def _continue_on(self, parent: Stage, folder: Path) -> None:
        """Begin anew where the work so far stands on another result of a parent: other files under a released name, say.

        What the parent found is compared, since its signature cannot know what was downloaded, or how a card rounded.
        """
        record = read_record(folder / "record.json")
        assert record is not None
        found = record.model_dump(include={"values", "series"})
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        place = self.folder / PARENTS
        try:
            known = dict(read_json(place))
        except (OSError, ValueError, TypeError):
            known = {}
        if known.get(parent.name, digest) != digest:
            empty(self.folder)
            known, self._before = {}, 0.0
        if known.get(parent.name) != digest:
            write_text(place, json.dumps({**known, parent.name: digest}))

    def parent_record(self, notebook: str) -> Record:
        """The record of a finished parent."""
        record = read_record(self.parent(notebook) / "record.json")
        assert record is not None
        return record

    def weights(self) -> Path:
        """The folder of the weights that the stage evaluates, in our own format: trained here, released, or a user's own.

        Of several steps, those of the last.
        """
        if "pretrain" in self.parents:
            return self._weights("pretrain", self._recipe("pretrain").steps)
        return self._existing("weights")

    def milestones(self) -> list[Milestone]:
        """The weights kept along pre-training, in the order of their steps, each with its held-out loss."""
        if "pretrain" in self.parents:
            plan = self._recipe("pretrain")
            rows = self.parent_record("pretrain").series["losses"]
            losses = {int(row["step"]): float(row["validation"]) for row in rows}  # type: ignore[arg-type]  # numbers, these two
            return [
                Milestone(index, step, losses[step], self._weights("pretrain", step))
                for index, step in enumerate(plan.milestone_steps)
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
        """Where a user's own weights lie, which the stage's parameter names. Raises UsageError when they moved or changed."""
        return own_path(self.project, str(self._parameters["weights"]))

    def report(self, done: int, total: int) -> None:
        """Say how far the work is, in steps; kept on disk at most twice a second."""
        now = time.monotonic()
        if now - self._reported > 0.5 or done == total:
            self._reported = now
            write_text(self.folder / "progress.json", json.dumps({"done": done, "total": total, "seconds": self._seconds()}))

    def part(self, number: int, of: int) -> Callable[[int, int], None]:
        """The report of the ``number``-th of ``of`` parts of the work, from 0, that are about as long.

        It raises Stopped when the stage was asked to stop, for work whose results are kept as they come.
        """
        from igpt.train.engine import Stopped  # brings torch, which whoever opens a stage has and a plan does without

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self._reported > 0.5 or done == total:
                self.report(number * total + done, of * total)
                if self.stopping():
                    raise Stopped("stopped; the same command continues")

        return report

    def stopping(self) -> bool:
        """Whether the stage was asked to stop, by a file in its folder: signals do not reach a kernel reliably."""
        return (self.folder / STOP).exists()

    def write_record(
        self,
        values: dict[str, Measured],
        series: dict[str, list[dict[str, float | int | str | bool | list[int]]]] | None = None,
        *,
        peers: tuple[str, ...] = (),
    ) -> Record:
        """Write the stage's record, which makes it finished; in a plan, only once its notebook has ended well.

        A line that is printed binds the executed notebook to the record: `igpt verify` looks for it.

        peers : further packages whose versions belong into the receipt
        """
        # A notebook that is open in an editor may differ from the file that the signature was taken of.
        by_hand = "" if os.environ.get(PLANNED) else ", run by hand"
        receipt = Receipt(
            commit=self._commit,
            dirty=self._dirty,
            command=f"igpt run {self.stage.name}",
            notebook=f"notebooks/{self.stage.notebook}.ipynb{by_hand}",
            hardware=hardware(),
            seconds=round(self._seconds(), 2),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={name: version(name) for name in ("igpt", "torch", "numpy", "scikit-learn", *peers)}
            | {"python": platform.python_version()},
        )
        record = Record(
            schema_version=SCHEMA,
            stage=self.stage.name,
            parameters=self._parameters,
            signature=self.signature.digest,
            parts=self.signature.parts,
            values={name: Value(**found) for name, found in values.items()},
            series=series or {},
            receipt=receipt,
        )
        write_record(Path(os.environ.get(PLANNED) or self.folder / "record.json"), record)
        print(shown_line(record))
        return record

    def _recipe(self, parent: str) -> Recipe:
        """The recipe of a parent's network."""
        given = self._signer.parameters(self.parents[parent])
        return recipe(str(given["model"]), cast(Objective, given["objective"]))

    def _existing(self, parent: str) -> Path:
        """The folder that a stage of weights that exist has kept."""
        return self._weights(parent, int(self._signer.parameters(self.parents[parent])["step"]))

    def _weights(self, parent: str, step: int) -> Path:
        """The folder in which a parent keeps the weights after a step."""
        from igpt.train.loop import weights_name

        return self.parent(parent) / weights_name(step)

    def _seconds(self) -> float:
        """Seconds of work, those of interrupted sessions included."""
        return float(self._before) + time.monotonic() - self._start


def open_stage(notebook: str, **parameters: Literal) -> OpenStage:
    """Open the stage that a notebook with these parameters is; its parents are at hand, its folder is locked.

    Raises UsageError for a parameter the notebook does not declare, for weights that are not there, and when another process
    runs the stage.
    """
    project = Project.here()
    return OpenStage(project, resolve_weights(project, Stage.of(notebook, **parameters)), Signer(project.notebooks))


def hardware() -> str:
    """The processor by its own name, the threads used, the GPU if there is one, and that a model could not be compiled."""
    import torch

    from igpt.fast import uncompiled

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the platform's word has to do
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores{gpu}{'; not compiled' if uncompiled() else ''}"
