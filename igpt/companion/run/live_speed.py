"""Measure the sampling speed of the live panel in a headless Chromium on this machine, and write a record."""

from __future__ import annotations

import functools
import http.server
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.companion.report.live import live_about, live_parts, live_record_path
from igpt.companion.results.record import SCHEMA, Receipt, Record, Value, write_record
from igpt.companion.results.signature import Signature
from igpt.companion.run.git import head_and_dirt
from igpt.companion.run.notebook import hardware
from igpt.errors import StageError, UsageError
from igpt.project import Project

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROUNDS = 7
UNITS = {"pixels_per_second": "pixels a second", "pixels_per_second_of_four": "pixels a second", "first_pixel_seconds": "s"}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SETTLED = "() => /^(Done|The model)/.test(document.querySelector('.live-status').textContent)"


def measure_panel() -> str:
    """Measure the built book's panel and publish the record; the line to print.

    Each round opens the chapter, presses the button, and draws one whole image from nothing, then four at once.
    Raises UsageError without a built panel or without Chromium, StageError when the panel does not run.
    """
    project = Project.here()
    about = live_about(project)
    html = project.root / "book" / "_build" / "html"
    if not (html / "live" / "live.json").exists():
        raise UsageError("the book is not built with its live panel: run `make book` first")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        raise UsageError("there is no Chromium here: install it (Debian: apt install chromium)")
    from playwright.sync_api import Error, sync_playwright

    begun = time.monotonic()
    try:
        with _served(html) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            rounds = []
            for _ in range(ROUNDS):
                page = browser.new_page()
                page.goto(f"{address}chapters/samples.html", wait_until="networkidle")
                rounds.append(_round(page))
                page.close()
            chromium = browser.version
            browser.close()
    except Error as error:
        raise StageError(f"the panel could not be measured: {str(error).splitlines()[0]}") from None
    commit, dirty = head_and_dirt(project.root)
    parts, runtime = live_parts(project), about["runtime"]
    record = Record(
        schema_version=SCHEMA,
        stage=f"live,model={about['model']}",
        parameters={"model": str(about["model"]), "rounds": ROUNDS, "backend": "wasm"},
        signature=Signature(parts).digest,
        parts=parts,
        values={name: _value([each[name] for each in rounds], unit) for name, unit in UNITS.items()},
        series={"rounds": [dict(each) for each in rounds]},
        receipt=Receipt(
            commit=commit,
            dirty=dirty,
            command="igpt panel --measure",
            notebook="igpt/companion/run/live_speed.py",
            hardware=hardware(),
            seconds=round(time.monotonic() - begun, 2),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"igpt": version("igpt"), "chromium": chromium, runtime["name"]: runtime["version"]},
        ),
    )
    target = live_record_path(project, str(about["model"]))
    write_record(target, record)
    rate, first = record.values["pixels_per_second"].value, record.values["first_pixel_seconds"].value
    return f"{rate:,.0f} pixels a second, the first after {first:.2g} s: {target}"


def _round(page: Page) -> dict[str, float]:
    """One round: seconds from the end of the download to the first pixel, and pixels per second for one and four images."""
    page.locator(".live-load").click()
    page.wait_for_function("() => /ready|not run here/.test(document.querySelector('.live-status').textContent)", timeout=60_000)
    section, status = page.locator(".igpt-live"), page.locator(".live-status")
    if "ready" not in status.inner_text():
        raise StageError(f"the panel did not start: {status.inner_text()}")
    page.get_by_role("radio", name="Nothing").check()
    measured = {}
    for n, name in ((1, "pixels_per_second"), (4, "pixels_per_second_of_four")):
        page.get_by_label("Completions").fill(str(n))
        page.get_by_role("button", name="Complete", exact=True).click()
        page.wait_for_function(SETTLED, timeout=300_000)
        measured[name] = float(section.get_attribute("data-rate") or 0)
        if n == 1:
            measured["first_pixel_seconds"] = sum(float(section.get_attribute(f"data-{key}") or 0) for key in ("start", "first"))
    return measured


def _value(numbers: list[float], unit: str) -> Value:
    """The median, with minimum and maximum as ``low`` and ``high``."""
    return Value(value=statistics.median(numbers), unit=unit, low=min(numbers), high=max(numbers))


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on this machine; yields the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        """A server without a log."""

        def log_message(self, *_: object) -> None:
            """Ignore the message."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
