"""Every filter and every pair of filters, held against a search through all records, on both databases."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from services.audit import record, store
from services.audit.log import Log
from services.audit.reading import Reader
from services.audit.record import Prepared
from services.audit.store import Filter
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from tests.unit.audit.making import Producer, close, digest, open_log, uid

COUNT = 300


def mixed() -> list[Prepared]:
    """Records of several kinds, producers, outcomes, verdicts, models and actors, in an order that is no order."""
    chance = random.Random(7)
    ingest, inference = Producer(), Producer(Identity.INFERENCE)
    made = []
    for number in range(COUNT):
        study = chance.randrange(12)
        kind = chance.choice(["received", "decided", "assessed", "requeued"])
        if kind == "received":
            one, producer = ingest.received(number, study=study), ingest
            one.subject = "SW-" + "ABCDEFGHIJKL"[study] * 24
        elif kind == "decided":
            one, producer = ingest.decided(study, revision=number + 1), ingest
            one.decided.verdict = chance.choice([common_pb2.VERDICT_ACCEPT, common_pb2.VERDICT_REVIEW])
        elif kind == "assessed":
            one, producer = inference.record(f"assessed/{digest(number)}", study=uid(9_000_000 + study)), inference
            one.instance = uid(number)
            one.pins.model_sha256 = digest(chance.choice([1, 2]))
            one.assessed.confidence = "0.5"
        else:
            one, producer = ingest.record(f"requeued/{uid(study)}/{number}", study=uid(9_000_000 + study)), ingest
            one.requeued.requested_by = chance.choice(["operator", "console"])
        one.outcome = chance.choice([1, 1, 1, 2])
        made.append(producer.prepared(one))
    return made


@pytest.fixture
def filled(database_url: str, tmp_path: Path) -> Any:
    log = open_log(database_url, tmp_path)
    for one in mixed():  # several commits, so that times differ
        receipt = log.submit([one])
    receipt.result(60)
    yield log
    close(log)


def everything(log: Log) -> list[dict[str, Any]]:
    """Every record, with what a filter can ask of it, out of the leaves alone."""
    found = []
    with log.store.reading() as connection:
        for row in store.leaves(connection, 0, 2**62):
            members = record.parse(row.leaf)
            event = members["event"]
            found.append(
                {
                    "index": row.index,
                    "study": members.get("study"),
                    "subject": members.get("subject"),
                    "instance": members.get("instance"),
                    "kind": record.KINDS[members["kind"].lower()],
                    "producer": members["producer"],
                    "actor": event.get("requested_by"),
                    "outcome": audit_pb2.EventOutcome.Value(f"EVENT_OUTCOME_{members['outcome']}"),
                    "verdict": common_pb2.Verdict.Value(f"VERDICT_{event['verdict']}") if "verdict" in event else None,
                    "model_sha256": members.get("pins", {}).get("model_sha256"),
                    "recorded_us": _us(members["recorded_at"]),
                }
            )
    return found


def _us(moment: str) -> int:
    from services.audit.retention import microseconds

    return microseconds(moment)


def matches(one: dict[str, Any], asked: dict[str, Any]) -> bool:
    for name, value in asked.items():
        if name == "recorded_from_us":
            if one["recorded_us"] < value:
                return False
        elif name == "recorded_before_us":
            if one["recorded_us"] >= value:
                return False
        elif one[name] != value:
            return False
    return True


def test_any_filter_and_any_pair_finds_exactly_what_matches_in_pages_that_grow_no_gap(filled: Log) -> None:
    there = everything(filled)
    assert len(there) == COUNT
    names = ("study", "subject", "instance", "kind", "producer", "actor", "outcome", "verdict", "model_sha256")
    chance = random.Random(11)
    values: dict[str, list[Any]] = {}
    for name in names:
        known = sorted({one[name] for one in there if one[name] is not None})
        values[name] = chance.sample(known, min(3, len(known)))
    middle = there[COUNT // 2]["recorded_us"]
    values["recorded_from_us"], values["recorded_before_us"] = [middle], [middle]
    values["kind"].append(audit_pb2.RECORD_KIND_ERASED)
    asked: list[dict[str, Any]] = [{name: value} for name, options in values.items() for value in options]
    for one, other in itertools.combinations(values, 2):
        asked += [{one: a, other: b} for a, b in itertools.product(values[one], values[other])]
    reader = Reader(filled.store)
    some = 0
    for filters in asked:
        wanted = [one["index"] for one in there if matches(one, filters)]
        entries, token = reader.query(Filter(**filters), 1000, "")
        assert ([entry.index for entry in entries], token) == (wanted, ""), filters
        some += bool(wanted)
    assert some > 100
    for filters in ({}, {"outcome": 1}, {"producer": "ingest", "outcome": 1}):
        wanted = [one["index"] for one in there if matches(one, filters)]
        found, token = [], ""
        while True:
            entries, token = reader.query(Filter(**filters), 7, token)
            found += [entry.index for entry in entries]
            if not token:
                break
        assert found == wanted


def test_pages_hold_still_while_records_are_appended(filled: Log) -> None:
    reader, producer = Reader(filled.store), Producer()
    first, token = reader.query(Filter(outcome=1), 50, "")
    end = reader.head().size
    found = [entry.index for entry in first]
    number = 5000
    while token:
        filled.submit([producer.prepared(producer.received(number))]).result(20)
        number += 1
        entries, token = reader.query(Filter(outcome=1), 50, token, end)
        found += [entry.index for entry in entries]
    wanted = [one["index"] for one in everything(filled) if one["outcome"] == 1 and one["index"] < end]
    assert found == wanted
    assert len(set(found)) == len(found)
