"""A patient goes through the whole running cluster and is found nowhere behind the door (law 4)."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from shared.identity import SERVICES, Identity
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.wire import canary
from tests.wire.cluster import RunningCluster, running_cluster
from tests.wire.command import stepwedge


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OpenTelemetry collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans = 0
        self.bytes = b""

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.spans += sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
        self.bytes += request.SerializeToString()
        return trace_service_pb2.ExportTraceServiceResponse()


class Passage:
    """What the canary's passage through the cluster left behind."""

    def __init__(self) -> None:
        self.places: dict[str, bytes] = {}
        """Where -> bytes, of everything behind the door."""
        self.of_the_operator: dict[str, bytes] = {}
        """What an operator is shown: UIDs as received may stand there."""
        self.original: list[Path] = []
        self.spans = 0
        self.records = 0


@pytest.fixture(scope="module")
def passage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Passage]:
    folder = tmp_path_factory.mktemp("canary")
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    passage = Passage()
    telemetry = {"log_level": "DEBUG", "otlp_endpoint": f"http://127.0.0.1:{port}"}
    with running_cluster(folder, telemetry=telemetry) as cluster:
        errors = _go_through(cluster, folder)
        _collect_while_it_runs(passage, cluster, folder)
        passage.places["gRPC errors"] = errors
        passage.records = len(cluster.entries())
    server.stop(0)
    passage.spans = collector.spans
    passage.places["traces"] = collector.bytes
    _collect_what_lies_there(passage, cluster)
    return passage


def _go_through(cluster: RunningCluster, folder: Path) -> bytes:
    """Send the canary by every door, well-formed and not; the texts of the errors that came back."""
    sources = ("CT_small.dcm", "MR_small_implicit.dcm", "examples_rgb_color.dcm", "reportsi.dcm", "phantom")
    objects = [canary.planted(source, number) for number, source in enumerate(sources, start=1)]
    paths = [canary.write(ds, folder / f"{number}.dcm") for number, ds in enumerate(objects)]
    sent = cluster.store(paths)
    assert all(one.ok for one in sent), [(one.code, one.words) for one in sent]
    words = [_failing_dimse(cluster, objects[0], folder)]
    stub = ingest_pb2_grpc.IngestServiceStub(cluster.channel("ingest", Identity.PACS))
    whole = paths[0].read_bytes()
    conflict = canary.write(canary.with_other_content(objects[1]), folder / "conflict.dcm").read_bytes()
    lying = whole.replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.4\0", 1)
    crossed = whole.replace(f"{canary.ROOT}.1.1.1".encode(), f"../../{canary.FAMILY}.1".ljust(36)[:36].encode())
    submissions = [
        whole,
        conflict,
        lying,
        crossed,
        whole[:900],
        whole[132:],
        b"",
        canary.NAME.encode() * 40,
        whole[:600] + b"\xff" * 40 + whole[640:],
    ]
    for data in submissions:
        words.append(_told(lambda data=data: stub.SubmitInstance(_pieces(data), timeout=20)))
    for uid in (f"{canary.ROOT}.404", f"{canary.FAMILY}/../x"):
        key = ingest_pb2.StudyKey(study_instance_uid=uid)
        words.append(_told(lambda key=key: stub.GetStudy(ingest_pb2.GetStudyRequest(study=key), timeout=20)))
        words.append(_told(lambda key=key: stub.RequeueStudy(ingest_pb2.RequeueStudyRequest(study=key), timeout=20)))
    for ds in objects:
        cluster.decided(str(ds.StudyInstanceUID))
    return "\n".join(words).encode()


def _pieces(data: bytes) -> Iterator[ingest_pb2.SubmitInstanceRequest]:
    for start in range(0, len(data) or 1, 1 << 20):
        yield ingest_pb2.SubmitInstanceRequest(chunk=data[start : start + (1 << 20)])


def _told(call: Callable[[], object]) -> str:
    """All that a caller is told of a failed call; nothing where it succeeds."""
    try:
        call()
    except grpc.RpcError as error:
        trailing = [f"{key}={value!r}" for key, value in error.trailing_metadata() or ()]
        return f"{error.code()} {error.details()} {' '.join(trailing)}"
    return ""


def _failing_dimse(cluster: RunningCluster, ds: canary.Dataset, folder: Path) -> str:
    """Objects that C-STORE must refuse; the statuses."""
    whole = (folder / "0.dcm").read_bytes()
    broken = folder / f"{canary.FAMILY}.dcm"
    broken.write_bytes(whole[:2000])
    return " ".join(f"{sent.code} {sent.words}" for sent in cluster.store([broken]))


def _collect_while_it_runs(passage: Passage, cluster: RunningCluster, folder: Path) -> None:
    for service in SERVICES:
        url = f"http://{cluster.settings.for_service(service).metrics}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            passage.places[f"metrics of {service}"] = answer.read()
    for name, data in canary.contents(cluster.export(folder / "log.zip")):
        passage.places[f"export: {name}"] = data
    uid = f"{canary.ROOT}.1"
    for command in (["studies"], ["explain", uid], ["explain", uid, "--json"], ["doctor"]):
        ran = stepwedge(*command, "--config", cluster.file)
        passage.of_the_operator[" ".join(command)] = (ran.out + ran.err).encode()
    passage.places["what the supervisor said"] = "\n".join(cluster.said).encode()


def _collect_what_lies_there(passage: Passage, cluster: RunningCluster) -> None:
    original = Path(cluster.settings.objects.original)
    for path in sorted(cluster.data.rglob("*")):
        name = str(path.relative_to(cluster.data))
        passage.places[f"name of {name}"] = name.encode()
        if path.is_file() and path.is_relative_to(original):
            passage.original.append(path)
        elif path.is_file():
            passage.places[name] = path.read_bytes()


def test_the_check_can_fail_for_the_canary_is_in_the_originals(passage: Passage) -> None:
    assert len(passage.original) >= 5
    kept = b"".join(path.read_bytes() for path in passage.original)
    assert set(canary.found(kept, canary.WORDS)) >= {
        canary.FAMILY,
        canary.GIVEN,
        canary.NUMBER,
        canary.BORN,
        canary.PLACE,
    }
    assert canary.found(kept, [canary.ROOT])


def test_something_was_looked_through_in_every_kind_of_place(passage: Passage) -> None:
    assert passage.records >= 5 * 3
    assert passage.spans > 20
    for service in SERVICES:
        assert passage.places[f"run/logs/{service}.jsonl"].count(b"\n") >= 2
        assert b"# HELP" in passage.places[f"metrics of {service}"]
    assert any(name.startswith("export: log.zip/tile/entries") for name in passage.places)
    assert any(name.startswith("objects/deidentified/") for name in passage.places)
    assert b"StatusCode." in passage.places["gRPC errors"]
    assert all(passage.of_the_operator.values())


def test_no_word_of_the_patient_is_anywhere_behind_the_door(passage: Passage) -> None:
    leaks = {place: words for place, data in passage.places.items() if (words := canary.found(data, canary.WORDS))}
    assert leaks == {}


def test_no_word_of_the_patient_is_shown_to_the_operator(passage: Passage) -> None:
    leaks = {
        place: words for place, data in passage.of_the_operator.items() if (words := canary.found(data, canary.WORDS))
    }
    assert leaks == {}


@pytest.mark.parametrize("word", [canary.ROOT, canary.STATION])
def test_uids_as_received_and_devices_are_in_the_database_of_ingest_and_nowhere_else_behind_the_door(
    passage: Passage, word: str
) -> None:
    leaks = {place for place, data in passage.places.items() if canary.found(data, [word])}
    assert {place for place in leaks if not place.startswith("ingest.db")} == set()


def test_no_file_is_open_to_others(passage: Passage) -> None:
    assert {path.stat().st_mode & 0o007 for path in passage.original} == {0}
