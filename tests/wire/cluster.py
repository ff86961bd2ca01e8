"""A whole real cluster for tests: the four services as child processes on free loopback ports in a folder of its own.

It stands on the code that `stepwedge up` runs. Use it as

    with running_cluster(tmp_path, ingest={"quiet_seconds": 0.5}) as cluster:
        cluster.store([path])
        study = cluster.decided(study_instance_uid)
        cluster.kill("audit")            # SIGKILL; starts again by itself
        cluster.kill("audit", hold=True)  # stays away until cluster.release("audit")
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc

from cli import configuration, connect
from cli.cluster import Cluster
from cli.send import Peer, Sent, send
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import sync_channel
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

Found = TypeVar("Found")

DECIDED = frozenset({ingest_pb2.STUDY_STATE_DONE, ingest_pb2.STUDY_STATE_DELIVERING})


def eventually(condition: Callable[[], Found | None], seconds: float = 30.0, *, what: str = "the condition") -> Found:
    """Return the first true answer of `condition`, asked again and again; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:.0f} s"
        time.sleep(0.05)


class RunningCluster:
    """A cluster that runs, and what tests do with it."""

    def __init__(self, file: Path, *, console: bool = False) -> None:
        self.file = file
        self.settings = configuration.load(file)
        self.said: list[str] = []
        """What the supervisor told its user."""
        self.children = Cluster(self.settings, console=console, say=self.said.append)
        host, _, port = self.settings.ingest.dimse.rpartition(":")
        self.dimse = Peer(host, int(port), self.settings.ingest.ae_title, "TESTER")
        self._channels: dict[tuple[str, Identity], grpc.Channel] = {}
        self._lock = threading.Lock()

    @property
    def data(self) -> Path:
        """Everything that the cluster writes lies below."""
        return self.settings.cluster.data

    def channel(self, service: str, identity: Identity = Identity.OPERATOR) -> grpc.Channel:
        """A channel in the name of `identity`, kept for the whole test; gRPC reconnects it."""
        with self._lock:
            if (service, identity) not in self._channels:
                self._channels[service, identity] = sync_channel(
                    self.settings.for_service(service).address,
                    Credentials.load(self.settings.cluster.pki, identity),
                    server=Identity(service),
                )
            return self._channels[service, identity]

    @property
    def ingest(self) -> ingest_pb2_grpc.IngestServiceStub:
        """Ingest, as an operator calls it."""
        return ingest_pb2_grpc.IngestServiceStub(self.channel("ingest"))

    @property
    def audit(self) -> audit_pb2_grpc.AuditServiceStub:
        """The log, as an auditor calls it."""
        return audit_pb2_grpc.AuditServiceStub(self.channel("audit", Identity.AUDITOR))

    def store(self, paths: Sequence[Path]) -> list[Sent]:
        """C-STORE files, as they are."""
        return send(paths, self.dimse)

    def study(self, uid: str) -> ingest_pb2.Study | None:
        """Where a study stands; None where there is none, or ingest does not answer at the moment."""
        key = ingest_pb2.StudyKey(study_instance_uid=uid)
        try:
            return self.ingest.GetStudy(ingest_pb2.GetStudyRequest(study=key), timeout=5).study
        except grpc.RpcError as error:
            code = from_rpc(error).code
            if code in (ErrorCode.ERROR_CODE_STUDY_NOT_FOUND, ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE):
                return None
            raise

    def decided(self, uid: str, seconds: float = 45.0, *, revision: int = 1) -> ingest_pb2.Study:
        """The study, once it is decided (at that revision or a later one) and its results are delivered."""

        def done() -> ingest_pb2.Study | None:
            study = self.study(uid)
            if study is None or study.state != ingest_pb2.STUDY_STATE_DONE:
                return None
            return study if study.decisions and study.decisions[-1].revision >= revision else None

        return eventually(done, seconds, what="a decision on the study")

    def entries(self, **filters: Any) -> list[audit_pb2.Entry]:
        """Entries of the log, in its order; `filters` are the fields of QueryEntriesRequest."""
        found: list[audit_pb2.Entry] = []
        token = ""
        while True:
            request = audit_pb2.QueryEntriesRequest(page_size=1000, page_token=token, **filters)
            page = self.audit.QueryEntries(request, timeout=10)
            found += page.entries
            token = page.next_page_token
            if not token:
                return found

    def export(self, file: Path) -> Path:
        """Write the log's archive."""
        with file.open("wb") as stream:
            for piece in self.audit.Export(audit_pb2.ExportRequest(), timeout=30):
                stream.write(piece.chunk)
        return file

    def log_lines(self, service: str) -> list[str]:
        """What a service wrote to stderr so far."""
        log = self.children.children[service].log
        return log.read_text("utf-8", "replace").splitlines() if log.exists() else []

    def pids(self) -> dict[str, int]:
        """Process ids of the services."""
        return self.children.pids()

    def kill(self, service: str, number: int = signal.SIGKILL, *, hold: bool = False) -> None:
        """Send a signal to a service; it is started again unless held."""
        self.children.kill(service, number, hold=hold)

    def release(self, service: str) -> None:
        """Let a held service start again."""
        self.children.release(service)

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Return when every service is up and SERVING."""
        self.children.wait_ready(seconds)

    def serving(self, service: str) -> bool:
        """Whether the service says SERVING of itself."""
        try:
            return connect.health(self.settings, service).get("", False)
        except StepwedgeError:
            return False

    def close(self) -> None:
        """Close the channels and drain the cluster."""
        for channel in self._channels.values():
            channel.close()
        self.children.stop()


@contextmanager
def running_cluster(
    folder: Path, *, with_console: bool = False, **sections: dict[str, Any]
) -> Iterator[RunningCluster]:
    """A cluster below `folder`, ready; drained at the end.

    `sections` are settings beyond the addresses: `ingest={"quiet_seconds": 0.5}`. The quiet period is 0.5 s unless
    they say otherwise.
    """
    sections["ingest"] = {"quiet_seconds": 0.5, **sections.get("ingest", {})}
    cluster = RunningCluster(configuration.on_free_ports(folder / "cluster", **sections), console=with_console)
    try:
        cluster.children.start()
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.close()
