"""A page of the built book in a real Chromium, with a list of everything that goes wrong on it."""

from __future__ import annotations

from conftest import PATIENCE
from playwright.sync_api import Browser, Page

VIEWS = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (390, 844, "light")}


def watched(browser: Browser, address: str, view: str) -> tuple[Page, list[str]]:
    """A page of a view, and the list in which everything that goes wrong on it is written."""
    width, height, scheme = VIEWS[view]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_default_timeout(1000 * PATIENCE)
    wrong: list[str] = []
    here = (address, "data:", f"blob:{address}")
    page.on("console", lambda m: wrong.append(f"console {m.type}: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    # What is aborted was left behind by going to the next page: a favicon, on a busy machine.
    page.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}") if r.failure != "net::ERR_ABORTED" else None)
    page.on("response", lambda r: wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: wrong.append(f"foreign: {r.url}") if not r.url.startswith(here) else None)
    return page, wrong
