"""Redaction as a process, beside a real log, over mutual TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from pydicom.data import get_testdata_file

from cli import configuration
from services.redaction.engine import redact
from services.redaction.profile import Profile
from shared import dicom, keys, pki, pseudonym_keys
from shared.errors import ErrorCode, from_rpc
from shared.identity import Identity
from shared.objects import ObjectStore, Zone, open_store
from shared.pki import Credentials
from shared.pseudonyms import Pseudonyms
from shared.rpc import sync_channel
from shared.settings import Settings
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.common.v1 import common_pb2
from stepwedge.redaction.v1 import redaction_pb2, redaction_pb2_grpc

CLASS, NOT_A_CLASS = b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.276.0.7230010.9.9.9.9\0"


class House:
    """The log and redaction as child processes, and the hands of those who call them."""

    def __init__(self, folder: Path) -> None:
        self.file = configuration.on_free_ports(folder / "cluster")
        self.settings: Settings = configuration.load(self.file)
        pki.create(self.settings.cluster.pki, Identity, development=True)
        keys.create(self.settings.cluster.keys, development=True)
        self.store: ObjectStore = open_store(self.settings.objects, set(Zone))
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.errors = folder / "stderr.txt"
        self.start("audit")
        self.start("redaction")

    def start(self, name: str) -> None:
        """Start a service and return when it is ready."""
        environment = {**os.environ, "STEPWEDGE_CONFIG": str(self.file)}
        with self.errors.open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", f"services.{name}"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.processes[name] = process
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"ready {name} "), self.errors.read_text()

    def stub(self, identity: Identity = Identity.INGEST) -> Any:
        """Redaction, as `identity` calls it."""
        credentials = Credentials.load(self.settings.cluster.pki, identity)
        channel = sync_channel(self.settings.redaction.address, credentials, server=Identity.REDACTION)
        return redaction_pb2_grpc.RedactionServiceStub(channel)

    def redact(self, data: bytes, identity: Identity = Identity.INGEST) -> Any:
        """Put an object into the store and have it redacted."""
        stored = self.store.put(Zone.ORIGINAL, data)
        reference = common_pb2.ObjectReference(zone=common_pb2.ZONE_ORIGINAL, sha256=stored.sha256)
        request = redaction_pb2.RedactInstanceRequest(object=reference)
        return self.stub(identity).RedactInstance(request, timeout=30)

    def records(self) -> list[Any]:
        """Every record of the log."""
        credentials = Credentials.load(self.settings.cluster.pki, Identity.AUDITOR)
        channel = sync_channel(self.settings.audit.address, credentials, server=Identity.AUDIT)
        answer = audit_pb2_grpc.AuditServiceStub(channel).QueryEntries(audit_pb2.QueryEntriesRequest(), timeout=10)
        return [entry.record for entry in answer.entries]

    def workers(self) -> list[psutil.Process]:
        """The worker processes of redaction (the tracker of multiprocessing is none)."""
        workers = []
        for child in psutil.Process(self.processes["redaction"].pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # which one that ended a moment ago is, too
                if "spawn_main" in " ".join(child.cmdline()):
                    workers.append(child)
        return workers

    def close(self) -> None:
        """End what runs."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(30)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for the tests of this file."""
    built = House(tmp_path_factory.mktemp("redaction"))
    yield built
    built.close()


def _sample() -> bytes:
    return Path(get_testdata_file("CT_small.dcm")).read_bytes()


def _runs(process: psutil.Process) -> bool:
    """Whether the process does anything still; one that ends at any moment in here does not."""
    with contextlib.suppress(psutil.NoSuchProcess):  # which a zombie is, too
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _code(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc(caught.value)


def test_an_object_is_redacted_stored_recorded_and_answered(house: House) -> None:
    answer = house.redact(_sample())
    key = house.settings.cluster.keys / keys.PSEUDONYMS
    expected = redact(_sample(), Pseudonyms.load(key), Profile.load(Profile.file("basic-pixels")))
    assert house.store.get(Zone.DEIDENTIFIED, answer.object.sha256) == expected.data
    assert answer.object.size_bytes == len(expected.data)
    assert (answer.study, answer.instance, answer.subject) == (expected.study, expected.instance, expected.subject)
    record = house.records()[answer.record_index]
    assert record.pins.deidentified_sha256 == answer.object.sha256 == answer.receipt.output_sha256
    assert record.pins.profile_edition == "2026c"
    assert record.redacted.key_id == answer.receipt.key_id == Pseudonyms.load(key).key_id
    assert not record.redacted.second_opinion
    assert answer.receipt.profile == "basic-pixels"
    assert record.study == dicom.uids(dicom.read_header(expected.data)).study
    assert record.outcome == audit_pb2.EVENT_OUTCOME_SUCCESS


def test_the_same_object_again_is_the_same_result_and_the_same_record(house: House) -> None:
    first, second = house.redact(_sample()), house.redact(_sample())
    assert first == second


def test_a_refusal_is_recorded_before_it_is_answered(house: House) -> None:
    data = _sample().replace(CLASS, NOT_A_CLASS)
    error = _code(lambda: house.redact(data))
    assert error.code == ErrorCode.ERROR_CODE_NOT_REDACTABLE
    record = house.records()[-1]
    assert record.redacted.refusal == ErrorCode.ERROR_CODE_NOT_REDACTABLE
    assert record.outcome == audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE
    assert not record.pins.deidentified_sha256


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"not dicom at all", ErrorCode.ERROR_CODE_NOT_DICOM),
        (_sample()[:2000], ErrorCode.ERROR_CODE_MALFORMED_DICOM),
    ],
    ids=["not DICOM", "cut off"],
)
def test_bad_objects_get_a_code(house: House, data: bytes, code: Any) -> None:
    error = _code(lambda: house.redact(data))
    assert error.code == code
    assert error.permanent


def test_a_request_that_names_no_object_of_the_originals_is_refused(house: House) -> None:
    def call(zone: Any, sha256: str) -> Any:
        reference = common_pb2.ObjectReference(zone=zone, sha256=sha256)
        return house.stub().RedactInstance(redaction_pb2.RedactInstanceRequest(object=reference), timeout=10)

    invalid = ErrorCode.ERROR_CODE_INVALID_REQUEST
    assert _code(lambda: call(common_pb2.ZONE_DEIDENTIFIED, "0" * 64)).code == invalid
    assert _code(lambda: call(common_pb2.ZONE_ORIGINAL, "../../etc/passwd")).code == invalid
    missing = _code(lambda: call(common_pb2.ZONE_ORIGINAL, "0" * 64))
    assert missing.code == ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND


def test_only_ingest_may_call(house: House) -> None:
    for identity in (Identity.INFERENCE, Identity.OPERATOR, Identity.PACS):
        assert _code(lambda who=identity: house.redact(_sample(), who)).code == ErrorCode.ERROR_CODE_PERMISSION_DENIED


def test_a_worker_that_dies_is_replaced_and_takes_nothing_with_it(house: House) -> None:
    killed = house.workers()
    for worker in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    _until(lambda: not any(map(_runs, killed)))
    with contextlib.suppress(grpc.RpcError):
        house.redact(_sample())
    assert house.redact(_sample()).object.sha256


def test_without_the_log_nothing_is_answered(house: House) -> None:
    audit = house.processes["audit"]
    audit.kill()
    audit.wait(10)
    stored = house.store.put(Zone.ORIGINAL, _sample())
    reference = common_pb2.ObjectReference(zone=common_pb2.ZONE_ORIGINAL, sha256=stored.sha256)
    with pytest.raises(grpc.RpcError):
        house.stub().RedactInstance(redaction_pb2.RedactInstanceRequest(object=reference), timeout=3)
    house.start("audit")
    assert house.redact(_sample()).object.sha256


def test_a_killed_service_leaves_no_worker_behind(house: House) -> None:
    house.redact(_sample())
    workers = house.workers()
    assert workers
    house.processes["redaction"].kill()
    house.processes["redaction"].wait(10)
    _until(lambda: not any(map(_runs, workers)))
    house.start("redaction")
    assert house.redact(_sample()).object.sha256


def test_after_a_rotation_late_images_get_the_names_that_their_study_has(house: House) -> None:
    before = house.redact(_sample())
    house.processes["redaction"].terminate()
    house.processes["redaction"].wait(30)
    new_key = pseudonym_keys.rotate(house.settings.cluster.keys / keys.PSEUDONYMS)
    house.start("redaction")
    anew = house.redact(_sample())
    assert anew.receipt.key_id == new_key
    assert anew.study != before.study
    request = redaction_pb2.RedactInstanceRequest(
        object=common_pb2.ObjectReference(
            zone=common_pb2.ZONE_ORIGINAL, sha256=house.store.put(Zone.ORIGINAL, _sample()).sha256
        ),
        study=before.study,
    )
    late = house.stub().RedactInstance(request, timeout=30)
    assert (late.study, late.instance, late.subject) == (before.study, before.instance, before.subject)
    assert late.receipt == before.receipt
    assert late.record_index == before.record_index, "the same act is the same record"


def test_nothing_of_the_patient_is_in_what_was_logged(house: House) -> None:
    text = house.errors.read_text()
    for word in ("CompressedSamples", "1CT1", "1.3.6.1.4.1.5962"):
        assert word not in text
