"""The page in a real browser, used as a person would."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import digits
from pages import CHROMIUM, outside, page_of
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from serving import Server
from text_builders import make_text_world

from coin_hf import Recipe
from coin_hf.pipeline import encode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
LONGEST = 60_000
"""Milliseconds that anything may take on a machine with other work."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def images(coded: Path) -> Iterator[Server]:
    with page_of(coded) as server:
        yield server


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("texts")
    encode(Recipe.from_yaml(make_text_world(folder))).save_pretrained(folder / "coded")
    with page_of(folder / "coded") as server:
        yield server


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    digits(slice(300, 301))[0]["image"].save(path)
    return path


@pytest.fixture
def opened(browser: Browser) -> Iterator[Any]:
    """Open pages; at the end, no error was logged and nothing was asked for elsewhere."""
    complaints: list[str] = []
    contexts = []

    def open_page(server: Server, width: int = 1280, theme: Any = "light") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, locale="en-GB"
        )
        contexts.append(context)
        context.set_default_timeout(LONGEST)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if outside(r.url) else None)
        page.goto(server.url)
        page.get_by_role("button", name="Answer", exact=True).wait_for()
        page.get_by_role("img", name=re.compile("^Missing")).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def answer(page: Page) -> None:
    page.get_by_role("button", name="Answer", exact=True).click()


def switch_off(page: Page, name: str) -> Locator:
    return page.get_by_role("checkbox", name=name, exact=True)


expect.set_options(timeout=LONGEST)


def shown(page: Page, text: str) -> None:
    expect(page.get_by_text(text).first).to_be_visible()


def test_upload_answer_switch_off_answer_again(opened: Any, images: Server, digit: Path) -> None:
    page = opened(images)
    page.set_input_files("input[type=file]", digit)
    page.get_by_role("button", name="Remove Image").wait_for()
    answer(page)
    shown(page, "high's own answer")
    shown(page, "high, decoded")
    shown(page, "Asked: high. Switched off: none.")
    expect(page.get_by_role("img", name="Missing: high", exact=True)).to_be_visible()
    switch_off(page, "high").check()
    shown(page, "'high' is switched off: this is how its answer is decoded")
    answer(page)
    shown(page, "Asked: high. Switched off: high.")
    shown(page, "high is switched off")
    shown(page, "high, decoded")
    switch_off(page, "low").check()
    toast = page.get_by_test_id("toast-body")
    expect(toast.first).to_contain_text("one coded model makes good for one missing expert")
    answer(page)
    expect(toast).to_have_count(2)
    assert "Traceback" not in page.content()
    expect(page.get_by_role("img", name="Missing: low, high")).to_contain_text("alone")
    switch_off(page, "low").uncheck()
    shown(page, "'high' is switched off: this is how its answer is decoded")


def test_no_image_is_a_toast(opened: Any, images: Server) -> None:
    page = opened(images)
    answer(page)
    expect(page.get_by_test_id("toast-body")).to_contain_text("give an image first")


def test_an_example_is_answered(opened: Any, images: Server) -> None:
    page = opened(images)
    page.get_by_role("button", name=re.compile("^low: LABEL_")).first.click()
    expect(page.get_by_role("radio", name="low", exact=True)).to_be_checked()
    page.get_by_role("button", name="Remove Image").wait_for()
    answer(page)
    shown(page, "low, decoded")


def test_a_text_expert(opened: Any, texts: Server) -> None:
    page = opened(texts)
    page.get_by_role("textbox", name="Text").fill("the film was bright and the story was dull")
    answer(page)
    shown(page, "two's own answer")
    page.get_by_role("textbox", name="Text").fill("")
    answer(page)
    expect(page.get_by_test_id("toast-body")).to_contain_text("give a text first")


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until something has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if target.evaluate("e => e === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {target}")


def test_by_keyboard_alone(opened: Any, images: Server, digit: Path) -> None:
    page = opened(images)
    choosers: list[Any] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(30):  # until the page, which is still being built, listens
        tab_to(page, page.get_by_role("button", name="Drop an image file here to upload"))
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
        if choosers:
            break
    choosers[0].set_files(digit)
    page.get_by_role("button", name="Remove Image").wait_for()
    asked = page.get_by_role("radio", name="low", exact=True)
    tab_to(page, asked)
    page.keyboard.press("Space")
    expect(asked).to_be_checked()
    tab_to(page, switch_off(page, "low"))
    page.keyboard.press("Space")
    expect(switch_off(page, "low")).to_be_checked()
    shown(page, "'low' is switched off: this is how its answer is decoded")
    tab_to(page, page.get_by_role("button", name="Answer", exact=True))
    page.keyboard.press("Enter")
    shown(page, "low, decoded")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_375_pixels_without_scrolling_sideways(
    theme: str, opened: Any, images: Server, digit: Path
) -> None:
    page = opened(images, width=375, theme=theme)
    page.set_input_files("input[type=file]", digit)
    answer(page)
    shown(page, "networks run")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    paper = page.locator(".drawing rect").first.evaluate("e => getComputedStyle(e).fill")
    assert (paper == "rgb(255, 255, 255)") == (theme == "light")


def test_every_control_has_a_name(opened: Any, texts: Server) -> None:
    page = opened(texts)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button, select")]
            .filter(e => e.offsetParent !== null)
            .filter(e => !(e.labels?.length || e.ariaLabel || e.innerText || e.title ||
                           e.getAttribute("aria-labelledby")))
            .map(e => e.outerHTML)"""
    )
    assert unnamed == []
