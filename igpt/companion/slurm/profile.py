"""Profiles: the settings of a cluster, as validated YAML. No code is specific to a cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from igpt.companion.results.notebooks import near_misses
from igpt.companion.settings import StrictYaml
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project, whole_path

Word = Annotated[str, Field(pattern=r"^[^\s#'\"]+$")]  # written unquoted on an #SBATCH line
Line = Annotated[str, Field(pattern=r"^[^\r\n]*$")]
FOLDERS = ("IGPT_DATA", "IGPT_WEIGHTS")  # passed from the submitting shell to jobs, unless the profile sets them
SET_BY_IGPT = {  # options of sbatch that a profile may not set, and what to do instead
    "account partition qos constraint": "write the setting of that name",
    "signal": "write the setting signal_seconds",
    "time time-min": "write stages.NOTEBOOK.minutes",
    "nodes": "write stages.NOTEBOOK.nodes",
    "cpus-per-*": "write stages.NOTEBOOK.cpus",
    "mem": "write stages.NOTEBOOK.memory_gib",
    "gpus*": "write stages.NOTEBOOK.gpus and gpu_type",
    "array": "write the settings array_size and at_once",
    "export*": "write the setting environment",
    "ntasks* tasks* tres-per-task": "leave it out, since a job has one task on each of its nodes",
    "requeue no-requeue": "leave it out, since a job that reaches its limit or is preempted is queued again to continue",
    "dependency job-name": "leave it out, since igpt finds its jobs by these",
    "output error open-mode input": "leave it out, since `igpt logs` reads the logs where igpt puts them",
    "chdir workdir wrap": "leave it out, since igpt sets what a job runs, and in which folder",
    "clusters help parsable quiet test-only uid gid usage version wait": "leave it out, since igpt could not follow the jobs",
}


def _instead_of(option: str) -> str:
    """What to do instead of giving an option that igpt sets; empty for others. sbatch accepts any beginning of a name."""
    for names, todo in SET_BY_IGPT.items():
        if any(fnmatch(option, name) or name.rstrip("*").startswith(option) for name in names.split()):
            return todo
    return ""


class Strict(BaseModel):
    """Base of models that refuse unknown fields and type conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Where(Strict):
    """Where jobs run, for a whole profile or one notebook; null unsets a setting."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Line | None = None
    gpu_type: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")], Line | int | bool | None] = {}  # sbatch options by long name


class Resources(_Where):
    """The resources of one job, and where it runs. Never part of a signature.

    gpus : per node; memory_gib : per node, by default the cluster's default
    minutes : the time limit; longer work stops at a checkpoint, is requeued and resumes
    """

    cpus: Annotated[int, Field(ge=1)] = 4
    gpus: Annotated[int, Field(ge=0)] = 0
    nodes: Annotated[int, Field(ge=1)] = 1
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    minutes: Annotated[int, Field(ge=1)] = 60

    def __hash__(self) -> int:  # dict fields are not hashable
        return hash((self.cpus, self.gpus, self.nodes, self.memory_gib, self.minutes, self.partition))


class Profile(_Where):
    """One cluster, or this machine. The fields of `_Where` are defaults for the entries of ``stages``."""

    scheduler: Literal["slurm", "local"] = "slurm"
    gpus_by: Literal["gres", "gpus-per-node"] = "gpus-per-node"
    srun: bool = True  # false if srun does not work inside jobs; required for jobs of several nodes
    array_size: Annotated[int, Field(ge=1)] = 500  # at most the cluster's MaxArraySize
    at_once: Annotated[int, Field(ge=1)] = 256  # jobs of one array that run at the same time
    signal_seconds: Annotated[int, Field(ge=10)] = 90  # time before the limit for the last checkpoint
    python: Line | None = None  # a command, for example of a container; default: the Python that submits
    setup: tuple[Line, ...] = ()  # shell lines that run first: modules, conda
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Line] = {}
    shared_folder: str | None = None  # a folder on a disk of all nodes; default: the checkout
    stages: dict[str, Resources] = {"default": Resources()}  # by notebook

    @model_validator(mode="after")
    def _fits_together(self) -> Profile:
        """Validate constraints between fields."""
        for notebook, resources in self.stages.items():
            if resources.nodes > 1 and (not self.srun or self.scheduler == "local"):
                raise ValueError(f"stages.{notebook} asks for {resources.nodes} nodes, which only srun can start")
            if 60 * resources.minutes <= self.signal_seconds and self.scheduler == "slurm":
                limit = f"signal_seconds ({self.signal_seconds} s)"
                raise ValueError(f"stages.{notebook}.minutes is {resources.minutes}, which must be more than {limit}: raise it")
        for where, entry in (("", self), *((f"stages.{notebook}.", resources) for notebook, resources in self.stages.items())):
            for option, value in entry.options.items():
                if todo := _instead_of(option):
                    raise ValueError(f"{where}options.{option} is set by igpt: {todo}")
                if option == "gres" and (self.gpus_by == "gres" or "gpu" in str(value)):
                    raise ValueError(f"{where}options.gres is set by igpt: write stages.NOTEBOOK.gpus and gpus_by")
                if value is False:
                    raise ValueError(f"{where}options.{option} is false, which sbatch does not know: leave it out, or write null")
        if "default" not in self.stages:
            raise ValueError("stages has no entry 'default', for the notebooks that it does not name")
        return self

    def resources(self, stage: Stage) -> Resources:
        """The resources of a stage: its notebook's entry overrides the entry ``default``, which overrides the profile."""
        default = self.stages["default"]
        own = self.stages.get(stage.notebook, default)
        given = {name: getattr(self, name) for name in _Where.model_fields}
        for entry in (default, own):
            given |= {name: getattr(entry, name) for name in entry.model_fields_set}
        options = {**self.options, **default.options, **own.options}
        return Resources(**{**given, "options": {name: value for name, value in options.items() if value is not None}})

    @property
    def folders(self) -> dict[str, str]:
        """The folders of data and weights, by environment variable."""
        return {name: self.environment[name] for name in FOLDERS if name in self.environment}

    def run_root(self, project: Project) -> Project:
        """The project whose ``runs`` holds runs, jobs and snapshots: the shared folder, or the checkout."""
        return Project(Path(self.shared_folder)) if self.shared_folder else project

    def gpu_options(self, resources: Resources) -> dict[str, str]:
        """The sbatch options that request GPUs."""
        if not resources.gpus:
            return {}
        request = f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else str(resources.gpus)
        return {"gres": f"gpu:{request}"} if self.gpus_by == "gres" else {"gpus-per-node": request}


def profile_path(project: Project, name: str) -> Path:
    """The path of a profile, given as a name in ``slurm/profiles`` or as a path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(os.path.normpath(Path(name).absolute()))
    return project.root / "slurm" / "profiles" / f"{name}.yaml"


def known_as(project: Project, name: str) -> str:
    """A name of a profile that is valid from any folder: its name in ``slurm/profiles``, or its absolute path."""
    path = profile_path(project, name)
    return path.stem if path == profile_path(project, path.stem) else str(path)


def find_profile(project: Project, name: str) -> Profile:
    """Read a profile by its name in ``slurm/profiles`` or its path; relative paths in it are relative to the checkout.

    Raises UsageError for a missing or invalid profile, and for one that does not fit this checkout and machine.
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
    known = ["default", *sorted(notebook.stem for notebook in project.notebooks.glob("*.ipynb"))]
    environment = {name: str(whole_path(name, value)) for name in FOLDERS if (value := os.environ.get(name))}
    try:
        for notebook in profile.stages:
            if notebook not in known:
                raise ValueError(f"stages.{notebook}: there is no such notebook{near_misses(notebook, known)}")
        for name, value in profile.environment.items():
            is_folder = value and name in FOLDERS
            environment[name] = str(whole_path(f"environment.{name}", value, project.root)) if is_folder else value
        update = {"environment": environment, "shared_folder": _shared(profile, project), "python": _command(profile, project)}
    except (ValueError, UsageError) as error:
        raise _not_valid(path, str(error)) from None
    return profile.model_copy(update=update)


def _shared(profile: Profile, project: Project) -> str | None:
    """The absolute path of the shared folder; None if unset. Raises UsageError for an unknown variable or user in it."""
    return str(whole_path("shared_folder", profile.shared_folder, project.root)) if profile.shared_folder else None


def _command(profile: Profile, project: Project) -> str | None:
    """The command that starts Python, with the absolute path of its program. Raises ValueError for an invalid or missing one.

    A bare name that is not on PATH may be provided by ``setup``; a name with a shell variable is resolved in the job.
    """
    if profile.python is None:
        return None
    words = shlex.shlex(profile.python, posix=True, punctuation_chars=";<>|&")
    words.commenters = ""
    try:
        alone = not any(re.fullmatch(r"[;<>|&]+|#.*", word) for word in words)
    except ValueError as error:  # an unclosed quotation
        raise ValueError(f"python is {profile.python}, which the shell cannot read ({error})") from None
    if not alone:
        raise ValueError("python is one command that ends in Python's own: put what is to come before it into setup")
    before, program, rest = re.fullmatch(r"\s*((?:\w+=\S*\s+)*)(\S*)(.*)", profile.python).groups()  # type: ignore[union-attr]
    if not program:
        raise ValueError("python is empty: write the command that starts Python, or leave it out")
    if before:
        before = f"env {before}"  # srun and exec accept a program only, no variables
    if re.search(r"[$`'\"\\]", program):
        return f"{before}{program}{rest}"
    if "/" not in program:
        if not shutil.which(program) and not profile.setup:
            raise ValueError(
                f"python: there is no program {program} on PATH, and no setup line that could provide it: add one, such as"
                " `module load NAME`, or write the program's full path"
            )
        return f"{before}{program}{rest}"
    path = whole_path("python", program, project.root)
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ValueError(f"python: {path} is not an executable file on this machine")
    return f"{before}{path}{rest}"


def shared_run_roots(project: Project) -> list[Project]:
    """The run roots of the profiles in ``slurm/profiles``; invalid profiles are skipped."""
    roots = []
    for path in sorted((project.root / "slurm" / "profiles").glob("*.yaml")):
        with suppress(UsageError, OSError):
            profile = read_profile(path.read_bytes(), path)
            roots.append(profile.model_copy(update={"shared_folder": _shared(profile, project)}).run_root(project))
    return roots


class _Plain(StrictYaml):
    """Strict YAML in which the shared folder is not ``~``, which would be null."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises YAMLError for a duplicate key."""
        for key, value in node.value:
            if key.value == "shared_folder" and value.value == "~":
                problem = "shared_folder is ~, which YAML reads as null: write the whole path"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_profile(content: bytes, path: Path) -> Profile:
    """Parse the content of a profile's file. Raises UsageError if it is not a valid profile."""
    try:
        settings = yaml.load(content, _Plain)  # _Plain is a SafeLoader
        text = json.dumps(settings)  # strict mode accepts lists for tuples only in JSON
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        problem = re.sub(r"\s+", " ", str(error))
        raise UsageError(f"{path} is not YAML ({problem}): mend it") from None
    if not isinstance(settings, dict):
        raise UsageError(f"{path} is no list of settings, one 'name: value' per line: see slurm/profiles/plain.yaml")
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])
            here, there = (Resources, Profile) if first["loc"][0] == "stages" else (Profile, Resources)
            where = "counts for all jobs: write it outside of stages" if here is Resources else "goes under stages.NOTEBOOK"
            why = where if name in there.model_fields else f"there is no such setting{near_misses(name, list(here.model_fields))}"
        elif first["type"] == "string_pattern_mismatch":
            why = "it has a character that is not allowed there, such as a space, a quote, # or a line break"
        elif isinstance(first["input"], str):
            why = f"it is {first['input']}: {why}"
        raise _not_valid(path, f"{setting}: {why}" if setting else why) from None


def _not_valid(path: Path, why: str) -> UsageError:
    """The error for an invalid profile; its message is always one line."""
    return UsageError(f"{path} is not a valid profile ({' '.join(why.split())}): mend that line")
