"""The scoreboard's filters, the neighbours by layer, and the palette of a reader's photo, in a real Chromium."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import watched
from PIL import Image
from playwright.sync_api import Browser, Page

from igpt.companion.report.tables import TIER_TITLES
from igpt.data.folders import read_picture
from igpt.weights.own import released_palette

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def serious(page: Page, inside: str) -> list[tuple[str, str]]:
    """axe's serious findings."""
    found = [v for v in Axe().run(page, inside).response["violations"] if v["impact"] in ("serious", "critical")]
    return [(v["id"], v["nodes"][0]["html"][:200]) for v in found]


def test_the_scoreboard_filters_by_table_tier_and_verdict(browser: Browser, address: str) -> None:
    page, wrong = watched(browser, address, "light")
    page.goto(address + "index.html", wait_until="networkidle")
    rows, count = page.locator("#table-scoreboard tbody tr"), page.locator(".scoreboard-form output")
    total = rows.count()
    assert count.inner_text() == f"{total} of {total} numbers"
    page.get_by_label("Verdict").select_option("claim holds")
    shown = [row for row in rows.all() if row.is_visible()]
    assert count.inner_text() == f"{len(shown)} of {total} numbers"
    assert 0 < len(shown) < total
    assert all("claim holds" in row.inner_text() for row in shown)
    page.get_by_label("Table", exact=True).select_option("low-data")
    assert all("low-data" in row.inner_text() for row in rows.all() if row.is_visible())
    page.get_by_label("Table", exact=True).select_option("all")
    page.get_by_label("Tier").select_option(label=TIER_TITLES["tiny"])
    heads = page.locator("#table-scoreboard thead th")
    others = len(TIER_TITLES) - 1
    assert page.locator("#table-scoreboard thead th:visible").count() == heads.count() - others
    button = page.locator("#table-scoreboard tbody tr:visible button.receipt-button.measured").first
    button.click()
    assert "Commit" in page.locator(f"#{button.get_attribute('popovertarget')}").inner_text()
    page.keyboard.press("Escape")
    assert wrong == []  # before axe, which fetches stylesheets by itself
    assert serious(page, ".scoreboard-form") == []
    page.close()


def test_the_scoreboard_sorts_by_number_both_ways_with_the_empty_cells_last(browser: Browser, address: str) -> None:
    page, wrong = watched(browser, address, "light")
    page.goto(address + "index.html", wait_until="networkidle")
    column = 2 + list(TIER_TITLES).index("tiny")  # the first that has numbers
    tier = page.locator("#table-scoreboard thead th").nth(column)
    tier.get_by_role("button").click()
    assert tier.get_attribute("aria-sort") == "ascending"
    for sign in (1, -1):
        cells = page.locator(f"#table-scoreboard tbody tr td:nth-child({column + 1})").all_inner_texts()
        filled = [float(text.replace("\xa0", " ").split()[0].replace(",", "")) for text in cells if text not in ("–", "pending")]
        assert filled == sorted(filled, reverse=sign < 0)
        assert set(cells[len(filled) :]) <= {"–", "pending"}
        tier.get_by_role("button").click()
    assert wrong == []
    page.close()


def test_without_scripts_the_scoreboard_is_a_plain_table(browser: Browser, address: str) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(address + "index.html")
    assert page.locator(".scoreboard-form").count() == 0
    assert page.locator("#table-scoreboard tbody tr").first.is_visible()
    page.close()


@pytest.mark.parametrize("view", ["light", "phone"])
def test_a_photo_is_shown_in_the_released_colours_with_its_tokens(
    browser: Browser, address: str, tmp_path: Path, view: str
) -> None:
    page, wrong = watched(browser, address, view)
    page.goto(address + "chapters/palette.html", wait_until="networkidle")
    section = page.locator(".igpt-palette")
    assert "A colour wheel" in section.inner_text()
    noise = np.random.default_rng(1).normal(0, 40, (20, 25, 3)).repeat(20, 0).repeat(20, 1)
    smooth = np.linspace(0, 255, 400 * 500 * 3).reshape(400, 500, 3) + noise  # larger than the paper's crop
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(tmp_path / "own.png")
    section.locator("input").set_input_files(tmp_path / "own.png")
    page.wait_for_function("() => document.querySelector('.igpt-palette .live-status').textContent.startsWith('own.png')")
    shown = [[int(token) for token in row.split()] for row in section.locator("textarea").input_value().splitlines()]
    ours = released_palette().quantize(read_picture(tmp_path / "own.png", side=32, channels=3)[None])[0]
    assert (np.array(shown) == ours).mean() > 0.95  # a level of rounding may lie on the border between two colours
    (tmp_path / "text.png").write_text("not a picture")
    section.locator("input").set_input_files(tmp_path / "text.png")
    page.wait_for_function("() => document.querySelector('.igpt-palette .live-status').textContent.startsWith('text.png')")
    reduced = section.locator("canvas").nth(1)
    reduced.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert section.locator(".palette-pixel").inner_text().startswith("Row 2, column 2:")
    assert f"token {shown[1][1]}," in section.locator(".palette-pixel").inner_text()
    section.locator("select").select_option("64")
    page.wait_for_function("() => document.querySelector('.igpt-palette textarea').value.split('\\n').length === 64")
    assert wrong == []
    size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert size[0] <= size[1]
    assert serious(page, ".igpt-palette") == []
    page.close()


@pytest.mark.parametrize("view", ["dark", "phone"])
def test_the_neighbours_follow_the_layer_by_key_and_by_pointer(browser: Browser, address: str, html: Path, view: str) -> None:
    if not (html / "live" / "layers.json").exists():
        pytest.skip("the book was built without its live panel (Debian: apt install npm)")
    found = json.loads((html / "live" / "layers.json").read_text())
    page, wrong = watched(browser, address, view)
    page.goto(address + "chapters/depth.html", wait_until="networkidle")
    section = page.locator(".igpt-layers")
    slider, last = section.get_by_role("slider"), len(found["curve"]) - 1
    slider.focus()
    for layer, key in ((0, "Home"), (1, "ArrowRight"), (last, "End")):
        page.keyboard.press(key)
        same = sum(
            found["shown"][index]["label"] == image["label"]
            for image, row in zip(found["images"], found["neighbours"][layer], strict=True)
            for index in row
        )
        said = section.locator("output").inner_text()
        assert said.startswith(f"{layer}")
        assert f"{100 * found['curve'][layer]['accuracy']:.1f} %" in said
        assert f"{same} of {len(found['images']) * len(found['neighbours'][0][0])} neighbours" in said
        names = [found["shown"][index]["label"] for index in found["neighbours"][layer][0]]
        shown = section.locator("tbody tr").first.locator("td canvas")
        assert [shown.nth(i).get_attribute("aria-label") for i in range(len(names))] == [
            f"Neighbour {place + 1}, class {label}" for place, label in enumerate(names)
        ]
    box = section.locator("svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    assert section.locator("output").inner_text().startswith("0:")
    assert wrong == []
    size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert size[0] <= size[1]
    assert serious(page, ".igpt-layers") == []
    page.close()
