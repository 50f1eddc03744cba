"""Profiles: what a cluster wants to be told, as validated YAML. Nothing of any cluster stands in code."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from igpt.companion.results.notebooks import near_misses
from igpt.companion.slurm.plain_yaml import find_trap, in_minutes
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project, whole_path

Word = Annotated[str, Field(pattern=r"^[^\s#'\"]+$")]  # what stands on an #SBATCH line as it is
Line = Annotated[str, Field(pattern=r"^[^\r\n]*$")]
FOLDERS = ("IGPT_DATA", "IGPT_WEIGHTS")  # which jobs are given from whoever submits, unless the profile sets them
INSTEAD = {  # options of sbatch that igpt sets, or that would hide from it what becomes of a job; and what to write instead
    **{name: f"the setting {name}" for name in ("account", "partition", "qos", "constraint")},
    "signal": "the setting signal_seconds",
    "time": "stages.NOTEBOOK.minutes",
    "time-min": "stages.NOTEBOOK.minutes",
    "nodes": "stages.NOTEBOOK.nodes",
    "cpus-per-task": "stages.NOTEBOOK.cpus",
    "cpus-per-gpu": "stages.NOTEBOOK.cpus",
    "mem": "stages.NOTEBOOK.memory_gib",
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), "stages.NOTEBOOK.gpus and gpu_type"),
    "array": "the settings array_size and at_once",
    **dict.fromkeys(("export", "export-file"), "the setting environment"),
}
NEVER = {  # and those that no setting stands for, with the reason
    **dict.fromkeys(
        (
            "ntasks",
            "ntasks-per-node",
            "ntasks-per-core",
            "ntasks-per-gpu",
            "ntasks-per-socket",
            "tasks-per-node",
            "tres-per-task",
        ),
        "a job has one task on each of its nodes",
    ),
    **dict.fromkeys(("requeue", "no-requeue"), "a job that reaches its limit or is preempted is queued again to continue"),
    **dict.fromkeys(("dependency", "job-name"), "igpt finds its jobs by these"),
    **dict.fromkeys(("output", "error", "open-mode", "input"), "`igpt logs` reads the logs where igpt puts them"),
    **dict.fromkeys(("chdir", "workdir", "wrap"), "igpt sets what a job runs, and in which folder"),
    **dict.fromkeys(
        ("clusters", "help", "parsable", "quiet", "test-only", "uid", "gid", "usage", "version", "wait"),
        "igpt could not follow the jobs",
    ),
}


class _Strict(BaseModel):
    """Unknown fields and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Place(_Strict):
    """Where jobs run: of the whole profile, or of one notebook's jobs, where null means none."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Line | None = None
    gpu_type: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")], Line | int | bool | None] = {}  # further ones of sbatch


class Resources(_Place):
    """What one job asks for, and where. Never part of a signature.

    gpus : a node; memory_gib : a node, the cluster's own default when it is left out
    minutes : the time limit; longer work is stopped at a checkpoint, queued again and continued
    """

    cpus: Annotated[int, Field(ge=1)] = 4
    gpus: Annotated[int, Field(ge=0)] = 0
    nodes: Annotated[int, Field(ge=1)] = 1
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    minutes: Annotated[int, Field(ge=1)] = 60

    def __hash__(self) -> int:  # a dictionary has none of its own
        return hash((self.cpus, self.gpus, self.nodes, self.memory_gib, self.minutes, self.partition))


def _ours(option: str) -> str:
    """What to do instead of giving an option of sbatch that igpt sets; empty for others."""
    names = sorted({**INSTEAD, **NEVER})
    # Sbatch takes an option by any beginning of its name that is no other's.
    name = option if option in names else next((name for name in names if name.startswith(option)), "")
    if name in NEVER:
        return f"cannot be set, since {NEVER[name]}: leave it out"
    return f"is set by igpt: write {INSTEAD[name]} instead" if name else ""


def _set(entry: Resources) -> dict[str, Any]:
    """What an entry of ``stages`` says itself."""
    return {name: getattr(entry, name) for name in entry.model_fields_set}


class Profile(_Place):
    """One cluster, or this machine. What `_Place` has counts for the notebooks whose entry in ``stages`` does not set it."""

    scheduler: Literal["slurm", "local"] = "slurm"
    gpus_by: Literal["gres", "gpus-per-node"] = "gpus-per-node"
    srun: bool = True  # off where srun does not work inside of jobs; jobs of several nodes need it
    array_size: Annotated[int, Field(ge=1)] = 500  # no more than the cluster's MaxArraySize
    at_once: Annotated[int, Field(ge=1)] = 256  # of one array
    signal_seconds: Annotated[int, Field(ge=10)] = 90  # before the time limit: for the last checkpoint
    python: Line | None = None  # a command, as of a container; the Python that submits when left out
    setup: tuple[Line, ...] = ()  # shell lines before the work: modules, conda
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Line] = {}
    shared_folder: str | None = None  # where all nodes write; the checkout itself when left out
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
                limit = f"signal_seconds ({self.signal_seconds} s)"
                raise ValueError(f"stages.{notebook}.minutes is {wanted.minutes}, which must be more than {limit}: raise it")
        for where, place in (("", self), *((f"stages.{notebook}.", wanted) for notebook, wanted in self.stages.items())):
            for option, value in place.options.items():
                if ours := _ours(option):
                    raise ValueError(f"{where}options.{option} {ours}")
                if option == "gres" and (self.gpus_by == "gres" or "gpu" in str(value)):
                    raise ValueError(f"{where}options.gres is set by igpt: write stages.NOTEBOOK.gpus and gpus_by instead")
                if value is False:
                    raise ValueError(f"{where}options.{option} is false, which sbatch does not know: leave it out, or write null")
        if "default" not in self.stages:
            raise ValueError("stages has no entry 'default', for the notebooks that it does not name")
        return self

    def resources(self, stage: Stage) -> Resources:
        """What a stage asks for: its notebook's entry, over that named default, over what counts for the whole profile."""
        default = self.stages["default"]
        own = self.stages.get(stage.notebook, default)
        given = {**{name: getattr(self, name) for name in _Place.model_fields}, **_set(default), **_set(own)}
        options = {**self.options, **default.options, **own.options}
        return Resources(**{**given, "options": {name: value for name, value in options.items() if value is not None}})

    def home(self, project: Project) -> Project:
        """Where runs, jobs and snapshots lie: the shared folder, or the checkout."""
        return Project(Path(self.shared_folder)) if self.shared_folder else project

    def gpu_options(self, resources: Resources) -> dict[str, str]:
        """How GPUs are asked for here, as options of sbatch."""
        if not resources.gpus:
            return {}
        wanted = f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else str(resources.gpus)
        return {"gres": f"gpu:{wanted}"} if self.gpus_by == "gres" else {"gpus-per-node": wanted}


def profile_path(project: Project, name: str) -> Path:
    """Where a profile lies that is given by its name in ``slurm/profiles``, or by its file."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(os.path.normpath(Path(name).absolute()))
    return project.root / "slurm" / "profiles" / f"{name}.yaml"


def known_as(project: Project, name: str) -> str:
    """The name by which a profile is found again from any folder: its own in ``slurm/profiles``, or its file's whole path."""
    path = profile_path(project, name)
    return path.stem if path == profile_path(project, path.stem) else str(path)


def find_profile(project: Project, name: str) -> Profile:
    """A profile by its name in ``slurm/profiles``, or by its file; its relative paths are from the checkout's folder.

    Raises UsageError for none, one that is not valid, or one that does not fit this checkout and this machine.
    """
    path, folder = profile_path(project, name), project.root / "slurm" / "profiles"
    try:
        profile = read_profile(path.read_bytes(), path)
    except FileNotFoundError:
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise UsageError(
            f"there is no profile {name!r} (to make it, copy {folder / 'plain.yaml'} to {path} and put your cluster's names in)"
            f"{near_misses(name, known)}"
        ) from None
    except OSError as error:
        raise UsageError(f"the profile {path} cannot be read ({error.strerror}): give a file that can") from None
    try:
        return _here(profile, project)
    except ValueError as error:
        raise _not_valid(path, str(error)) from None


def _here(profile: Profile, project: Project) -> Profile:
    """A profile with whole paths. Raises ValueError for notebooks, variables or programs that are not there."""
    known = sorted(path.stem for path in project.notebooks.glob("*.ipynb"))
    for notebook in profile.stages:
        if notebook != "default" and notebook not in known:
            raise ValueError(f"stages.{notebook}: there is no such notebook{near_misses(notebook, ['default', *known])}")
    environment = {
        name: os.path.normpath(Path(_from_home(os.environ[name])).absolute()) for name in FOLDERS if os.environ.get(name)
    }
    for name, value in profile.environment.items():
        environment[name] = _whole(f"environment.{name}", value, project) if value and name in FOLDERS else value
    shared = _whole("shared_folder", profile.shared_folder, project) if profile.shared_folder else None
    return profile.model_copy(update={"environment": environment, "shared_folder": shared, "python": _command(profile, project)})


def _whole(setting: str, value: str, project: Project) -> str:
    """An absolute path: with the home folder, variables and the checkout's folder put in."""
    try:
        return str(whole_path(setting, value, project.root))
    except UsageError as error:
        raise ValueError(str(error)) from None


def _from_home(path: str) -> str:
    """A path with the home folder put in, if it names one that there is."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def _command(profile: Profile, project: Project) -> str | None:
    """What starts Python, its program by a whole path where it is one. Raises ValueError for a program that is not there.

    A bare name that is not found here may be brought by ``setup``, and one with a variable in it is the job's to find.
    """
    if profile.python is None:
        return None
    words = shlex.shlex(profile.python, posix=True, punctuation_chars=";<>|&")
    words.commenters = ""
    try:
        alone = not any(re.fullmatch(r"[;<>|&]+|#.*", word) for word in words)
    except ValueError as error:  # a quotation without its end
        raise ValueError(f"python is {profile.python}, which the shell cannot read ({error})") from None
    if not alone:
        raise ValueError("python is one command that ends in Python's own: put what is to come before it into setup")
    before, program, rest = re.fullmatch(r"\s*((?:\w+=\S*\s+)*)(\S*)(.*)", profile.python).groups()  # type: ignore[union-attr]
    if not program:
        raise ValueError("python is empty: write the command that starts Python, or leave it out")
    if before:
        before = f"env {before}"  # as srun and exec take a program only
    if re.search(r"[$`'\"\\]", program):
        return f"{before}{program}{rest}"
    if "/" not in program:
        if not shutil.which(program) and not profile.setup:
            raise ValueError(
                f"python: there is no program {program} on PATH, and no setup line that could provide it: add one, such as"
                " `module load NAME`, or write the program's full path"
            )
        return f"{before}{program}{rest}"
    path = (project.root / _from_home(program)).absolute()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ValueError(f"python: {path} is not an executable file on this machine")
    return f"{before}{path}{rest}"


def shared_homes(project: Project) -> list[Project]:
    """The shared folders of the profiles in ``slurm/profiles``; a profile that is not valid has none."""
    found = []
    for path in sorted((project.root / "slurm" / "profiles").glob("*.yaml")):
        with suppress(UsageError, OSError, ValueError):  # the last for a folder of a user or a variable that is not here
            given = read_profile(path.read_bytes(), path).shared_folder
            found.append(Project(Path(_whole("shared_folder", given, project))) if given else project)
    return found


def read_profile(content: bytes, path: Path) -> Profile:
    """The profile in a file's content. Raises UsageError for anything else."""
    try:
        trap, found = find_trap(content), yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        said = re.sub(r"\s+", " ", str(error))
        raise UsageError(f"{path} is not YAML ({said}): mend it") from None
    if trap:
        raise _not_valid(path, trap)
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no list of settings, one 'name: value' a line: see slurm/profiles/plain.yaml")
    try:
        return Profile.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])
            here, there = (Resources, Profile) if first["loc"][0] == "stages" else (Profile, Resources)
            where = "counts for all jobs: write it outside of stages" if here is Resources else "goes under stages.NOTEBOOK"
            why = where if name in there.model_fields else f"there is no such setting{near_misses(name, list(here.model_fields))}"
        elif first["type"] == "string_pattern_mismatch":
            why = "it has a character that cannot stand there, such as a space, a quote, # or a line break"
        elif place.endswith(".minutes") and isinstance(first["input"], str):
            why = in_minutes(first["input"])
        raise _not_valid(path, f"{place}: {why}" if place else why) from None


def _not_valid(path: Path, why: str) -> UsageError:
    """What is said of a profile that is not one, in one line whatever stands in it."""
    return UsageError(f"{path} is not a valid profile ({' '.join(why.split())}): mend that line")
