"""The digest of code: what must change it, what must not, and that every Python gives the same."""

from __future__ import annotations

import ast
import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.companion.results import code
from igpt.companion.results.code import code_digest

KEPT = json.loads(Path(__file__).with_name("digests.json").read_text())
MODULES = sorted((ROOT / "igpt").rglob("*.py"))


def digest(source: str) -> str:
    return code_digest(ast.parse(source))


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept["code"][:30])
def test_the_digests_are_those_that_were_kept(kept: dict[str, str]) -> None:
    assert digest(kept["code"]) == kept["sha256"]


def interpreters() -> list[str]:
    """Programs that may be a Python: on the path, the system's, and those of version managers."""
    names = [f"python3.{minor}" for minor in range(11, 16)]
    folders = [Path("/usr/bin"), *Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")]
    found = {shutil.which(name) for name in names} | {str(folder / name) for folder in folders for name in names}
    if uv := shutil.which("uv"):
        listed = subprocess.run([uv, "python", "list", "--only-installed"], capture_output=True, text=True).stdout
        found |= {line.split()[1] for line in listed.splitlines() if len(line.split()) > 1}
    return sorted(path for path in found if path and Path(path).exists())


@cache
def pythons() -> dict[str, str]:
    """One program for each version from 3.11 on that starts; a version manager's stand-in for a missing one does not."""
    works: dict[str, str] = {}
    for path in interpreters():
        asked = subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
        if asked.returncode == 0 and (3, 11) <= tuple(map(int, asked.stdout.split())) < (4,):
            works.setdefault(".".join(asked.stdout.split()), path)
    return {**works, ".".join(map(str, sys.version_info[:2])): sys.executable}


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_every_python_gives_the_same_digests(version: str) -> None:
    if version not in pythons():
        pytest.skip(f"there is no Python {version} here")
    program = """
import ast, importlib.util, json, sys
spec = importlib.util.spec_from_file_location("code_digests", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
print(json.dumps([module.code_digest(ast.parse(source)) for source in json.load(sys.stdin)]))
"""
    sources = [kept["code"] for kept in KEPT] + [path.read_text() for path in MODULES]
    done = subprocess.run(
        [pythons()[version], "-I", "-c", program, code.__file__],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [digest(source) for source in sources]


BASE = '''
"""A module."""
import math
from igpt.companion.run import open_stage
# a comment
def f(x: int, *, y: float = 1.5) -> float:
    """What it does."""
    limit = 10
    if x > limit:
        raise UsageError(f"{name(x)} has {x} of {limit}: give less") from None
    assert y, "y is zero"
    if not y:
        raise Found(y, "text")
    warnings.warn("slow", stacklevel=2)
    total: float = x * y + math.pi
    print("done", file=log)
    return scale(total, "text", key=f"{x}.npy")

class C:
    """A class."""
    z: int = 3

    def g(self):
        pass

SET = DataSet(name="set", title="A set", read=read, archives=(Archive("set.tar", ("https://there/set.tar",)),), train=10)
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from igpt.companion.run import open_stage\n", ""),
        ("companion.run import", "companion.run.elsewhere import"),
        ("# a comment", "# another, longer comment"),
        ('"""What it does."""', '"""Something else."""'),
        ('    """What it does."""\n', ""),
        ('    """A class."""\n', ""),
        ('"""A module."""', ""),
        ("x * y + math.pi", "(x *\n        y) + math.pi"),
        ("(x: int, *, y", "( x , * , y"),
        (" -> float", ""),
        ("total: float =", "total ="),
        ("has {x} of {limit}: give less", "is too large"),
        ('UsageError(f"{name(x)} has {x} of {limit}: give less")', 'UsageError("no")'),
        (" from None", ""),
        (', "y is zero"', ""),
        ('y, "text")', "y)"),
        ("def f(x", "'a bare text'\ndef f(x"),
        ("import math", "import math\nif TYPE_CHECKING:\n    from a import b"),
        ("    return scale", "    ...\n    return scale"),
        ('"slow"', 'f"slow at {x}, of {y:.3f}" if x else "slower"'),
        ("{limit}: give less", "{limit} at {x:.3f}: give less"),
        ("        pass", '        """Nothing."""'),
        ("    limit = 10\n", "    pass\n    limit = 10\n"),
        ('f"{x}.npy"', 'f"{x}" ".npy"'),
        ('"text", key', "'te' 'xt', key"),
        ('"A set"', '"Some set"'),
        ("https://there", "https://elsewhere"),
    ],
)
def test_what_cannot_change_a_number_does_not_change_the_digest(old: str, new: str) -> None:
    assert old in BASE
    assert digest(BASE.replace(old, new)) == digest(BASE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("companion.run import open_stage", "companion.bench import open_stage"),
        ("import math\n", ""),
        ("x * y", "x / y"),
        ("math.pi", "math.e"),
        ("y: float = 1.5", "y: float = 1.25"),
        ("limit = 10", "limit = 10.0"),
        ("x > limit", "x >= limit"),
        ("raise UsageError", "raise StageError"),
        ("Found(y,", "Found(x,"),
        ("assert y", "assert x"),
        ("if not y", "if y"),
        ('"done"', '"over"'),
        ("scale(total", "other(total"),
        ('"text", key', '"other", key'),
        ("{x}.npy", "{y}.npy"),
        (".npy", ".npz"),
        ("z: int = 3", "z: float = 3"),
        ("z: int = 3", "z: int = 4"),
        ("def f", "async def f"),
        ("*, y", "y"),
        ("return scale", "scale"),
        ("class C:", "@dataclass\nclass C:"),
        ("limit = 10", "limit = True"),
        ("import math", "import numpy as math"),
        ('warn("slow"', 'warn(f"slow, {rng.random()}"'),
        ('print("done", file=log)', 'print("done", file=log); print(f"{(x := 3)}")'),
        ('UsageError(f"{name', 'UsageError(3, f"{name'),
        ("limit = 10", "limit = '10'"),
        ("read=read", "read=other"),
        ("train=10", "train=11"),
    ],
)
def test_what_can_change_a_number_changes_the_digest(old: str, new: str) -> None:
    assert old in BASE
    assert digest(BASE.replace(old, new)) != digest(BASE)


@pytest.mark.parametrize(
    "source",
    ["kind = 'one'\nraise UsageError(kind)", "doc.print('one')", "raise Found(kind='one')", "print('one', file=data)"],
)
def test_a_text_that_something_may_read_is_code(source: str) -> None:
    assert digest(source) != digest(source.replace("'one'", "'two'"))


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    return UsageError('one')",
        "def f(self):\n    self._give_up('one')",
        "with wait_for_lock(path, 'one'):\n    a()",
        "tell('one')",
        "print('one', file=sys.stderr)",
    ],
)
def test_a_text_that_is_only_told_is_no_code(source: str) -> None:
    assert digest(source) == digest(source.replace("'one'", "f'two {a}'"))


def test_a_pair_of_surrogates_is_another_text_than_the_character_that_it_stands_for() -> None:
    assert digest(r"x = '\ud800\udc00'") != digest(r"x = '\U00010000'")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_written_anew_a_module_is_the_same(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert digest(ast.unparse(tree)) == code_digest(tree)


def test_the_tree_is_left_as_it_is() -> None:
    tree = ast.parse(BASE)
    before = ast.dump(tree)
    code_digest(tree)
    assert ast.dump(tree) == before


Change = Callable[[ast.AST], None]


def _changes(node: ast.AST) -> list[Change]:
    """Ways to have a node compute something else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return [lambda n: setattr(n, "value", 2 * n.value + 1)]  # type: ignore[attr-defined]
    if isinstance(node, ast.BinOp):
        return [lambda n: setattr(n, "op", ast.Sub() if isinstance(n.op, ast.Add) else ast.Add())]  # type: ignore[attr-defined]
    if isinstance(node, ast.Compare):
        return [lambda n: n.ops.__setitem__(0, ast.Lt() if isinstance(n.ops[0], ast.Gt) else ast.Gt())]  # type: ignore[attr-defined]
    if isinstance(node, ast.Attribute):
        return [lambda n: setattr(n, "attr", f"{n.attr}_")]  # type: ignore[attr-defined]
    if isinstance(node, ast.keyword) and node.arg:
        return [lambda n: setattr(n, "arg", f"{n.arg}_")]  # type: ignore[attr-defined]
    if isinstance(node, ast.Return | ast.Assign | ast.AugAssign):
        return [lambda n: setattr(n, "value", ast.Constant("other"))]
    return []


def _computing(node: ast.AST) -> list[ast.AST]:
    """The nodes below one that compute: none in an error, an assertion's words, a warning, a print or an annotation."""
    found = []
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "msg", "cause"):
            continue
        for child in value if isinstance(value, list) else [value]:
            told = isinstance(child, ast.Raise) or (
                isinstance(child, ast.Call) and getattr(child.func, "attr", getattr(child.func, "id", "")) in ("warn", "print")
            )
            if isinstance(child, ast.AST) and not told and not isinstance(child, ast.JoinedStr):
                found += [child, *_computing(child)]
    return found


@settings(deadline=None)  # other work may hold a processor up
@given(st.data())
def test_any_change_of_what_a_module_computes_changes_its_digest(data: st.DataObject) -> None:
    tree = ast.parse(data.draw(st.sampled_from(MODULES)).read_text())
    changeable = [node for node in _computing(tree) if _changes(node)]
    if not changeable:
        return
    before = code_digest(copy.deepcopy(tree))
    node = data.draw(st.sampled_from(changeable))
    data.draw(st.sampled_from(_changes(node)))(node)
    assert code_digest(tree) != before


@settings(deadline=None)  # other work may hold a processor up
@given(st.data())
def test_no_rewording_of_a_modules_messages_changes_its_digest(data: st.DataObject) -> None:
    tree = ast.parse(data.draw(st.sampled_from(MODULES)).read_text())
    before = code_digest(copy.deepcopy(tree))
    words = ast.Constant(data.draw(st.text()))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = [words if isinstance(a, ast.JoinedStr | ast.Constant) else a for a in node.exc.args]
        elif isinstance(node, ast.Assert):
            node.msg = words
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Expr(words)
    assert code_digest(tree) == before
