"""The log while the kernel fails its system calls: strace makes writes and syncs fail, or kill, where we say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.audit import record
from services.audit.__main__ import write_export
from shared.transparency.note import Signer
from tests.unit.audit.making import KEY, ORIGIN, close, fill, open_log
from tests.unit.verifier import forging
from verifier import verify

ROOT = Path(__file__).resolve().parents[2]

# Appends one record after the other, each again until it is taken, and says what was acknowledged.
WORK = """
import sys
from pathlib import Path
from shared.errors import StepwedgeError
from tests.unit.audit.making import Producer, close, open_log
folder = Path(sys.argv[1])
log = open_log(f"sqlite:///{folder / 'audit.db'}", folder)
producer = Producer()
for number in range(int(sys.argv[2])):
    made = [producer.prepared(producer.received(number))]
    for _ in range(50):
        try:
            index = log.submit(made).result(30).indexes[0]
        except StepwedgeError as error:
            sys.stdout.write(f"{error.name} {number}\\n")
            continue
        sys.stdout.write(f"taken {number} {index}\\n")
        break
    sys.stdout.flush()
close(log)
"""


def _can_trace() -> bool:
    strace = shutil.which("strace")
    if strace is None:
        return False
    tried = subprocess.run([strace, "-f", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False)
    return tried.returncode == 0


needs_strace = pytest.mark.skipif(not _can_trace(), reason="needs strace and the right to trace")


def work(folder: Path, records: int, inject: str) -> tuple[int, dict[int, int], set[str]]:
    """Run the work under faults; its exit status, what was acknowledged, and the names of the refusals."""
    calls = inject.split(":")[0]
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}", "-e", f"inject={inject}"]
    command += [sys.executable, "-c", WORK, str(folder), str(records)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    said = [line.split() for line in done.stdout.splitlines()]
    taken = {int(words[1]): int(words[2]) for words in said if words[0] == "taken"}
    return done.returncode, taken, {words[0] for words in said if words[0].isupper()}


def stored(folder: Path) -> dict[int, int]:
    """Number of each record to its index, out of an export that was proved."""
    write_export(f"sqlite:///{folder / 'audit.db'}", folder / "export.zip")
    report = verify.verify(str(folder / "export.zip"), key=str(Signer(ORIGIN, KEY).key))
    assert (report.code, report.gaps) == (verify.PROVED, []), report.problems
    found = {}
    for index, leaf in enumerate(forging.leaves(forging.read(folder / "export.zip"))):
        number = record.parse(leaf)["event"]["size_bytes"] - 1000
        assert number not in found, "a record is there twice"
        found[number] = index
    return found


# A commit is dozens of writes and a few syncs: the faults come often, and not in every single try.
FAULTS = {
    "every seventh sync fails": "fsync,fdatasync:error=EIO:when=40+7",
    "now and then a write finds the disk full": "pwrite64:error=ENOSPC:when=150+83",
    "now and then a write fails": "pwrite64:error=EIO:when=200+101",
}


@needs_strace
@pytest.mark.parametrize("name", FAULTS)
def test_failing_calls_are_refusals_and_nothing_that_was_acknowledged_is_lost(tmp_path: Path, name: str) -> None:
    close(open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path))
    status, taken, refusals = work(tmp_path, 40, FAULTS[name])
    assert refusals == {"AUDIT_UNAVAILABLE"}, "no call failed"
    assert status == 0
    assert taken == {number: number for number in range(40)}
    assert stored(tmp_path) == taken


@needs_strace
@pytest.mark.parametrize("moment", [23, 26, 31, 44])
def test_killed_in_the_middle_of_a_sync_it_opens_again_with_all_that_it_acknowledged(
    tmp_path: Path, moment: int
) -> None:
    close(open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path))
    status, taken, _ = work(tmp_path, 40, f"fsync,fdatasync:signal=KILL:when={moment}")
    assert status != 0
    assert 0 < len(taken) < 40
    log = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)
    fill(log, 3, first=1000)
    close(log)
    found = stored(tmp_path)
    assert taken.items() <= found.items()
    # At most the one that was under way is there without an answer.
    assert len(found) - 3 - len(taken) <= 1
