"""Recipes of the user's own: what a file may hold, and the sentence for what it may not."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import igpt_here as igpt

from igpt.companion.run.own_recipe import Fields, class_labels, own_recipe
from igpt.data import cards
from igpt.errors import UsageError
from igpt.project import Project
from igpt.shape import ModelShape
from igpt.train.recipe import Recipe
from igpt.train.recipes import recipe

FULL = """\
layers: 2  # blocks
width: 16
heads: 2
side: 8
colours: 16
batch: 4
steps: 20
warmup: 2
learning_rate: 3e-3
"""


def read(folder: Path, content: str | bytes, objective: str | None = None) -> Recipe:
    path = folder / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    return own_recipe(path, objective).recipe


def test_a_whole_recipe_is_all_its_fields(tmp_path: Path) -> None:
    shape = ModelShape(2, 16, 2, 16, 64)
    whole = Recipe("mine", shape, "", 16, batch=4, steps=20, warmup=2, learning_rate=0.003)
    assert read(tmp_path, FULL) == whole
    more = FULL + "objective: bert\nbetas: [0.5, 0.9]\nmask_rate: .2\n"
    bert = replace(whole, shape=replace(shape, objective="bert"), betas=(0.5, 0.9), mask_rate=0.2)
    assert read(tmp_path, more) == bert
    assert read(tmp_path, more, "autoregressive").shape == shape  # the command's objective comes first
    assert whole.milestone_steps == [1, 2, 5, 10, 20]


def test_changes_to_a_recipe_leave_the_rest_as_it_is(tmp_path: Path) -> None:
    published = replace(recipe("igpt-s"), name="mine", dataset="")
    assert read(tmp_path, "base: igpt-s") == published
    assert read(tmp_path, "base: igpt-s\nsteps: 2000\n") == replace(published, steps=2000, warmup=100)
    assert read(tmp_path, "base: igpt-s\nsteps: 2000\nwarmup: 7\n") == replace(published, steps=2000, warmup=7)
    found = read(tmp_path, "base: igpt-s\nside: 64\ncolours: 8\nlayers: 3\n")
    assert (found.shape, found.palette_colours) == (ModelShape(3, 512, 8, 8, 4096), 8)
    assert read(tmp_path, "base: igpt-s\nobjective: bert\n").learning_rate == recipe("igpt-s", "bert").learning_rate
    assert not read(tmp_path, "base: tiny-s").shifts  # which the notebook makes, not `igpt train`


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FULL + "laers: 2", "mine.yaml has the unknown field laers; did you mean layers"),
        (FULL + "positions: 64", "has the unknown field positions; the fields are base, layers, width, heads, side, colours,"),
        (FULL.replace("width: 16\n", ""), "has no width: add it, or name a base: igpt-s"),
        (FULL.replace("width: 16\nheads: 2\n", ""), "has no width, heads: add them, or name a base: igpt-s"),
        (FULL.replace("layers: 2", "layers: true"), "has layers True, which should be a valid integer: correct it"),
        (FULL.replace("layers: 2", "layers: '2'"), "has layers '2', which should be a valid integer"),
        (FULL.replace("layers: 2", "layers:"), "has layers without a value: write one, or remove the line"),
        (FULL.replace("layers: 2", "layers: 0"), "has layers 0, which should be greater than or equal to 1"),
        (FULL.replace("batch: 4", "batch: 4.0"), "has batch 4.0, which should be a valid integer"),
        (FULL.replace("batch: 4", f"batch: {10**400}"), "has batch 1000.*0000, which should be less than or equal to 100000:"),
        (FULL.replace("batch: 4", f"batch: 1{'0' * 5000}"), "is not YAML as recipes are written"),
        (FULL.replace("heads: 2", "heads: 3"), "describes no model: 3 heads do not divide a width of 16; correct it"),
        (FULL.replace("colours: 16", "colours: 65537"), "has colours 65537, which should be less than or equal to 65536"),
        (FULL.replace("side: 8", "side: 1025"), "has side 1025, which should be less than"),
        (FULL.replace("warmup: 2", "warmup: 21"), "has a warmup of 21 steps and 20 steps in all: shorten the warmup"),
        (FULL.replace("3e-3", "0"), "has learning_rate 0, which should be greater than 0"),
        (FULL.replace("3e-3", "1.0e999"), "has learning_rate inf, which should be a finite number"),
        (FULL.replace("3e-3", ".nan"), "has learning_rate '.nan', which should be a valid number"),
        (FULL + "betas: [0.9]", r"has betas \[0.9\], which should be two numbers from 0 to below 1"),
        (FULL + "betas: [0.9, 1]", r"has betas \[0.9, 1\], which should be two numbers"),
        (FULL + "mask_rate: 1", "has mask_rate 1, which should be less than 1"),
        (FULL + "objective: gan", "has objective 'gan', which should be 'autoregressive' or 'bert'"),
        (FULL + "classes: []", r"has classes \[\], which should be a list of names or numbers of classes"),
        (FULL + "classes: cat", "has classes 'cat', which should be a list of names"),
        (FULL + "classes: [1.5]", "which should be a list of names or numbers of classes, such as .*; a name may need quotes"),
        (FULL + "width: 3", "is not YAML as recipes are written .width is given twice, in line 1.: correct it"),
        ("base: igpt-q", "has a base that is none: there is no autoregressive model 'igpt-q'; choose one of tiny-s"),
        ("base: igpt-xl\nobjective: bert", "has a base that is none: there is no bert model 'igpt-xl'"),
        ("", "holds None, and a recipe one 'name: value' a line"),
        ("- layers", "holds .'layers'., and a recipe one 'name: value' a line"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nclasses: [*b, *b]\n", "is not YAML as recipes are written .it has an alias, in line 2."),
        ("classes: &c [*c]", "it has an alias, in line 1"),
        ("[" * 60_000, "is not YAML as recipes are written .maximum recursion"),
        ("layers: !!python/object/apply:os.system ['true']", "could not determine a constructor for the tag"),
        ("classes: [!!binary aGVsbG8=]", "is not YAML as recipes are written .Object of type bytes"),
        ("? [a, b]\n: 1", "found unhashable key, in line 1"),
        (f"{FULL}---\n{FULL}", "found another document"),
        ('classes: ["\\ud800"]', "is not YAML as recipes are written"),
        ("layers: \x1b[2J", "is not YAML as recipes are written"),
        (bytes(range(256)), "is not YAML as recipes are written"),
        ("#" * 70_000, "is no recipe .it has 70,000 bytes, more than the 65,536"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_is_one_sentence_with_file_field_and_value(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, content)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "mine.yaml"))
    assert "\n" not in said and said.isprintable() and len(said) < 600


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "link.yaml").symlink_to(tmp_path / "link.yaml")
    for name, message in (
        ("none", "there is no recipe at .*none.yaml: write one, or give a recipe's name such as igpt-s"),
        ("pipe", "is no recipe .it is no regular file."),
        ("folder", "is no recipe .it is a folder."),
        ("link", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=message):
            own_recipe(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_recipe_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray((FULL + "classes: [cat, 3]\nobjective: bert\nbetas: [0.9, 0.95]\n").encode())
    for _ in range(draw.randint(1, 3)):
        content[draw.randrange(len(content))] = draw.choice(b"\x00\n\t :[]{}&*!|>'\"%@`#,-?0aZ\xff")
    with suppress(UsageError):
        read(tmp_path, bytes(content))


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a b", "ä", "x" * 200, os.fsdecode(b"\xff")])
def test_a_files_name_is_printable_as_a_recipes(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.yaml").write_text(FULL)
    found = own_recipe(tmp_path / f"{name}.yaml").recipe.name
    assert found.isprintable() and len(found) < 120 and found.encode()


def test_classes_are_given_by_name_or_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert class_labels([3, "8", 3], "digits") == [3, 8]
    assert class_labels([], "digits") == []
    names = [*"5678901234"]  # numbers that are names too are the names
    digits = replace(cards.DATASETS["digits"], names=lambda card: names)
    monkeypatch.setitem(cards.DATASETS, "digits", digits)
    assert class_labels([5, "6", 0], "digits") == [0, 1, 5]
    names[:] = ["crane", "bat", "crane", *"abcdefg"]
    assert class_labels(["bat", 0, 9], "digits") == [0, 1, 9]
    for classes, message in (
        (["crane"], r"has 2 classes called crane: give their numbers \(0, 2\)"),
        (["craane"], "has no class 'craane' among its 10; did you mean crane"),
        ([10], "has no class 10 among its 10; choose one of crane, bat"),
        ([-1], "has no class -1 among its 10"),
        (["x\n"], r"has no class 'x\\n' among its 10"),
    ):
        with pytest.raises(UsageError, match=message):
            class_labels(classes, "digits")


def test_the_help_names_every_field(project: Project) -> None:
    said = " ".join(igpt("train", "--help", root=project.root).stdout.split())
    assert all(name in said for name in Fields.model_fields)


def test_a_command_with_a_wrong_recipe_writes_nothing(project: Project, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("base: igpt-s\nstep: 3\n")
    out = tmp_path / "out"
    for name, more, message in (
        ("a.yml", [], "igpt: a.yml has the unknown field step; did you mean steps"),
        ("b.yaml", [], "igpt: there is no recipe at b.yaml: write one"),
        ("a.yml", ["--objective", "gan"], "igpt: there is no objective 'gan'; choose autoregressive or bert"),
    ):
        done = igpt("train", name, "--data", "tokens", "--out", str(out), *more, root=project.root)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
        assert not out.exists()
