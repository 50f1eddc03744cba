"""Every page of the book in a real Chromium: light, dark and phone; errors, requests, links, width, accessibility."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import watched
from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.mark.parametrize("view", ["light", "phone"])  # the dark view has other colours only
def test_every_page_is_sound(browser: Browser, address: str, html: Path, view: str) -> None:
    page, wrong = watched(browser, address, view)
    names = sorted(str(path.relative_to(html)) for path in html.glob("**/*.html") if "_static" not in path.parts)
    assert len(names) > 25
    for name in names:
        page.goto(address + name, wait_until="networkidle")
        assert page.title(), name
        size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert size[0] <= size[1], f"{name} scrolls sideways: {size}"
    assert wrong == []
    page.close()


def test_axe_finds_no_serious_violation(browser: Browser, address: str, html: Path) -> None:
    page, _ = watched(browser, address, "light")
    violations = []
    for path in [html / "index.html", *sorted((html / "chapters").glob("*.html")), html / "notebooks" / "linear_probe.html"]:
        name = str(path.relative_to(html))
        page.emulate_media(color_scheme="light")
        page.goto(address + name, wait_until="networkidle")
        for view, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):  # the dark view has other colours only
            page.emulate_media(color_scheme=view)
            page.wait_for_function("view => document.documentElement.dataset.theme === view", arg=view)
            page.wait_for_function("() => document.getAnimations().every(each => each.playState !== 'running')")
            for violation in Axe().run(page, options={"resultTypes": ["violations"], **rules}).response["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    violations.append((name, view, violation["id"], [node["html"][:150] for node in violation["nodes"][:3]]))
    assert violations == []
    page.close()


def test_every_link_within_the_book_leads_somewhere(browser: Browser, address: str, html: Path) -> None:
    page, _ = watched(browser, address, "light")
    ids: dict[str, set[str]] = {}
    links: set[tuple[str, str, str]] = set()
    for path in html.glob("**/*.html"):
        if "_static" in path.parts:
            continue
        url = address + str(path.relative_to(html))
        page.goto(url, wait_until="domcontentloaded")
        ids[url] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        for target in page.evaluate("[...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href'))"):
            links.add((url, *urldefrag(urljoin(url, target))))
    for origin, target, fragment in links:
        if not target.startswith(address):
            continue
        file = html / target.removeprefix(address)
        assert file.is_file() or (file / "index.html").is_file(), (origin, target)
        if fragment and target in ids:
            assert fragment in ids[target], (origin, target, fragment)
    page.close()


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
