"""Those who guard the log, through the whole cluster and the command: they find, identify, hold and erase a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cli.exit_codes import Exit
from shared.errors import ErrorCode, from_rpc
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.wire import canary
from tests.wire.cluster import RunningCluster, running_cluster
from tests.wire.command import Ran, stepwedge

WHY = ("--purpose", "patrqt", "--reference", "ERA-2026-17")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    folder = tmp_path_factory.mktemp("guardians")
    with running_cluster(folder) as cluster:
        ds = canary.planted("phantom", 1)
        assert all(sent.ok for sent in cluster.store([canary.write(ds, folder / "canary.dcm")]))
        cluster.decided(str(ds.StudyInstanceUID))
        yield cluster


def log(cluster: RunningCluster, *arguments: str) -> Ran:
    return stepwedge("log", *arguments, "--config", cluster.file, "--json")


def code_of(call: grpc.Future) -> int:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return int(from_rpc(raised.value).code)


def test_a_person_is_found_identified_held_and_erased(cluster: RunningCluster, tmp_path: Path) -> None:
    by_accession = log(cluster, "query", "--accession", canary.ACCESSION.lower()).lines
    by_patient = log(cluster, "query", "--patient-id", canary.NUMBER).lines
    by_study = log(cluster, "query", "--study-uid", f"{canary.ROOT}.1").lines
    kinds = [record["kind"] for record in by_accession]
    assert kinds[0] == "RECEIVED"
    assert {"REDACTED", "ASSESSED", "DECIDED"} <= set(kinds)
    assert [record["index"] for record in by_patient] == [record["index"] for record in by_accession]
    assert [record["index"] for record in by_study] == [record["index"] for record in by_accession]
    assert log(cluster, "query", "--patient-id", "NOBODY").lines == []

    received = by_accession[0]
    opened = log(cluster, "identify", "--index", str(received["index"]), *WHY)
    (answer,) = opened.lines
    assert answer["identity"]["name"] == canary.NAME
    assert answer["identity"]["patient_id"] == canary.NUMBER
    assert answer["identity"]["birth_date"] == canary.BORN
    assert answer["identity"]["accession_number"] == canary.ACCESSION
    assert answer["identity"]["sop_instance_uid"] == f"{canary.ROOT}.1.1.1"
    (looked_up,) = cluster.entries(kind=audit_pb2.RECORD_KIND_IDENTITY_LOOKED_UP)
    assert looked_up.index == answer["lookup_index"]
    assert looked_up.record.identity_looked_up.requested_by == "auditor"

    (held,) = log(cluster, "hold", "--study", received["study"], *WHY).lines
    refused = stepwedge("log", "erase", "--patient-id", canary.NUMBER, *WHY, "--yes", "--config", cluster.file)
    assert refused.failed_in_one_line("LEGAL_HOLD")
    assert refused.status == Exit.NEGATIVE
    assert [one["hold"] for one in log(cluster, "holds").lines] == [held["hold"]]
    log(cluster, "release", held["hold"], *WHY)

    (erased,) = log(cluster, "erase", "--patient-id", canary.NUMBER, *WHY, "--yes").lines
    assert erased["subject"] == received["subject"]
    assert erased["keys"] == 1
    assert erased["identities"] >= 1
    assert log(cluster, "query", "--accession", canary.ACCESSION).lines == []
    again = log(cluster, "identify", "--index", str(received["index"]), *WHY)
    assert (again.status, again.lines[0]["identity"]) == (Exit.NEGATIVE, None)
    assert stepwedge("verify", "--config", cluster.file).status == 0
    (checked,) = log(cluster, "check").lines
    assert checked["first_index"] is None
    assert checked["checked"] == checked["size"] > 5
    for _, data in canary.contents(cluster.export(tmp_path / "log.zip")):
        assert canary.found(data, canary.WORDS) == []


def test_what_is_young_is_not_pruned(cluster: RunningCluster) -> None:
    assert log(cluster, "prune", "--dry-run").lines[0]["removed"] == 0
    refused = stepwedge("log", "prune", "--before", "2100-01-01", "--config", cluster.file)
    assert refused.failed_in_one_line("RETAINED")
    (record,) = cluster.entries(kind=audit_pb2.RECORD_KIND_PRUNED)
    assert record.record.pruned.refusal == ErrorCode.ERROR_CODE_RETAINED
    assert record.record.pruned.requested_by == "operator"


def test_only_those_who_guard_the_log_may(cluster: RunningCluster) -> None:
    operator = audit_pb2_grpc.AuditServiceStub(cluster.channel("audit", Identity.OPERATOR))
    ingest = audit_pb2_grpc.AuditServiceStub(cluster.channel("audit", Identity.INGEST))
    subject = "SW-" + "A" * 24
    denied = ErrorCode.ERROR_CODE_PERMISSION_DENIED
    for stub in (operator, ingest):
        erase = audit_pb2.EraseSubjectRequest(subject=subject)
        assert code_of(lambda stub=stub, erase=erase: stub.EraseSubject(erase, timeout=5)) == denied
        look_up = audit_pb2.OpenIdentityRequest(index=0)
        assert code_of(lambda stub=stub, look_up=look_up: stub.OpenIdentity(look_up, timeout=5)) == denied
    assert code_of(lambda: ingest.Prune(audit_pb2.PruneRequest(), timeout=5)) == denied


@pytest.mark.parametrize(
    "request_",
    [
        audit_pb2.EraseSubjectRequest(subject="Doe^Jane"),
        audit_pb2.EraseSubjectRequest(token=b"short"),
        audit_pb2.EraseSubjectRequest(),
        audit_pb2.EraseSubjectRequest(subject="SW-" + "A" * 24),  # no purpose
        audit_pb2.SetHoldRequest(study="1.2.840.113619.2.55"),
        audit_pb2.SetHoldRequest(cause=audit_pb2.Cause(purpose=audit_pb2.PURPOSE_OF_USE_HLEGAL)),
        audit_pb2.OpenIdentityRequest(index=0),
        audit_pb2.OpenIdentityRequest(index=0, cause=audit_pb2.Cause(purpose=5, reference="Jane Doe")),
        audit_pb2.OpenIdentityRequest(index=0, cause=audit_pb2.Cause(purpose=5, person="anna.b")),
        audit_pb2.PruneRequest(classes=[0]),
    ],
)
def test_what_a_request_must_not_hold_is_refused(cluster: RunningCluster, request_: object) -> None:
    name = type(request_).__name__.removesuffix("Request")
    assert code_of(lambda: getattr(cluster.audit, name)(request_, timeout=5)) == ErrorCode.ERROR_CODE_INVALID_REQUEST


def test_a_stream_gives_every_entry_that_was_there_when_it_began(cluster: RunningCluster) -> None:
    query = audit_pb2.QueryEntriesRequest(page_size=2)
    parts = cluster.audit.StreamEntries(audit_pb2.StreamEntriesRequest(query=query), timeout=20)
    indexes = [entry.index for part in parts for entry in part.entries]
    assert indexes == list(range(len(indexes)))
    assert len(indexes) > 5
