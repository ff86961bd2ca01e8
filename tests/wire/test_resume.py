"""Uploads that are cut and resumed, and decisions that are watched across restarts and processes: none lost, none
twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cli import resuming
from cli.resuming import Submitter
from shared.errors import from_rpc
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import sync_channel
from shared.settings import load
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.wire.cluster import eventually
from tests.wire.ingest_house import House, dx, house, part10
from tests.wire.ports import port

NAME = "upload-of-the-test"


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all tests of this file."""
    with house(tmp_path_factory.mktemp("resume"), port) as made:
        yield made


def large(megabytes: int = 20) -> bytes:
    """An object of so many megabytes."""
    ds = dx()
    ds.Rows, ds.Columns = 1024, megabytes * 512
    ds.PixelData = np.random.default_rng(1).integers(0, 4096, (1024, megabytes * 512), dtype=np.uint16).tobytes()
    return part10(ds)


def requests(data: bytes, **first: Any) -> list[ingest_pb2.SubmitInstanceRequest]:
    offset = first.get("offset", 0)
    pieces = [data[at : at + (1 << 20)] for at in range(offset, len(data), 1 << 20)]
    return [
        ingest_pb2.SubmitInstanceRequest(chunk=piece, **(first if number == 0 else {}))
        for number, piece in enumerate(pieces)
    ]


def held(at_home: House, name: str = NAME) -> int:
    stub = at_home.ingest(Identity.PACS)
    return int(stub.GetUpload(ingest_pb2.GetUploadRequest(upload_id=name), timeout=10).offset)


def cut_after(at_home: House, data: bytes, count: int, name: str = NAME) -> None:
    """Begin an upload and break it off when `count` chunks are on their way."""
    sent = threading.Event()
    cut = threading.Event()

    def some() -> Iterator[ingest_pb2.SubmitInstanceRequest]:
        yield from requests(data, upload_id=name)[:count]
        sent.set()
        cut.wait(20)

    call = at_home.ingest(Identity.PACS).SubmitInstance.future(some(), timeout=60)
    assert sent.wait(30)
    call.cancel()
    cut.set()


def test_an_upload_that_is_cut_goes_on_from_what_is_held_and_nothing_is_sent_twice(at_home: House):
    data = large()
    cut_after(at_home, data, 12)
    offset = eventually(lambda: held(at_home), 20, what="something held")
    assert 0 < offset <= 12 << 20
    stub = at_home.ingest(Identity.PACS)
    rest = requests(data, upload_id=NAME, offset=offset, sha256=sha256(data).hexdigest())
    answer = stub.SubmitInstance(iter(rest), timeout=60)
    assert answer.sha256 == sha256(data).hexdigest()
    assert at_home.stored()[answer.sha256] == data
    assert held(at_home) == 0
    assert at_home.incoming_files() == []


def test_what_is_held_outlives_a_kill_of_the_process(at_home: House):
    data = large()
    cut = threading.Event()

    def some() -> Iterator[ingest_pb2.SubmitInstanceRequest]:
        yield from requests(data, upload_id=NAME)[:18]
        cut.wait(40)

    call = at_home.ingest(Identity.PACS).SubmitInstance.future(some(), timeout=60)
    eventually(lambda: held(at_home) >= 16 << 20, 30, what="two times eight megabytes held")
    at_home.stop("ingest", 9)
    cut.set()
    assert isinstance(call.exception(20), grpc.RpcError)
    at_home.start("ingest")
    at_home.wait_serving("redaction", "inference", "audit")
    offset = held(at_home)
    assert offset >= 16 << 20
    stub = at_home.ingest(Identity.PACS)
    rest = requests(data, upload_id=NAME, offset=offset, sha256=sha256(data).hexdigest())
    assert stub.SubmitInstance(iter(rest), timeout=60).sha256 == sha256(data).hexdigest()


def test_bytes_that_do_not_make_the_announced_file_are_refused_and_forgotten(at_home: House):
    data = large(2)
    with pytest.raises(grpc.RpcError) as refused:
        at_home.ingest(Identity.PACS).SubmitInstance(iter(requests(data, upload_id=NAME, sha256="0" * 64)), timeout=30)
    assert from_rpc(refused.value).name == "INVALID_REQUEST"
    assert held(at_home) == 0
    assert at_home.incoming_files() == []


def test_an_offset_beyond_what_is_held_is_refused_with_a_code(at_home: House):
    first = ingest_pb2.SubmitInstanceRequest(upload_id=NAME, offset=7, chunk=b"x")
    with pytest.raises(grpc.RpcError) as refused:
        at_home.ingest(Identity.PACS).SubmitInstance(iter([first]), timeout=30)
    assert from_rpc(refused.value).name == "WRONG_STATE"


def test_the_command_goes_on_with_a_file_when_ingest_was_restarted_under_it(
    at_home: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = large(24)
    file = tmp_path / "large.dcm"
    file.write_bytes(data)
    digest = sha256(data).hexdigest()
    pieces, restarted = resuming._chunks, threading.Event()

    def slow(*args: Any, **given: Any) -> Iterator[ingest_pb2.SubmitInstanceRequest]:
        for number, piece in enumerate(pieces(*args, **given)):
            if number == 20 and not restarted.is_set():
                restarted.wait(60)
            yield piece

    monkeypatch.setattr(resuming, "_chunks", slow)
    results: list[Any] = []
    with Submitter(at_home.settings, Identity.PACS) as line:
        thread = threading.Thread(target=lambda: results.append(line.submit(file)))
        thread.start()
        eventually(lambda: held(at_home, digest) >= 16 << 20, 40, what="sixteen megabytes held")
        at_home.stop("ingest", 9)
        at_home.start("ingest")
        restarted.set()
        thread.join(90)
    (sent,) = results
    assert (sent.ok, sent.words) == (True, "stored")
    assert line.resumed_bytes >= 16 << 20
    assert at_home.stored()[digest] == data


class Watcher:
    """Watches decisions as an integrator's client does: from the last cursor on, whatever happens to the server."""

    def __init__(self, stub: Callable[[], Any]) -> None:
        self._stub = stub
        self.seen: list[tuple[str, int, str]] = []
        self.cursor = ""
        self._done = threading.Event()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                request = ingest_pb2.WatchDecisionsRequest(cursor=self.cursor)
                self._call = self._stub().WatchDecisions(request)
                for answer in self._call:
                    self.cursor = answer.cursor
                    one = answer.decision
                    self.seen.append((one.study_instance_uid, one.revision, answer.cursor))
            except grpc.RpcError:
                self._done.wait(0.2)

    def stop(self) -> None:
        self._done.set()
        if self._call is not None:
            self._call.cancel()
        self._thread.join(10)


def submit(at_home: House, count: int) -> list[str]:
    """Hand in studies; their UIDs."""
    uids = []
    for _ in range(count):
        ds = dx()
        at_home.ingest(Identity.PACS).SubmitInstance(iter(requests(part10(ds))), timeout=30)
        uids.append(str(ds.StudyInstanceUID))
    return uids


def test_decisions_are_watched_across_a_kill_and_a_restart_without_missing_or_repeating_one(at_home: House):
    watcher = Watcher(lambda: at_home.ingest(Identity.PACS))
    try:
        uids = submit(at_home, 3)
        eventually(lambda: {uid for uid, _, _ in watcher.seen} >= set(uids), 30, what="the first three watched")
        uids += submit(at_home, 3)
        at_home.stop("ingest", 9)
        at_home.start("ingest")
        at_home.wait_serving("redaction", "inference", "audit")
        uids += submit(at_home, 3)
        eventually(lambda: {uid for uid, _, _ in watcher.seen} >= set(uids), 60, what="all nine watched")
    finally:
        watcher.stop()
    cursors = [int(cursor) for _, _, cursor in watcher.seen]
    assert cursors == list(range(1, len(cursors) + 1))
    assert len(watcher.seen) == len(set(watcher.seen))


def test_a_cursor_from_a_later_time_than_the_database_is_refused_not_waited_for(at_home: House):
    with pytest.raises(grpc.RpcError) as refused:
        next(at_home.ingest().WatchDecisions(ingest_pb2.WatchDecisionsRequest(cursor="999999"), timeout=10))
    assert from_rpc(refused.value).name == "INVALID_REQUEST"


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_two_processes_over_one_postgresql_tell_each_watcher_every_decision_once_and_in_one_order(
    tmp_path: Path, database_url: str
):
    with house(tmp_path, port, database=database_url) as made:
        second = tmp_path / "second.toml"
        text = made.config.read_text()
        settings = made.settings.ingest
        for address in (settings.listen, settings.metrics, settings.dimse):
            text = text.replace(address, f"127.0.0.1:{port()}", 1)
        second.write_text(text)
        made.start("ingest", second, "second")
        other = load(second)
        credentials = Credentials.load(other.cluster.pki, Identity.PACS)
        links: list[grpc.Channel] = []

        def at_the_second() -> Any:
            links.append(sync_channel(other.ingest.address, credentials, server=Identity.INGEST))
            return ingest_pb2_grpc.IngestServiceStub(links[-1])

        watchers = [Watcher(lambda: made.ingest(Identity.PACS)), Watcher(at_the_second)]
        try:
            uids = submit(made, 6)
            for _ in range(6):
                ds = dx()
                at_the_second().SubmitInstance(iter(requests(part10(ds))), timeout=30)
                uids.append(str(ds.StudyInstanceUID))
            for watcher in watchers:
                eventually(lambda seen=watcher.seen: len(seen) >= 12, 60, what="twelve decisions")
        finally:
            for watcher in watchers:
                watcher.stop()
            for link in links:
                link.close()
    assert watchers[0].seen[:12] == watchers[1].seen[:12]
    assert {uid for uid, _, _ in watchers[0].seen} == set(uids)
    assert [int(cursor) for _, _, cursor in watchers[0].seen] == list(range(1, 13))
