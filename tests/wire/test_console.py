"""The console over a real cluster: who may see what, what is recorded, and what bad requests get."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from urllib.parse import urljoin

import grpc
import httpx
import pytest

from cli.configuration import free_ports, write_for_service
from services.console import dossier
from services.console.gateway import Gateway
from services.console.web import COOKIE, HEADERS
from services.console.wording import languages
from shared import phantom
from shared.errors import StepwedgeError
from shared.identity import PERSON
from shared.settings import WitnessOfLog
from shared.transparency.cosignature import WitnessKey
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.ingest.v1 import ingest_pb2
from tests.wire.cluster import eventually
from tests.wire.console_house import ACCESSION, PASSWORD, PATIENT, Browser, ConsoleHouse, console_house, words_of
from tests.wire.witness_house import House as Witness
from tests.wire.witness_house import running

DECIDED, REQUEUED = audit_pb2.RECORD_KIND_DECIDED, audit_pb2.RECORD_KIND_REQUEUED
ROLES = ("radiographer", "operator", "auditor", "administrator")
PAGES = {
    "/studies": {"radiographer", "operator"},
    "/studies/{study}": {"radiographer", "operator"},
    "/studies/{study}/proof": {"radiographer", "operator"},
    "/studies/{study}/images/1.png": {"radiographer", "operator"},
    "/studies/{study}/images/1/STRUCTURE_HEART.png": {"radiographer", "operator"},
    "/operator": {"operator", "administrator"},
    "/quality": {"radiographer", "operator", "auditor"},
    "/quality.csv": {"radiographer", "operator", "auditor"},
    "/quality/rates.csv": {"radiographer", "operator", "auditor"},
    "/audit": {"auditor"},
    "/audit/entries/1": {"auditor"},
    "/audit/entries/1/proof": {"auditor"},
    "/audit/dossiers/{study}": {"auditor"},
    "/audit/dossiers/{study}.pdf": {"auditor"},
    "/audit/export?format=csv": {"auditor"},
    "/people": {"administrator"},
    "/help": set(ROLES),
    "/password": set(ROLES),
}


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """A real OpenID Connect provider as a process of its own."""
    (port,) = free_ports(1)
    people = [
        {"sub": "1", "preferred_username": "Anna.Berg@hospital.example", "groups": ["xray"]},
        {"sub": "2", "preferred_username": "nobody", "groups": ["canteen"]},
    ]
    claims = [word for person in people for word in ("--user-claims", json.dumps(person))]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port), *claims],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{address}/.well-known/openid-configuration", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    eventually(answers, what="the provider")
    yield address
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, provider: str) -> Iterator[ConsoleHouse]:
    folder = tmp_path_factory.mktemp("console")
    credential = folder / "credential"
    credential.write_text("of the client\n")
    oidc = {
        "issuer": provider,
        "client_id": "stepwedge",
        "client_credential": str(credential),
        "roles": {"xray": "radiographer"},
    }
    with console_house(folder, console={"oidc": oidc}) as made:
        yield made


def records(house: ConsoleHouse, kind: str, **wanted: str) -> list[audit_pb2.Record]:
    """Records of a kind whose event has these members."""
    number = audit_pb2.RecordKind.Value(f"RECORD_KIND_{kind.upper()}")
    found = [entry.record for entry in house.cluster.entries(kind=number)]
    return [one for one in found if all(getattr(getattr(one, kind), name) == value for name, value in wanted.items())]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_sees_its_own_pages_and_no_others(house: ConsoleHouse, role: str):
    person = house.browser(role)
    for page, roles in PAGES.items():
        answer = person.get(page.format(study=house.studies[1]))
        assert answer.status_code == (200 if role in roles else 403), page
        for name, value in HEADERS.items():
            if name != "Cache-Control":
                assert answer.headers[name] == value, page


def test_without_a_session_every_page_leads_to_the_sign_in(house: ConsoleHouse):
    for page in PAGES:
        stranger = Browser(house)
        assert stranger.get(page.format(study=house.studies[1])).url.path == "/sign-in", page


def test_a_forged_or_ended_session_is_none(house: ConsoleHouse):
    forged = Browser(house)
    for token in ("x" * 43, "", "../../etc/passwd", "x" * 5000):
        forged.http.cookies.set(COOKIE, token)
        assert forged.get("/help").url.path == "/sign-in"
    person = house.browser("radiographer")
    token = person.http.cookies[COOKIE]
    assert person.post("/sign-out", page="/help").url.path == "/sign-in"
    forged.http.cookies.clear()
    forged.http.cookies.set(COOKIE, token)
    assert forged.get("/help").url.path == "/sign-in"
    assert records(house, "authenticated", person="radiographer", act="sign_out")
    left = house.browser("radiographer")
    assert left.get("/studies").url.path == "/studies"
    with sqlite3.connect(house.cluster.data / "console.db", timeout=30) as link:
        link.execute("UPDATE sessions SET seen_at = datetime('now', '-16 minutes') WHERE person = 'radiographer'")
    for page in ("/studies?rows=1", "/studies"):
        assert left.get(page).url.path == "/sign-in", page


def test_a_form_without_its_token_or_from_another_site_is_refused(house: ConsoleHouse):
    person = house.browser("radiographer")
    page = f"/studies/{house.studies[0]}"
    fields = {"verdict": "ACCEPT", "reason": "agreed", "revision": "1"}
    assert person.http.post(f"{page}/review", data=fields).status_code == 403
    assert person.http.post(f"{page}/review", data={**fields, "csrf": "x" * 43}).status_code == 403
    right = {**fields, "csrf": person.csrf(page)}
    elsewhere = {"Origin": "https://elsewhere.example"}
    assert person.http.post(f"{page}/review", data=right, headers=elsewhere).status_code == 403
    assert person.http.post(f"{page}/review", data=right, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert not records(house, "reviewed")
    assert person.http.get(f"{page}/review").status_code == 405


def test_a_review_is_recorded_and_the_decision_stands(house: ConsoleHouse):
    person = house.browser("radiographer")
    page = f"/studies/{house.studies[1]}"
    note = "<script>alert(1)</script> & more"
    answer = person.post(
        f"{page}/review", page=page, verdict="ACCEPT", reason="clinically_sufficient", revision="1", note=note
    )
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    assert "&lt;script&gt;alert(1)" in answer.text
    (review,) = records(house, "reviewed", reviewer="radiographer")
    assert review.study == house.studies[1]
    assert len(review.reviewed.note_commitment) == 64
    study = house.cluster.study("1.2.826.0.1.2")
    assert study is not None
    assert len(study.decisions) == 1
    assert study.decisions[0].verdict != study.reviews[0].verdict
    assert person.post(f"{page}/review", page=page, verdict="ACCEPT", reason="agreed", revision="7").status_code == 409
    assert person.post(f"{page}/review", page=page, verdict="MAYBE", reason="agreed", revision="1").status_code == 400


def test_every_view_of_a_study_is_a_record(house: ConsoleHouse):
    person = house.browser("radiographer")
    before = len(records(house, "viewed", person="radiographer", what="study"))
    person.get(f"/studies/{house.studies[0]}/images/1.png")
    person.get(f"/studies/{house.studies[0]}")
    found = records(house, "viewed", person="radiographer", what="study")
    assert len(found) == before + 1, "an image without the page, then the page: one look"
    assert found[-1].study == house.studies[0]


def test_a_list_and_a_search_are_records_that_name_the_studies_they_showed(house: ConsoleHouse):
    person, auditor = house.browser("radiographer"), house.browser("auditor")
    person.get("/studies")
    (listed,) = records(house, "viewed", person="radiographer", what="work_list")[-1:]
    assert set(house.studies) <= set(listed.viewed.studies)
    before = len(records(house, "viewed", what="work_list"))
    person.get("/studies?rows=1")
    assert len(records(house, "viewed", what="work_list")) == before, "nothing that it had not shown"
    auditor.get(f"/audit?study={house.studies[1]}")
    auditor.get("/audit?study=2.25.1")
    found, nothing = records(house, "viewed", person="auditor", what="search")[-2:]
    assert list(found.viewed.studies) == [house.studies[1]]
    assert list(nothing.viewed.studies) == []
    index = house.cluster.entries(study=house.studies[0])[0].index
    for page in (f"/audit/entries/{index}", f"/audit/entries/{index}/proof"):
        auditor.get(page)
        assert records(house, "viewed", person="auditor", what="entry")[-1].study == house.studies[0]


def test_a_person_ends_the_wait_and_page_and_record_name_them(house: ConsoleHouse):
    uid = "1.2.826.0.1.11"
    announced = ingest_pb2.AnnounceStudyRequest(study_instance_uid=uid, instances=3)
    house.cluster.ingest.AnnounceStudy(announced, timeout=10)
    house.send(11)
    waiting = eventually(
        lambda: study if (study := house.cluster.study(uid)) and study.HasField("incomplete") else None, what="the wait"
    )
    person, page = house.browser("radiographer"), f"/studies/{waiting.pseudonym}"
    assert "images that did not come: 2" in person.get(page).text
    assert person.http.post(f"{page}/complete", data={"csrf": "x" * 43}).status_code == 403
    assert person.post(f"{page}/complete", page=page).status_code == 200
    house.cluster.decided(uid)
    text = person.get(page).text
    assert "decided at once, as radiographer asked" in text
    assert "images that did not come: 2" in text
    assert "Decide now" not in text
    (decided,) = [entry.record.decided for entry in house.cluster.entries(study=waiting.pseudonym, kind=DECIDED)]
    assert (decided.forced_by, decided.missing_instances) == ("radiographer", 2)
    assert person.post(f"{page}/complete", page=page).status_code == 409
    assert house.browser("auditor").post(f"{page}/complete", page="/audit").status_code == 403


def test_who_puts_a_dead_letter_back_stands_in_the_record(house: ConsoleHouse):
    study = house.studies[0]
    with sqlite3.connect(house.cluster.data / "ingest.db", timeout=30) as link:
        link.execute("UPDATE studies SET state = 'DEAD_LETTER' WHERE pseudonym = ?", (study,))
    operator, page = house.browser("operator"), f"/studies/{study}"
    assert "Put back in the queue" in operator.get("/operator").text
    assert operator.post(f"{page}/requeue", page=page).status_code == 200
    (back,) = [entry.record.requeued for entry in house.cluster.entries(study=study, kind=REQUEUED)]
    assert (back.requested_by, back.person) == ("console", "operator")
    eventually(lambda: "Put back in the queue by operator." in operator.get(page).text, what="the story")
    assert house.browser("auditor").get("/audit?actor=operator&kind=REQUEUED").text.count("/audit/dossiers/") == 1


def test_rejected_and_repeated_radiographs_are_rates_on_the_page_and_in_the_table(house: ConsoleHouse):
    house.send(12, margins_mm={"top": -25})
    house.cluster.decided("1.2.826.0.1.12")
    house.send(13)
    house.cluster.decided("1.2.826.0.1.13")
    auditor = house.browser("auditor")
    page = auditor.get("/quality?days=7").text
    assert "Repeat rate" in page
    assert "within 60 minutes" in page
    answer = auditor.get("/quality/rates.csv?days=7")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    everything = [row for row in rows if not row["reason"]]
    assert sum(int(row["repeated"]) for row in everything) == sum(int(row["rejected"]) for row in everything) >= 2
    (top,) = [row for row in rows if row["reason"] == "LUNG_MARGIN_TOP"]
    assert int(top["repeated"]) >= 2
    assert top["reject_rate"] == f"{int(top['rejected']) / int(top['images']):.4f}"
    assert top["week"] == f"{date.today():%gW%V}"
    for secret in (PATIENT, ACCESSION, "Canary", "1.2.826"):
        assert secret not in answer.text


def test_a_hundred_thousand_studies_are_paged_and_every_filter_has_its_index(house: ConsoleHouse):
    """What the lists read does not grow with what there is: the plan says so, and a page holds fifty rows."""
    many = """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
        INSERT INTO studies (id, study_instance_uid, pseudonym, state, first_received_at, last_received_at, verdict,
          reasons, decided_at, generation, revision, waiting_for, attempts, last_error, modalities, instances,
          forced_by, forced_generation, constancy)
        SELECT i + 1000000, '9.' || i, '2.25.1' || printf('%030d', i), 'DONE', at, at, 1 + i % 3, '[]', at,
          1, 1, '', 0, 0, 'DX', 1, '', 0, 0 FROM n, (SELECT '2020-01-01 00:00:00.000000' AS at)"""
    plans = ("", "WHERE state = 'DONE'", "WHERE verdict = 3", "WHERE device_id = 1", "WHERE id < 1050000")
    with sqlite3.connect(house.cluster.data / "ingest.db", timeout=60) as link:
        link.execute(many)
        link.commit()
        for where in plans:
            query = f"EXPLAIN QUERY PLAN SELECT * FROM studies {where} ORDER BY id DESC LIMIT 51"
            plan = " ".join(str(row) for row in link.execute(query))
            assert "TEMP B-TREE" not in plan, where
    try:
        person = house.browser("radiographer")
        for page in ("/studies", "/studies?state=DONE", "/studies?verdict=REJECT", "/studies?page=1050000"):
            answer = person.get(page)
            assert answer.text.count("<tr>") == 51, page
            assert len(answer.content) < 100_000, page
            assert answer.elapsed.total_seconds() < 2, page
        stub = house.cluster.ingest
        with pytest.raises(grpc.RpcError):
            stub.ListStudies(ingest_pb2.ListStudiesRequest(page_size=1_000_000), timeout=10)
        assert house.browser("auditor").get("/quality?days=365").status_code == 200
    finally:
        with sqlite3.connect(house.cluster.data / "ingest.db", timeout=60) as link:
            link.execute("DELETE FROM studies WHERE id > 1000000")


def test_a_dossier_of_a_thousand_images_comes_in_parts_and_each_has_the_decision(
    house: ConsoleHouse, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dossier, "PART", 2)
    monkeypatch.setattr(dossier, "_PAGE", 3)

    async def of(part: int) -> dossier.Dossier:
        gateway = Gateway(house.cluster.settings)
        PERSON.set("auditor")
        try:
            return await dossier.dossier(gateway, house.studies[1], made_for="auditor", part=part)
        finally:
            await gateway.close()

    first = asyncio.run(of(1))
    assert first.parts >= 2
    seen: list[int] = []
    for part in range(1, first.parts + 1):
        made = asyncio.run(of(part))
        assert made.proved
        assert "DECIDED" in [line.kind for line in made.lines]
        seen += [line.index for line in made.lines if line.kind != "DECIDED"]
    told = [entry for entry in house.cluster.entries(study=house.studies[1]) if entry.index < first.head.size]
    assert {entry.index for entry in told if entry.record.WhichOneof("event") != "decided"} <= set(seen)
    assert b"/JavaScript" not in dossier.as_pdf(made, languages()["de"], site="<b>Haus & Hof</b>")
    with pytest.raises(StepwedgeError):
        asyncio.run(of(1000))


def test_wrong_passwords_lock_an_account_and_say_nothing_of_it(house: ConsoleHouse):
    admin = house.browser("administrator")
    made = admin.post("/people", page="/people", action="create", name="lock.me", role="auditor")
    assert "lock.me" in made.text
    stranger = Browser(house)
    answers = [stranger.sign_in("lock.me", "wrong").text for _ in range(5)]
    unknown = stranger.sign_in("nobody.here", "wrong")
    assert unknown.status_code == 403
    assert answers[0].count("wrong") == unknown.text.count("wrong")
    assert stranger.sign_in("lock.me", "wrong").status_code == 403
    assert records(house, "authenticated", person="lock.me", act="locked")
    assert records(house, "authenticated", person="unknown", act="refused")
    assert not any("nobody.here" in str(one) for one in records(house, "authenticated"))


def test_the_last_administrator_stays(house: ConsoleHouse):
    admin = house.browser("administrator")
    assert "last administrator" in admin.post("/people", page="/people", action="disable", name="admin").text
    assert (
        "last administrator" in admin.post("/people", page="/people", action="role", name="admin", role="auditor").text
    )


@pytest.mark.parametrize(("field", "number"), [("accession", ACCESSION), ("patient", PATIENT)])
def test_a_number_finds_its_records_and_stays_out_of_them(house: ConsoleHouse, field: str, number: str):
    auditor = house.browser("auditor")
    page = auditor.post("/audit", page="/audit", **{field: number.lower()})
    assert page.text.count("/audit/dossiers/") >= 8
    assert number not in page.text
    assert number.lower() not in str(page.url).lower(), "an address stands in histories and in the logs of proxies"
    assert "Nothing in the log" in auditor.post("/audit", page="/audit", **{field: "another"}).text
    assert auditor.post("/audit", page="/audit").status_code == 400
    assert auditor.get("/audit?token=xyz").status_code == 400
    assert not any(number in str(entry) for entry in house.cluster.entries())
    assert not any(number in line for name in ("console", "audit") for line in house.cluster.log_lines(name))


def test_operation_tells_of_disk_policy_and_models_and_quality_of_groups(house: ConsoleHouse):
    page = house.browser("operator").get("/operator").text
    assert re.search(r"[0-9.]+ GB of [0-9.]+ GB are free", page)
    assert "in force since" in page
    assert "LUNG_MARGIN_TOP" in page  # the file of the policy
    quality = house.browser("auditor").get("/quality?days=7").text
    table = list(csv.DictReader(io.StringIO(house.browser("auditor").get("/quality.csv?days=7").text)))
    groups = [row for row in table if row["what"] == "group"]
    assert {row["group"].partition(":")[0] for row in groups} >= {"sex", "view"}
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) <= 1 for row in groups)
    for said in ("Throughput of the last 24 hours", "Errors of the last 24 hours"):
        assert said in page
    for said in ("By room", "By device", "chest-student", "covid: F", "confidence", "too few images"):
        assert said in quality


def test_a_dossier_proves_every_step_and_prints(house: ConsoleHouse):
    auditor = house.browser("auditor")
    page = auditor.get(f"/audit/dossiers/{house.studies[1]}")
    for kind in ("Received", "De-identified", "Assessed", "Decided", "Looked at by a person"):
        assert kind in page.text
    assert "Not proved" not in page.text
    assert "1.2.826.0.1.2" not in page.text
    assert PATIENT not in page.text
    assert "Patient&#39;s Name" in page.text  # attribute by attribute, by name and without a value
    assert "(0010,0010)" in page.text
    pdf = auditor.get(f"/audit/dossiers/{house.studies[1]}.pdf")
    assert pdf.content.startswith(b"%PDF-")
    assert auditor.get("/audit/dossiers/2.25.1").status_code in (400, 404)


def test_a_dossier_with_identity_needs_a_purpose_and_every_look_is_recorded(house: ConsoleHouse):
    auditor, path = house.browser("auditor"), f"/audit/dossiers/{house.studies[1]}"
    assert auditor.post(f"{path}/identity", page=path, purpose="", format="page").status_code == 400
    assert auditor.post(f"{path}/identity", page=path, purpose="HCOMPL", reference="Mr X").status_code == 400
    assert not records(house, "identity_looked_up")
    page = auditor.post(f"{path}/identity", page=path, purpose="HCOMPL", reference="REQ-2026-17", format="page")
    for shown in (PATIENT, ACCESSION, "Canary^Conny", "1.2.826.0.1.2"):
        assert shown in page.text
    assert PATIENT not in str(page.url)
    paper = auditor.post(f"{path}/identity", page=path, purpose="HCOMPL", format="pdf")
    assert paper.content.startswith(b"%PDF-")
    assert len(records(house, "identity_looked_up")) == 2
    assert len(records(house, "viewed", what="dossier_with_identity")) == 2
    assert not any(PATIENT in line for name in ("console", "audit") for line in house.cluster.log_lines(name))


def test_what_is_taken_away_proves_itself(house: ConsoleHouse, tmp_path: Path):
    auditor = house.browser("auditor")
    verifier = Path(__file__).parents[2] / "verifier" / "verify.py"
    key = (house.cluster.settings.cluster.keys / "audit.vkey").read_text().split()[0]
    bundle = tmp_path / "log.zip"
    bundle.write_bytes(auditor.get("/audit/export?format=bundle").content)
    done = subprocess.run([sys.executable, "-I", verifier, bundle, "--key", key], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "path",
    [
        "/static/../web.py",
        "/static/%2e%2e/web.py",
        "/static/..%2f..%2faccounts.py",
        "/studies/..%2f..%2faudit",
        "/studies/2.25.1/images/1.png",
        "/studies/{study}/images/99.png",
        "/studies/{study}/images/0.png",
        "/studies/{study}/images/1/STRUCTURE_NOTHING.png",
        "/studies?state=NOTHING",
        "/studies?page=-1",
        "/studies?page=" + "9" * 40,
        "/studies?verdict=" + "x" * 300,
        "/studies/{study}/images/1.png?center=nan&width=1",
        "/studies/{study}/images/1.png?center=9&width=1",
        "/studies/{study}?image=x",
        "/quality?days=1000000",
        "/nothing",
        "/people/../audit",
    ],
)
def test_a_crooked_address_gets_a_plain_refusal(house: ConsoleHouse, path: str):
    answer = house.browser("radiographer").get(path.format(study=house.studies[0]))
    assert answer.status_code in (400, 403, 404), answer.status_code
    for leak in ("Traceback", "File ", ".py", "site-packages", "grpc", "sqlite"):
        assert leak not in answer.text.partition("<main")[2]


def test_script_in_a_dicom_string_stays_text(house: ConsoleHouse, tmp_path: Path):
    file = tmp_path / "script.dcm"
    dataset = phantom.to_dicom(
        phantom.chest(3),
        patient_name="<script>alert(1)</script>",
        patient_id="<img src=x onerror=alert(1)>",
        accession_number='"><script>',
        station_name="<b>X</b>",
        study_uid="1.2.826.0.1.9",
        series_uid="1.2.826.0.2.9",
        sop_instance_uid="1.2.826.0.3.9",
    )
    dataset.save_as(file, enforce_file_format=True)
    assert all(sent.ok for sent in house.cluster.store([file]))
    pseudonym = house.cluster.decided("1.2.826.0.1.9").pseudonym
    text = house.browser("radiographer").get(f"/studies/{pseudonym}").text
    assert "<script>alert" not in text
    assert "onerror" not in text


def test_the_hospitals_own_sign_in_lets_in_whom_the_settings_name(house: ConsoleHouse):
    person = Browser(house)
    form = person.get("/oidc/start")
    back = person.http.post(str(form.url), data={"sub": "1"})
    assert back.url.path == "/studies", back.text
    assert "anna.berg" in back.text
    assert records(house, "authenticated", person="anna.berg", act="sign_in", method="oidc", role="radiographer")
    other = Browser(house)
    refused = other.http.post(str(other.get("/oidc/start").url), data={"sub": "2"})
    assert refused.status_code == 403
    assert other.get("/studies").url.path == "/sign-in"


def test_a_sign_in_that_was_not_begun_here_is_refused(house: ConsoleHouse):
    person = Browser(house)
    assert person.get("/oidc/callback?code=x&state=y").status_code == 403
    form = person.get("/oidc/start")
    answer = person.http.post(str(form.url), data={"sub": "1"}, follow_redirects=False)
    target = urljoin(str(form.url), answer.headers["location"])
    assert Browser(house).get(target).status_code == 403, "another browser has not begun it"
    assert person.get(target + "x").status_code == 403, "another state"
    assert person.get(target).url.path == "/studies"
    assert person.get(target).status_code == 403, "a code works once"


def test_nothing_is_shown_that_cannot_be_recorded(house: ConsoleHouse):
    person, auditor = house.browser("radiographer"), house.browser("auditor")
    study = house.studies[0]
    admin = house.browser("administrator")
    token = admin.csrf("/people")
    house.cluster.kill("audit", hold=True)
    try:
        fields = {"csrf": token, "action": "create", "name": "never.made", "role": "auditor"}
        assert "never.made</th>" not in admin.http.post("/people", data=fields).text
        answer = person.get(f"/studies/{study}")
        assert answer.status_code == 503
        assert "AUDIT_UNAVAILABLE" in answer.text
        assert person.get(f"/studies/{study}/images/1.png").status_code == 503
        assert auditor.get(f"/audit/dossiers/{study}").status_code == 503
        assert Browser(house).sign_in("radiographer", PASSWORD).status_code == 503
    finally:
        house.cluster.release("audit")
        house.cluster.wait_ready()
    assert person.get(f"/studies/{study}").status_code == 200
    assert "never.made" not in admin.get("/people").text


def test_erasure_needs_a_second_person_and_a_hold_stops_it(house: ConsoleHouse):
    admin = house.browser("administrator")
    first = re.search(
        r"<code>([0-9a-f-]{27})</code>",
        admin.post("/people", page="/people", action="create", name="second.auditor", role="auditor").text,
    )
    assert first is not None
    second = Browser(house)
    second.sign_in("second.auditor", first[1])
    second.post("/password", page="/password", old=first[1], new=PASSWORD, again=PASSWORD)
    one, page = house.browser("auditor"), "/audit/guarding"
    subject = next(
        entry.record.subject for entry in house.cluster.entries(study=house.studies[0]) if entry.record.subject
    )

    def request(person: Browser) -> str:
        found = re.findall(r'name="number" value="(\d+)"', person.get(page).text)
        assert found, "no open request"
        return found[0]

    wrong = one.post(page, page=page, action="ask", act="erase", target="Canary^Conny", purpose="PATRQT", reference="")
    assert wrong.status_code == 409
    one.post(page, page=page, action="ask", act="hold", target=subject, purpose="HLEGAL", reference="LEG-2026-1")
    refused = one.post(page, page=page, action="agree", number=request(one))
    assert "a second person must agree" in refused.text
    assert second.post(page, page=page, action="agree", number=request(second)).status_code == 200
    held = records(house, "hold")
    assert held[-1].hold.person == "second.auditor"
    one.post(page, page=page, action="ask", act="erase", target=subject, purpose="PATRQT", reference="ERA-2026-1")
    stopped = second.post(page, page=page, action="agree", number=request(second))
    assert stopped.status_code == 409
    assert not [one for one in records(house, "erased") if one.outcome == audit_pb2.EVENT_OUTCOME_SUCCESS]
    assert one.post(page, page=page, action="withdraw", number=request(one)).status_code == 200
    assert one.post(page, page=page, action="agree", number="999999").status_code == 409


@pytest.fixture
def witness(house: ConsoleHouse, tmp_path: Path) -> Iterator[Witness]:
    """A witness as a process of its own that the site names from here on, and that the log asks."""
    log = (house.cluster.settings.cluster.keys / "audit.vkey").read_text().split()[0]
    cluster = house.cluster
    with running(Witness(tmp_path / "witness", "witness.example/one", [log])) as made:
        cluster.settings.audit.witnesses = [WitnessOfLog(url=made.url, vkey=made.vkey)]
        cluster.settings.audit.quorum = 1
        for service in ("audit", "console"):
            cluster.kill(service, hold=True)
            write_for_service(cluster.settings, service, cluster.children.folder / f"{service}.toml")
            cluster.release(service)
        cluster.wait_ready()
        yield made


def test_a_dossier_shows_the_checkpoint_that_a_witness_cosigned_and_the_verifier_bears_it_out(
    house: ConsoleHouse, witness: Witness, tmp_path: Path
):
    path, auditor = f"/audit/dossiers/{house.studies[1]}", house.browser("auditor")
    holds = "These cosignatures hold, and the checkpoint above continues what was cosigned."
    page = eventually(lambda: text if holds in (text := auditor.get(path).text) else "", what="the cosignature")
    assert "witness.example/one cosigned" in page
    assert "\u2014 witness.example/one" in page
    assert "Not proved" not in page
    paper = words_of(auditor.get(f"{path}.pdf").content)
    assert "witness.example/one cosigned" in paper
    assert "These cosignatures hold" in paper
    assert "Every line below is proved" in paper

    verifier = Path(__file__).parents[2] / "verifier" / "verify.py"
    key = (house.cluster.settings.cluster.keys / "audit.vkey").read_text().split()[0]
    decided = house.cluster.entries(study=house.studies[1], kind=DECIDED)[0].index
    bundle, proof = tmp_path / "log.zip", tmp_path / "proof"
    bundle.write_bytes(auditor.get("/audit/export?format=bundle").content)
    proof.write_bytes(auditor.get(f"/audit/entries/{decided}/proof").content)
    other = Witness(tmp_path / "other", "witness.example/one", [key]).vkey
    for given in ([bundle], ["proof", proof]):
        for vkey, ends in ((witness.vkey, 0), (other, 1)):
            told = [sys.executable, "-I", verifier, *given, "--key", key, "--witness", vkey, "--quorum", "1"]
            done = subprocess.run(told, capture_output=True, check=False, text=True)
            assert (done.returncode == 0) == (ends == 0), done.stdout

    async def head(vkey: str) -> dossier.Head:
        gateway = Gateway(house.cluster.settings)
        gateway.witnesses, gateway.quorum = [WitnessKey.parse(vkey)], 1
        PERSON.set("auditor")
        try:
            return await dossier.head_of(gateway)
        finally:
            await gateway.close()

    assert asyncio.run(head(witness.vkey)).sound
    wrong = asyncio.run(head(other))
    assert not wrong.sound, "a site that named another witness does not see it"
    assert dossier.witnessed(wrong.cosigned, languages()["en"]) == ["TOO FEW COSIGNATURES HOLD: 0 of 1."]


def test_the_key_of_the_log_changes_the_log_dies_and_a_dossier_is_proved_as_before(house: ConsoleHouse):
    auditor = house.browser("auditor")
    operator = audit_pb2_grpc.AuditServiceStub(house.cluster.channel("audit"))
    done = operator.RotateKey(audit_pb2.RotateKeyRequest(), timeout=30)
    lines = (house.cluster.settings.cluster.keys / "audit.vkey").read_text().split()
    assert lines == [done.old_key, done.new_key]
    house.cluster.kill("audit")
    house.cluster.wait_ready()
    page = auditor.get(f"/audit/dossiers/{house.studies[1]}")  # the console knows the first key only
    assert (page.status_code, "Not proved" in page.text) == (200, False)
    reads = [entry.record.read for entry in house.cluster.entries(kind=audit_pb2.RECORD_KIND_READ)]
    persons = {read.person for read in reads if read.reader == "console"}
    assert "auditor" in persons
    assert "" not in persons
