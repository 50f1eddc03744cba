"""A digest of code that changes if and only if the computation may change.

Ignored, since they cannot change a number: comments and layout, docstrings and other bare literals, ``pass``, code under
``if TYPE_CHECKING``, annotations except those of class fields, imports of the machinery, a data set's title and terms, and
the text of messages in errors, assertions, warnings and prints.

The digest is over a normal form of the syntax tree that is equal in all versions of Python since 3.11, unlike `ast.unparse`
and `ast.dump`. Only the standard library is imported, so that a test can run this file under each version.
"""

from __future__ import annotations

import ast
import hashlib
import json

_Form = str | int | None | list["_Form"]

ACTS = ast.Call | ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom  # expressions that may have side effects
# Functions whose strings are messages. The last three are the project's own.
TELLS = ("print", "warnings.warn", "tell", "wait_for_lock", "self._give_up")
# Fields of a data set for display or about the source of its files; signatures contain the digests of their content.
TOLD = ("title", "short", "terms", "archives", "loose", "beside")
MACHINERY = ("igpt.companion.report", "igpt.companion.run")  # imported by notebooks, cannot change a number
# A node's context is determined by its parent; the other fields are empty by default.
IGNORED = {"ctx", "kind", "type_comment", "type_ignores"}


def code_digest(tree: ast.Module) -> str:
    """SHA-256 of a module's normal form, in hexadecimal."""
    return hashlib.sha256(json.dumps(_form(tree)).encode()).hexdigest()


def _form(node: object, *, in_class: bool = False) -> _Form:
    """The normal form of a node as nested lists of strings and numbers; equal if no difference can change a number."""
    if isinstance(node, list):
        return [_form(item, in_class=in_class) for item in node if not _is_silent(item)]
    if isinstance(node, ast.Constant):
        return _literal(node.value)
    if isinstance(node, ast.JoinedStr):
        return _f_string(node)
    if not isinstance(node, ast.AST):
        assert node is None or isinstance(node, str | int)  # an identifier, or a small number such as an import's level
        return node
    node = _without_messages(node, in_class=in_class)
    form: list[_Form] = [type(node).__name__]
    for name in sorted(node._fields):
        value = getattr(node, name, None)
        if name not in IGNORED and value is not None:
            inner = _form(value, in_class=isinstance(node, ast.ClassDef))
            form += [name, inner] if inner != [] else []  # some versions of Python omit empty lists
    return form


def _is_silent(node: object) -> bool:
    """Whether a statement cannot change a number."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").startswith(MACHINERY)
    return isinstance(node, ast.Pass) or (isinstance(node, ast.If) and _dotted(node.test) == "TYPE_CHECKING")


def _without_messages(node: ast.AST, *, in_class: bool) -> ast.AST:
    """A node without messages and annotations; the original is not changed.

    A message that may have side effects is kept, except in ``raise``.
    """
    if isinstance(node, ast.Assert):
        return ast.Assert(test=node.test)
    if isinstance(node, ast.Raise):
        raised: ast.AST | None = node.exc
        if isinstance(raised, ast.Call):
            raised = _less(raised, args=[each for each in raised.args if not _is_text(each)])
        return _less(node, exc=raised, cause=None)
    if isinstance(node, ast.Call) and _dotted(node.func) == "DataSet":
        return _less(node, keywords=[each for each in node.keywords if each.arg not in TOLD])
    if isinstance(node, ast.Call) and (_tells(node) or _dotted(node.func).endswith("Error")):
        return _less(node, args=[each for each in node.args if not _is_text(each) or _acts(each)])
    if isinstance(node, ast.AnnAssign) and not in_class:
        return ast.Assign(targets=[node.target], value=node.value) if node.value else _less(node, annotation=None)
    if isinstance(node, ast.arg):
        return _less(node, annotation=None)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _less(node, returns=None)
    if isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr) and not node.format_spec.values:
        return _less(node, format_spec=None)
    return node


def _less(node: ast.AST, **fields: object) -> ast.AST:
    """A copy of a node with some fields replaced."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def _literal(value: object) -> _Form:
    """The normal form of a literal, with its type: True is not 1, and 1 is not 1.0."""
    if isinstance(value, complex):
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, float | bytes):
        return [type(value).__name__, value.hex()]
    if isinstance(value, int) and not isinstance(value, bool):
        return ["int", hex(value)]
    if isinstance(value, str):
        return ["str", value.encode("utf-8", "surrogatepass").hex()]  # JSON would merge a pair of surrogates
    return [type(value).__name__, repr(value)]


def _f_string(node: ast.JoinedStr) -> _Form:
    """The normal form of an f-string, with adjacent literals joined: versions of Python split them differently."""
    parts: list[_Form] = []
    literal = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            literal += str(part.value)
        else:
            parts += [*([_literal(literal)] if literal else []), _form(part)]
            literal = ""
    if not parts:
        return _literal(literal)
    return ["JoinedStr", *parts, *([_literal(literal)] if literal else [])]


def _tells(call: ast.Call) -> bool:
    """Whether a call prints a message; output to a file other than stderr may be data."""
    files = [_dotted(keyword.value) for keyword in call.keywords if keyword.arg == "file"]
    return _dotted(call.func) in TELLS and files in ([], ["sys.stderr"])


def _is_text(node: ast.AST) -> bool:
    """Whether an expression is a string literal, an f-string, or a sum or choice of these."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_text(node.left) and _is_text(node.right)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _acts(node: ast.AST) -> bool:
    """Whether an expression may have side effects."""
    return any(isinstance(part, ACTS) for part in ast.walk(node))


def _dotted(node: ast.expr) -> str:
    """A dotted name; empty for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
