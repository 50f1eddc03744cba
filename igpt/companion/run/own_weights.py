"""A user's own weights: register a path under a name, made of the folder's name and the digest of its files.

A folder that is moved but keeps its name keeps its results. A renamed folder counts as different weights, even with the same
digest. ``runs/weights/NAME.json`` holds the path, digest and shape of the weights. A published model's name stands for its
folder in the package, and a released model's for the parameters that mean its weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.companion.experiments.protocols import protocol
from igpt.companion.results.notebooks import near_misses, read_notebook
from igpt.companion.stage import Literal, Stage
from igpt.errors import UsageError
from igpt.files import read_json, write_text
from igpt.project import Project, whole_path

if TYPE_CHECKING:
    from igpt.weights.released import Released

TRAINED, RELEASED = "trained", "released"
NAME = re.compile(r"[\w.+-]+-[0-9a-f]{12}")
LONGEST = 40  # characters of the folder's name that are used


@dataclass(frozen=True)
class Registered:
    """Registered weights: folder or TensorFlow prefix, digest, recipe of the same shape, and format of the images."""

    path: str
    digest: str
    model: str
    objective: str
    side: int  # pixels
    channels: int
    palette: str  # digest


def resolve_weights(project: Project, stage: Stage) -> Stage:
    """Replace a path or a model's name in the parameter ``weights`` by what names them in a stage; set model and objective.

    A path and a published model (``laptop-l``) become their registered name; a released model (``igpt-s``, ``igpt-s-bert``,
    ``igpt-s@131000``) becomes ``released``, with its step where the notebook takes one.
    Raises UsageError if the weights are missing or damaged, belong to a different model than given, or do not fit the data, and
    if the value is not ``trained``, ``released``, such a name, a registered name or a path.
    """
    from igpt.weights.released import released_model

    defaults = read_notebook(project.notebooks, stage.notebook).defaults
    given = stage.parameters
    word = given.get("weights", defaults.get("weights", TRAINED))
    _check_trained(given, defaults)
    if "weights" not in defaults or not isinstance(word, str):
        return stage  # the plan refuses unknown parameters and wrong types
    if word == TRAINED:
        if stage.notebook in ("weights", "released_loss"):
            raise UsageError(f"notebook {stage.notebook} takes weights that exist, not {TRAINED}: give {RELEASED} or a path")
        return stage
    if known := released_model(word):
        _refuse_namesake(word)
        stage = Stage.of(stage.notebook, **_released_parameters(stage, word, known, defaults))
        given, word = stage.parameters, RELEASED
    if word == RELEASED:
        if released := _released({**defaults, **given}):
            _check_data(stage.notebook, {**defaults, **given}, f"OpenAI's {released.model}", released)
        return stage
    registration = _registration(project, word)
    if NAME.fullmatch(word) and not registration.exists() and "model" in given:
        return stage  # weights of another machine: their records can be read, running the stage is refused
    name, entry = (word, _read(registration)) if registration.exists() else _register(project, word)
    if stage.notebook == "loss_against_probe":
        raise UsageError(f"loss_against_probe compares the weights after several steps, and {word} holds one: run linear_probe")
    if entry.objective == "bert" and "objective" not in defaults:
        raise UsageError(f"notebook {stage.notebook} is for autoregressive weights, and {word} holds BERT's: give others")
    required: dict[str, Literal] = {"model": entry.model, "objective": entry.objective}
    _check_given(word, given, required)
    resolved = {**given, **{k: v for k, v in required.items() if k in defaults}, "weights": name}
    _check_data(stage.notebook, {**defaults, **resolved}, word, entry)
    return Stage.of(stage.notebook, **resolved)


def own_path(project: Project, name: str) -> Path:
    """The path of registered weights. Raises UsageError if they were moved or changed since registration."""
    registration = _registration(project, name)
    if not registration.exists():
        raise UsageError(f"no weights are registered here as {name}: give their folder again (-p weights=FOLDER)")
    entry = _read(registration)
    path = Path(entry.path)
    if not _exists(path):
        raise UsageError(f"the weights called {name} are no longer at {path}: give the place where they are (-p weights=FOLDER)")
    if _digest(path) != entry.digest:
        raise UsageError(
            f"the weights at {path} have changed since they were called {name}: give them again (-p weights={path}), under a new"
            " name, or put the old ones back"
        )
    return path


def share_names(project: Project, home: Project) -> None:
    """Copy the registrations of a user's own weights to the run root ``home``, where jobs read them."""
    if home.runs != project.runs:
        for path in (project.runs / "weights").glob("*.json"):
            write_text(home.runs / "weights" / path.name, path.read_text())


def _register(project: Project, word: str) -> tuple[str, Registered]:
    """Register the weights at a path; their name and registration. Raises UsageError for unsuitable weights."""
    from igpt.pretrained import published_folder
    from igpt.train.recipes import TRAINED as MODELS
    from igpt.train.recipes import model_of
    from igpt.weights.huggingface import folder_shape, is_huggingface
    from igpt.weights.read import read_palette, weights_shape
    from igpt.weights.training_run import is_training, training_files

    path = whole_path("weights", word)
    if word in MODELS and (published := published_folder(word)):
        _refuse_namesake(word)
        path = published
    if not word or not _exists(path):
        raise _unknown(project, word)
    if path.is_dir() and is_training(path):
        newest = training_files(path)[0]
        if newest.parent == path:  # a checkpoint, which the training will remove
            raise UsageError(
                f"{path} holds a training that has not ended, and a record's weights must not change: give one of its weights-*"
                f" folders, or `igpt export --to ours --model {path}` its weights of now"
            )
        path = newest.parent
    if path.is_dir() and not (path / "config.json").exists() and (indices := sorted(path.glob("*.index"))):
        raise UsageError(f"{path} holds TensorFlow checkpoints: give the path of one, such as {indices[-1].with_suffix('')}")
    if path.is_dir() and is_huggingface(path) and not folder_shape(path)[1]:
        raise UsageError(
            f"{path} holds weights without an output matrix, as a classifier's: igpt.ImageGPT.from_pretrained reads their"
            " features, and no notebook takes them: give those of a generative model, with lm_head.weight"
        )
    shape = weights_shape(path)
    palette = read_palette(path, shape)
    digest = _digest(path)
    folder = path if path.is_dir() else path.parent
    if re.fullmatch(r"weights-\d{7}", folder.name):  # a milestone of a training, which names it better
        folder = folder.with_name(f"{folder.absolute().parent.name}-{folder.name.removeprefix('weights-')}")
    label = re.sub(r"[^A-Za-z0-9._+-]+", "-", folder.name).strip(".-")[:LONGEST]
    name = f"{label or 'weights'}-{digest[:12]}"
    side, channels = math.isqrt(shape.n_ctx), palette.centres.shape[1]
    entry = Registered(str(path), digest, model_of(shape), shape.objective, side, channels, palette.digest)
    write_text(_registration(project, name), json.dumps(vars(entry), indent=1) + "\n")
    return name, entry


def _unknown(project: Project, word: str) -> UsageError:
    """The error for a word that is not the name or path of weights."""
    from igpt.train.recipes import recipe

    try:
        return UsageError(f"{word} names a recipe: give model={recipe(word).name}, and leave weights out")
    except UsageError:
        pass
    names = sorted(path.stem for path in (project.runs / "weights").glob("*.json"))
    near = near_misses(word, [TRAINED, RELEASED, *names])
    advice = "give a folder, or a TensorFlow checkpoint's path without .index"
    return UsageError(f"there are no weights {word!r}{near.rstrip('?')}{', or' if near else ':'} {advice}")


def _check_trained(given: Mapping[str, Literal], defaults: Mapping[str, Literal]) -> None:
    """Raise UsageError for a custom model without weights: no recipe trains it."""
    from igpt.train.recipes import CUSTOM

    model = str(given.get("model", ""))
    if CUSTOM.fullmatch(model) and given.get("weights", TRAINED) == TRAINED:
        advice = "give weights=FOLDER too, or another model" if "weights" in defaults else "choose another model"
        raise UsageError(f"{model} is the shape of somebody's own weights, which no recipe trains: {advice}")


def _released_parameters(stage: Stage, word: str, known: Released, defaults: Mapping[str, Literal]) -> dict[str, Literal]:
    """A stage's parameters with those that mean the released weights called ``word``.

    Raises UsageError for weights that contradict the given parameters, or that the notebook cannot name.
    """
    from igpt.weights.released import LAST_STEP

    notebook, objective = stage.notebook, known.shape.objective
    meant: dict[str, Literal] = {"model": known.name.removesuffix("-bert"), "objective": objective}
    if "@" in word:  # without it, a given step chooses among the steps
        meant["step"] = known.step
    _check_given(word, stage.parameters, meant)
    if objective == "bert" and "objective" not in defaults:
        raise UsageError(f"notebook {notebook} is for autoregressive weights, and {word} names BERT's: give others")
    if known.step != LAST_STEP and "step" not in defaults:
        raise UsageError(f"notebook {notebook} takes weights after their last step, and {word} names others: give {known.name}")
    named = {name: value for name, value in meant.items() if name == "model" or name in defaults}
    return {**stage.parameters, **named, "weights": RELEASED}


def _check_given(word: str, given: Mapping[str, Literal], required: Mapping[str, Literal]) -> None:
    """Raise UsageError for a given parameter that contradicts the weights called ``word``."""
    for parameter, value in required.items():
        if parameter in given and given[parameter] != value:
            raise UsageError(
                f"{word} holds weights of {required['model']}, {required['objective']}, and {parameter} is {given[parameter]}:"
                f" leave {parameter} out, or give {value}"
            )


def _refuse_namesake(word: str) -> None:
    """Raise UsageError for a folder that is called as weights are, so that a name never depends on the working directory."""
    if _exists(Path(word)):
        raise UsageError(
            f"{word} names weights, and something in this folder is called so too: give weights=./{word} for that, or run the"
            " command in another folder"
        )


def _released(given: Mapping[str, Literal]) -> Registered | None:
    """OpenAI's weights for these parameters; None if parameters are missing or of a wrong type, which the plan refuses.

    Raises UsageError for weights that were not released.
    """
    from igpt.palette import RELEASED as RELEASED_COLOURS
    from igpt.weights.released import LAST_STEP, released_at

    step = given.get("step", LAST_STEP)
    if not isinstance(step, int) or "model" not in given:  # a user's notebook may lack this parameter
        return None
    model, objective = str(given["model"]), str(given.get("objective", "autoregressive"))
    shape = released_at(model, objective, step).shape
    return Registered("", "", model, objective, math.isqrt(shape.n_ctx), 3, RELEASED_COLOURS)


def _check_data(notebook: str, parameters: dict[str, Literal], word: str, known: Registered) -> None:
    """Raise UsageError for data sets whose images do not fit the weights; the plan refuses unknown data sets."""
    from igpt.data.cards import check_fits, is_known

    for dataset in protocol(notebook).datasets(parameters):
        if not dataset and known.model.startswith("custom"):
            raise UsageError(f"of {word} it is not known on which images it was trained: say which to take (-p dataset=cifar10)")
        if is_known(dataset):
            check_fits(dataset, word, side=known.side, channels=known.channels, palette=known.palette)


def _registration(project: Project, name: str) -> Path:
    """The registration file of a name; for a word that cannot be a name, such as a path, a file that does not exist."""
    return project.runs / "weights" / f"{name if NAME.fullmatch(name) else 'none'}.json"


def _read(registration: Path) -> Registered:
    """Read a registration file. Raises UsageError if it is damaged."""
    try:
        return Registered(**read_json(registration))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{registration} is damaged ({error}): delete it, and give the weights' folder again") from None


def _exists(path: Path) -> bool:
    """Whether a folder or a TensorFlow index exists at a path."""
    return path.exists() or path.with_name(f"{path.name}.index").exists()


def _digest(path: Path) -> str:
    """SHA-256 of the weights at a path. Raises UsageError if files are missing."""
    from igpt.weights.read import weights_files

    files = weights_files(path)
    states = [file.stat() for file in files]
    return _read_digest(tuple(files), tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states))


@cache
def _read_digest(files: tuple[Path, ...], states: tuple[tuple[int, ...], ...]) -> str:
    """SHA-256 of files, cached by their states, since all stages of a plan need it."""
    from igpt.weights.existing import content_digest, file_sums

    return content_digest(file_sums(files))
