"""A real PACS for tests: Orthanc as a plain process on free loopback ports, in a folder of its own.

    with running_orthanc(tmp_path, modalities={"ours": ("STEPWEDGE", "127.0.0.1", 11112)}) as orthanc:
        orthanc.add(path.read_bytes())
        orthanc.store("ours", orthanc.instances())       # C-STORE from Orthanc
        assert orthanc.file(orthanc.find_instance(uid)) == ...

Tests that need it are marked `needs_orthanc` (and `needs_orthanc_dicomweb` where its DICOMweb plug-in plays a part).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.wire.ports import port

BINARY: Final = shutil.which("Orthanc", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
_PLUGINS: Final = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"))
_FOUND: Final = [found for folder in _PLUGINS for found in sorted(folder.glob("libOrthancDicomWeb*"))]
DICOMWEB_PLUGIN: Final = _FOUND[0] if _FOUND else None

_INSTALL: Final = "apt-get install orthanc orthanc-dicomweb"
needs_orthanc = pytest.mark.skipif(BINARY is None, reason=f"needs Orthanc: {_INSTALL}")
needs_orthanc_dicomweb = pytest.mark.skipif(
    BINARY is None or DICOMWEB_PLUGIN is None, reason=f"needs Orthanc and its DICOMweb plug-in: {_INSTALL}"
)

_START_SECONDS: Final = 30.0
_CALL_SECONDS: Final = 60.0


class Orthanc:
    """One that runs. `dimse` and `http` are (host, port); every method raises `urllib.error.HTTPError` on a refusal."""

    def __init__(self, folder: Path, title: str, dimse: tuple[str, int], http: tuple[str, int]) -> None:
        self.folder = folder
        self.title = title
        self.dimse = dimse
        self.http = http
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Root of its REST interface."""
        return f"http://{self.http[0]}:{self.http[1]}"

    @property
    def dicomweb(self) -> str:
        """Root of its DICOMweb service, where the plug-in is loaded."""
        return f"{self.url}/dicom-web"

    def start(self) -> None:
        """Start it and return when it answers."""
        assert BINARY is not None, _INSTALL
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen(
                [BINARY, str(self.folder / "orthanc.json")],
                stdout=log,
                stderr=log,
                # DCMTK's sockets wait for more to send unless told otherwise, which would slow each small answer.
                env={**os.environ, "TCP_NODELAY": "1", "LC_ALL": "C.UTF-8"},
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            assert self.process.poll() is None, self.log()[-3000:]
            assert time.monotonic() < deadline, self.log()[-3000:]
            try:
                self.get("/system")
                return
            except OSError:
                time.sleep(0.05)

    def stop(self) -> None:
        """End it; what it stores stays until the folder goes."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "orthanc.log").read_text("utf-8", "replace")

    # -- its REST interface

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        """One call; the answer's body."""
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_CALL_SECONDS) as reply:
            answer: bytes = reply.read()
            return answer

    def get(self, path: str) -> Any:
        """A JSON answer."""
        return json.loads(self.request("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """A JSON question and its JSON answer; None where that is empty."""
        answer = self.request("POST", path, json.dumps(body).encode(), **{"Content-Type": "application/json"})
        return json.loads(answer) if answer else None

    def add(self, part10: bytes) -> str:
        """Put a file in; returns Orthanc's own name of the instance."""
        return str(json.loads(self.request("POST", "/instances", part10))["ID"])

    def instances(self) -> list[str]:
        """Orthanc's own names of everything that it holds."""
        return [str(one) for one in self.get("/instances")]

    def find(self, level: str, **query: str) -> list[str]:
        """Orthanc's own names of what matches, e.g. `find("Instance", SOPInstanceUID=uid)`."""
        return [str(one) for one in self.post("/tools/find", {"Level": level, "Query": query})]

    def file(self, name: str) -> bytes:
        """The stored file of an instance; what came by C-STORE bears file meta information of Orthanc's own making."""
        return self.request("GET", f"/instances/{name}/file")

    def tags(self, name: str) -> Mapping[str, Any]:
        """The attributes of an instance by keyword."""
        found: Mapping[str, Any] = self.get(f"/instances/{name}/simplified-tags")
        return found

    # -- it sends

    def echo(self, modality: str) -> None:
        """C-ECHO to one of its modalities."""
        self.post(f"/modalities/{modality}/echo", {})

    def store(self, modality: str, names: Iterable[str]) -> Any:
        """C-STORE of resources (instances, series or studies) to one of its modalities; returns the job's summary."""
        return self.post(f"/modalities/{modality}/store", {"Resources": list(names), "Synchronous": True})

    def commit(self, modality: str, pairs: Iterable[tuple[str, str]]) -> str:
        """Ask for storage commitment of (SOP Class UID, SOP Instance UID); returns the path of the report."""
        asked = {"DicomInstances": [list(pair) for pair in pairs]}
        return str(self.post(f"/modalities/{modality}/storage-commitment", asked)["Path"])

    def stow(self, server: str, names: Iterable[str]) -> Any:
        """STOW-RS of resources to one of its DICOMweb servers; returns the job's content."""
        return self.post(f"/dicom-web/servers/{server}/stow", {"Resources": list(names), "Synchronous": True})

    def retrieve(self, server: str, study: str, series: str = "", instance: str = "") -> Any:
        """WADO-RS from one of its DICOMweb servers into its own store."""
        levels = {"Study": study, "Series": series, "Instance": instance}
        named = {level: uid for level, uid in levels.items() if uid}
        return self.post(f"/dicom-web/servers/{server}/retrieve", {"Resources": [named], "Synchronous": True})

    def qido(self, server: str, path: str, **arguments: str) -> Any:
        """QIDO-RS of one of its DICOMweb servers; `path` as `/studies`."""
        asked = {"Uri": path, "Arguments": arguments, "HttpHeaders": {"Accept": "application/dicom+json"}}
        return self.post(f"/dicom-web/servers/{server}/get", asked)


@contextmanager
def running_orthanc(
    folder: Path,
    *,
    title: str = "ORTHANC",
    modalities: Mapping[str, tuple[str, str, int]] | None = None,
    dicomweb_servers: Mapping[str, Any] | None = None,
    dicomweb: bool = True,
    dimse_port: int = 0,
    http_port: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Orthanc]:
    """Orthanc below `folder`.

    Parameters
    ----------
    title
        Its AE title.
    modalities
        Name to (AE title, host, port) of those to which it sends and whom it lets ask.
    dicomweb_servers
        Name to what Orthanc's `DicomWeb.Servers` takes: `[url]`, `[url, user, password]` or a dictionary with `Url`,
        `HttpHeaders` and so on.
    dicomweb
        Load the plug-in, where it is there.
    dimse_port, http_port
        0 for a free one.
    options
        Go into its configuration last, over what stands there.
    """
    home = folder / f"orthanc-{title.lower()}"
    home.mkdir(parents=True, exist_ok=True)
    made = Orthanc(home, title, ("127.0.0.1", dimse_port or port()), ("127.0.0.1", http_port or port()))
    configuration: dict[str, Any] = {
        "Name": title,
        "StorageDirectory": str(home / "storage"),
        "IndexDirectory": str(home / "storage"),
        "Plugins": [str(DICOMWEB_PLUGIN)] if dicomweb and DICOMWEB_PLUGIN else [],
        "HttpPort": made.http[1],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": title,
        "DicomPort": made.dimse[1],
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAssociationCloseDelay": 0,
        "UnknownSopClassAccepted": True,
        "StableAge": 1,
        "DicomModalities": {name: list(address) for name, address in (modalities or {}).items()},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Servers": dict(dicomweb_servers or {})},
        **(options or {}),
    }
    (home / "orthanc.json").write_text(json.dumps(configuration, indent=1))
    try:
        made.start()
        yield made
    finally:
        made.stop()
