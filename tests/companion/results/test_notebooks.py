from __future__ import annotations

import pytest
from conftest import WriteNotebook
from hypothesis import given
from hypothesis import strategies as st

from igpt.companion.results.notebooks import check_stage, near_misses, read_notebook
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project


def test_defaults_are_read_from_the_tagged_cell_alone(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("some", 'a = b = 2\nc: float = -0.5\nd = "text"  # why\ne = True', "f = 3\nif a:\n    hidden = 4")
    assert read_notebook(project.notebooks, "some").defaults == {"a": 2, "b": 2, "c": -0.5, "d": "text", "e": True}


@pytest.mark.parametrize(
    ("cell", "tag", "message"),
    [
        ("a = 1", "other", "has 0 cells tagged 'parameters' and needs exactly one"),
        ("a = f()", "parameters", "cannot be read as Python"),
        ("import os", "parameters", "line 1 of the parameters cell assigns no literal"),
        ("a = [1]", "parameters", "is not a string, a number or True or False"),
        ("a.b = 1", "parameters", "assigns to no plain name"),
        ("a = = 1", "parameters", "mend the cell"),
        pytest.param("a = " + "(" * 5000 + "1" + ")" * 5000, "parameters", "mend the cell", id="brackets"),
        pytest.param("a = " + "-" * 100_000 + "1", "parameters", "mend the cell", id="signs"),
        pytest.param("a = " + "9" * 5000, "parameters", "mend the cell", id="digits"),
    ],
)
def test_a_parameters_cell_that_is_none_is_refused(
    project: Project, write_notebook: WriteNotebook, cell: str, tag: str, message: str
) -> None:
    write_notebook("bad", cell, tag=tag)
    with pytest.raises(UsageError, match=message):
        read_notebook(project.notebooks, "bad")


def test_two_tagged_cells_are_refused(project: Project, write_notebook: WriteNotebook) -> None:
    path = write_notebook("twice", "a = 1", "b = 2")
    path.write_text(
        path.read_text().replace('"metadata": {}, "source": "b', '"metadata": {"tags": ["parameters"]}, "source": "b')
    )
    with pytest.raises(UsageError, match="has 2 cells tagged"):
        read_notebook(project.notebooks, "twice")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"cells": 3}',
        '{"cells": [{"cell_type": "code"}]}',
        pytest.param("[" * 100_000, id="deep"),
        "\xff",
    ],
)
def test_a_file_that_is_no_notebook_is_refused(project: Project, content: str) -> None:
    (project.notebooks / "bad.ipynb").write_text(content)
    with pytest.raises(UsageError, match="is not a notebook"):
        read_notebook(project.notebooks, "bad")


def test_a_folder_that_is_called_a_notebook_is_refused(project: Project) -> None:
    (project.notebooks / "bad.ipynb").mkdir()
    with pytest.raises(UsageError, match=r"is not a notebook \(it is a folder\)"):
        read_notebook(project.notebooks, "bad")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_notebook_or_refused(content: bytes) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "some.ipynb").write_bytes(content)
        with pytest.raises(UsageError):
            read_notebook(Path(name), "some")


def test_an_unknown_notebook_is_refused_with_its_near_misses(project: Project) -> None:
    with pytest.raises(UsageError, match="no notebook 'linear_prob'; did you mean linear_probe"):
        read_notebook(project.notebooks, "linear_prob")


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"modle": "tiny-s"}, "no parameter 'modle'; did you mean model?"),
        ({"seed": "0"}, "parameter seed of notebook linear_probe is a whole number such as 0, not '0'"),
        ({"seed": 1.5}, "a whole number"),
        ({"seed": True}, "a whole number"),
        ({"seed": -1}, "a seed is a whole number from 0 to 4294967295, not -1: choose another"),
        ({"seed": 2**64}, "a seed is a whole number from 0 to 4294967295, not 18446744073709551616"),
        ({"model": 3}, "a text such as 'tiny-s'"),
        ({"layers": "1/2"}, "parameter layers of notebook linear_probe is '1/2', and becomes a part of a file's name: leave /"),
        ({"layers": "1\n"}, "and control characters out"),
    ],
)
def test_a_parameter_of_another_name_or_type_is_refused(project: Project, given_: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_stage(read_notebook(project.notebooks, "linear_probe"), Stage.of("linear_probe", **given_))  # type: ignore[arg-type]


def test_a_whole_number_serves_as_a_number(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("some", "rate = 0.5")
    notebook = read_notebook(project.notebooks, "some")
    assert check_stage(notebook, Stage.of("some", rate=1)).parameters == {"rate": 1}
    for rate in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match=rf"is a number such as 0\.5, not {rate}$"):
            check_stage(notebook, Stage.of("some", rate=rate))


def test_near_misses_fall_back_to_the_whole_list_when_it_is_short() -> None:
    assert near_misses("xyz", ["one", "two"]) == "; choose one of one, two"
    assert near_misses("xyz", [str(n) for n in range(20)]) == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": -1}, "parameter images of notebook counts is at least 0, not -1"),
        ({"steps": 0}, "parameter steps of notebook counts is at least 1, not 0"),
        ({"steps": -5}, "parameter steps of notebook counts is at least 1, not -5"),
    ],
)
def test_a_count_of_none_or_less_is_refused(
    project: Project, write_notebook: WriteNotebook, given: dict[str, int], message: str
) -> None:
    write_notebook("counts", "images = 0\nsteps = 4\nseed = 7\nrate = 0.5\ntoy = True")
    notebook = read_notebook(project.notebooks, "counts")
    with pytest.raises(UsageError, match=message):
        check_stage(notebook, Stage.of("counts", **given))
    check_stage(notebook, Stage.of("counts", images=0, steps=1, seed=0, rate=0, toy=False))
