"""How long the stand-alone verifier takes for a log of many records.

    python -m benchmarks.verify [--records 1000000] [--bundle FILE] [--processes N] [--through-the-log FOLDER] [--json]

Makes an export of records of every common kind (received, redacted, assessed, decided, delivered), by the code that
makes the records, the tree and the tiles of a real one, but without a database between; and verifies it with
`python -I -S verifier/verify.py`, an interpreter that sees no installed package. Beside it, in the same run: how long
SHA-256 of the same archive takes (`sha256sum`), which nobody who reads all of it can beat. `--bundle` keeps the export
for the next run; `--through-the-log` appends through the log's sequencer into SQLite instead, and leaves log and export
in a folder, for benchmarks of queries.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit import export, record, tiles
from services.audit.__main__ import write_export
from services.audit.draft import uuid7
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.record import Prepared
from services.audit.store import Store
from services.audit.tiles import Tile
from shared.identity import Identity
from shared.transparency import merkle
from shared.transparency.note import Checkpoint, Signer
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from verifier import verify

BATCH = 256
ORIGIN = "benchmark/log"
_BUILD = "0.1.0+0123456789abcdef"


class Cluster:
    """What a cluster records of one image after the other: five records each, four producers' numbering."""

    def __init__(self) -> None:
        self._incarnations = {one: str(uuid.uuid4()) for one in Identity}
        self._numbers = dict.fromkeys(Identity, 0)

    def records(self) -> Iterator[Prepared]:
        """Records without end."""
        image = 0
        while True:
            image += 1
            yield self._received(image)
            yield self._redacted(image)
            yield self._assessed(image)
            yield self._decided(image)
            yield self._delivered(image)

    def _new(self, by: Identity, key: str, image: int) -> audit_pb2.Record:
        self._numbers[by] += 1
        made = audit_pb2.Record(
            idempotency_key=f"{key}/2.25.{10**30 + image}/{image:064x}",
            incarnation=self._incarnations[by],
            sequence=self._numbers[by],
            outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
            subject="SW-" + "A" * 24,
            study=f"2.25.{10**31 + image}",
            series=f"2.25.{10**32 + image}",
            instance=f"2.25.{10**30 + image}",
            trace_id=f"{image:032x}",
        )
        made.occurred_at.FromSeconds(1_790_000_000 + image)
        made.pins.software_build = _BUILD
        return made

    def _received(self, image: int) -> Prepared:
        made = self._new(Identity.INGEST, "received", image)
        made.pins.input_commitment = f"{image:064x}"
        made.received.channel = "DIMSE"
        made.received.sop_class_uid = "1.2.840.10008.5.1.4.1.1.1.1"
        made.received.transfer_syntax_uid = "1.2.840.10008.1.2.1"
        made.received.size_bytes = 9_000_000 + image
        return record.prepare(made, Identity.INGEST)

    def _redacted(self, image: int) -> Prepared:
        made = self._new(Identity.REDACTION, "redacted", image)
        made.pins.input_commitment = made.pins.deidentified_sha256 = f"{image:064x}"
        made.pins.profile_edition = "2026c"
        for action, count in (("X", 31), ("Z", 9), ("D", 4), ("U", 7)):
            made.redacted.actions.add(action=action, count=count)
        made.redacted.method_codes.append("113100")
        return record.prepare(made, Identity.REDACTION)

    def _assessed(self, image: int) -> Prepared:
        made = self._new(Identity.INFERENCE, "assessed", image)
        made.pins.deidentified_sha256 = made.pins.output_sha256 = f"{image:064x}"
        made.pins.model = "chest-student/0.1.0"
        made.pins.model_sha256 = "ab" * 32
        for code in list(common_pb2.Reason.values())[1:9]:
            made.assessed.findings.add(code=code, outcome=common_pb2.OUTCOME_PASS)
        for number in range(6):
            made.assessed.measurements.add(name=f"measure_{number}", value=f"{image % 1000}.{number}", unit="mm")
        made.assessed.confidence = "0.987654"
        return record.prepare(made, Identity.INFERENCE)

    def _decided(self, image: int) -> Prepared:
        made = self._new(Identity.INGEST, "decided", image)
        made.decided.verdict = common_pb2.VERDICT_ACCEPT
        made.decided.revision = 1
        made.decided.instances.add(instance=made.instance, verdict=common_pb2.VERDICT_ACCEPT, assessed_index=5 * image)
        return record.prepare(made, Identity.INGEST)

    def _delivered(self, image: int) -> Prepared:
        made = self._new(Identity.INGEST, "delivered", image)
        made.delivered.destination, made.delivered.objects, made.delivered.revision = "archive", 3, 1
        return record.prepare(made, Identity.INGEST)


def make_bundle(place: Path, count: int, signer: Signer) -> None:
    """Write an export of so many records as `services.audit.export` lays it out."""
    digests: dict[str, str] = {}
    rows: dict[int, list[bytes]] = {}
    compact = merkle.CompactRange()

    def keep(height: int, _: int, node: bytes) -> None:
        if height % 8 == 0:
            rows.setdefault(height // 8, []).append(node)

    source = Cluster().records()
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:

        def add(path: str, data: bytes) -> None:
            digests[path] = sha256(data).hexdigest()
            archive.writestr(path, data)

        for bundle in tiles.bundles_of(count):
            entries = []
            for index in range(bundle.index * BATCH, bundle.index * BATCH + bundle.width):
                at = record.timestamp(1_790_000_000 + index // 500, index % 500 * 2_000_000)
                made = record.leaf(next(source), index=index, entry_id=uuid7(index, index), recorded_at=at, repeats=[])
                compact.append(merkle.leaf_hash(made), keep)
                entries.append(made)
            add(bundle.path, tiles.encode_bundle(entries))
        for tile in tiles.tiles_of(count):
            row = rows[tile.level][tile.index * 256 : tile.index * 256 + tile.width]
            add(Tile(tile.level, tile.index, tile.width).path, b"".join(row))
        add("checkpoint", str(Checkpoint(ORIGIN, count, compact.root()).sign([signer])).encode())
        add("vkey", f"{signer.key}\n".encode())
        manifest = {
            "format": export.FORMAT,
            "size": count,
            "exported_at": record.timestamp(1_800_000_000, 0),
            "keys": [{"verification_key": str(signer.key), "from_size": 0}],
            "files": digests,
        }
        archive.writestr("manifest.json", record.encode(manifest))


def through_the_log(folder: Path, count: int, signer: Signer) -> Path:
    """Append so many records to a log in SQLite, and export it."""
    url = f"sqlite:///{folder / 'audit.db'}"
    log = Log(Store.open(url), signer, HighWater(folder / "high-water"))
    log.open()
    source = Cluster().records()
    pending = []
    for start in range(0, count, BATCH):
        pending.append(log.submit([next(source) for _ in range(min(BATCH, count - start))]))
        if len(pending) > 4:
            pending.pop(0).result()
    for future in pending:
        future.result()
    log.close()
    log.store.close()
    write_export(url, folder / "export.zip")
    return folder / "export.zip"


def measure(bundle: Path, count: int, key: str, processes: int | None) -> dict[str, Any]:
    """Verify an export, and read it with sha256sum for comparison."""
    began = time.perf_counter()
    subprocess.run(["sha256sum", str(bundle)], check=True, capture_output=True)
    hashed = time.perf_counter()
    command = [sys.executable, "-I", "-S", verify.__file__, str(bundle), "--key", key]
    if processes is not None:
        command += ["--processes", str(processes)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    ended = time.perf_counter()
    if done.returncode or not done.stdout.startswith(f"PROVED: {count} records"):
        raise SystemExit(f"not proved: {done.stdout}{done.stderr}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "records": count,
        "bytes": bundle.stat().st_size,
        "verify_seconds": round(ended - hashed, 2),
        "verify_cpu_seconds": round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, 2),
        "verify_peak_bytes_of_a_process": used.ru_maxrss * 1024,
        "verify_records_per_second": round(count / (ended - hashed)),
        "sha256sum_seconds": round(hashed - began, 2),
        "load": [round(one, 2) for one in os.getloadavg()],
        "processors": os.cpu_count(),
    }


def _bundle(given: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """The export to verify, and its key."""
    place: Path = given.bundle or folder / "export.zip"
    key_file = place.with_suffix(".vkey")
    if given.bundle and place.exists():
        return place, key_file.read_text().strip()
    signer = Signer(ORIGIN, Ed25519PrivateKey.generate())
    if given.through_the_log:
        given.through_the_log.mkdir(parents=True)
        return through_the_log(given.through_the_log, given.records, signer), str(signer.key)
    make_bundle(place, given.records, signer)
    key_file.write_text(f"{signer.key}\n")
    return place, str(signer.key)


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="length of the log")
    parser.add_argument("--bundle", type=Path, help="the export: made where it is absent, and kept")
    parser.add_argument("--processes", type=int, help="how many the verifier may use; default: its own")
    parser.add_argument("--through-the-log", type=Path, metavar="FOLDER", help="append through the log, and leave it")
    parser.add_argument("--make-only", action="store_true", help="make the export and do not verify it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bundle, key = _bundle(given, Path(name))
        if given.make_only:
            return
        result = measure(bundle, given.records, key, given.processes)
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{result['records']} records ({result['bytes'] >> 20} MiB): verified in {result['verify_seconds']} s "
        f"({result['verify_cpu_seconds']} s of processor, {result['verify_records_per_second']} records/s, "
        f"{result['verify_peak_bytes_of_a_process'] >> 20} MiB a process at most); "
        f"{result['processors']} processors; "
        f"sha256sum of the archive {result['sha256sum_seconds']} s; load {result['load']}"
    )


if __name__ == "__main__":
    main()
