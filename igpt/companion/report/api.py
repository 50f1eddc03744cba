"""The public names of a module with their signatures and docstrings, read from the source without importing it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path


@dataclass(frozen=True)
class PublicName:
    """A function or class: its signature as source text, and its docstring."""

    name: str
    signature: str
    doc: str


def public_names(module: str) -> tuple[str, list[PublicName]]:
    """A module's own docstring, and its public functions, classes and methods, in the order of the source."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text())
    return ast.get_docstring(tree) or "", list(_names(tree.body, ""))


def _names(body: list[ast.stmt], prefix: str) -> list[PublicName]:
    """Public names of a body, those of its classes behind them."""
    found = []
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        doc = cleandoc(ast.get_docstring(node) or "")
        if isinstance(node, ast.ClassDef):
            found.append(PublicName(prefix + node.name, f"class {node.name}", doc))
            found += _names(node.body, f"{node.name}.")
        elif doc:
            result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            found.append(PublicName(prefix + node.name, f"{prefix}{node.name}({ast.unparse(node.args)}){result}", doc))
    return found
