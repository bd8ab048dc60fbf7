"""The site in a real browser: both themes, a phone's width, its search."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pages import CHROMIUM, outside
from playwright.sync_api import Browser, Page, sync_playwright

import coin_hf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
PAGES = Path(__file__).parents[2] / "docs" / "pages"
LONGEST = 60_000
"""Milliseconds that anything may take on a machine with other work."""


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser: Browser, complaints: list[str], width: int, theme: Any) -> Page:
    """A page that writes down errors, what is asked for elsewhere, and what is not there."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    page.set_default_timeout(LONGEST)
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: complaints.append(r.url) if outside(r.url) else None)
    page.on("response", lambda r: complaints.append(r.url) if r.status >= 400 else None)
    return page


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (375, "light")])
def test_pages_fit_and_fetch_nothing_from_outside(
    width: int, theme: str, address: str, browser: Browser
) -> None:
    complaints: list[str] = []
    page = opened(browser, complaints, width, theme)
    for path in sorted(PAGES.rglob("*.md")):
        name = path.relative_to(PAGES).with_suffix("").as_posix()
        page.goto(f"{address}{name.removesuffix('index').rstrip('/')}")
        widest = page.evaluate("document.documentElement.scrollWidth")
        assert widest <= width, name  # tables and code scroll by themselves
        for image in page.locator("article img:visible").all():
            assert image.evaluate("each => each.complete && each.naturalWidth > 0"), name
    scheme = page.locator("body").get_attribute("data-md-color-scheme")
    page.context.close()
    assert complaints == []
    assert scheme == {"light": "default", "dark": "slate"}[theme]


def test_a_search_for_every_public_name_finds_it(address: str, browser: Browser) -> None:
    complaints: list[str] = []
    page = opened(browser, complaints, 1280, "light")
    page.goto(address)
    box = page.get_by_role("textbox", name="Search")
    box.click()
    for name in coin_hf.__all__:
        for text in ("", name):  # what the last name found is gone first
            box.fill(text)
            box.press("End")  # it listens to keys
            found = page.locator(f'a.md-search-result__link[href*="/api/#"][href$=".{name}"]')
            found.first.wait_for(state="attached" if text else "detached")
    page.context.close()
    assert complaints == []
