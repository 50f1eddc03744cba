"""A table in four formats: Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import io

from tabulate import tabulate

from igpt.report.tables import ResultTable


def render(table: ResultTable, format: str) -> str:
    """The table as text that ends in a newline; ``format`` is md, html, csv or latex."""
    cells = [[cell.text for cell in row] for row in table.rows]
    if format == "csv":
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([table.columns, *cells])
        return stream.getvalue()
    style = {"md": "github", "html": "html", "latex": "latex_booktabs"}[format]
    if format == "latex":
        # tabulate escapes LaTeX's own characters, not these two.
        cells = [[text.replace("±", "\x00").replace("–", "\x01") for text in row] for row in cells]
    text = tabulate(cells, headers=table.columns, tablefmt=style, disable_numparse=True)
    return text.replace("\x00", "$\\pm$").replace("\x01", "--") + "\n"
