"""A digest of code that changes with what the code computes, and with nothing else.

Left out, since they cannot change a number: comments and layout, docstrings and other bare literals, ``pass``, what stands
under ``if TYPE_CHECKING``, annotations but those of a class's fields, imports of the machinery, a data set's title and terms,
and the texts of messages: of errors, assertions, warnings, prints and the like, and of local names that only a message reads.
The digest is over a normal form of the syntax tree that every Python from 3.11 on gives alike; `ast.unparse` and `ast.dump`
differ between them. Standard library only, so that a test can run this file under each.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator

_Form = str | int | None | list["_Form"]

Function = ast.FunctionDef | ast.AsyncFunctionDef
# What is called with a text for a person. The last two are the project's own: a lock that is waited for, a training that ends.
TELLS = ("print", "warnings.warn", "tell", "wait_for_lock", "self._give_up")
# What a text that is left out may call: nothing that has an effect, such as a draw of random numbers.
PURE = ("abs", "len", "max", "min", "repr", "round", "sorted", "str", "type")
# Of a data set's declaration, what is for a person and where its files come from; a signature has what decides its content.
TOLD = ("title", "short", "terms", "archives", "loose", "beside")
MACHINERY = ("igpt.companion.report", "igpt.companion.run")  # what notebooks import of it decides no number
READS_ALL = ("locals", "vars", "eval", "exec")  # names, without naming them
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
    if isinstance(value, str):
        return ["str", value.encode("utf-8", "surrogatepass").hex()]  # JSON writes a pair of surrogates as one character
    return [type(value).__name__, repr(value)]


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
        bare = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        machinery = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(MACHINERY)
        for_types = isinstance(node, ast.If) and _dotted(node.test) == "TYPE_CHECKING"
        if bare or machinery or for_types or isinstance(node, ast.Pass):
            found.append(node)
        elif isinstance(node, ast.Raise):
            found.append(node.cause)
        elif isinstance(node, ast.Call) and _dotted(node.func) == "DataSet":
            found += [keyword for keyword in node.keywords if keyword.arg in TOLD]
        elif isinstance(node, ast.arg) or (isinstance(node, ast.AnnAssign) and id(node) not in fields):
            found.append(node.annotation)
        elif isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr) and not node.format_spec.values:
            found.append(node.format_spec)
        elif isinstance(node, Function):
            found += [node.returns, *(n for n in _texts_for_messages(node) if id(n) not in fields)]
    return {id(node) for node in found if node is not None}


def _messages(node: ast.AST) -> list[ast.expr]:
    """The texts that a node says to a person; of what is raised all of them, since nothing goes on after it."""
    if isinstance(node, ast.Assert) and node.msg is not None:
        return [node.msg]
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return [argument for argument in node.exc.args if _is_text(argument, acting=True)]
    if isinstance(node, ast.Call) and (_tells(node) or _dotted(node.func).endswith("Error")):
        return [argument for argument in node.args if _is_text(argument)]
    return []


def _tells(call: ast.Call) -> bool:
    """Whether a call is for a person; what goes to a file may be data."""
    files = [_dotted(keyword.value) for keyword in call.keywords if keyword.arg == "file"]
    return _dotted(call.func) in TELLS and files in ([], ["sys.stderr"])


def _dotted(node: ast.expr) -> str:
    """A name with its dots; empty for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _texts_for_messages(function: ast.AST) -> Iterable[ast.AST]:
    """Assignments of texts to names of a function that nothing reads but messages."""
    read = dict(_names_read(function))
    told = dict(pair for node in ast.walk(function) for part in _messages(node) for pair in _names_read(part))
    elsewhere = {name for place, name in read.items() if place not in told}
    if elsewhere & {*READS_ALL}:
        return
    elsewhere |= {name for node in ast.walk(function) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None and _is_text(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if all(isinstance(target, ast.Name) and target.id not in elsewhere for target in targets):
                yield node


def _names_read(node: ast.AST) -> Iterator[tuple[int, str]]:
    """The names that are read in a tree, each with the id of its node."""
    return ((id(n), n.id) for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def _is_text(node: ast.AST, *, acting: bool = False) -> bool:
    """Whether an expression is written as text: a literal, an f-string, or some of these added or chosen from.

    acting : also one that does more than compute
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_text(node.left, acting=acting) and _is_text(node.right, acting=acting)
    if isinstance(node, ast.IfExp):
        return all(_is_text(part, acting=acting) for part in (node.body, node.orelse)) and (acting or not _acts(node.test))
    if isinstance(node, ast.JoinedStr):
        return acting or not _acts(node)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _acts(node: ast.AST) -> bool:
    """Whether an expression may do more than compute: it calls something unknown, assigns or waits."""
    acting = ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom
    return any(isinstance(n, acting) or (isinstance(n, ast.Call) and not _is_pure(n)) for n in ast.walk(node))


def _is_pure(call: ast.Call) -> bool:
    """Whether a call is of a plain function, or a method of a literal text (``", ".join``)."""
    method = call.func.value if isinstance(call.func, ast.Attribute) else None
    return _dotted(call.func) in PURE or (isinstance(method, ast.Constant) and isinstance(method.value, str))
