"""Every page of the book in a real Chromium: light, dark and phone; errors, requests, links, width, accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import VIEWS, watched
from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.browser]


# Marks one text of each look, for axe's slowest rule: text of one class, colour, size and background has one contrast.
MARK_LOOKS = """() => {
    const below = new Map([[null, ""]]), seen = new Set();
    const background = element => {
        if (!below.has(element)) {
            const {backgroundColor, backgroundImage, opacity, position} = getComputedStyle(element);
            below.set(element, [background(element.parentElement), backgroundColor, backgroundImage, opacity, position].join());
        }
        return below.get(element);
    };
    for (const element of document.body.querySelectorAll("*")) {
        element.removeAttribute("data-look");
        const text = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
        if (!text || !element.checkVisibility()) continue;
        const {color, fontSize, fontWeight, textShadow} = getComputedStyle(element);
        const look = [element.tagName, element.className, background(element), color, fontSize, fontWeight, textShadow].join();
        if (!seen.has(look)) element.setAttribute("data-look", "");
        seen.add(look);
    }
    return seen.size;
}"""
CONTRAST = "color-contrast"


def pages(html: Path) -> list[str]:
    """The book's pages, by their addresses below the first."""
    return sorted(str(path.relative_to(html)) for path in html.glob("**/*.html") if "_static" not in path.parts)


def violations(page: Page) -> Iterator[tuple[str, str, list[str]]]:
    """The serious violations that axe finds, with the first elements: all rules in light, contrast in dark too."""

    def found(context: object, **options: object) -> Iterator[tuple[str, str, list[str]]]:
        ran = Axe().run(page, context, {"resultTypes": ["violations"], "preload": False, **options})  # type: ignore[arg-type]
        for violation in ran.response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                yield view, violation["id"], [node["html"][:150] for node in violation["nodes"][:3]]

    for view in ("light", "dark"):
        page.emulate_media(color_scheme=view)  # type: ignore[arg-type]
        page.wait_for_function("view => document.documentElement.dataset.theme === view", arg=view)
        page.wait_for_function("() => document.getAnimations().every(each => each.playState !== 'running')")
        assert page.evaluate(MARK_LOOKS) > 5
        yield from found({"include": [["[data-look]"]]}, runOnly=[CONTRAST])
        if view == "light":
            yield from found(None, rules={CONTRAST: {"enabled": False}})


def test_every_page_is_sound_and_accessible(browser: Browser, address: str, html: Path) -> None:
    """Nothing goes wrong on it, no screen has to scroll sideways, and axe finds nothing serious."""
    page, wrong = watched(browser, address, "light")
    faults: list[object] = []
    assert len(pages(html)) > 25
    for name in pages(html):
        page.emulate_media(color_scheme="light")
        page.goto(address + name, wait_until="networkidle")
        assert page.title(), name
        for width, height, _ in (VIEWS["phone"], VIEWS["light"]):
            page.set_viewport_size({"width": width, "height": height})
            wide, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            faults += [(name, f"{wide} pixels on {shown}")] if wide > shown else []
        if not name.startswith("notebooks/") or name == "notebooks/linear_probe.html":  # notebooks are of one kind
            faults += [(name, *violation) for violation in violations(page)]
    assert (wrong, faults) == ([], [])
    page.close()


def test_every_link_within_the_book_leads_somewhere(html: Path) -> None:
    ids: dict[Path, set[str]] = {}
    links: list[tuple[Path, str]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            ids[file].add(str(given.get("id")))
            if tag == "a" and given.get("href"):
                links.append((file, str(given["href"])))

    for name in pages(html):
        file = html / name
        ids[file] = set()
        Reader().feed(file.read_text())
    within = [(origin, parts) for origin, link in links if not (parts := urlsplit(link)).scheme and not parts.netloc]
    assert len(within) > 1000
    for origin, parts in within:
        target = (origin.parent / unquote(parts.path)).resolve() if parts.path else origin
        target = target / "index.html" if target.is_dir() else target
        assert target.is_file(), (origin, parts)
        if parts.fragment and target in ids:
            assert unquote(parts.fragment) in ids[target], (origin, parts)


def test_a_receipt_opens_by_key_and_press_and_closes_by_escape(browser: Browser, address: str) -> None:
    page, wrong = watched(browser, address, "phone")
    page.goto(address + "chapters/linear-probes.html", wait_until="networkidle")
    button = page.locator("button.receipt-button", has_text="3 seeds").first
    receipt = page.locator(f"#{button.get_attribute('popovertarget')}")
    assert not receipt.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert receipt.is_visible()
    assert "Commit" in receipt.inner_text()
    box = receipt.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.keyboard.press("Escape")
    assert not receipt.is_visible()
    button.click()
    assert receipt.is_visible()
    assert wrong == []
    page.close()


def test_a_receipt_opens_on_hover(browser: Browser, address: str) -> None:
    page, _ = watched(browser, address, "light")
    page.goto(address + "chapters/linear-probes.html", wait_until="networkidle")
    button = page.locator("button.receipt-button", has_text="3 seeds").first
    receipt = page.locator(f"#{button.get_attribute('popovertarget')}")
    button.hover()
    receipt.wait_for(state="visible")
    page.mouse.move(5, 5)
    receipt.wait_for(state="hidden")
    page.close()


def test_one_image_of_each_figure_is_shown_by_the_readers_mode(browser: Browser, address: str) -> None:
    for view, shown in (("light", "in-light"), ("dark", "in-dark")):
        page, _ = watched(browser, address, view)
        page.goto(address + "chapters/depth.html", wait_until="networkidle")
        images = page.locator("figure img")
        visible = [images.nth(i).get_attribute("class") for i in range(images.count()) if images.nth(i).is_visible()]
        captions = page.locator("figcaption")
        assert len(visible) == page.locator("figure:has(img)").count() > 1  # those that are pending have a sentence instead
        assert all(shown in str(classes) for classes in visible)
        assert all(captions.nth(i).is_visible() for i in range(captions.count()))
        assert page.evaluate("[...document.images].every(i => i.offsetParent === null || i.naturalWidth > 0)")
        page.close()


@pytest.mark.parametrize("view", ["light", "dark"])
def test_a_verdict_is_told_by_colour_as_well_as_in_words(browser: Browser, address: str, view: str) -> None:
    page, _ = watched(browser, address, view)
    page.goto(address + "index.html", wait_until="networkidle")
    colours = {
        word: page.locator("button.receipt-button", has_text=word).first.evaluate("e => getComputedStyle(e).color")
        for word in ("claim holds", "claim fails", "no claim")
    }
    assert len(set(colours.values())) == 3, colours
    page.close()
