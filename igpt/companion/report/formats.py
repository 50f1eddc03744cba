"""A table in four formats: Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re

from tabulate import tabulate

from igpt.companion.report.tables import ResultTable
from igpt.text import visible


def render(table: ResultTable, format: str) -> str:
    """The table as text that ends in a newline; ``format`` is md, html, csv or latex.

    Names of a reader's folder, files and values stand in it as text: never as control characters, columns, tags or links.
    """
    columns = [visible(column) for column in table.columns]
    cells = [[visible(cell.text) for cell in row] for row in table.rows]
    if format == "csv":
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([columns, *cells])
        return stream.getvalue()
    style = {"md": "github", "html": "html", "latex": "latex_booktabs"}[format]
    if format == "latex":
        # tabulate escapes LaTeX's own characters, not these two.
        cells = [[text.replace("±", "\x00").replace("–", "\x01") for text in row] for row in cells]
    if format == "md":
        columns, cells = [_literal(column) for column in columns], [[_literal(text) for text in row] for row in cells]
    text = tabulate(cells, headers=columns, tablefmt=style, disable_numparse=True)
    return text.replace("\x00", "$\\pm$").replace("\x01", "--") + "\n"


def _literal(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"[\\|<`*]|(?<=\])(?=\()", r"\\\g<0>", text)
