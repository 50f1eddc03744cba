"""Parse notebooks: read their parameters and code, and check both.

papermill only warns about unknown parameters, and runs a notebook without a parameters cell on its defaults. Both are
therefore checked here, on the syntax tree of the tagged cell, before anything starts.
"""

from __future__ import annotations

import ast
import difflib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from igpt.companion.results.code import code_digest
from igpt.companion.stage import Literal, Stage
from igpt.errors import UsageError
from igpt.files import read_json
from igpt.seeds import check_seed

LARGEST = 2**26  # maximum bytes of a notebook, including pictures


@dataclass(frozen=True)
class Notebook:
    """One notebook: its default parameters, and its code cells as the syntax tree of one module."""

    name: str
    defaults: dict[str, Literal]
    tree: ast.Module

    @cached_property
    def digest(self) -> str:
        """The digest of the notebook's code, see `code_digest`."""
        return code_digest(self.tree)


def read_notebook(folder: Path, name: str) -> Notebook:
    """Read ``folder / name.ipynb``. Raises UsageError if it is missing, damaged or without parameters."""
    path = folder / f"{name}.ipynb"
    try:
        cells = code_cells(path)
        sources = ["".join(cell["source"]) for cell in cells]
        tagged = [s for cell, s in zip(cells, sources, strict=True) if "parameters" in cell["metadata"].get("tags", [])]
    except FileNotFoundError:
        known = sorted(p.stem for p in folder.glob("*.ipynb"))
        raise UsageError(f"there is no notebook {name!r}{near_misses(name, known)}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a notebook ({error}): restore it") from None
    if len(tagged) != 1:
        raise UsageError(f"{path} has {len(tagged)} cells tagged 'parameters' and needs exactly one: tag the cell that sets them")
    try:
        return Notebook(name, _literals(ast.parse(tagged[0])), ast.parse("\n".join(sources)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} cannot be read as Python ({error}): mend the cell") from None


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook. Raises OSError; ValueError, LookupError or TypeError if it is not a notebook."""
    return [cell for cell in read_json(path, most=LARGEST)["cells"] if cell["cell_type"] == "code"]


def check_stage(notebook: Notebook, stage: Stage) -> Stage:
    """The stage under its canonical name.

    Raises UsageError for an unknown parameter, a wrong type, a number that is not finite, a text that cannot be part of a file's
    name, a seed out of range, a negative count, and a count of 0 unless 0 is the default.
    """
    for name, value in stage.given:
        if name not in notebook.defaults:
            raise UsageError(f"notebook {notebook.name} has no parameter {name!r}{near_misses(name, list(notebook.defaults))}")
        default = notebook.defaults[name]
        fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise UsageError(
                f"parameter {name} of notebook {notebook.name} is {_article(default)} such as {default!r}, not {value!r}"
            )
        if isinstance(value, str) and ("/" in value or not value.isprintable()):
            raise UsageError(
                f"parameter {name} of notebook {notebook.name} is {value!r}, and becomes a part of a file's name: leave / and"
                " control characters out"
            )
        if name == "seed" or name.endswith("_seed"):
            check_seed(value)
        elif type(default) is int and type(value) is int and value < min(default, 1):  # a count; a default of 0 means all
            raise UsageError(f"parameter {name} of notebook {notebook.name} is at least {min(default, 1)}, not {value}")
    return stage.canonical(notebook.defaults)


def near_misses(word: str, known: list[str]) -> str:
    """The end of a message about an unknown word: its near misses, or the known words if they are few."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; choose one of {', '.join(known)}" if len(known) <= 12 else ""


def _literals(cell: ast.Module) -> dict[str, Literal]:
    """The assignments in the parameters cell. Raises ValueError for any other statement or value."""
    values: dict[str, Literal] = {}
    for node in cell.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, ast.literal_eval(node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], ast.literal_eval(node.value)
        else:
            raise ValueError(f"line {node.lineno} of the parameters cell assigns no literal")
        if not isinstance(value, str | int | float | bool):
            raise ValueError(f"line {node.lineno} of the parameters cell is not a string, a number or True or False")
        for target in targets:
            if not isinstance(target, ast.Name):
                raise ValueError(f"line {node.lineno} of the parameters cell assigns to no plain name")
            values[target.id] = value
    return values


def _article(default: Literal) -> str:
    """The type of a parameter as a phrase with its article."""
    return {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}[type(default)]
