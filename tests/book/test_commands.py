"""Whatever README, book, notebooks and --help print to be typed: each command by the command's own parser, Python by running it."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, random_model
from typer.main import get_command

from igpt.companion import cli
from igpt.companion.experiments.cells import TABLES
from igpt.companion.experiments.speed import SPEED_STAGES
from igpt.companion.run.targets import find_stages
from igpt.data.cards import data_card
from igpt.data.own import add_own
from igpt.palette import Palette
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.train.recipes import recipe
from igpt.weights.own import save_weights

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "book/index.md")),
    *sorted((ROOT / "book" / "chapters").glob("*.md")),
]
# What is looked up; NAME, RECORD and others are taken as they are.
PLACEHOLDERS = {"TABLE": "headline", "TARGETS": "headline", "weights=FOLDER": "weights=trained"}
OWN = ("pets-model", "my-model", "RECIPE.yaml")  # models and recipes of the reader's own
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def leaves(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command without commands of its own, by its words."""
    for name, each in getattr(command, "commands", {}).items():
        yield from leaves(each, *path, name)
    if not hasattr(command, "commands"):
        yield path, command


COMMANDS = dict(leaves(get_command(cli.app)))
NAMES = {words[0] for words in COMMANDS}


def texts() -> dict[str, str]:
    """What is printed, by where."""
    found = {path.name: path.read_text() for path in DOCUMENTS}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[path.name] = "\n\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    for words, command in COMMANDS.items():
        helps = [command.help, command.epilog, *(getattr(each, "help", None) for each in command.params)]
        found[f"{' '.join(words)} --help"] = "\n\n".join(filter(None, helps))
    return found


def printed(text: str) -> Iterator[tuple[str, bool]]:
    """Each command of a text, and whether it is only spoken of: in a sentence or a comment, by its name."""
    for language, block in FENCE.findall(text):
        for line in block.splitlines() if language in ("sh", "bash", "console", "") else ():
            code, _, comment = line.partition("#")
            yield from ((part, False) for part in commands_in(code))
            yield from ((f"igpt {name}", True) for name in re.findall(r"\bigpt ([a-z-]+)", comment))
    for paragraph in re.split(r"\n\s*\n", FENCE.sub("\n\n", text)):
        for span in re.findall(r"`([^`]+)`", paragraph):
            for part in commands_in(" ".join(span.split())):
                yield part, tuple(part.split()[1:]) in {*COMMANDS, ("data",)}


def commands_in(code: str) -> list[str]:
    """The igpt commands of a line of shell."""
    parts = (part.strip() for part in re.split(r"&&|\|\||[|;]", code))
    return [part for part in parts if re.match(r"(\S*/)?igpt \S", part)]


FOUND = [(where, *each) for where, text in texts().items() for each in printed(text)]


def given(command: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """A command's name and parameters as its own parser takes them, which raises where it does not."""
    seen: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    program = get_command(cli.app)
    for words, leaf in leaves(program):
        leaf.callback = lambda words=words, **parameters: seen.append((words, parameters))
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)[1:]]
    program.main(words, prog_name="igpt", standalone_mode=False)
    return seen[0] if seen else ((), {})  # only asked for help


@pytest.fixture(autouse=True)
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set that the pages register."""
    monkeypatch.setenv("IGPT_DATA", str(tmp_path / "home"))
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "pets.npz", images=images, labels=np.arange(20) % 2)
    add_own("pets", tmp_path / "pets.npz")


@pytest.mark.parametrize(("where", "command", "spoken"), FOUND)
def test_every_printed_command_is_one_and_names_what_there_is(where: str, command: str, spoken: bool) -> None:
    if spoken:
        given(f"{command} --help")
        return
    words, parameters = given(command)
    targets = [*(parameters.get("targets") or ()), *filter(None, [parameters.get("target")])]
    assert not targets or find_stages(targets, parameters.get("tier"), Project(ROOT))
    if pairs := parameters.get("parameters"):
        assert find_stages([",".join([targets[0], *pairs])], None, Project(ROOT))
    if words == ("table",) and not parameters["records"]:
        assert parameters["name"] in {table.name for table in TABLES}
    if words[:1] == ("data",) and "name" in parameters:
        data_card(parameters["name"])
    if words == ("bench",):
        assert set(parameters["tasks"] or ()) <= {stage.parameters["task"] for stage in SPEED_STAGES}
    for name in (parameters.get("model"), parameters.get("recipe"), parameters.get("begin_from")):
        assert name is None or str(name) in OWN or recipe(str(name))


@pytest.mark.parametrize(
    "wrong",
    [
        "igpt draw --n 4",
        "igpt sample --count 4",
        "igpt submit headline",
        "igpt data get cifar10",
        "igpt table headline --format pdf",
    ],
)
def test_a_command_that_is_none_is_noticed(wrong: str) -> None:
    with pytest.raises(Exception, match="No such|Missing|is not one of"):
        given(wrong)


def test_no_command_is_overlooked() -> None:
    """Counted by name in the bare text, whatever stands around it."""
    for where, text in texts().items():
        bare = Counter(name for name in re.findall(r"(?<![\w.-])igpt\s+([a-z][a-z-]*)", text) if name in NAMES)
        assert Counter(command.split()[1] for place, command, _ in FOUND if place == where) == bare, where
    assert {command.split()[1] for _, command, _ in FOUND} >= {"plan", "run", "sample", "train", "submit", "data", "export"}


def test_printed_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block for path in DOCUMENTS for language, block in FENCE.findall(path.read_text()) if language == "python"]
    assert blocks
    palette = Palette.fit(random_images(), k=8, seed=0)
    save_weights(tmp_path / "weights", random_model(ModelShape(10, 16, 2, 8, 9)), palette)
    for block in blocks:  # deep enough for the layer that is asked for, and small
        names = {"images": np.zeros((8, 9, 9, 3), np.uint8), "labels": [0, 1] * 4}
        exec(compile(block.replace('"igpt-s"', repr(str(tmp_path / "weights"))), "book", "exec"), names)


def random_images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1), np.uint8)


def test_every_printed_name_of_the_package_is_there() -> None:
    found = set()
    for where, text in texts().items():
        for name in re.findall(r"(?:`|python -m )(igpt(?:\.\w+)+)", text):
            assert is_there(name), (where, name)
            found.add(name)
        for path in re.findall(r"`(igpt/[\w./]+)`", text):
            assert (ROOT / path).exists(), (where, path)
    assert len(found) >= 5


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        import_module(name)
    except ModuleNotFoundError:
        return is_there(module) and hasattr(import_module(module), attribute)
    return True
