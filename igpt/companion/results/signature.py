"""Signatures: all inputs of a stage's result as named parts, and one digest of them.

The parts are exactly the inputs that can change a number: the parameters (including defaults), the recipe, the notebook's
code, each igpt module that the notebook reaches, digests of the data, the parents' signatures, and the major versions of
numerical libraries that are reached. Code enters in the normal form of `igpt.companion.results.code`, so that comments and
messages have no effect; the reader of a data set enters for the stages that read the set.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from igpt.companion.experiments.protocols import protocol
from igpt.companion.results.code import code_digest
from igpt.companion.results.notebooks import Notebook, check_stage, read_notebook
from igpt.companion.stage import Stage
from igpt.data import split_digest
from igpt.errors import UsageError

# Modules and packages that cannot change a result. The only exception is the timed work of speed records: `INSIDE`.
OUTSIDE = (
    *("igpt.companion", "igpt.project", "igpt.progress", "igpt.text"),
    # A stage's own recipe and the digest of its data are separate parts, so that other recipes and data sets may change. Its
    # protocol names the reader module of its data set; `igpt.data.cards` imports the readers of all data sets.
    *("igpt.train.recipes", "igpt.data.cards", "igpt.data.dataset", "igpt.fetch"),
)
INSIDE = ("igpt.companion.bench",)
# The numerical libraries: distribution by import name.
LIBRARIES = {"torch": "torch", "numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "PIL": "pillow"}


@dataclass(frozen=True)
class Signature:
    """The parts of a signature, short strings by name; the digest is the SHA-256 of their canonical JSON."""

    parts: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the parts, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def difference(self, other: dict[str, str]) -> list[str]:
        """Sorted names of the parts that differ from ``other``."""
        return sorted(n for n in self.parts.keys() | other.keys() if self.parts.get(n) != other.get(n))


class Signer:
    """Signs stages; reads each notebook and each module once."""

    def __init__(self, notebooks: Path) -> None:
        self.folder = notebooks
        self._notebooks: dict[str, Notebook] = {}
        self._signatures: dict[Stage, Signature] = {}
        self._code: dict[tuple[str, ...], dict[str, str]] = {}

    def notebook(self, name: str) -> Notebook:
        """A notebook's defaults and code."""
        if name not in self._notebooks:
            self._notebooks[name] = read_notebook(self.folder, name)
        return self._notebooks[name]

    def canonical(self, stage: Stage) -> Stage:
        """The stage under its canonical name. Raises UsageError for parameters that its notebook does not accept."""
        return check_stage(self.notebook(stage.notebook), stage)

    def parameters(self, stage: Stage) -> dict[str, str | int | float | bool]:
        """All parameters of a stage, including its notebook's defaults."""
        return {**self.notebook(stage.notebook).defaults, **stage.parameters}

    def in_full(self, stage: Stage) -> Stage:
        """The stage with all its parameters named."""
        return Stage.of(stage.notebook, **self.parameters(stage))

    def parents(self, stage: Stage) -> dict[str, Stage]:
        """The stages whose outputs this stage reads, by the names that its notebook uses."""
        parents = protocol(stage.notebook).parents(self.parameters(stage))
        return {name: self.canonical(parent) for name, parent in parents.items()}

    def sign(self, stage: Stage) -> Signature:
        """The signature of a stage in this checkout."""
        stage = self.canonical(stage)
        if stage not in self._signatures:
            parameters, chosen = self.parameters(stage), protocol(stage.notebook)
            parts = {f"parameter {name}": json.dumps(value) for name, value in parameters.items()}
            parts |= {f"data {name}": split_digest(name) for name in chosen.datasets(parameters)}
            parts |= {f"recipe {plan.name}": json.dumps(plan.as_dict(), sort_keys=True) for plan in chosen.recipes(parameters)}
            parts |= {f"stage {parent.name}": self.sign(parent).digest for parent in self.parents(stage).values()}
            parts |= self._reached_code(stage.notebook, *chosen.chosen_modules(parameters))
            self._signatures[stage] = Signature(parts)
        return self._signatures[stage]

    def _reached_code(self, name: str, *chosen: str) -> dict[str, str]:
        """Digests of the notebook's code and of each igpt module that it reaches, and versions of numerical libraries."""
        key = (name, *chosen)
        if key not in self._code:
            notebook = self.notebook(name)
            modules = reached_modules(notebook.tree, *chosen)
            try:
                code = {"notebook": notebook.digest}
            except RecursionError:
                raise UsageError(f"notebook {name} is nested too deeply to be signed: split its longest expression") from None
            code |= {f"module {module}": module_digest(module) for module in modules}
            code |= {f"library {library}": major_version(library) for library in reached_libraries(notebook.tree, modules)}
            self._code[key] = code
        return self._code[key]


@cache  # reading the metadata is slow
def major_version(library: str) -> str:
    """The major version of a library."""
    return version(library).split(".")[0]


@cache
def module_digest(module: str) -> str:
    """SHA-256 of the normal form of a module's code, without importing the module."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return code_digest(ast.parse(Path(spec.origin).read_text()))


def reached_modules(tree: ast.Module, *chosen: str) -> list[str]:
    """Sorted igpt modules that code reaches through imports or selects, without those that cannot change a result."""
    graph = _import_graph()
    if unknown := [name for name in chosen if name not in graph]:
        raise UsageError(f"there is no module {unknown[0]}: give a parameter that names one")
    queue = [*(_imported(tree) & graph.keys()), *chosen]
    reached: set[str] = set()
    while queue:
        module = queue.pop()
        if module not in reached and not _is_outside(module):
            reached.add(module)
            queue += graph[module]
    return sorted(name for name in reached if name.partition(".")[0] == "igpt")


def reached_libraries(tree: ast.Module, modules: Iterable[str]) -> list[str]:
    """Sorted numerical libraries that code imports directly or through the igpt modules that it reaches."""
    graph = _import_graph()
    imported = _imported(tree).union(*(graph[module] for module in modules))
    return sorted(LIBRARIES[name] for name in {name.partition(".")[0] for name in imported} & LIBRARIES.keys())


def _is_outside(module: str) -> bool:
    """Whether a module cannot change a result, by itself or by a package that contains it; see `OUTSIDE`."""
    packages = {module, *(module[:i] for i, letter in enumerate(module) if letter == ".")}
    return bool(packages & {*OUTSIDE}) and not packages & {*INSIDE}


@cache
def _import_graph() -> dict[str, set[str]]:
    """The direct imports of each igpt module, without imports for type checkers."""
    import grimp

    graph = grimp.build_graph("igpt", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


@cache
def _imported(tree: ast.Module) -> set[str]:
    """The modules that a syntax tree imports; a public name of igpt counts as the module that defines it."""
    from igpt import _PUBLIC

    modules, imported = _import_graph(), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                source = _PUBLIC.get(alias.name, "igpt") if node.module == "igpt" else node.module
                child = f"{node.module}.{alias.name}"
                imported.add(child if child in modules else source)
    return imported
