"""The console in a real browser: each role's journey, nothing from elsewhere, no error, accessible to everyone.

Screenshots for the documents: `STEPWEDGE_PICTURES=docs/pictures python -m pytest tests/wire/test_console_browser.py`.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.datadict import dictionary_VR

from shared import phantom
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
    rooms = {"PHANTOM1": "Room 2"}
    named = {"site_name": "Example hospital"}
    with console_house(tmp_path_factory.mktemp("console"), console=named, ingest={"rooms": rooms}) as made:
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
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self._hear(said.type, said.text))
        self.page.on("dialog", lambda dialog: self.complaints.append("a dialog"))
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

    def look(self, name: str, at: str = "") -> None:
        """Check the page with the accessibility checker, and take its picture where pictures are wanted.

        at: what stands at the top of the picture; "" for the top of the page.
        """
        self.page.wait_for_load_state("networkidle")
        found = axe.Axe().run(
            self.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
        )
        assert [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []
        assert self.overflow() <= 0, "the page is wider than the screen"
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            if at:
                self.page.eval_on_selector(at, "element => element.scrollIntoView()")
            self.page.screenshot(path=Path(PICTURES) / f"{name}-{self.size}.png")

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

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
    reader.look("quality", at="#rates")
    page.goto(f"{reader.base}/help")
    reader.look("help", at="#checks")
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


def test_an_administrator_is_told_where_to_begin_until_each_role_has_somebody(house: ConsoleHouse, browser: Any):
    reader = Reader(house, browser, "admin", "desktop")
    page, row = reader.page, 'tr:has(th:text-is("{}")) button[value="{}"]'
    assert page.locator("#begin").count() == 0
    for role in ("radiographer", "operator", "auditor"):
        page.click(row.format(role, "disable"))
    assert "Nobody has this role yet: radiographer, operator, auditor" in page.inner_text("main")
    reader.look("first-accounts")
    for role in ("radiographer", "operator", "auditor"):
        page.click(row.format(role, "enable"))
    assert page.locator("#begin").count() == 0
    reader.close()


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
    told = page.inner_text("main")
    assert "Fertig: Fassung 1 lautet" in told
    assert "Nichts; ein spätes Bild würde die nächste Fassung eröffnen." in told
    assert not re.search(r"\b(the|received|decided|assessed|Nothing|instance)\b", told), "nothing is left in English"
    reader.look("study-german")
    reader.close()


def test_what_is_shown_does_not_outlast_the_session_on_the_screen(house: ConsoleHouse, browser: Any):
    reader = Reader(house, browser, "radiographer", "desktop")
    page = reader.page
    page.clock.install()
    page.goto(f"{reader.base}/studies/{house.studies[1]}")
    page.clock.fast_forward("14:50")
    page.focus("[data-viewer]")
    page.keyboard.press("+")  # somebody is there
    page.clock.fast_forward("14:50")
    assert page.url.endswith(house.studies[1])
    with sqlite3.connect(house.cluster.data / "console.db", timeout=30) as link:
        link.execute("UPDATE sessions SET seen_at = datetime('now', '-16 minutes') WHERE person = 'radiographer'")
    page.clock.fast_forward("00:30")
    page.wait_for_url("**/sign-in")
    assert house.studies[1] not in page.content()
    reader.close()


SHORT = '"><i data-owned>'
LONG = "\"'></td></script><img data-owned src=x onerror=document.title='owned'>"[:64]
HOSTILE = {
    "StationName": SHORT,
    "PerformedLocation": "<b data-owned>X",
    "InstitutionalDepartmentName": LONG,
    "Manufacturer": LONG,
    "ManufacturerModelName": '=cmd|"/c x"!A1',
    "DeviceSerialNumber": LONG,
    "StudyDescription": LONG,
    "SeriesDescription": LONG,
    "ProtocolName": LONG,
    "InstitutionName": LONG,
    "PatientComments": LONG,
    "ImageComments": LONG,
    "BodyPartExamined": "<I DATA-OWNED>",
    "ViewPosition": "<I DATA-OWNED>",
    "PatientName": f"{SHORT}^{SHORT}",
    "PatientID": LONG,
    "AccessionNumber": SHORT,
}
"""What nobody may run, and no element may come of: in every string that a page or a file could show."""


@pytest.fixture(scope="module")
def hostile(house: ConsoleHouse) -> str:
    """The pseudonym of a study whose every string is hostile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that such values fit no VR
        dataset: Any = phantom.to_dicom(
            phantom.chest(31, margins_mm={"top": -25}),
            patient_name="x",
            patient_id="x",
            study_uid="1.2.826.0.1.31",
            series_uid="1.2.826.0.2.31",
            sop_instance_uid="1.2.826.0.3.31",
        )
        for name, value in HOSTILE.items():
            dataset.add_new(name, dictionary_VR(name), value)
        file = house.folder / "hostile.dcm"
        dataset.save_as(file, enforce_file_format=True)
    assert all(sent.ok for sent in house.cluster.store([file]))
    return house.cluster.decided("1.2.826.0.1.31").pseudonym


@pytest.mark.timeout(300)
def test_script_in_any_dicom_string_stays_text_on_every_page_and_in_every_file(
    house: ConsoleHouse, browser: Any, hostile: str
):
    pages = {
        "radiographer": (f"/studies/{hostile}", "/studies", "/studies?room=%3Cb%20data-owned%3EX", "/quality?days=7"),
        "operator": ("/operator", "/studies", f"/studies/{hostile}/proof"),
        "auditor": ("/audit?kind=DECIDED", f"/audit?study={hostile}", f"/audit/dossiers/{hostile}", "/audit/guarding"),
    }
    shown = ""
    for role, addresses in pages.items():
        reader = Reader(house, browser, role, "desktop")
        for address in addresses:
            reader.page.goto(f"{reader.base}{address}")
            reader.page.wait_for_load_state("networkidle")
            assert reader.page.locator("[data-owned], main script, main iframe").count() == 0, address
            assert "owned" not in reader.page.title(), address
            assert reader.overflow() <= 0, f"{address} is wider than the screen"
            shown += reader.page.inner_text("body")
        reader.close()
    for value in (SHORT, "<b data-owned>X"):
        assert value in shown, "it is shown as the text that it is"
    auditor = house.browser("auditor")
    path = f"/audit/dossiers/{hostile}"
    named = auditor.post(f"{path}/identity", page=path, purpose="HCOMPL", format="page")
    assert "&#34;&gt;&lt;i data-owned&gt;" in named.text
    assert "<i data-owned" not in named.text
    for paper in (
        auditor.get(f"{path}.pdf"),
        auditor.post(f"{path}/identity", page=path, purpose="HCOMPL", format="pdf"),
    ):
        assert paper.content.startswith(b"%PDF-")
        assert not re.search(rb"/(JavaScript|JS|OpenAction|AA|Launch|EmbeddedFile|URI)\b", paper.content)
    for table in ("/quality.csv?days=7", "/quality/rates.csv?days=7"):
        answer = auditor.get(table)
        assert answer.headers["content-type"].startswith("text/csv")
        assert answer.headers["x-content-type-options"] == "nosniff"
        cells = [cell for row in csv.reader(io.StringIO(answer.text)) for cell in row]
        assert any("data-owned" in cell for cell in cells)
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r") or cell.startswith("-cmd")]


def test_a_newcomer_finds_a_failed_image_its_reason_and_its_proof_within_three_clicks(
    house: ConsoleHouse, browser: Any
):
    radiographer = Reader(house, browser, "radiographer", "desktop")
    radiographer.page.click("tr:has(.badge.reject) a")  # one
    assert "cut off at the upper edge" in radiographer.page.inner_text("#why ~ ul")
    radiographer.page.click("text=its proof")  # two
    assert "they do" in radiographer.page.inner_text("main")
    assert radiographer.page.inner_text("h1 .badge").upper() == "PROVED"
    radiographer.close()
    auditor = Reader(house, browser, "auditor", "desktop")
    auditor.page.click("text=Rejected studies")  # one
    auditor.page.click("tbody a:has-text('Dossier')")  # two
    assert auditor.page.inner_text("h1 .badge").upper() == "PROVED"
    assert "LUNG_MARGIN_TOP" in auditor.page.inner_text("main")
    auditor.page.click("tbody a >> nth=0")  # three: one record, its proof step by step
    assert "they do" in auditor.page.inner_text("main")
    auditor.close()


def test_a_study_and_a_dossier_print_without_what_only_a_screen_needs(house: ConsoleHouse, browser: Any):
    for role, address, kept in (
        ("radiographer", f"/studies/{house.studies[1]}", "#found"),
        ("auditor", f"/audit/dossiers/{house.studies[1]}", "#checkpoint"),
    ):
        reader = Reader(house, browser, role, "desktop")
        reader.page.goto(f"{reader.base}{address}")
        reader.page.emulate_media(media="print")
        assert reader.page.locator("header:visible, form:visible, .noprint:visible").count() == 0
        assert reader.page.is_visible(kept)
        assert len(reader.page.pdf()) > 10_000
        reader.close()
