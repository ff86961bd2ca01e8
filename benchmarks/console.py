"""How long each page of the console takes at the server with many studies: `python -m benchmarks.console`.

Starts a real cluster below a temporary folder, fills ingest's database with studies and decisions as they would stand
there, and asks for each page several times as a person would, over HTTPS. Prints the median and the worst; exit status
1 where a median is over 300 ms. The log holds only what the pages themselves record; its own pages with a million
records are measured by `benchmarks/audit_query.py`.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.wire.console_house import Browser, console_house

LIMIT_MS = 300.0
DEVICES = 12
REASONS = (4, 5, 7, 8, 9, 10, 11, 20)
MEASUREMENTS = 20
PAGES = (
    ("radiographer", "/studies"),
    ("radiographer", "/studies?rows=1"),
    ("radiographer", "/studies?verdict=REJECT"),
    ("radiographer", "/studies?state=DEAD_LETTER"),
    ("radiographer", "/studies?page={middle}"),
    ("radiographer", "/studies?room=Room%203"),
    ("radiographer", "/studies?room=Hall"),
    ("radiographer", "/studies?room=Hall&state=RECEIVING&verdict=REJECT"),
    ("radiographer", "/studies?room=No%20such%20room"),
    ("radiographer", "/studies?state=RECEIVING&verdict=REJECT"),
    ("radiographer", "/studies?state=PROCESSING&verdict=REJECT"),
    ("radiographer", "/studies/{study}"),
    ("radiographer", "/studies/{study}/proof"),
    ("radiographer", "/quality?days=365"),
    ("radiographer", "/quality?days=365&device=103"),
    ("radiographer", "/quality.csv?days=365"),
    ("radiographer", "/quality/rates.csv?days=365"),
    ("radiographer", "/quality?days=7"),
    ("operator", "/operator"),
    ("auditor", "/audit"),
    ("auditor", "/audit?kind=DECIDED"),
    ("auditor", "/audit/dossiers/{study}"),
    ("administrator", "/people"),
    ("radiographer", "/help"),
)


def studies(count: int) -> Iterator[tuple[object, ...]]:
    """Rows of studies over a year: two of three accepted, one in a hundred waiting, one in fifty given up."""
    now, chance = datetime.now(UTC).replace(tzinfo=None), random.Random(8)
    for number in range(count):
        at = str(now - timedelta(seconds=number * 31_536_000 / count))
        (state,) = chance.choices(("DONE", "DEAD_LETTER", "RECEIVING"), (97, 2, 1))
        verdict = chance.choice((1, 1, 2, 1, 1, 3))
        reasons = json.dumps([] if verdict == 1 else chance.sample(REASONS, chance.choice((1, 1, 2))))
        device = 100 + chance.randrange(DEVICES)
        yield number + 1_000, f"1.2.3.{number}", f"2.25.{10**30 + number}", state, at, at, verdict, reasons, device


def days() -> Iterator[tuple[object, ...]]:
    """Counts of radiographs for every day, device and reason of a year."""
    today = datetime.now(UTC).date()
    for back in range(366):
        for device in range(100, 100 + DEVICES):
            for reason in range(6):
                rejected = 3 if reason else 12
                day = str(today - timedelta(days=back))
                yield day, device, 6 + reason if reason else 0, 0 if reason else 90, rejected, rejected // 2, 0


def measurements() -> Iterator[tuple[object, ...]]:
    """Sums of what is measured for every day and device of a year."""
    today, chance = datetime.now(UTC).date(), random.Random(9)
    for back in range(366):
        for device in range(100, 100 + DEVICES):
            for name in range(MEASUREMENTS):
                mean = chance.gauss(10 + name, 1)
                day = str(today - timedelta(days=back))
                yield day, f"measurement {name}", "mm", device, 20, 20 * mean, 20 * mean**2


def fill(database: Path, count: int) -> None:
    """Put the rows in their places."""
    with sqlite3.connect(database, timeout=60) as link:
        link.executemany(
            "INSERT INTO studies (id, study_instance_uid, pseudonym, state, first_received_at, last_received_at,"
            " verdict, reasons, device_id, decided_at, generation, revision, waiting_for, attempts, last_error,"
            " modalities, instances) VALUES (?,?,?,?,?,?,?,?,?,?,1,1,'',0,0,'DX',1)",
            ((*row, row[5]) for row in studies(count)),
        )
        link.execute(
            "INSERT INTO decisions (study_id, revision, generation, verdict, reasons, details, policy_sha256,"
            " software_build, instances, decided_at, record_index, cursor) SELECT id, 1, 1, verdict, reasons, '[]', '',"
            " '', '[]', decided_at, id, id FROM studies WHERE id >= 1000"
        )
        link.execute(
            "INSERT INTO reviews (study_id, revision, decided, verdict, reason, note, reviewer, role, reviewed_at,"
            " record_index) SELECT id, 1, verdict, 1, 'agreed', '', 'somebody', 'radiographer', decided_at, id"
            " FROM studies WHERE id >= 1000 AND id % 50 = 0"
        )
        link.executemany(
            "INSERT INTO devices (id, station, department, location, manufacturer, model, serial, calling_ae_title)"
            " VALUES (?,?,'X-ray',?,'Maker','Model',?,'')",
            [(100 + number, f"DX{number}", _room(number), str(number)) for number in range(DEVICES)],
        )
        link.executemany("INSERT OR IGNORE INTO repeat_days VALUES (?,?,?,?,?,?,?)", days())
        link.executemany(
            "INSERT OR IGNORE INTO measured_days (day, name, unit, device_id, count, total, squares)"
            " VALUES (?,?,?,?,?,?,?)",
            measurements(),
        )


def _room(device: int) -> str:
    """Each device in a room of its own, but for three that stand in one hall."""
    return "Hall" if device >= DEVICES - 3 else f"Room {device}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=9)
    given = parser.parse_args()
    slow = 0
    with tempfile.TemporaryDirectory() as folder, console_house(Path(folder)) as house:
        fill(house.cluster.data / "ingest.db", given.studies)
        people = {role: house.browser(role) for role in ("radiographer", "operator", "auditor", "administrator")}
        print(f"{given.studies} studies\n{'page':<44}{'median ms':>10}{'worst ms':>10}")
        for role, page in PAGES:
            address = page.format(study=house.studies[0], middle=1_000 + given.studies // 2)
            spent = [milliseconds(people[role], address) for _ in range(given.times)]
            slow += statistics.median(spent) > LIMIT_MS
            print(f"{page:<44}{statistics.median(spent):>10.0f}{max(spent):>10.0f}")
    return 1 if slow else 0


def milliseconds(person: Browser, page: str) -> float:
    """How long the page took to come."""
    began = time.perf_counter()
    answer = person.get(page)
    assert answer.status_code == 200, answer.text
    return 1_000 * (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
