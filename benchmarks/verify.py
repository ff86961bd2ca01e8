"""How long the stand-alone verifier takes for a log of many records.

    python -m benchmarks.verify [--records 1000000] [--keep FOLDER] [--json]

Makes a log in SQLite through the log's own sequencer, exports it, and verifies the export in an interpreter of its own
that sees no installed package. `--keep` leaves log and export in a folder, for `benchmarks.audit_query`.
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
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.audit_append import record
from services.audit.__main__ import write_export
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.record import prepare
from services.audit.store import Store
from shared.identity import Identity
from shared.transparency.note import Signer
from verifier import verify

BATCH = 256


def fill(log: Log, records: int) -> None:
    """Append that many records, a batch at a time."""
    incarnation = str(uuid.uuid4())
    pending = []
    for start in range(0, records, BATCH):
        numbers = range(start, min(start + BATCH, records))
        made = [prepare(record(incarnation, number + 1, number), Identity.INGEST) for number in numbers]
        pending.append(log.submit(made))
        if len(pending) > 4:
            pending.pop(0).result()
    for future in pending:
        future.result()


def measure(folder: Path, records: int) -> dict[str, Any]:
    """Make, export and verify a log in a folder."""
    url = f"sqlite:///{folder / 'audit.db'}"
    signer = Signer("benchmark/log", Ed25519PrivateKey.generate())
    began = time.perf_counter()
    log = Log(Store.open(url), signer, HighWater(folder / "high-water"))
    log.open()
    fill(log, records)
    log.close()
    log.store.close()
    filled = time.perf_counter()
    write_export(url, folder / "export.zip")
    exported = time.perf_counter()
    command = [sys.executable, "-I", "-S", verify.__file__, str(folder / "export.zip"), "--key", str(signer.key)]
    done = subprocess.run(command, capture_output=True, text=True)
    ended = time.perf_counter()
    if done.returncode or not done.stdout.startswith(f"PROVED: {records} records"):
        raise SystemExit(f"not proved: {done.stderr}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "records": records,
        "append_seconds": round(filled - began, 2),
        "export_seconds": round(exported - filled, 2),
        "export_bytes": (folder / "export.zip").stat().st_size,
        "verify_seconds": round(ended - exported, 2),
        "verify_cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "verify_peak_bytes": used.ru_maxrss * 1024,
        "verify_records_per_second": round(records / (ended - exported)),
        "load": [round(one, 2) for one in os.getloadavg()],
    }


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="length of the log")
    parser.add_argument("--keep", type=Path, help="folder to make the log in, and leave it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if given.keep:
            given.keep.mkdir(parents=True)
        result = measure(given.keep or Path(name), given.records)
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{result['records']} records: verified in {result['verify_seconds']} s "
        f"({result['verify_cpu_seconds']} s of processor, {result['verify_records_per_second']} records/s, "
        f"{result['verify_peak_bytes'] >> 20} MiB), exported in {result['export_seconds']} s "
        f"({result['export_bytes'] >> 20} MiB), appended in {result['append_seconds']} s; load {result['load']}"
    )


if __name__ == "__main__":
    main()
