"""Whoever reads the log is in the log: a real server, both databases, every call that reveals entries."""

from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.audit import reads
from services.audit.store import Store
from shared.errors import ErrorCode, from_rpc
from shared.identity import PERSON_KEY, Identity
from shared.pki import Credentials
from shared.settings import Settings
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import Producer, uid
from tests.wire.test_audit import Running, append, code_of, export, start

READ = audit_pb2.RECORD_KIND_READ


@pytest.fixture
def settings(make_settings: Callable[[str], Settings], database_url: str) -> Settings:
    made = make_settings("")
    made.audit.database = database_url
    return made


@pytest.fixture
async def audit(settings: Settings, credentials: Callable[[Identity], Credentials]) -> AsyncIterator[Running]:
    running, stop = await start(settings, credentials)
    producer = Producer()
    await append(running, producer, *(producer.received(number) for number in range(5)))
    yield running
    await stop()


async def recorded(audit: Running) -> list[audit_pb2.Entry]:
    """The reads in the log, without that which finds them."""
    request = audit_pb2.QueryEntriesRequest(kind=READ, page_size=1000)
    return list((await audit(Identity.OPERATOR).QueryEntries(request, timeout=10)).entries)


async def first_page(audit: Running, **fields: Any) -> audit_pb2.QueryEntriesResponse:
    return await audit(Identity.AUDITOR).QueryEntries(audit_pb2.QueryEntriesRequest(**fields), timeout=10)


async def _entry(audit: Running) -> object:
    return await audit(Identity.AUDITOR).GetEntry(audit_pb2.GetEntryRequest(index=3), timeout=10)


async def _query(audit: Running) -> object:
    return await first_page(audit, study=uid(9_000_001), page_size=2)


async def _stream(audit: Running) -> object:
    query = audit_pb2.QueryEntriesRequest(study=uid(9_000_001), page_size=2)
    call = audit(Identity.AUDITOR).StreamEntries(audit_pb2.StreamEntriesRequest(query=query), timeout=10)
    return [one async for one in call]


async def _proof(audit: Running) -> object:
    return await audit(Identity.AUDITOR).GetProof(audit_pb2.GetProofRequest(index=3), timeout=10)


async def _export(audit: Running) -> object:
    return await export(audit)


READS: dict[str, tuple[Callable[[Running], Awaitable[object]], dict[str, str], int, str]] = {
    "GetEntry": (_entry, {"index": "3"}, 1, uid(9_000_001)),
    "QueryEntries": (_query, {"study": uid(9_000_001)}, 2, uid(9_000_001)),
    "StreamEntries": (_stream, {"study": uid(9_000_001)}, 2, uid(9_000_001)),
    "GetProof": (_proof, {"index": "3"}, 1, ""),
    "Export": (_export, {}, 5, ""),
}


@pytest.mark.parametrize("method", sorted(READS))
async def test_a_read_is_recorded_with_who_what_and_how_much(audit: Running, method: str) -> None:
    call, asked, entries, study = READS[method]
    await call(audit)
    (entry,) = await recorded(audit)
    read = entry.record.read
    assert (read.reader, read.method, read.entries, read.refusal) == ("auditor", method, entries, 0)
    assert {one.name: one.value for one in read.filters} == asked
    assert (entry.producer, entry.record.study) == ("audit", study)
    assert entry.record.outcome == audit_pb2.EVENT_OUTCOME_SUCCESS


async def test_whoever_looks_at_the_holds_is_recorded(audit: Running) -> None:
    await audit(Identity.OPERATOR).ListHolds(audit_pb2.ListHoldsRequest(), timeout=10)
    (entry,) = await recorded(audit)
    assert (entry.record.read.reader, entry.record.read.method) == ("operator", "ListHolds")


def for_whom(person: str) -> tuple[tuple[str, str], ...]:
    return ((PERSON_KEY, person),)


async def test_the_console_says_for_whom_it_reads_and_nobody_else_is_believed(audit: Running) -> None:
    request = audit_pb2.QueryEntriesRequest(producer="ingest", page_size=2)
    for who, said in ((Identity.CONSOLE, "a.meier"), (Identity.AUDITOR, "a.meier")):
        page = await audit(who).QueryEntries(request, timeout=10, metadata=for_whom(said))
    found = [(entry.record.read.reader, entry.record.read.person) for entry in await recorded(audit)]
    assert found == [("console", "a.meier"), ("auditor", "")]
    # Records of a person's reads are found by the person.
    own = await first_page(audit, actor="a.meier", page_size=10)
    assert [entry.record.read.person for entry in own.entries] == ["a.meier"]
    for wrong in ("A Meier", "x" * 65, "=1+1"):
        with pytest.raises(grpc.RpcError) as refused:
            await audit(Identity.CONSOLE).QueryEntries(request, timeout=10, metadata=for_whom(wrong))
        assert from_rpc(refused.value).code == ErrorCode.ERROR_CODE_INVALID_REQUEST
    # A page that was given to one person is another read in the hands of the next.
    page = await audit(Identity.CONSOLE).QueryEntries(request, timeout=10, metadata=for_whom("a.meier"))
    before = len(await recorded(audit))
    following = audit_pb2.QueryEntriesRequest(producer="ingest", page_size=2, page_token=page.next_page_token)
    await audit(Identity.CONSOLE).QueryEntries(following, timeout=10, metadata=for_whom("a.meier"))
    await audit(Identity.CONSOLE).QueryEntries(following, timeout=10, metadata=for_whom("b.schmidt"))
    persons = [entry.record.read.person for entry in (await recorded(audit))[before:]]
    assert persons[-1] == "b.schmidt"
    assert persons.count("a.meier") == 0


async def test_the_pages_of_a_query_are_one_read_and_a_made_up_or_borrowed_page_is_another(audit: Running) -> None:
    page = await first_page(audit, producer="ingest", page_size=2)
    token = page.next_page_token
    following = await first_page(audit, producer="ingest", page_size=2, page_token=token)
    assert [entry.index for entry in following.entries] == [2, 3]
    assert len(await recorded(audit)) == 1
    # The query's own token without our word for it, one whose word was changed, and one given to another.
    bare = token.partition(".")[0]
    changed = token[:-1] + ("0" if token[-1] != "0" else "1")
    for given in (bare, changed):
        same = await first_page(audit, producer="ingest", page_size=2, page_token=given)
        assert [entry.index for entry in same.entries] == [2, 3]
    request = audit_pb2.QueryEntriesRequest(producer="ingest", page_size=2, page_token=token)
    assert (await audit(Identity.OPERATOR).QueryEntries(request, timeout=10)).entries
    found = [entry.record.read.reader for entry in await recorded(audit)]
    assert found == ["auditor", "operator", "auditor", "auditor", "operator"]


async def test_a_page_that_is_asked_for_much_later_is_a_read_of_its_own(
    audit: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = await first_page(audit, producer="ingest", page_size=2)
    monkeypatch.setattr(reads, "FRESH_SECONDS", 0.0)
    await first_page(audit, producer="ingest", page_size=2, page_token=page.next_page_token)
    assert len(await recorded(audit)) == 2


async def test_checkpoints_and_proofs_that_reveal_no_entry_are_not_reads(audit: Running) -> None:
    for identity in (Identity.INGEST, Identity.AUDITOR):
        stub = audit(identity)
        await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=10)
        await stub.GetInclusionProof(audit_pb2.GetInclusionProofRequest(index=1), timeout=10)
    request = audit_pb2.GetConsistencyProofRequest(from_size=2)
    await audit(Identity.AUDITOR).GetConsistencyProof(request, timeout=10)
    assert await recorded(audit) == []


async def test_what_a_person_typed_into_a_filter_is_never_in_the_log(audit: Running, settings: Settings) -> None:
    for fields in ({"study": "DOE^JANE"}, {"subject": "0012345678"}, {"actor": "jane.doe"}, {"producer": "doe"}):
        assert not (await first_page(audit, **fields)).entries
    named = [[(one.name, one.value) for one in entry.record.read.filters] for entry in await recorded(audit)]
    assert named == [[("study", "")], [("subject", "")], [("actor", "")], [("producer", "")]]
    the_store = Store.open_as_it_is(settings.audit.database)
    with the_store.reading() as connection:
        from services.audit import store

        leaves = b"".join(row.leaf for row in store.leaves(connection, 0, 1000)).lower()
    the_store.close()
    assert b"doe" not in leaves
    assert b"0012345678" not in leaves


async def test_a_token_of_the_blind_index_is_recorded_by_its_digest(audit: Running) -> None:
    token = bytes(range(16))
    assert not (await first_page(audit, token=token)).entries
    (entry,) = await recorded(audit)
    assert [(one.name, one.value) for one in entry.record.read.filters] == [("token", sha256(token).hexdigest())]


async def test_a_read_that_found_nothing_to_hand_out_is_recorded_with_its_reason(audit: Running) -> None:
    reader = audit(Identity.AUDITOR)
    missing = ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND
    assert await code_of(reader.GetEntry(audit_pb2.GetEntryRequest(index=77), timeout=10)) == missing
    (entry,) = await recorded(audit)
    assert (entry.record.read.refusal, entry.record.read.entries) == (missing, 0)
    assert entry.record.outcome == audit_pb2.EVENT_OUTCOME_MINOR_FAILURE


@pytest.mark.parametrize("method", sorted(READS))
async def test_a_read_that_cannot_be_recorded_is_refused(
    settings: Settings, credentials: Callable[[Identity], Credentials], tmp_path: Path, method: str
) -> None:
    first, stop_first = await start(settings, credentials)
    producer = Producer()
    await append(first, producer, *(producer.received(number) for number in range(5)))
    # A second process on the same database does not write, so it cannot record who reads from it.
    settings.audit.high_water = tmp_path / "second" / "high-water"
    second, stop_second = await start(settings, credentials)
    try:
        with pytest.raises(grpc.RpcError) as raised:
            await READS[method][0](second)
        assert from_rpc(raised.value).code == ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE
        # What reveals nothing is answered.
        await second(Identity.AUDITOR).GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=10)
    finally:
        await stop_second()
        await stop_first()
