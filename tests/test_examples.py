"""The examples in docstrings of what the book's page of the package lists."""

from __future__ import annotations

import doctest
import re
from importlib import import_module

import pytest
from conftest import ROOT

MODULES = re.findall(r"\{igpt-api\} (\S+)", (ROOT / "book" / "chapters" / "api.md").read_text())


@pytest.mark.parametrize("name", MODULES)
def test_examples_come_out_as_they_say(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


def test_there_are_examples() -> None:
    examples = [test for name in MODULES for test in doctest.DocTestFinder().find(import_module(name)) if test.examples]
    assert len(examples) > 20
