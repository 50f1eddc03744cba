"""The live panel in a real Chromium: its pixels against the sampler's, and everything that can go wrong with it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from chromium import watched
from conftest import browser_path
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route

from igpt.data import tokenize
from igpt.data.folders import read_picture
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.pretrained import open_weights
from igpt.sample import complete

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def about(html: Path) -> dict[str, list[list[int]]]:
    """What the panel's files say of themselves."""
    path = html / "live" / "live.json"
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail("CI has built the book without its live panel")
        pytest.skip("the book was built without its live panel (Debian: apt install npm)")
    found: dict[str, list[list[int]]] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def trained(about: dict[str, str]) -> tuple[ImageGPT, Palette]:
    """The model that the panel shows."""
    return open_weights(about["model"])


@pytest.fixture
def opened(browser: Browser, address: str, about: object) -> Iterator[tuple[Page, list[str]]]:
    """The chapter, before any press."""
    page, wrong = watched(browser, address, "light")
    page.goto(address + "chapters/samples.html", wait_until="networkidle")
    yield page, wrong
    page.close()


@pytest.fixture
def panel(opened: tuple[Page, list[str]]) -> tuple[Page, list[str]]:
    """The chapter with its panel loaded."""
    page, _ = opened
    load(page)
    assert "is ready" in said(page)
    return opened


def load(page: Page) -> None:
    page.locator(".live-load").click()
    page.wait_for_function("() => /ready|not run here/.test(document.querySelector('.live-status').textContent)")


def said(page: Page) -> str:
    return page.locator(".live-status").inner_text()


def finish(page: Page) -> str:
    """Press and wait; what the panel then says."""
    page.get_by_role("button", name="Complete", exact=True).click()
    ended = "() => /^(Done|Stopped|The model stopped)/.test(document.querySelector('.live-status').textContent)"
    page.wait_for_function(ended)
    return said(page)


def shown(page: Page, name: str) -> Locator:
    """The panel's canvases of a name."""
    return page.locator(".live-results").get_by_role("img", name=name)


def pixels(canvas: Locator) -> NDArray[np.uint8]:
    """A canvas as uint8 (side, side, 4)."""
    data, side = canvas.evaluate("c => [[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data], c.width]")
    return np.array(data, np.uint8).reshape(side, side, 4)


def completions(page: Page) -> NDArray[np.uint8]:
    found = shown(page, "Completion")
    return np.stack([pixels(found.nth(i))[..., :3] for i in range(found.count())])


def expected(
    trained: tuple[ImageGPT, Palette], original: list[int], keep: Callable[[int], bool], **draw: object
) -> NDArray[np.uint8]:
    """What igpt.sample makes of the same request, uint8 (n, side, side, 3)."""
    model, palette = trained
    given = torch.tensor([[token if keep(i) else -1 for i, token in enumerate(original)]])
    tokens = complete(model, given, **draw)[0].numpy()  # type: ignore[arg-type]
    side = math.isqrt(model.shape.n_ctx)
    images = palette.dequantize(tokens).reshape(len(tokens), side, side, -1)
    return np.broadcast_to(images, (*images.shape[:3], 3))


@pytest.mark.parametrize(("seed", "temperature", "top_k"), [(7, 1.0, None), (4294967295, 0.85, 5), (0, 0.0, None)])
def test_a_seed_gives_the_samplers_pixels(
    panel: tuple[Page, list[str]],
    about: dict[str, list[list[int]]],
    trained: tuple[ImageGPT, Palette],
    seed: int,
    temperature: float,
    top_k: int | None,
) -> None:
    page, wrong = panel
    page.get_by_role("radio", name="Held-out image 3").check()
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_label("Temperature").fill(str(temperature))
    page.get_by_label("Top-k").fill("" if top_k is None else str(top_k))
    page.get_by_label("Completions").fill("3")
    assert finish(page).startswith("Done")
    half = len(about["images"][2]) // 2
    draw = {"n": 3, "seed": seed, "temperature": temperature, "top_k": top_k}
    assert (completions(page) == expected(trained, about["images"][2], lambda i: i < half, **draw)).all()
    assert wrong == []


def test_left_halves_prefixes_and_nothing_are_kept_as_the_sampler_keeps_them(
    panel: tuple[Page, list[str]], about: dict[str, list[list[int]]], trained: tuple[ImageGPT, Palette]
) -> None:
    page, wrong = panel
    side = math.isqrt(len(about["images"][0]))
    page.get_by_role("radio", name="left half").check()
    finish(page)
    assert (completions(page) == expected(trained, about["images"][0], lambda i: i % side < side // 2, n=4, seed=0)).all()
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    kept = int(slider.input_value())
    assert page.get_by_role("radio", name="up to a pixel").is_checked()
    assert f"{kept} of {side**2} pixels kept" in page.locator(".live-keep").inner_text()
    finish(page)
    assert (completions(page) == expected(trained, about["images"][0], lambda i: i < kept, n=4, seed=0)).all()
    page.get_by_role("radio", name="Nothing").check()
    finish(page)
    assert (completions(page) == expected(trained, about["images"][0], lambda i: False, n=4, seed=0)).all()
    assert wrong == []


def test_a_mask_is_drawn_on_the_picture(panel: tuple[Page, list[str]], about: dict[str, list[list[int]]]) -> None:
    page, _ = panel
    side = math.isqrt(len(about["images"][0]))
    box = shown(page, "Given").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 2.5 / side, box["y"] + box["height"] * 1.5 / side)
    page.mouse.up()
    assert f"{side + 3} of {side**2} pixels kept" in page.locator(".live-keep").inner_text()
    assert (pixels(shown(page, "Given"))[..., 3] > 0).sum() == side + 3


def test_a_picture_of_ones_own_becomes_the_tokens_that_the_command_line_makes(
    panel: tuple[Page, list[str]], trained: tuple[ImageGPT, Palette], tmp_path: Path
) -> None:
    page, wrong = panel
    model, palette = trained
    side, channels = math.isqrt(model.shape.n_ctx), palette.centres.shape[1]
    smooth = np.linspace(0, 255, 60 * 40 * 3).reshape(60, 40, 3) + np.random.default_rng(0).normal(0, 20, (60, 40, 3))
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(tmp_path / "own.png")
    page.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    page.wait_for_function("() => /central square/.test(document.querySelector('.live-status').textContent)")
    read = read_picture(tmp_path / "own.png", side=side, channels=channels)
    ours = palette.dequantize(tokenize(read[None], palette).numpy()).reshape(side, side, -1)
    taken = pixels(shown(page, "Original"))[..., :channels]
    assert (taken == ours).mean() > 0.95  # a level of rounding may lie on the border between two colours
    assert finish(page).startswith("Done")
    assert wrong == []


def broken(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no pictures to take, and a word of what is said of each."""
    Image.new("L", (10_000, 10_000)).save(folder / "large.png")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:40])
    words = {
        "large.png": "100 million pixels",
        "drawing.svg": "no PNG",
        "text.png": "no PNG",
        "empty.png": "no PNG",
        "cut.png": "damaged",
    }
    return {name: (folder / name, word) for name, word in words.items()}


def test_files_that_are_no_pictures_end_in_a_sentence_and_the_panel_stays_usable(
    panel: tuple[Page, list[str]], tmp_path: Path
) -> None:
    page, wrong = panel
    for name, (path, word) in broken(tmp_path).items():
        page.locator("input[type=file]").set_input_files(path)
        page.wait_for_function("name => document.querySelector('.live-status').textContent.startsWith(name + ' ')", arg=name)
        assert word in said(page), name
        assert said(page).endswith("."), name
    assert finish(page).startswith("Done")
    assert wrong == []


def test_nothing_is_fetched_before_the_press_and_nothing_from_elsewhere_after(
    browser: Browser, address: str, about: dict[str, list[dict[str, str]]]
) -> None:
    page, wrong = watched(browser, address, "light")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    page.goto(address + "chapters/samples.html", wait_until="networkidle")
    heavy = {file["name"] for file in about["model_files"]}
    assert not heavy & set(asked)
    assert not [name for name in asked if name.startswith("ort")]
    size = page.locator(".live-load").inner_text()
    load(page)
    assert heavy <= set(asked)
    assert "MB" in size
    assert finish(page).startswith("Done")
    assert wrong == []
    page.close()


def test_without_a_graphics_card_the_processor_takes_over(browser: Browser, address: str, about: dict[str, object]) -> None:
    page, wrong = watched(browser, address, "light")
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'gpu', {get: () => undefined})")
    load_on_graphics(page, address, about)
    assert said(page).endswith("ready on the processor.")
    assert wrong == []
    page.close()


def load_on_graphics(page: Page, address: str, about: Mapping[str, object]) -> None:
    """The panel, as one that would rather have a graphics card."""
    wishes = json.dumps({**about, "preferred": ["webgpu", "wasm"]})
    page.route("**/live.json", lambda route: route.fulfill(body=wishes, content_type="application/json"))
    page.goto(address + "chapters/samples.html", wait_until="networkidle")
    load(page)


def missing(route: Route) -> None:
    route.fulfill(status=404, body="")


def damaged(route: Route) -> None:
    body = bytearray(route.fetch().body())
    body[len(body) // 2] ^= 1
    route.fulfill(body=bytes(body))


@pytest.mark.parametrize(("name", "answer", "word"), [
    ("*.wasm.gz", missing, "is missing"),
    ("ort*.mjs", missing, "is missing"),
    ("weights.bin", damaged, "another file"),
    ("*.wasm.gz", damaged, "another file"),
])  # fmt: skip
def test_a_file_missing_or_changed_ends_in_a_sentence_and_may_be_tried_again(
    opened: tuple[Page, list[str]], name: str, answer: Callable[[Route], None], word: str
) -> None:
    page, _ = opened
    page.route(f"**/{name}", answer)
    load(page)
    assert "does not run here" in said(page)
    assert word in said(page)
    assert "The images above stand in for it." in said(page)
    assert page.locator("figure img.in-light").first.is_visible()
    page.unroute(f"**/{name}")
    load(page)
    assert "is ready" in said(page)


def test_without_its_description_or_without_webassembly_a_sentence_stands(browser: Browser, address: str, about: object) -> None:
    page, _ = watched(browser, address, "light")
    page.route("**/live.json", missing)
    page.goto(address + "chapters/samples.html", wait_until="networkidle")
    assert "missing from this copy" in said(page)
    assert not page.locator(".live-load").is_visible()
    page.unroute("**/live.json")
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(address + "chapters/samples.html", wait_until="networkidle")
    assert "lacks what the model needs" in said(page)
    page.close()


def test_all_of_it_goes_by_keyboard(opened: tuple[Page, list[str]]) -> None:
    page, wrong = opened
    page.locator(".live-load").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => /ready/.test(document.querySelector('.live-status').textContent)")
    assert page.evaluate("document.activeElement.textContent") == "Complete"
    page.keyboard.press("Enter")
    page.wait_for_function("() => /^Done/.test(document.querySelector('.live-status').textContent)")
    page.get_by_role("radio", name="Held-out image 1").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="Held-out image 2").is_checked()
    assert wrong == []


def test_the_sheet_that_is_saved_has_all_images(panel: tuple[Page, list[str]], tmp_path: Path) -> None:
    page, _ = panel
    finish(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    download.value.save_as(tmp_path / "sheet.png")
    assert download.value.suggested_filename == "completions.png"
    side = pixels(shown(page, "Given")).shape[0]
    scale = 96 // side
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (scale * (6 * (side + 1) + 1), scale * (side + 2))
        levels = np.asarray(sheet.convert("RGB"))
    first = levels[scale : scale * (side + 1) : scale, scale * (side + 2) : scale * (2 * side + 2) : scale]
    assert (first == completions(page)[0]).all()


@pytest.mark.parametrize("view", ["light", "dark", "phone"])
def test_axe_finds_nothing_in_the_open_panel(browser: Browser, address: str, about: object, view: str) -> None:
    page, wrong = watched(browser, address, view)
    page.goto(address + "chapters/samples.html", wait_until="networkidle")
    load(page)
    finish(page)
    assert wrong == []  # before axe, which fetches stylesheets by itself
    found = [v for v in Axe().run(page, ".igpt-live").response["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [(node["html"][:200], node["failureSummary"]) for node in v["nodes"][:3]]) for v in found] == []
    size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert size[0] <= size[1]
    page.close()


def renderers() -> int:
    """Bytes that this test's browser holds in the processes that draw its pages."""
    children = psutil.Process().children(recursive=True)
    return sum(child.memory_info().rss for child in children if "--type=renderer" in child.cmdline())


def test_ten_completions_leave_the_memory_as_it_was(panel: tuple[Page, list[str]]) -> None:
    page, _ = panel
    page.get_by_label("Completions").fill("8")
    for _ in range(10):  # until every buffer has been used once
        finish(page)
    before = renderers()
    for _ in range(10):
        finish(page)
    assert renderers() < 1.1 * before


@pytest.fixture(scope="module")
def graphics(browser: Browser) -> Iterator[Browser]:
    """A Chromium whose graphics card is played by the processor: slow, but WebGPU."""
    flags = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    found = browser.browser_type.launch(executable_path=browser_path(), args=flags)
    yield found
    found.close()


def test_on_a_graphics_card_a_seed_gives_the_samplers_pixels(
    graphics: Browser, address: str, about: dict[str, list[list[int]]], trained: tuple[ImageGPT, Palette]
) -> None:
    page, wrong = watched(graphics, address, "light")
    # The panel leaves cards that a processor plays alone; this one has to do.
    page.add_init_script("Object.defineProperty(GPUAdapterInfo.prototype, 'isFallbackAdapter', {get: () => false})")
    load_on_graphics(page, address, about)
    assert said(page).endswith("ready on the graphics card.")
    page.get_by_label("Completions").fill("1")
    page.get_by_label("Temperature").fill("0")
    assert finish(page).startswith("Done")
    half = len(about["images"][0]) // 2
    assert (completions(page) == expected(trained, about["images"][0], lambda i: i < half, n=1, seed=0, temperature=0.0)).all()
    assert wrong == []
    page.close()


def test_a_press_of_stop_ends_the_drawing_and_the_next_begins_anew(panel: tuple[Page, list[str]]) -> None:
    page, wrong = panel
    page.get_by_role("radio", name="Nothing").check()
    page.get_by_label("Completions").fill("8")
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("() => /^(Done|Stopped)/.test(document.querySelector('.live-status').textContent)")
    assert said(page).startswith("Stopped: ")
    assert (completions_alpha(page) == 0).any()  # not all pixels were drawn
    page.get_by_label("Completions").fill("1")
    assert finish(page).startswith("Done")
    assert (completions_alpha(page) > 0).all()
    assert wrong == []


def completions_alpha(page: Page) -> NDArray[np.uint8]:
    """Where the completions' canvases have been drawn on."""
    found = shown(page, "Completion")
    return np.stack([pixels(found.nth(i))[..., 3] for i in range(found.count())])


def test_a_picture_is_dropped_on_the_panel(panel: tuple[Page, list[str]]) -> None:
    page, wrong = panel
    drop = """async () => {
        const canvas = new OffscreenCanvas(48, 32);
        const context = canvas.getContext("2d");
        context.fillStyle = "rgb(200, 40, 40)";
        context.fillRect(0, 0, 48, 32);
        const files = new DataTransfer();
        files.items.add(new File([await canvas.convertToBlob()], "red.png", {type: "image/png"}));
        const panel = document.querySelector(".igpt-live");
        const told = panel.dispatchEvent(new DragEvent("dragover", {dataTransfer: files, bubbles: true, cancelable: true}));
        panel.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
        return told;
    }"""
    assert page.evaluate(drop) is False  # the panel takes it, so the browser does not open the file
    page.wait_for_function("() => /central square/.test(document.querySelector('.live-status').textContent)")
    taken = pixels(shown(page, "Original"))[..., :3]
    assert len(np.unique(taken.reshape(-1, 3), axis=0)) == 1
    assert finish(page).startswith("Done")
    assert wrong == []
