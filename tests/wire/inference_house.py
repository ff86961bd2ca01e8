"""Inference as a process, beside a real log, over mutual TLS, for the tests on the wire."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc

from cli import configuration
from shared import keys, phantom, pki
from shared.identity import Identity
from shared.objects import ObjectStore, Zone, open_store
from shared.paths import MODEL
from shared.pki import Credentials
from shared.rpc import sync_channel
from shared.settings import Settings
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2, inference_pb2_grpc


def uid(number: int) -> str:
    """A UID as redaction writes them (PS3.5 B.2)."""
    return f"2.25.{10**30 + number}"


def chest(seed: int = 1, number: int = 1) -> bytes:
    """A phantom as a de-identified DX object."""
    dataset = phantom.to_dicom(
        phantom.chest(seed),
        patient_name="",
        patient_id="SW-AAAAAAAAAAAAAAAAAAAAAAAA",
        study_uid=uid(1),
        series_uid=uid(2),
        sop_instance_uid=uid(100 + number),
    )
    return as_bytes(dataset)


def as_bytes(dataset: Any) -> bytes:
    """A data set as a Part 10 file."""
    from io import BytesIO

    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class House:
    """The log and inference as child processes, and the hands of those who call them."""

    def __init__(
        self, folder: Path, *, model: Path = MODEL, provider: str = "CPUExecutionProvider", **inference: Any
    ) -> None:
        self.file = configuration.on_free_ports(
            folder / "cluster", inference={"model": str(model), "provider": provider, **inference}
        )
        self.settings: Settings = configuration.load(self.file)
        pki.create(self.settings.cluster.pki, Identity, development=True)
        keys.create(self.settings.cluster.keys, development=True)
        self.store: ObjectStore = open_store(self.settings.objects, set(Zone))
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.errors = folder / "stderr.txt"

    def start(self, name: str) -> str:
        """Start a service and return its first line."""
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
        return process.stdout.readline()

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a service."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()

    def channel(self, service: Identity, identity: Identity) -> grpc.Channel:
        """A channel to a service in the name of `identity`."""
        credentials = Credentials.load(self.settings.cluster.pki, identity)
        return sync_channel(self.settings.for_service(service).address, credentials, server=service)

    def inference(self, identity: Identity = Identity.INGEST) -> Any:
        """Inference, as `identity` calls it."""
        return inference_pb2_grpc.InferenceServiceStub(self.channel(Identity.INFERENCE, identity))

    def reference(self, data: bytes, zone: Zone = Zone.DEIDENTIFIED) -> common_pb2.ObjectReference:
        """Put an object into the store."""
        stored = self.store.put(zone, data)
        number = common_pb2.ZONE_ORIGINAL if zone is Zone.ORIGINAL else common_pb2.ZONE_DEIDENTIFIED
        return common_pb2.ObjectReference(zone=number, sha256=stored.sha256, size_bytes=stored.size)

    def assess(self, reference: common_pb2.ObjectReference, *, seconds: float = 30) -> Any:
        """Have an object assessed."""
        request = inference_pb2.AssessInstanceRequest(object=reference)
        return self.inference().AssessInstance(request, timeout=seconds)

    def entries(self, **filters: Any) -> list[Any]:
        """Entries of the log."""
        stub = audit_pb2_grpc.AuditServiceStub(self.channel(Identity.AUDIT, Identity.AUDITOR))
        return list(stub.QueryEntries(audit_pb2.QueryEntriesRequest(page_size=1000, **filters), timeout=10).entries)

    def close(self) -> None:
        """End what runs."""
        for name in reversed(list(self.processes)):
            self.stop(name)
