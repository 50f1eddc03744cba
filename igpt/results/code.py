"""A digest of code that changes with what the code computes, and with nothing else.

Left out, since they cannot change a number: comments and layout, docstrings, ``pass``, annotations of functions, and
messages: what is said in an error, an assertion, a warning or a ``print``, and the texts of local names that only a
message reads. The digest is over a normal form of the syntax tree that every Python from 3.11 on gives alike;
`ast.unparse` and `ast.dump` differ between them. Standard library only, so that a test can run this file under each.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator

_Form = str | int | None | list["_Form"]

Function = ast.FunctionDef | ast.AsyncFunctionDef
# How a node is used follows from where it stands; the others are empty unless a parser is asked for them.
IGNORED = {"ctx", "kind", "type_comment", "type_ignores"}


def code_digest(tree: ast.Module) -> str:
    """SHA-256 of a module's normal form, in hexadecimal."""
    return hashlib.sha256(json.dumps(_form(tree, _without_effect(tree))).encode()).hexdigest()


def _form(node: object, left_out: set[int]) -> _Form:
    """Nested lists of texts and numbers; equal for trees that differ in nothing but the nodes ``left_out``, by id."""
    if isinstance(node, list):
        return [_form(item, left_out) for item in node if id(item) not in left_out]
    if isinstance(node, ast.Constant):
        return _literal(node.value)
    if isinstance(node, ast.JoinedStr):
        return _f_string(node, left_out)
    if not isinstance(node, ast.AST):
        assert node is None or isinstance(node, str | int)  # an identifier, or a small number such as an import's level
        return node
    if isinstance(node, ast.AnnAssign) and node.value is not None and id(node.annotation) in left_out:
        node = ast.Assign(targets=[node.target], value=node.value)
    form: list[_Form] = [type(node).__name__]
    for name in sorted(node._fields):
        value = getattr(node, name, None)
        if name not in IGNORED and value is not None and id(value) not in left_out:
            inner = _form(value, left_out)
            form += [name, inner] if inner != [] else []  # some Pythons leave empty lists out
    return form


def _literal(value: object) -> _Form:
    """A literal with its type: True is not 1, and 1 is not 1.0."""
    if isinstance(value, complex):
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, float | bytes):
        return [type(value).__name__, value.hex()]
    if isinstance(value, int) and not isinstance(value, bool):
        return ["int", hex(value)]
    return [type(value).__name__, value if isinstance(value, str) else repr(value)]


def _f_string(node: ast.JoinedStr, left_out: set[int]) -> _Form:
    """An f-string with its literal stretches whole, since Pythons cut them differently; without a value it is a text."""
    parts: list[_Form] = []
    stretch = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            stretch += str(part.value)
        else:
            parts += [*([_literal(stretch)] if stretch else []), _form(part, left_out)]
            stretch = ""
    if not parts:
        return _literal(stretch)
    return ["JoinedStr", *parts, *([_literal(stretch)] if stretch else [])]


def _without_effect(tree: ast.Module) -> set[int]:
    """Ids of the nodes that cannot change a number."""
    fields = {id(statement) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for statement in node.body}
    found: list[ast.AST | None] = []
    for node in ast.walk(tree):
        found += _messages(node)
        if isinstance(node, ast.Pass):
            found.append(node)
        elif isinstance(node, ast.Raise):
            found.append(node.cause)
        elif isinstance(node, ast.arg):
            found.append(node.annotation)
        elif isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr) and not node.format_spec.values:
            found.append(node.format_spec)
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
            found.append(node.body[0])
        if isinstance(node, Function):
            found += [node.returns, *(n for n in _texts_for_messages(node) if id(n) not in fields)]
            found += [n.annotation for n in ast.walk(node) if isinstance(n, ast.AnnAssign) and id(n) not in fields]
    return {id(node) for node in found if node is not None}


def _messages(node: ast.AST) -> list[ast.expr]:
    """What a node says to a person. All arguments of an error are its message; of other exceptions, and elsewhere, texts."""
    if isinstance(node, ast.Assert) and node.msg is not None:
        return [node.msg]
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        if _callee(node.exc).endswith("Error"):
            return [*node.exc.args, *node.exc.keywords]  # type: ignore[list-item]  # left out whole, names and values
        return list(filter(_is_text, node.exc.args))
    if isinstance(node, ast.Call) and (_callee(node) == "warn" or (_callee(node) == "print" and not _writes(node))):
        return list(filter(_is_text, node.args))
    return []


def _callee(call: ast.Call) -> str:
    """The last name of what is called; empty when it has none."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _writes(call: ast.Call) -> bool:
    """Whether a ``print`` goes to a file, so that it may be data."""
    return any(keyword.arg == "file" for keyword in call.keywords)


def _texts_for_messages(function: ast.AST) -> Iterable[ast.AST]:
    """Assignments of texts to names of a function that nothing reads but messages."""
    read = Counter(_names_read(function))
    told = Counter(name for node in ast.walk(function) for part in _messages(node) for name in _names_read(part))
    shared = {name for node in ast.walk(function) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None and _is_text(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if len(names) == len(targets) and all(told[n] == read[n] and n not in shared for n in names):
                yield node


def _names_read(node: ast.AST) -> Iterator[str]:
    """Names that are read in a tree, as often as they are."""
    return (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def _is_text(node: ast.AST) -> bool:
    """Whether an expression is written as text: a literal, an f-string, or some of these added or chosen from."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_text(node.left) and _is_text(node.right)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
