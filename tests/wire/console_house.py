"""A real cluster with its console, a few studies in it, and people who sign in over HTTPS."""

from __future__ import annotations

import base64
import re
import ssl
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from shared import phantom
from tests.wire.cluster import RunningCluster, running_cluster

PASSWORD = "a long walk by the river"
ACCESSION = "ACC-778899"
PATIENT = "MRN-445566"


class Browser:
    """A person's browser, as far as HTTP goes: cookies, forms, redirects."""

    def __init__(self, house: ConsoleHouse, language: str = "en") -> None:
        context = ssl.create_default_context(cafile=str(house.cluster.settings.cluster.pki / "ca.crt"))
        url = house.cluster.settings.console.url
        self.http = httpx.Client(
            base_url=url, verify=context, follow_redirects=True, headers={"Accept-Language": language}, timeout=20
        )

    def get(self, path: str, **given: Any) -> httpx.Response:
        return self.http.get(path, **given)

    def post(self, path: str, *, page: str = "", **fields: str) -> httpx.Response:
        """Send a form with the token of the page that it is on."""
        token = self.csrf(page) if page else ""
        return self.http.post(path, data={**fields, **({"csrf": token} if token else {})})

    def csrf(self, page: str) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.get(page).text)
        assert found is not None, "no form on the page"
        return found[1]

    def sign_in(self, name: str, password: str) -> httpx.Response:
        return self.post("/sign-in", name=name, password=password)


class ConsoleHouse:
    """The cluster, its accounts, and the studies that were sent."""

    def __init__(self, cluster: RunningCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.first = ""
        self.studies: list[str] = []

    def begin(self) -> None:
        """Send two radiographs, and make an account for each role."""
        self.send(1)
        self.send(2, margins_mm={"top": -25})
        for number in (1, 2):
            self.studies.append(self.cluster.decided(f"1.2.826.0.1.{number}").pseudonym)
        self.first = self.cluster.settings.console.first_password.read_text().strip()
        admin = Browser(self)
        assert admin.sign_in("admin", self.first).url.path == "/password"
        changed = admin.post("/password", page="/password", old=self.first, new=PASSWORD, again=PASSWORD)
        assert changed.url.path == "/people", changed.text
        assert "Begin here" in changed.text
        for role in ("radiographer", "operator", "auditor"):
            made = admin.post("/people", page="/people", action="create", name=role, role=role)
            found = re.search(r"<code>([0-9a-f-]{27})</code>", made.text)
            assert found is not None, made.text
            person = Browser(self)
            person.sign_in(role, found[1])
            person.post("/password", page="/password", old=found[1], new=PASSWORD, again=PASSWORD)

    def send(self, number: int, **drawn: Any) -> None:
        """Send one more radiograph, as a study of its own."""
        file = self.folder / f"{number}.dcm"
        uids: dict[str, Any] = {
            "study_uid": f"1.2.826.0.1.{number}",
            "series_uid": f"1.2.826.0.2.{number}",
            "sop_instance_uid": f"1.2.826.0.3.{number}",
        }
        dataset: Any = phantom.to_dicom(
            phantom.chest(number, **drawn),
            patient_name="Canary^Conny",
            patient_id=PATIENT,
            accession_number=ACCESSION,
            **uids,
        )
        dataset.save_as(file, enforce_file_format=True)
        assert all(sent.ok for sent in self.cluster.store([file]))

    def browser(self, role: str, language: str = "en") -> Browser:
        """Somebody of this role, signed in."""
        person = Browser(self, language)
        answer = person.sign_in("admin" if role == "administrator" else role, PASSWORD)
        assert answer.status_code == 200, answer.text
        assert answer.url.path not in ("/sign-in", "/password")
        return person


def words_of(paper: bytes) -> str:
    """What stands on a PDF of ours."""
    streams = re.findall(rb"ASCII85Decode.*?stream\r?\n(.*?)~>", paper, re.DOTALL)
    pages = (zlib.decompress(base64.a85decode(one)).decode("latin-1") for one in streams)
    return " ".join(text for page in pages for text in re.findall(r"\((.*?)\) Tj", page))


@contextmanager
def console_house(folder: Path, **sections: Any) -> Iterator[ConsoleHouse]:
    """A console over a cluster with two decided studies."""
    with running_cluster(folder, with_console=True, **sections) as cluster:
        house = ConsoleHouse(cluster, folder)
        house.begin()
        yield house
