"""What is held of the book's text without building it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

BOOK = ROOT / "book"
PAGES = sorted([BOOK / "index.md", *(BOOK / "chapters").glob("*.md")])
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"))]

# What may hold digits without being a result: names of things, places in the paper, ways to write code.
NOT_A_NUMBER = [
    r"^```.*?^```",  # code, tables and figures out of records
    r"\{[\w-]+\}`[^`]*`",  # roles: looked up, cited
    r"`[^`]*`",  # code in a line
    r"\$\$.*?\$\$",
    r"\$[^$]*\$",  # formulas
    r"\]\([^)]*\)",  # addresses of links
    r"<a [^>]*>",
    r"\b(Figure|Table|section|appendix|version) \d+(\.\d+)?",
    r"\b(CIFAR|STL|GPT|iGPT|VGG|H|V)-?\d+\b",
    r"\b\d+-bit\b",
    r"bfloat16|float32|float64",
    r"\bCPC v2\b",
    r"\bSHA-256\b",
]


def prose(text: str) -> str:
    """A page without what may hold digits."""
    for pattern in NOT_A_NUMBER:
        text = re.sub(pattern, " ", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^\s*\d+\.\s", " ", text, flags=re.MULTILINE)  # numbers of lists


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_number_is_typed_by_hand(page: Path) -> None:
    found = [line.strip() for line in prose(page.read_text()).splitlines() if re.search(r"\d", line)]
    assert found == []


def test_the_search_for_typed_numbers_finds_one() -> None:
    assert re.search(r"\d", prose("The probe reaches 96.3 % on CIFAR-10, see Figure 2."))
    assert not re.search(r"\d", prose("The probe reaches {igpt}`published headline-001` on CIFAR-10, see Figure 2."))


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.stem)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            beside = page.parent / target
            assert beside.exists() or beside.with_suffix(".ipynb").exists(), target


def test_every_printed_make_target_is_one() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    printed = {
        target
        for page in [*DOCUMENTS, ROOT / ".ci" / "run", ROOT / ".github" / "workflows" / "book.yml"]
        for line in re.findall(r"(?:^|`|run: )make ([a-z ]+)", page.read_text(), re.MULTILINE)
        for target in line.split(" ")
        if target and not line.startswith("and")
    }
    assert {"book", "test"} <= printed <= targets
    assert len(targets - {"help"}) - 2 <= 8  # beside book and test


def test_every_figure_has_a_caption_and_words_for_who_cannot_see_it() -> None:
    from igpt.companion.report.bookfigures import FIGURES

    shown = set()
    for page in PAGES:
        for name, body in re.findall(r"```\{igpt-figure\} ([\w-]+)\n(.*?)```", page.read_text(), re.DOTALL):
            shown.add(name)
            alt, _, caption = body.partition("\n")
            assert len(alt.removeprefix(":alt:").split()) >= 8, name
            assert len(caption.split()) >= 8, name
    assert shown == set(FIGURES)


def test_every_citation_is_in_the_bibliography_and_the_papers_own_are_all_listed() -> None:
    keys = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(), re.MULTILINE))
    cited = {key for page in PAGES for group in re.findall(r"\{cite\w*\}`([^`]+)`", page.read_text()) for key in group.split(",")}
    assert cited <= keys
    assert ":all:" in (BOOK / "chapters" / "bibliography.md").read_text()


def test_every_page_is_in_the_table_of_contents() -> None:
    toc = (BOOK / "_toc.yml").read_text()
    files = set(re.findall(r"(?:file|root): (\S+)", toc))
    assert files == {str(page.relative_to(BOOK).with_suffix("")) for page in PAGES} | {
        f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")
    }
