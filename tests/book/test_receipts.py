"""What a record of anyone's may put into a page: text, and nothing that a browser acts upon."""

from __future__ import annotations

import importlib.util
from html.parser import HTMLParser
from types import ModuleType, SimpleNamespace

import pytest
from conftest import ROOT

from igpt.companion.report.tables import Cell, ResultTable
from igpt.project import Project

NASTY = "<script>a</script>\"><img src=x>' & \x1b[2J\u202e"


@pytest.fixture
def extension(project: Project) -> ModuleType:
    """The book's extension, as Sphinx loads it."""
    spec = importlib.util.spec_from_file_location("igpt_book", ROOT / "book" / "_ext" / "igpt_book.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Reader(HTMLParser):
    """The tags, the text and the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [str(value) for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_strings_of_a_record_stand_in_a_receipt_as_text(extension: ModuleType) -> None:
    from docutils import nodes

    lines = tuple((name, NASTY) for name in ("Hardware", "Command", "Notebook", "Commit", "Versions"))
    cell = Cell(NASTY, lines, "measured", ('../yours/50%#?/a<b>".json',))
    page = SimpleNamespace(body=[], builder=SimpleNamespace(current_docname="chapters/page"))
    with pytest.raises(nodes.SkipNode):
        extension.visit_receipt(page, extension.number_node(cell, "place"))
    reader = Reader()
    reader.feed("".join(page.body))
    assert reader.tags == {"button", "span", "b", "br", "a", "code"}
    assert reader.links == ["../records/../yours/50%25%23%3F/a%3Cb%3E%22.json"]
    assert reader.text.count("<script>a</script>") == 6
    assert all(c.isprintable() for c in reader.text)


def test_the_strings_of_a_record_stand_in_a_table_as_text(extension: ModuleType) -> None:
    table = ResultTable("yours", NASTY, (NASTY,), ((Cell(NASTY),), (Cell(NASTY, (("Whose", "a"),)),)))
    node = extension.table_node(table)
    assert all(c.isprintable() or c == "\n" for c in node.astext())
    assert {type(child).__name__ for child in node.findall()} <= {
        *("table", "title", "Text", "tgroup", "colspec", "thead", "tbody", "row", "entry", "paragraph", "inline", "receipt")
    }
