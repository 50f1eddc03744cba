"""Tests wait for states, with one limit: what holds on a quiet machine only is found here rather than on a busy one."""

from __future__ import annotations

import ast

import pytest
from conftest import ROOT

FILES = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name != "conftest.py"]
CLOCKS = {"sleep", "monotonic", "perf_counter", "process_time"}
WAITS = {"wait", "communicate", "join", "result", "get"}


def by_seconds(source: str) -> list[str]:
    """Calls that sleep, look at a stopwatch, or give up after a number of seconds."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        clock = name in CLOCKS and not call.keywords
        limits = [each.value for each in call.keywords if each.arg == "timeout"] + (call.args[:1] if name in WAITS else [])
        if clock or any(isinstance(limit, ast.Constant) and isinstance(limit.value, int | float) for limit in limits):
            found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_test_waits_for_seconds(path) -> None:  # type: ignore[no-untyped-def]
    assert by_seconds(path.read_text()) == []


def test_a_wait_for_seconds_is_noticed() -> None:
    wrong = ["time.sleep(1)", "start = time.monotonic()", "child.wait(60)", "child.communicate(timeout=5)", "run(x, timeout=9)"]
    assert [len(by_seconds(each)) for each in wrong] == [1] * len(wrong)
    assert by_seconds("child.wait(PATIENCE); run(x, timeout=PATIENCE); ' '.join(words); 'time.sleep(1)'") == []
