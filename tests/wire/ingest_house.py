"""Ingest as a real process behind real doors: the real log beside it, and in the place of redaction and inference two
real gRPC servers over mutual TLS that answer as the test tells them to.

So a test can have any answer of a neighbour, also those that the real neighbours give once in a year. The tests of the
whole cluster (tests/faults) run the real ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE

from shared import dicom, keys, pki
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.health import Health
from shared.identity import Identity
from shared.objects import Zone, open_store
from shared.paths import ROOT
from shared.pki import Credentials
from shared.pseudonyms import Pseudonyms
from shared.rpc import Server, sync_channel
from shared.settings import Settings, load
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2, inference_pb2_grpc
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from stepwedge.redaction.v1 import redaction_pb2, redaction_pb2_grpc
from tests.wire.cluster import eventually

DX = "1.2.840.10008.5.1.4.1.1.1.1"
CANARY = "CANARY^PATIENT"
CANARY_WORDS = ("CANARY", "4711-0815", "19610203", "KANARIENVOGEL", "CANARYSTREET")

Answer = StepwedgeError | Callable[[Any], Any] | None


def dx(*, study: str = "", series: str = "", instance: str = "", seed: int = 0) -> Dataset:
    """A small digital radiograph of a patient whose name, number and dates must turn up nowhere."""
    ds = Dataset()
    ds.SOPClassUID = DX
    ds.SOPInstanceUID = instance or generate_uid(None)
    ds.StudyInstanceUID = study or generate_uid(None)
    ds.SeriesInstanceUID = series or generate_uid(None)
    ds.Modality = "DX"
    ds.PatientName = CANARY
    ds.PatientID = "4711-0815"
    ds.PatientBirthDate = "19610203"
    ds.AccessionNumber = "KANARIENVOGEL"
    request = Dataset()
    request.RequestedProcedureDescription = "KANARIENVOGEL in CANARYSTREET"
    ds.RequestAttributesSequence = [request]
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 16, 12, 11
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    ds.PixelData = np.random.default_rng(seed).integers(0, 4096, (16, 16), dtype=np.uint16).tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def part10(ds: Dataset) -> bytes:
    """The object as a Part 10 file."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def data_set(ds: Dataset) -> bytes:
    """The object's data set alone, as it travels in a C-STORE."""
    from services.ingest.door import data_set_offset

    whole = part10(ds)
    return whole[data_set_offset(whole) :]


class Neighbour:
    """A server of one identity in a thread of its own; `answers` by name of the object, else a plain success."""

    def __init__(self, identity: Identity, settings: Settings, register: Any, service: str) -> None:
        self.settings = settings
        self.answers: dict[str, Answer] = {}
        self.calls: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._server: Server | None = None

        async def serve() -> None:
            self._server = Server(identity, settings, Health())
            self._server.add(register, self, service)
            await self._server.run(on_ready=self._ready.set)

        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(serve(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        """Drain and end."""
        assert self._server is not None
        self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(20)

    def answer(self, name: str, request: Any, success: Callable[[], Any]) -> Any:
        """What the test wants, or success."""
        self.calls.append(name)
        wanted = self.answers.get(name, self.answers.get("*"))
        if isinstance(wanted, StepwedgeError):
            raise wanted
        return wanted(success()) if callable(wanted) else success()


class RedactionNeighbour(Neighbour, redaction_pb2_grpc.RedactionServiceServicer):
    """In the place of redaction; named by SOP Instance UID as received."""

    def __init__(self, settings: Settings) -> None:
        self.objects = open_store(settings.objects, {Zone.ORIGINAL, Zone.DEIDENTIFIED})
        self.pseudonyms = Pseudonyms.load(settings.cluster.keys / keys.PSEUDONYMS)
        super().__init__(
            Identity.REDACTION,
            settings,
            redaction_pb2_grpc.add_RedactionServiceServicer_to_server,
            "stepwedge.redaction.v1.RedactionService",
        )

    async def RedactInstance(self, request: Any, context: Any) -> Any:
        """Names of the object, and a stand-in for its de-identified bytes."""
        uids = dicom.uids(dicom.read_header(self.objects.get(Zone.ORIGINAL, request.object.sha256)))
        name = self.pseudonyms.uid

        def success() -> redaction_pb2.RedactInstanceResponse:
            stored = self.objects.put(Zone.DEIDENTIFIED, f"{name(uids.sop_instance)}".encode())
            return redaction_pb2.RedactInstanceResponse(
                object=common_pb2.ObjectReference(
                    zone=common_pb2.ZONE_DEIDENTIFIED, sha256=stored.sha256, size_bytes=stored.size
                ),
                study=name(uids.study),
                series=name(uids.series),
                instance=name(uids.sop_instance),
                record_index=1,
            )

        return self.answer(uids.sop_instance, request, success)


class InferenceNeighbour(Neighbour, inference_pb2_grpc.InferenceServiceServicer):
    """In the place of inference; named by pseudonym of the SOP Instance UID."""

    def __init__(self, settings: Settings) -> None:
        self.objects = open_store(settings.objects, {Zone.DEIDENTIFIED})
        super().__init__(
            Identity.INFERENCE,
            settings,
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            "stepwedge.inference.v1.InferenceService",
        )

    async def AssessInstance(self, request: Any, context: Any) -> Any:
        """One finding that passes."""
        name = self.objects.get(Zone.DEIDENTIFIED, request.object.sha256).decode()
        return self.answer(name, request, lambda: assessed(common_pb2.REASON_BLANK_IMAGE, common_pb2.OUTCOME_PASS))


def assessed(*findings: Any, detail: str = "") -> inference_pb2.AssessInstanceResponse:
    """An answer of inference with one finding."""
    code, outcome = findings
    finding = common_pb2.Finding(code=code, outcome=outcome, detail=detail)
    return inference_pb2.AssessInstanceResponse(assessment=inference_pb2.Assessment(findings=[finding]), record_index=2)


class House:
    """The processes, and what a test does with them."""

    def __init__(self, folder: Path, settings: Settings, config: Path) -> None:
        self.folder = folder
        self.settings = settings
        self.config = config
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.channels: list[grpc.Channel] = []
        host, _, port = settings.ingest.dimse.rpartition(":")
        self.dimse = (host, int(port))

    def start(self, service: str, config: Path | None = None, name: str = "") -> None:
        """Start a service and wait until it says that it is ready."""
        stderr = (self.folder / f"{name or service}.stderr").open("a")
        process = subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"],
            cwd=ROOT,
            env={**os.environ, "STEPWEDGE_CONFIG": str(config or self.config)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        self.processes[name or service] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"ready {service} "), (self.folder / f"{service}.stderr").read_text()[-3000:]

    def stop(self, service: str, number: int = signal.SIGTERM) -> None:
        """End a service and wait until it is gone."""
        process = self.processes.pop(service)
        process.send_signal(number)
        process.wait(40)

    def close(self) -> None:
        """End everything."""
        for channel in self.channels:
            channel.close()
        for service in reversed(list(self.processes)):
            self.stop(service)

    def channel(self, service: str, identity: Identity) -> grpc.Channel:
        """A channel in the name of `identity`."""
        self.channels.append(
            sync_channel(
                self.settings.for_service(service).address,
                Credentials.load(self.settings.cluster.pki, identity),
                server=Identity(service),
            )
        )
        return self.channels[-1]

    def ingest(self, identity: Identity = Identity.OPERATOR) -> ingest_pb2_grpc.IngestServiceStub:
        """Ingest as `identity` calls it."""
        return ingest_pb2_grpc.IngestServiceStub(self.channel("ingest", identity))

    def entries(self, **filters: Any) -> list[audit_pb2.Record]:
        """The log's records, in order, but for those that this very looking makes."""
        stub = audit_pb2_grpc.AuditServiceStub(self.channel("audit", Identity.AUDITOR))
        found, token = [], ""
        while True:
            page = stub.QueryEntries(audit_pb2.QueryEntriesRequest(page_size=1000, page_token=token, **filters))
            found += [entry.record for entry in page.entries if not entry.record.HasField("read")]
            token = page.next_page_token
            if not token:
                return found

    def record_keys(self) -> list[str]:
        """The idempotency keys in the log, in order."""
        return [record.idempotency_key for record in self.entries()]

    def study(self, uid: str) -> ingest_pb2.Study | None:
        """Where a study stands; None where there is none."""
        request = ingest_pb2.GetStudyRequest(study=ingest_pb2.StudyKey(study_instance_uid=uid))
        try:
            return self._ingest.GetStudy(request, timeout=10, wait_for_ready=True).study
        except grpc.RpcError as error:
            if from_rpc(error).code == ErrorCode.ERROR_CODE_STUDY_NOT_FOUND:
                return None
            raise

    @property
    def _ingest(self) -> ingest_pb2_grpc.IngestServiceStub:
        if not hasattr(self, "_stub"):
            self._stub = self.ingest()
        return self._stub

    def in_state(self, uid: str, state: str, seconds: float = 30.0, *, revision: int = 0) -> ingest_pb2.Study:
        """The study, once it is in the state (and decided at that revision)."""
        wanted = ingest_pb2.StudyState.Value(f"STUDY_STATE_{state}")

        def there() -> ingest_pb2.Study | None:
            study = self.study(uid)
            if study is None or study.state != wanted:
                return None
            newest = study.decisions[-1].revision if study.decisions else 0
            return study if newest >= revision else None

        return eventually(there, seconds, what=f"study {state} at revision {revision}")

    def wait_serving(self, *names: str) -> None:
        """Return when ingest says of itself and of these dependencies that they serve."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        stub = health_pb2_grpc.HealthStub(self.channel("ingest", Identity.OPERATOR))

        def serving() -> bool:
            with suppress(grpc.RpcError):
                return all(
                    stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=2).status == 1
                    for name in ("", *(f"dependency/{one}" for one in names))
                )
            return False

        eventually(serving, 20, what="ingest serving")

    def incoming_files(self) -> list[Path]:
        """What lies half received in the zone `original`."""
        return list((Path(self.settings.objects.original) / "incoming").iterdir())

    def stored(self) -> dict[str, bytes]:
        """Every object in the zone `original`, by digest."""
        root = Path(self.settings.objects.original)
        return {path.name: path.read_bytes() for path in root.glob("??/*")}

    def log_text(self) -> str:
        """Everything that the processes wrote to stderr."""
        return "".join(path.read_text() for path in self.folder.glob("*.stderr"))

    def log_events(self, service: str) -> list[dict[str, Any]]:
        """The log lines of a service."""
        return [json.loads(line) for line in (self.folder / f"{service}.stderr").read_text().splitlines()]


@contextmanager
def house(
    folder: Path, ports: Callable[[], int], toml: str = "", database: str = "", *, wait: bool = True
) -> Iterator[House]:
    """The log, ingest and two neighbours below `folder`; `toml` is added to the section [ingest]."""
    data = folder / "data"
    config = folder / "stepwedge.toml"
    config.write_text(
        f"""
[cluster]
data = "{data}"
[ingest]
listen = "127.0.0.1:{ports()}"
metrics = "127.0.0.1:{ports()}"
dimse = "127.0.0.1:{ports()}"
quiet_seconds = 0.3
lease_seconds = 5
{f'database = "{database}"' if database else ""}
{toml}
[redaction]
listen = "127.0.0.1:{ports()}"
metrics = ""
[inference]
listen = "127.0.0.1:{ports()}"
metrics = ""
[audit]
listen = "127.0.0.1:{ports()}"
metrics = ""
"""
    )
    settings = load(config)
    pki.create(settings.cluster.pki, Identity, development=True)
    keys.create(settings.cluster.keys, development=True)
    made = House(folder, settings, config)
    made.redaction = RedactionNeighbour(settings)  # type: ignore[attr-defined]
    made.inference = InferenceNeighbour(settings)  # type: ignore[attr-defined]
    try:
        made.start("audit")
        made.start("ingest")
        if wait:
            made.wait_serving("redaction", "inference", "audit")
        yield made
    finally:
        made.close()
        made.redaction.stop()  # type: ignore[attr-defined]
        made.inference.stop()  # type: ignore[attr-defined]


class Sender:
    """A DICOM peer that sends, well or badly behaved."""

    def __init__(self, address: tuple[str, int], contexts: Sequence[tuple[str, str]], title: str = "MODALITY") -> None:
        ae = AE(title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        ae.requested_contexts = [build_context(sop_class, syntax) for sop_class, syntax in contexts]
        self.association = ae.associate(*address)

    def __enter__(self) -> Sender:
        assert self.association.is_established, "no association"
        return self

    def __exit__(self, *_: object) -> None:
        if self.association.is_established:
            self.association.release()

    def store(self, ds: Dataset) -> Dataset:
        """C-STORE of the object as it is, byte for byte; returns the response's status."""
        return self.store_bytes(data_set(ds), str(ds.SOPClassUID), str(ds.SOPInstanceUID))

    def store_bytes(self, content: bytes, sop_class: str, sop_instance: str, context: int = 0) -> Dataset:
        """C-STORE of any bytes under any names."""
        self.send(content, sop_class, sop_instance, context)
        _, response = self.association.dimse.get_msg(block=True)
        self.association._reactor_checkpoint.set()
        assert response is not None, "no response"
        status = Dataset()
        status.Status = response.Status
        if response.ErrorComment is not None:
            status.ErrorComment = response.ErrorComment
        return status

    def send(self, content: bytes, sop_class: str, sop_instance: str, context: int = 0) -> None:
        """Send a request and do not wait."""
        association = self.association
        association._reactor_checkpoint.clear()
        while not association._is_paused:
            time.sleep(0.0005)
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID = sop_class
        request._affected_sop_instance_uid = sop_instance
        request.DataSet = BytesIO(content)
        chosen = next(
            cx.context_id for cx in association.accepted_contexts if str(cx.abstract_syntax) == sop_class or context
        )
        association.dimse.send_msg(request, context or chosen)


def submit(stub: ingest_pb2_grpc.IngestServiceStub, data: bytes, size: int = 1 << 20) -> Any:
    """SubmitInstance of a file in chunks."""
    chunks = (ingest_pb2.SubmitInstanceRequest(chunk=data[at : at + size]) for at in range(0, max(len(data), 1), size))
    return stub.SubmitInstance(chunks, timeout=30)


@contextmanager
def refused_with(code: str) -> Iterator[None]:
    """The block's call is refused with this code."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert from_rpc(caught.value).name == code, caught.value
