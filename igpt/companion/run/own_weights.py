"""A user's own weights: a path on the command line becomes a name, their folder's and the digest of their files.

A folder that is moved keeps its name as long as it is called the same: what stands on it stays. One that is renamed is
other weights to every plan, though its digest says that they are the same. Which path, digest and shape a name stands for
is kept in ``runs/weights/NAME.json``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from igpt.companion.experiments.protocols import protocol
from igpt.companion.results.notebooks import near_misses, read_notebook
from igpt.companion.stage import Literal, Stage
from igpt.errors import UsageError
from igpt.files import read_json, write_text
from igpt.project import Project, whole_path

TRAINED, RELEASED = "trained", "released"
NAME = re.compile(r"[\w.+-]+-[0-9a-f]{12}")
LONGEST = 40  # characters of a folder's name in that of its weights


@dataclass(frozen=True)
class Registered:
    """What a name stands for: a folder or TensorFlow prefix, its files' digest, the recipe that has the shape, its images."""

    path: str
    digest: str
    model: str
    objective: str
    side: int  # pixels
    channels: int
    palette: str  # its digest


def settle(project: Project, stage: Stage) -> Stage:
    """The stage that is meant: a path given as ``weights`` gets its name, and model and objective follow from what lies there.

    Raises UsageError for weights that are not there or damaged, of another model than was given, that do not fit the data,
    and for a word that is none of ``trained``, ``released``, a registered name and a path.
    """
    defaults = read_notebook(project.notebooks, stage.notebook).defaults
    given = stage.parameters
    _check_trained(given, defaults)
    if "weights" not in defaults or not isinstance(word := given.get("weights", defaults["weights"]), str):
        return stage  # what the plan says of a parameter that is unknown, or of another type
    if word == TRAINED:
        if stage.notebook in ("weights", "released_loss"):
            raise UsageError(f"notebook {stage.notebook} takes weights that exist, not {TRAINED}: give {RELEASED} or a path")
        return stage
    full = {**defaults, **given}
    if word == RELEASED:
        if released := _released(full):
            for dataset in protocol(stage.notebook).datasets(full):
                _check_data(dataset, f"OpenAI's {released.model}", released)
        return stage
    place = _registration(project, word)
    if NAME.fullmatch(word) and not place.exists() and "model" in given:
        return stage  # of a run elsewhere: what it is can be said, and it is refused where its weights are to be read
    name, known = (word, _read(place)) if place.exists() else _register(project, word)
    _check_notebook(stage.notebook, defaults, word, known)
    wanted = {"model": known.model, "objective": known.objective}
    for parameter, value in wanted.items():
        if parameter in given and given[parameter] != value:
            raise UsageError(
                f"{word} holds weights of {known.model}, {known.objective}, and {parameter} is {given[parameter]}: leave"
                f" {parameter} out, or give {value}"
            )
    settled = {**given, **{k: v for k, v in wanted.items() if k in defaults}, "weights": name}
    for dataset in protocol(stage.notebook).datasets({**defaults, **settled}):
        _check_data(dataset, word, known)
    return Stage.of(stage.notebook, **settled)


def own_place(project: Project, name: str) -> Path:
    """Where the weights of a registered name lie. Raises UsageError when they have been moved or changed since."""
    place = _registration(project, name)
    if not place.exists():
        raise UsageError(f"no weights are registered here as {name}: give their folder again (-p weights=FOLDER)")
    known = _read(place)
    path = Path(known.path)
    if not _is_there(path):
        raise UsageError(f"the weights called {name} are no longer at {path}: give the place where they are (-p weights=FOLDER)")
    if _digest(path) != known.digest:
        raise UsageError(
            f"the weights at {path} have changed since they were called {name}: give them again (-p weights={path}), under a new"
            " name, or put the old ones back"
        )
    return path


def hand_on(project: Project, home: Project) -> None:
    """Let jobs, whose runs are those of ``home``, know what the names of a user's own weights stand for."""
    if home.runs != project.runs:
        for place in (project.runs / "weights").glob("*.json"):
            write_text(home.runs / "weights" / place.name, place.read_text())


def _register(project: Project, word: str) -> tuple[str, Registered]:
    """Give the weights at a path their name."""
    from igpt.train.recipes import model_of
    from igpt.weights.huggingface import has_output, is_huggingface
    from igpt.weights.read import read_palette, weights_shape

    path = whole_path("weights", word)
    if not word or not _is_there(path):
        raise _unknown(project, word)
    if path.is_dir() and not (path / "config.json").exists() and (found := sorted(path.glob("*.index"))):
        raise UsageError(f"{path} holds TensorFlow checkpoints: give the path of one, such as {found[-1].with_suffix('')}")
    if path.is_dir() and is_huggingface(path) and not has_output(path):
        raise UsageError(
            f"{path} holds weights without an output matrix, as a classifier's: igpt.ImageGPT.from_pretrained reads their"
            " features, and no notebook takes them: give those of a generative model, with lm_head.weight"
        )
    shape = weights_shape(path)
    palette = read_palette(path, shape)
    side, channels = math.isqrt(shape.n_ctx), palette.centres.shape[1]
    digest = _digest(path)
    called = re.sub(r"[^A-Za-z0-9._+-]+", "-", path.name if path.is_dir() else path.parent.name).strip(".-")[:LONGEST]
    name = f"{called or 'weights'}-{digest[:12]}"
    known = Registered(str(path), digest, model_of(shape), shape.objective, side, channels, palette.digest)
    write_text(_registration(project, name), json.dumps(vars(known), indent=1) + "\n")
    return name, known


def _unknown(project: Project, word: str) -> UsageError:
    """What to say of a word that names no weights."""
    from igpt.train.recipes import recipe
    from igpt.weights.released import released_model

    if released := released_model(word):
        model, objective = released.name.removesuffix("-bert"), released.shape.objective
        return UsageError(f"{word} names OpenAI's weights: give weights={RELEASED}, model={model} and objective={objective}")
    try:
        return UsageError(f"{word} names a recipe: give model={recipe(word).name}, and leave weights out")
    except UsageError:
        pass
    names = [path.stem for path in _registration(project, "").parent.glob("*.json")]
    near = near_misses(word, [TRAINED, RELEASED, *sorted(names)])
    ways = "give a folder, or a TensorFlow checkpoint's path without .index"
    return UsageError(f"there are no weights {word!r}{near.rstrip('?')}{', or' if near else ':'} {ways}")


def _check_trained(given: Mapping[str, Literal], defaults: Mapping[str, Literal]) -> None:
    """Raise UsageError for a model that only a user's own weights have where none are given."""
    from igpt.train.recipes import CUSTOM

    model = str(given.get("model", ""))
    if CUSTOM.fullmatch(model) and given.get("weights", TRAINED) == TRAINED:
        ways = "give weights=FOLDER too, or another model" if "weights" in defaults else "choose another model"
        raise UsageError(f"{model} is the shape of somebody's own weights, which no recipe trains: {ways}")


def _released(given: Mapping[str, Literal]) -> Registered | None:
    """What OpenAI's weights are; None where parameters are missing or of a wrong type, which is left to the plan.

    Raises UsageError for what was not released.
    """
    from igpt.palette import RELEASED as RELEASED_COLOURS
    from igpt.weights.released import LAST_STEP, released_at

    step = given.get("step", LAST_STEP)
    if not isinstance(step, int) or "model" not in given:  # a notebook of one's own may name none
        return None
    model, objective = str(given["model"]), str(given.get("objective", "autoregressive"))
    shape = released_at(model, objective, step).shape
    return Registered("", "", model, objective, math.isqrt(shape.n_ctx), 3, RELEASED_COLOURS)


def _check_notebook(notebook: str, defaults: dict[str, Literal], word: str, known: Registered) -> None:
    """Raise UsageError for a notebook that needs other weights than a user can give."""
    if notebook == "loss_against_probe":
        raise UsageError(f"{notebook} compares the weights after several steps, and {word} holds one: run linear_probe instead")
    if known.objective == "bert" and "objective" not in defaults:
        raise UsageError(f"notebook {notebook} is for autoregressive weights, and {word} holds BERT's: give others")


def _check_data(dataset: str, word: str, known: Registered) -> None:
    """Raise UsageError for images that the weights cannot read; an unknown data set is left to the plan."""
    from igpt.data.cards import DATASETS, data_card
    from igpt.palette import RELEASED as RELEASED_COLOURS

    if not dataset and known.model.startswith("custom"):
        raise UsageError(f"of {word} it is not known on which images it was trained: say which to take (-p dataset=cifar10)")
    if dataset not in DATASETS:
        return
    card = data_card(dataset)
    if known.channels != card.channels or known.side > card.height:
        raise UsageError(
            f"{word} reads {_kind(known.side, known.channels)}, and {dataset} has {_kind(card.height, card.channels)}: choose"
            " another data set (-p dataset=...)"
        )
    if card.tokens and (known.side, known.palette) != (card.height, RELEASED_COLOURS):
        raise UsageError(
            f"{word} reads {_kind(known.side, known.channels)} in its own colours or size, and {dataset} are tokens of"
            f" {card.height} x {card.height} pixels in the released ones: choose a data set of pictures (-p dataset=...)"
        )


def _kind(side: int, channels: int) -> str:
    """Images of a kind in words."""
    return f"{'grey' if channels == 1 else 'colour'} images of {side} x {side} pixels"


def _registration(project: Project, name: str) -> Path:
    """The file that says what a name stands for; a word that cannot be one, such as a path, has none."""
    return project.runs / "weights" / f"{name if NAME.fullmatch(name) else 'none'}.json"


def _read(place: Path) -> Registered:
    """What a registration says."""
    try:
        return Registered(**read_json(place))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{place} is damaged ({error}): delete it, and give the weights' folder again") from None


def _is_there(path: Path) -> bool:
    """Whether there is something that may be weights."""
    return path.exists() or path.with_name(f"{path.name}.index").exists()


def _digest(path: Path) -> str:
    """SHA-256 of what lies at a path. Raises UsageError where files are missing."""
    from igpt.weights.read import weights_files

    files = weights_files(path)
    return _content(tuple((file, _state(file)) for file in files))


def _state(file: Path) -> tuple[int, ...]:
    """What changes with a file's content."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@cache
def _content(files: tuple[tuple[Path, tuple[int, ...]], ...]) -> str:
    """SHA-256 of files in a state, read once: the stages of a plan stand on the same gigabytes."""
    from igpt.weights.existing import content_digest, file_sums

    return content_digest(file_sums(file for file, _ in files))
