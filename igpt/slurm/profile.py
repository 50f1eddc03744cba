"""Profiles: what a cluster wants to be told, as validated YAML. Nothing of any cluster stands in code."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from igpt.errors import UsageError
from igpt.project import Project
from igpt.results.notebooks import near_misses
from igpt.stage import Stage

Word = Annotated[str, Field(pattern=r"^[^\s#'\"]+$")]  # what stands on an #SBATCH line as it is
Line = Annotated[str, Field(pattern=r"^[^\r\n]*$")]


class _Strict(BaseModel):
    """Unknown fields and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Resources(_Strict):
    """What one job asks for. Never part of a signature.

    gpus : a node; memory_gib : a node, the cluster's own default when it is left out
    minutes : the time limit; longer work is stopped at a checkpoint, queued again and continued
    """

    cpus: Annotated[int, Field(ge=1)] = 4
    gpus: Annotated[int, Field(ge=0)] = 0
    nodes: Annotated[int, Field(ge=1)] = 1
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    minutes: Annotated[int, Field(ge=1)] = 60


class Profile(_Strict):
    """One cluster, or this machine."""

    scheduler: Literal["slurm", "local"] = "slurm"
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Line | None = None
    gpus_by: Literal["gres", "gpus-per-node"] = "gpus-per-node"
    gpu_type: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    srun: bool = True  # off where srun does not work inside of jobs; jobs of several nodes need it
    array_size: Annotated[int, Field(ge=1)] = 500  # no more than the cluster's MaxArraySize
    at_once: Annotated[int, Field(ge=1)] = 256  # of one array
    signal_seconds: Annotated[int, Field(ge=10)] = 90  # before the time limit: for the last checkpoint
    python: Line | None = None  # a command, as of a container; the Python that submits when left out
    setup: tuple[Line, ...] = ()  # shell lines before the work: modules, conda
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Line] = {}
    shared_folder: str | None = None  # where all nodes write; the checkout itself when left out
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")], str | int | bool] = {}  # further ones of sbatch
    stages: dict[str, Resources] = {"default": Resources()}  # by notebook

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, given: object) -> object:
        """YAML knows lists only."""
        if isinstance(given, dict) and isinstance(given.get("setup"), list):
            return {**given, "setup": tuple(given["setup"])}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Profile:
        """What single fields cannot see."""
        for notebook, wanted in self.stages.items():
            if wanted.nodes > 1 and (not self.srun or self.scheduler == "local"):
                raise ValueError(f"stages.{notebook} asks for {wanted.nodes} nodes, which only srun can start")
            if 60 * wanted.minutes <= self.signal_seconds and self.scheduler == "slurm":
                raise ValueError(f"stages.{notebook} has {wanted.minutes} minutes and needs more than signal_seconds")
        if "default" not in self.stages:
            raise ValueError("stages has no entry 'default', for the notebooks that it does not name")
        return self

    def resources(self, stage: Stage) -> Resources:
        """What a stage asks for."""
        return self.stages.get(stage.notebook, self.stages["default"])

    def home(self, project: Project) -> Project:
        """Where runs, jobs and snapshots lie: the shared folder, or the checkout."""
        return Project(Path(self.shared_folder).expanduser().absolute()) if self.shared_folder else project

    def gpu_options(self, gpus: int) -> dict[str, str]:
        """How GPUs are asked for here, as options of sbatch."""
        if not gpus:
            return {}
        wanted = f"{self.gpu_type}:{gpus}" if self.gpu_type else str(gpus)
        return {"gres": f"gpu:{wanted}"} if self.gpus_by == "gres" else {"gpus-per-node": wanted}


def find_profile(project: Project, name: str) -> Profile:
    """A profile by its name in ``slurm/profiles``, or by its file. Raises UsageError for none, or one that is not valid."""
    folder = project.root / "slurm" / "profiles"
    path = Path(name) if name.endswith((".yaml", ".yml")) or "/" in name else folder / f"{name}.yaml"
    try:
        return read_profile(path.read_bytes(), path)
    except FileNotFoundError:
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise UsageError(
            f"there is no profile {name!r}{near_misses(name, known)}; write {path} after {folder / 'plain.yaml'}"
        ) from None


def shared_homes(project: Project) -> list[Project]:
    """The shared folders of the profiles in ``slurm/profiles``; a profile that is not valid has none."""
    found = []
    for path in sorted((project.root / "slurm" / "profiles").glob("*.yaml")):
        with suppress(UsageError, OSError, RuntimeError):  # the last for a user's folder that is not there
            found.append(read_profile(path.read_bytes(), path).home(project))
    return found


def read_profile(content: bytes, path: Path) -> Profile:
    """The profile in a file's content. Raises UsageError for anything else."""
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        said = re.sub(r"\s+", " ", str(error))
        raise UsageError(f"{path} is not YAML ({said}): mend it") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no list of settings, one 'name: value' a line: see slurm/profiles/plain.yaml")
    try:
        return Profile.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "as a whole"
        why = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = list(Resources.model_fields if first["loc"][0] == "stages" else Profile.model_fields)
            why = f"there is no such setting{near_misses(str(first['loc'][-1]), known)}"
        raise UsageError(f"{path} is not a valid profile ({place}: {why}): mend that line") from None
