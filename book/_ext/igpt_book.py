"""The book's Sphinx directives and role: tables, figures and numbers from records, and the API from the source.

    ```{igpt-table} headline          a table by its name in `igpt table`
    ```{igpt-figure} depth            a figure by name, with :alt: and a caption as its content
    ```{igpt-api} igpt.model          the public names of a module
    ```{igpt-live}                    the panel that completes pictures in the reader's browser
    ```{igpt-layers}                  the nearest neighbours that each layer finds
    ```{igpt-palette}                 a reader's photo in the released colours
    ```{igpt-yours}                   how a reader's own records (make book RECORDS=path) compare; empty without them
    {igpt}`measured headline-001 tiny`    a number by name, with its receipt

They read records and compute nothing. A missing record makes its cell pending; it never fails the build. The build
stores which records each page read, so that the next one by `build.py` rereads only the pages whose records changed.
"""

from __future__ import annotations

import ast
import hashlib
import html
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole

from igpt.companion.experiments.tiers import tier_of
from igpt.companion.report.bookfigures import FIGURES, draw_figure, figure_note
from igpt.companion.report.costs import memory_table, recipe_table, released_costs
from igpt.companion.report.live import released_palette_json
from igpt.companion.report.numbers import number
from igpt.companion.report.provenance import (
    datasets_table,
    drills_table,
    provenance_table,
    records_table,
    terms_table,
    yours_table,
)
from igpt.companion.report.speed import seconds_table, speed_table
from igpt.companion.report.tables import Cell, ResultTable, render, result_table, score_counts, table_names
from igpt.companion.results.record import Record
from igpt.companion.results.store import ReaderStore, RecordStore
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project
from igpt.text import visible

# Inputs of a page: paths of records, or these patterns of them.
ALL, DRILLS, PAPER, SPEED = PATTERNS = "*/*.json", "drill/*.json", "paper/*.json", "speed/*.json"


class PageStore(RecordStore):
    """The published records; tracks the inputs of the page that is being read, and caches tables."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        # Hashed before any file is used: if a file changes during a build, the next build rereads its pages.
        paths = sorted(project.records.glob(ALL))
        self._digests = {str(p.relative_to(project.records)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
        self._tables: dict[str, tuple[ResultTable, set[str]]] = {}
        self.inputs: set[str] = set()

    def read(self, stage: Stage) -> Record | None:
        """A stage's record, which becomes an input of the page; None when it is missing."""
        self.inputs.add(self.link(stage))
        return super().read(stage)

    def table(self, name: str) -> ResultTable:
        """A table by name. Raises UsageError for an unknown one."""
        if name not in self._tables:
            before, self.inputs = self.inputs, set()
            if name == "score-counts":
                table = score_counts(self.table("scoreboard"))
            elif name in BOOK_TABLES:
                make, pattern = BOOK_TABLES[name]
                self.inputs |= {pattern} if pattern else set()
                table = make(self)
            else:
                table = result_table(name, self, YOURS)
            self._tables[name], self.inputs = (table, self.inputs), before
        table, inputs = self._tables[name]
        self.inputs |= inputs
        return table

    def digests(self, inputs: Iterable[str]) -> dict[str, str]:
        """A digest by input, empty for a record that is missing."""
        patterns = {
            pattern: json.dumps([item for item in self._digests.items() if fnmatch(item[0], pattern)]) for pattern in PATTERNS
        }
        return {name: patterns.get(name, self._digests.get(name, "")) for name in inputs}


PROJECT = Project.here()
STORE = PageStore(PROJECT)
YOURS = ReaderStore(PROJECT, Path(os.environ["IGPT_RECORDS"])) if os.environ.get("IGPT_RECORDS") else None
# Tables that only the book has, with the pattern of records that they read without the store.
BOOK_TABLES: dict[str, tuple[Callable[[RecordStore], ResultTable], str]] = {
    "speed": (speed_table, ""),
    "speed-seconds": (seconds_table, ""),
    "provenance": (lambda store: provenance_table(store.project), ALL),
    "records": (lambda store: records_table(store.project), ALL),
    "drills": (lambda store: drills_table(store.project), DRILLS),
    "memory": (lambda store: memory_table(store.project), PAPER),
    "recipes": (lambda store: recipe_table(store.project), ""),
    "released-costs": (lambda store: released_costs(store.project), ""),
    "data-sets": (lambda store: datasets_table(), ""),
    "data-terms": (lambda store: terms_table(), ""),
}
GOOD, BAD = ("claim holds", "reproduced"), ("claim fails", "differs")


class receipt(nodes.inline):
    """A number that opens its receipt; in LaTeX and plain text the number alone."""


def number_node(cell: Cell, key: str) -> nodes.Node:
    """A cell's text, behind a button when it has a receipt. ``key`` is unique on the page."""
    if not cell.receipt:
        return nodes.inline("", visible(cell.text))
    node = receipt("", visible(cell.text))
    node["key"] = re.sub(r"[^a-z0-9]+", "-", key.lower())
    node["lines"], node["records"], node["word"] = cell.receipt, cell.records, cell.word
    return node


def visit_receipt(translator, node: receipt) -> None:
    """HTML: a button and the popover it opens. Phrasing elements only, since both are inside a paragraph."""
    ident = f"receipt-{node['key']}"
    word = node["word"]
    kind = "verdict-good" if word in GOOD else "verdict-bad" if word in BAD else "pending" if word == "pending" else ""
    kind += " measured" if node["records"] else ""
    label = html.escape(node.astext())
    data_word = f' data-word="{word}"' if word else ""  # for the scoreboard's filter
    translator.body.append(
        f'<button type="button" class="receipt-button {kind}"{data_word} popovertarget="{ident}">{label}</button>'
        f'<span popover id="{ident}" class="receipt">'
    )
    root = "../" * translator.builder.current_docname.count("/")
    for name, text in node["lines"]:
        text = html.escape(visible(text))
        if name in ("Command", "Notebook", "Commit", "Row"):
            text = f"<code>{text}</code>"
        if name == "Notebook":
            text = re.sub(r"(notebooks/\w+)\.ipynb", rf'<a href="{root}\1.html">\g<0></a>', text)
        translator.body.append(f"<b>{html.escape(name)}</b> {text}<br>")
    links = [
        f'<a href="{root}records/{quote(path, safe="/,=")}">{html.escape(visible(Path(path).stem))}</a>'
        for path in node["records"]
    ]
    if links:
        translator.body.append(f"<b>Records</b> {', '.join(links)}")
    translator.body.append("</span>")
    raise nodes.SkipNode


def depart_nothing(translator, node: nodes.Node) -> None:
    """Nothing to close after the text."""


class TableDirective(SphinxDirective):
    """``igpt-table NAME``: published and reproduced side by side, each number with its receipt."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, and links to it as data."""
        name = self.arguments[0]
        try:
            table = STORE.table(name)
        except UsageError as error:
            raise self.error(str(error)) from None
        node = table_node(table)
        self.add_name(node)
        if name not in table_names():
            return [node]
        root = "../" * self.env.docname.count("/")
        links = f'as <a href="{root}tables/{name}.csv">CSV</a>, <a href="{root}tables/{name}.md">Markdown</a>, '
        links += f'<a href="{root}tables/{name}.tex">LaTeX</a>; here: <code>igpt table {name}</code>'
        below = f'<p class="table-links">This table {links}.</p>'
        if name == "scoreboard":
            below += f'<script type="module" src="{root}live/scoreboard.js"></script>'
        return [node, nodes.raw("", below, format="html")]


def table_node(table: ResultTable) -> nodes.table:
    """A table of docutils nodes, for which captions, numbering, search and LaTeX work."""
    node = nodes.table(classes=["igpt-table"], ids=[f"table-{table.name}"])
    node += nodes.title("", visible(table.caption))
    group = nodes.tgroup(cols=len(table.columns))
    node += group
    group.extend(nodes.colspec(colwidth=1) for _ in table.columns)
    head = nodes.row()
    head.extend(nodes.entry("", nodes.paragraph("", visible(column))) for column in table.columns)
    group += nodes.thead("", head)
    body = nodes.tbody()
    for y, cells in enumerate(table.rows):
        row = nodes.row()
        for x, cell in enumerate(cells):
            row += nodes.entry("", nodes.paragraph("", "", number_node(cell, f"{table.name}-{y}-{x}")))
        body += row
    group += body
    return node


class FigureDirective(SphinxDirective):
    """``igpt-figure NAME``: a figure in both colour modes; its content is the caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """The figure, or a sentence while a required record is missing."""
        name = self.arguments[0]
        if not self.options.get("alt"):
            raise self.error(f"figure {name} has no :alt: text")
        if name not in FIGURES:
            raise self.error(f"there is no figure {name}")
        figure = nodes.figure(ids=[f"figure-{name}"])
        if (Path(self.env.srcdir) / "figures" / f"{name}-light.svg").exists():
            for mode in ("light", "dark"):
                uri = f"/figures/{name}-{mode}.svg"
                figure += nodes.image(uri=uri, alt=self.options["alt"], classes=[f"in-{mode}", "dark-light"])
        else:
            [first, *_] = FIGURES[name].stages
            command = "make book" if tier_of(first) == "tiny" else f"igpt run --tier {tier_of(first)}"
            pending = nodes.paragraph("", f"Pending: its records ({first.notebook}) have not been made; ")
            pending += [nodes.literal("", command), nodes.Text(" makes them.")]
            figure += pending
        caption = nodes.caption()
        inline, _ = self.state.inline_text(" ".join(self.content), self.lineno)
        caption.extend(inline)
        if note := figure_note(name, STORE):
            caption += nodes.strong("", f" {note}")
        figure += caption
        self.add_name(figure)
        return [figure]


class YoursDirective(SphinxDirective):
    """``igpt-yours``: where a reader's own records disagree with ours; empty without such records."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        STORE.inputs.add(ALL)
        return [table_node(yours_table(PROJECT, YOURS))] if YOURS else []


SERVED = "where scripts run and the page comes from a web server, as with <code>make serve</code>"
# Frames that scripts of book/_live fill, by directive: the file needed, the sentence shown without it, and the HTML.
FRAMES = {
    "igpt-live": (
        "live.json",
        "This copy of the book was built without its live panel: make book makes it where npm is installed.",
        '<section class="igpt-live" data-live="{root}live/" aria-label="Complete a picture in this page">'
        '<button type="button" class="live-button live-load" hidden>Load the model</button>'
        f'<p class="live-status" role="status">The panel starts here {SERVED}; until then the images above stand in for it.</p>'
        '<progress hidden aria-label="Progress"></progress><div class="live-panel"></div></section>'
        '<link rel="stylesheet" href="{root}live/live.css"><script type="module" src="{root}live/panel.js"></script>',
    ),
    "igpt-palette": (
        "",
        "",
        '<section class="igpt-live igpt-palette" data-palette="{root}live/palette.json" aria-label="A photo in the palette">'
        f"<p>A photo of yours is shown here {SERVED}.</p></section>"
        '<link rel="stylesheet" href="{root}live/live.css"><script type="module" src="{root}live/palette.js"></script>',
    ),
    "igpt-layers": (
        "layers.json",
        "This copy of the book was built without the neighbours: make book finds them where npm is installed.",
        '<section class="igpt-live igpt-layers" data-live="{root}live/" aria-label="Neighbours by layer">'
        f"<p>The neighbours are shown here {SERVED}.</p></section>"
        '<link rel="stylesheet" href="{root}live/live.css"><script type="module" src="{root}live/layers.js"></script>',
    ),
}


class FrameDirective(SphinxDirective):
    """``igpt-live``, ``igpt-palette`` and ``igpt-layers``: a frame whose script works in the reader's browser."""

    def run(self) -> list[nodes.Node]:
        """The frame, or a sentence if the file that it needs is missing."""
        file, sentence, frame = FRAMES[self.name]
        if file and not (Path(self.env.srcdir) / "live" / file).exists():
            return [nodes.paragraph("", sentence)]
        return [nodes.raw("", frame.replace("{root}", "../" * self.env.docname.count("/")), format="html")]


class ApiDirective(SphinxDirective):
    """``igpt-api MODULE``: the public names of a module with signatures and docstrings, read without importing it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A section with a definition list."""
        module = self.arguments[0]
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise self.error(f"there is no module {module}")
        tree = ast.parse(Path(spec.origin).read_text())
        section = nodes.section(ids=[nodes.make_id(module)], names=[module])
        section += nodes.title("", module)
        section += _paragraph((ast.get_docstring(tree) or "").split("\n\n")[0])
        listing = nodes.definition_list()
        for signature, doc in _public_names(tree.body):
            term = nodes.term("", "", nodes.literal("", signature, classes=["api-signature"]))
            parts = [_example(part) if part.startswith(">>>") else _paragraph(part) for part in doc.split("\n\n")]
            listing += nodes.definition_list_item("", term, nodes.definition("", *parts))
        section += listing
        self.state.document.note_implicit_target(section, section)
        return [section]


def _public_names(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Signature and docstring of public functions and classes, each class followed by its methods."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        doc = ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef):
            yield f"class {node.name}", doc
            yield from _public_names(node.body, f"{node.name}.")
        elif doc:
            result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            yield f"{prefix}{node.name}({ast.unparse(node.args)}){result}", doc


def _paragraph(part: str) -> nodes.paragraph:
    """A docstring's paragraph."""
    return nodes.paragraph("", part.replace("``", "").replace("\n", " "))


def _example(part: str) -> nodes.literal_block:
    """An example of a docstring, as an interactive session."""
    return nodes.literal_block(part, part, language="pycon")


class NumberRole(SphinxRole):
    """``{igpt}`NAME```: a number from records, published rows or the code."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The number, with its receipt where it has one."""
        if self.text.startswith("live "):
            STORE.inputs.add(SPEED)  # it reads its record without the store
        try:
            cell = number(self.text, STORE)
        except UsageError as error:
            message = self.inliner.reporter.error(str(error), line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        return [number_node(cell, f"{self.text}-{self.env.new_serialno('igpt')}")], []


def draw_figures(app: Sphinx) -> None:
    """Before pages are read, draw the figures whose records exist, and remove those whose records do not."""
    for name in FIGURES:
        draw_figure(name, STORE, Path(app.srcdir) / "figures")


def begin_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Clear the inputs of the previous page."""
    STORE.inputs.clear()


def end_page(app: Sphinx, doctree: nodes.document) -> None:
    """Store the records that a page has read."""
    inputs_of(app.env)[app.env.docname] = STORE.digests(STORE.inputs)


def changed_pages(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The pages whose records were changed, added or removed since the pages were read."""
    return [name for name, inputs in inputs_of(env).items() if STORE.digests(inputs) != inputs and name not in removed]


def inputs_of(env: BuildEnvironment) -> dict[str, dict[str, str]]:
    """The SHA-256 of each record file that a page was made from, by page."""
    if not hasattr(env, "igpt_inputs"):
        env.igpt_inputs = {}  # type: ignore[attr-defined]
    return env.igpt_inputs  # type: ignore[attr-defined,no-any-return]


def mend_page(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Work around the theme and extensions: a script that fails on every page, and ARIA roles that axe rejects."""
    if "script_files" in context:
        context["script_files"] = [
            script
            for script in context["script_files"]
            if "thebe" not in f"{getattr(script, 'filename', script)}{getattr(script, 'attributes', '')}"
        ]
    if "body" in context:
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"').replace('role="doc-backlink"', "")
        context["body"] = body


def copy_files(app: Sphinx, error: Exception | None) -> None:
    """Copy MathJax's files, the tables as data, the records, and the live panel's files to the built book."""
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    spec = find_spec("sphinx-mathjax-offline")
    assert spec is not None and spec.origin is not None
    source = next(Path(spec.origin).parent.rglob("tex-chtml.js"))
    target = out / "_static" / "mathjax"
    (target / "output" / "chtml").mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target / "tex-chtml.js")
    shutil.copytree(source.parent / "output" / "chtml" / "fonts", target / "output" / "chtml" / "fonts", dirs_exist_ok=True)
    (out / "tables").mkdir(exist_ok=True)
    for name in table_names():
        table = STORE.table(name)
        for form, ending in (("csv", "csv"), ("md", "md"), ("latex", "tex")):
            (out / "tables" / f"{name}.{ending}").write_text(render(table, form))
    shutil.rmtree(out / "records", ignore_errors=True)  # otherwise a removed record would stay
    if PROJECT.records.is_dir():
        shutil.copytree(PROJECT.records, out / "records")
    for path, _ in YOURS.all if YOURS else []:  # in a folder of their own, never among ours
        target = out / "yours" / path.relative_to(YOURS.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copytree(Path(app.srcdir) / "_live", out / "live", dirs_exist_ok=True)  # scripts
    (out / "live" / "palette.json").write_text(released_palette_json())
    if (Path(app.srcdir) / "live" / "live.json").exists():  # the live panel's model
        shutil.copytree(Path(app.srcdir) / "live", out / "live", dirs_exist_ok=True)
    (out / "records").mkdir(exist_ok=True)
    (out / "records" / "schema.json").write_text(json.dumps(Record.model_json_schema(), indent=1) + "\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the node, directives, role and event handlers."""
    app.add_node(
        receipt,
        html=(visit_receipt, depart_nothing),
        latex=(depart_nothing, depart_nothing),
        text=(depart_nothing, depart_nothing),
    )
    app.add_directive("igpt-table", TableDirective)
    app.add_directive("igpt-figure", FigureDirective)
    app.add_directive("igpt-yours", YoursDirective)
    for name in FRAMES:
        app.add_directive(name, FrameDirective)
    app.add_directive("igpt-api", ApiDirective)
    app.add_role("igpt", NumberRole())
    app.connect("builder-inited", draw_figures)
    app.connect("source-read", begin_page)
    app.connect("doctree-read", end_page)
    app.connect("env-get-outdated", changed_pages)
    app.connect("html-page-context", mend_page, priority=900)
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
