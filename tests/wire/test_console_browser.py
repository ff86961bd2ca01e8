"""The console in a real browser: each role's journey, nothing from elsewhere, no error, accessible to everyone.

Screenshots for the documents: `STEPWEDGE_PICTURES=docs/pictures python -m pytest tests/wire/test_console_browser.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.wire.cluster import eventually
from tests.wire.console_house import PASSWORD, ConsoleHouse, console_house

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no browser: apt-get install chromium", allow_module_level=True)

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

SIZES = {"desktop": (1280, 900), "tablet": (820, 1180)}
PICTURES = os.environ.get("STEPWEDGE_PICTURES", "")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleHouse]:
    with console_house(tmp_path_factory.mktemp("console"), console={"site_name": "Example hospital"}) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


class Reader:
    """Somebody before a screen, and what the browser complains of."""

    def __init__(self, house: ConsoleHouse, browser: Any, account: str, size: str, language: str = "en-GB") -> None:
        width, height = SIZES[size]
        self.house, self.size = house, size
        self.base = house.cluster.settings.console.url
        self.context = browser.new_context(
            ignore_https_errors=True, viewport={"width": width, "height": height}, locale=language
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self._hear(said.type, said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._watch(request.url))
        self.page.goto(f"{self.base}/sign-in")
        self.page.fill("#name", account)
        self.page.fill("#secret", PASSWORD)
        self.page.click("main button")

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _watch(self, url: str) -> None:
        if not url.startswith(self.base):
            self.complaints.append(f"a request to {url}")

    def wait(self, expression: str) -> None:
        """Until an expression is true; asked from outside, since the page's policy lets no text be run as script."""
        eventually(lambda: self.page.evaluate(expression), what=expression)

    def look(self, name: str) -> None:
        """Check the page with the accessibility checker, and take its picture where pictures are wanted."""
        self.page.wait_for_load_state("networkidle")
        found = axe.Axe().run(
            self.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
        )
        assert [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "the page is wider than the screen"
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(PICTURES) / f"{name}-{self.size}.png")

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []


@pytest.mark.parametrize("size", sorted(SIZES))
def test_a_radiographer_sees_why_an_image_failed_and_says_otherwise(house: ConsoleHouse, browser: Any, size: str):
    reader = Reader(house, browser, "radiographer", size)
    page = reader.page
    reader.look("work-list")
    page.click("tr:has(.badge.reject) a")
    assert "cut off at the upper edge" in page.inner_text("main")
    reader.wait("document.querySelector('[data-image]').naturalWidth > 0")
    reader.look("study")
    first = page.get_attribute("[data-image]", "src")
    page.evaluate("document.querySelector('#center').value = '0.3'")
    page.dispatch_event("#center", "input")
    eventually(lambda: page.get_attribute("[data-image]", "src") != first, what="another window")
    page.uncheck('[data-shows="STRUCTURE_HEART"]')
    assert page.is_hidden('[data-layer="STRUCTURE_HEART"]')
    before = page.eval_on_selector(".stage", "stage => stage.clientWidth")
    page.click('[data-zoom="1.25"]')
    assert page.eval_on_selector(".stage", "stage => stage.clientWidth") > before
    page.check('input[name="verdict"][value="ACCEPT"]')
    page.select_option("#reason", "clinically_sufficient")
    page.click("text=Record")
    assert "Sufficient for the question asked" in page.inner_text("main")
    page.goto(f"{reader.base}/quality")
    reader.look("quality")
    page.goto(f"{reader.base}/help")
    reader.look("help")
    reader.close()


@pytest.mark.parametrize("size", sorted(SIZES))
def test_an_auditor_proves_a_decision_within_three_clicks(house: ConsoleHouse, browser: Any, size: str):
    reader = Reader(house, browser, "auditor", size)
    page = reader.page
    page.goto(f"{reader.base}/audit")
    page.select_option("#kind", "DECIDED")
    page.click('form[method="get"] button:has-text("Search")')
    reader.look("audit-log")
    page.click("tbody a:has-text('Dossier')")
    assert page.inner_text("h1 .badge").upper() == "PROVED"
    reader.look("dossier")
    page.click("tbody a >> nth=0")
    assert "they do" in page.inner_text("main")
    reader.look("entry")
    reader.close()


@pytest.mark.parametrize("size", sorted(SIZES))
def test_an_operator_and_an_administrator_see_the_cluster_and_the_accounts(
    house: ConsoleHouse, browser: Any, size: str
):
    operator = Reader(house, browser, "operator", size)
    operator.page.goto(f"{operator.base}/operator")
    assert operator.page.locator(".badge.serving").count() == 4
    operator.look("operation")
    operator.close()
    administrator = Reader(house, browser, "admin", size)
    administrator.page.goto(f"{administrator.base}/people")
    administrator.look("accounts")
    administrator.close()


def test_the_work_list_shows_what_arrives_without_being_asked(house: ConsoleHouse, browser: Any):
    reader = Reader(house, browser, "radiographer", "desktop")
    rows = reader.page.locator("tbody tr").count()
    house.send(4)
    reader.wait(f"document.querySelectorAll('tbody tr').length > {rows}")
    assert reader.page.inner_text("#news") == "The list has changed."
    reader.close()


def test_a_page_is_used_by_keyboard_alone_and_in_german(house: ConsoleHouse, browser: Any):
    reader = Reader(house, browser, "radiographer", "desktop", "de-DE")
    page = reader.page
    assert page.inner_text("h1") == "Arbeitsliste"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.focus("tbody a")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-viewer]")
    page.focus("[data-viewer]")
    width = page.eval_on_selector(".stage", "stage => stage.clientWidth")
    page.keyboard.press("+")
    assert page.eval_on_selector(".stage", "stage => stage.clientWidth") > width
    reader.look("study-german")
    reader.close()
