"""A digest of code that changes with what the code computes, and with nothing else.

Left out, since they cannot change a number: comments and layout, docstrings and other bare literals, ``pass``, code under
``if TYPE_CHECKING``, annotations but those of a class's fields, imports of the machinery, a data set's title and terms,
and the texts of messages: of errors, assertions, warnings, prints and the like.
The digest is over a normal form of the syntax tree that is the same in every Python from 3.11 on; `ast.unparse` and `ast.dump`
differ between them. Standard library only, so that a test can run this file under each.
"""

from __future__ import annotations

import ast
import hashlib
import json

_Form = str | int | None | list["_Form"]

Function = ast.FunctionDef | ast.AsyncFunctionDef
ACTS = ast.Call | ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom  # which may do more than compute
# Functions called with a text for a person. The last three are the project's own.
TELLS = ("print", "warnings.warn", "tell", "wait_for_lock", "self._give_up")
# Fields of a data set that are for a person or say where its files come from; a signature has the digests of their content.
TOLD = ("title", "short", "terms", "archives", "loose", "beside")
MACHINERY = ("igpt.companion.report", "igpt.companion.run")  # notebooks import it, and it decides no number
# A node's context follows from its parent; the other fields are empty unless a parser is asked for them.
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
    nodes: list[ast.AST | None] = []
    for node in ast.walk(tree):
        nodes += _messages(node)
        bare = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        machinery = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(MACHINERY)
        for_types = isinstance(node, ast.If) and _dotted(node.test) == "TYPE_CHECKING"
        if bare or machinery or for_types or isinstance(node, ast.Pass):
            nodes.append(node)
        elif isinstance(node, ast.Raise):
            nodes.append(node.cause)
        elif isinstance(node, ast.Call) and _dotted(node.func) == "DataSet":
            nodes += [keyword for keyword in node.keywords if keyword.arg in TOLD]
        elif isinstance(node, ast.arg) or (isinstance(node, ast.AnnAssign) and id(node) not in fields):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr) and not node.format_spec.values:
            nodes.append(node.format_spec)
        elif isinstance(node, Function):
            nodes.append(node.returns)
    return {id(node) for node in nodes if node is not None}


def _messages(node: ast.AST) -> list[ast.expr]:
    """The texts that a node says to a person. One that may do more than compute counts as code, unless an error follows."""
    if isinstance(node, ast.Assert):
        return [node.msg] if node.msg else []
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return [argument for argument in node.exc.args if _is_text(argument)]
    if isinstance(node, ast.Call) and (_tells(node) or _dotted(node.func).endswith("Error")):
        texts = [argument for argument in node.args if _is_text(argument)]
        return [text for text in texts if not any(isinstance(part, ACTS) for part in ast.walk(text))]
    return []


def _tells(call: ast.Call) -> bool:
    """Whether a call is for a person; what goes to a file may be data."""
    files = [_dotted(keyword.value) for keyword in call.keywords if keyword.arg == "file"]
    return _dotted(call.func) in TELLS and files in ([], ["sys.stderr"])


def _is_text(node: ast.AST) -> bool:
    """Whether an expression is written as text: a literal, an f-string, or some of these added or chosen from."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_text(node.left) and _is_text(node.right)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _dotted(node: ast.expr) -> str:
    """A name with its dots; empty for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
