"""Any request of an auditor or operator to the real log, on both databases: an answer or a code, never a defect."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import keys
from shared.errors import from_rpc
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2
from tests.attacks.scene import ORIGIN, Place, Service, Town, postgres_databases, sqlite_databases
from tests.faults.nursery import Nursery
from tests.unit.audit.making import Producer, uid

QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
EXPECTED = {
    *("INVALID_REQUEST", "ENTRY_NOT_FOUND", "RETAINED", "LEGAL_HOLD", "PERMISSION_DENIED", "CONFIGURATION"),
    *("RESOURCE_EXHAUSTED", "AUDIT_UNAVAILABLE"),
}

sizes = st.sampled_from([0, 1, 299, 300, 301, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
numbers = st.sampled_from([0, 1, 2, 99, 2**15, 2**31 - 1, -1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1)
words = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ["", "ingest", uid(5), "\x00", "%", "_", "'"]
)
tokens = st.binary(max_size=20) | st.binary(min_size=16, max_size=16)


@st.composite
def moments(draw: st.DrawFn) -> dict[str, int]:
    return {"seconds": draw(st.integers(-(2**63), 2**63 - 1)), "nanos": draw(numbers)}


queries = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("study", "instance", "subject", "producer", "model_sha256", "actor", "page_token"), words),
        **dict.fromkeys(("kind", "outcome", "verdict"), numbers),
        **{name: moments() for name in ("recorded_from", "recorded_before")},
        "page_size": st.integers(0, 2**32 - 1),
        "token": tokens,
    },
)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def service(
    request: pytest.FixtureRequest, pki_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("fuzz") / secrets.token_hex(4)
    folder.mkdir()
    kind = request.param
    databases = sqlite_databases() if kind == "sqlite" else postgres_databases(request.getfixturevalue("postgres_url"))
    keys.create(folder / "keys", origin=ORIGIN, development=True)
    place = Place(folder, databases.new(folder), databases)
    with Nursery() as nursery, Town(pki_folder, nursery).serving(place) as made:
        made.fill(Producer(), 300)
        yield made


def code_of(call: Callable[[], Any]) -> str:
    try:
        answer = call()
        if hasattr(answer, "__next__"):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return from_rpc(error).name
    return ""


def holds(service: Service, who: Identity, method: str, request: Any) -> None:
    code = code_of(lambda: getattr(service.stub(who), method)(request, timeout=30))
    assert not code or code in EXPECTED, f"{method}: {code}"


@QUICK
@given(queries)
def test_a_query_of_any_kind(service: Service, query: dict[str, Any]) -> None:
    request = audit_pb2.QueryEntriesRequest(**query)
    holds(service, Identity.AUDITOR, "QueryEntries", request)
    holds(service, Identity.AUDITOR, "StreamEntries", audit_pb2.StreamEntriesRequest(query=request))


@QUICK
@given(sizes, sizes)
def test_entries_and_proofs_of_any_place(service: Service, one: int, other: int) -> None:
    for method, request in (
        ("GetEntry", audit_pb2.GetEntryRequest(index=one)),
        ("GetInclusionProof", audit_pb2.GetInclusionProofRequest(index=one, size=other)),
        ("GetConsistencyProof", audit_pb2.GetConsistencyProofRequest(from_size=one, to_size=other)),
        ("GetProof", audit_pb2.GetProofRequest(index=one, size=other)),
    ):
        holds(service, Identity.AUDITOR, method, request)


@settings(parent=QUICK, max_examples=15)
@given(sizes, numbers)
def test_an_export_of_any_size_and_format(service: Service, size: int, form: int) -> None:
    holds(service, Identity.AUDITOR, "Export", audit_pb2.ExportRequest(size=size, format=form))  # type: ignore[arg-type]


@QUICK
@given(words, words, tokens, numbers, words, words, sizes, moments(), st.lists(numbers, max_size=6))
def test_what_guards_ask_for(
    service: Service,
    subject: str,
    study: str,
    token: bytes,
    purpose: int,
    reference: str,
    person: str,
    index: int,
    moment: dict[str, int],
    classes: list[int],
) -> None:
    cause = audit_pb2.Cause(purpose=purpose, reference=reference, person=person)  # type: ignore[arg-type]
    for method, request in (
        ("EraseSubject", audit_pb2.EraseSubjectRequest(subject=subject, token=token, cause=cause)),
        ("SetHold", audit_pb2.SetHoldRequest(study=study, subject=subject, release=person, cause=cause)),
        ("Prune", audit_pb2.PruneRequest(before=moment, classes=classes, dry_run=True, cause=cause)),  # type: ignore[arg-type]
        ("Prune", audit_pb2.PruneRequest(before=moment, classes=classes, cause=cause)),  # type: ignore[arg-type]
        ("OpenIdentity", audit_pb2.OpenIdentityRequest(index=index, cause=cause)),
    ):
        holds(service, Identity.AUDITOR, method, request)


@QUICK
@given(st.binary(max_size=300))
def test_bytes_that_are_no_message(service: Service, data: bytes) -> None:
    """The transport parses; what it cannot parse is no defect of the log."""
    channel = service._channels.get(Identity.AUDITOR)
    if channel is None:
        service.checkpoint()
        channel = service._channels[Identity.AUDITOR]
    call = channel.unary_unary("/stepwedge.audit.v1.AuditService/QueryEntries")
    code = code_of(lambda: call(data, timeout=20))
    assert not code or code in {*EXPECTED, "INTERNAL"}
    assert service.checkpoint().size >= 300
