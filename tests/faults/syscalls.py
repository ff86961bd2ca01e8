"""The log while one system call fails: every occurrence of every call that writes, reads, syncs, opens or names.

    python -m tests.faults.syscalls                 # every occurrence: EIO, ENOSPC, and SIGKILL
    python -m tests.faults.syscalls --every 7       # one of seven

A fixed piece of work (keys, log, high-water mark, attachments, a second start; then sealed identities, an erasure with
its new master key, a rotation of the signing key) runs under `strace`, which makes the n-th call of one kind fail in
each thread, or kills the process there. Then, without faults: the log opens, holds every acknowledged record at its
index and none twice, takes another one, its export is proved by the verifier, who was erased stays erased, and who was
not can still be looked up. Prints one JSON object; exit status 1 for a violation.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from services.audit import record
from services.audit.__main__ import open_log, write_export
from services.audit.acts import Caller
from services.audit.log import Log
from services.audit.proofs import Rotator
from services.audit.subjects import Erase, LookUp
from shared import keys
from shared.errors import StepwedgeError
from shared.identification import Identities
from shared.identity import Identity
from shared.settings import Settings
from stepwedge.audit.v1 import audit_pb2
from tests.faults.nursery import Child, Nursery
from tests.unit.audit.making import ORIGIN, Producer, close
from tests.unit.verifier import forging
from verifier import verify

CALLS = (
    "openat",
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "flock",
    "pread64",
)
KILL = "SIGKILL"
FAULTS = ("EIO", "ENOSPC", KILL)
"""The call fails with the error; or the process is killed at the call."""
RECORDS = 9
PIECES = ("work", "guard")
"""Pieces of work: a log's first and second start with records; and what its guards do, with a change of its key."""
_TRIES = 30


class Fault(NamedTuple):
    """One call that fails."""

    call: str
    error: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.call} number {self.occurrence}: {self.error}"

    @property
    def options(self) -> list[str]:
        """For strace."""
        what = f"signal={self.error}" if self.error == KILL else f"error={self.error}"
        return ["-e", f"trace={self.call}", "-e", f"inject={self.call}:{what}:when={self.occurrence}"]


def can_trace() -> bool:
    """Whether strace is there and may attach."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    with subprocess.Popen(["sleep", "30"]) as sleeper:
        command = [strace, "-f", "-qq", "-o", os.devnull, "-p", str(sleeper.pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracing:
            deadline = time.monotonic() + 10
            while tracing.poll() is None and time.monotonic() < deadline:
                if "TracerPid:\t0\n" not in Path(f"/proc/{sleeper.pid}/status").read_text():
                    break
                time.sleep(0.01)
            traced = tracing.poll() is None
            tracing.terminate()
        sleeper.kill()
    return traced


# The work, in the process that is traced.


def _say(words: str) -> None:
    for _ in range(_TRIES):
        try:
            os.write(1, f"{words}\n".encode())
        except OSError:
            continue
        return


def _again(act: Callable[[], object]) -> object:
    """Do it until it is done: what a service's supervisor, or a caller that was refused, would do."""
    for _ in range(_TRIES):
        try:
            return act()
        except (StepwedgeError, OSError) as error:
            _say(f"refused {error.name if isinstance(error, StepwedgeError) else type(error).__name__}")
    raise SystemExit(3)


def _take(log: Log, producer: Producer, number: int) -> None:
    made = producer.received(number) if number % 4 else producer.decided(number + 1, instances=300)
    prepared = [producer.prepared(made)]

    def submit() -> int:
        return log.submit(prepared).result(30).indexes[0]

    _say(f"taken {made.idempotency_key} {_again(submit)}")


def _open(place: Path) -> Log:
    """The log as the service opens it."""
    settings = Settings()
    settings.cluster.keys = settings.audit.keys = place / "keys"
    settings.audit.database = f"sqlite:///{place / 'audit.db'}"
    settings.audit.origin = ORIGIN
    settings.audit.high_water = place / "high-water"
    settings.audit.master_key = place / "keys" / keys.MASTER
    return open_log(settings)


def work(folder: str) -> int:
    """Make keys, start a log, append, stop, and once more."""
    place = Path(folder)
    producer = Producer()
    for start in range(2):
        _again(lambda: keys.create(place / "keys", origin=ORIGIN, development=True))
        log = _again(lambda: _open(place))
        assert isinstance(log, Log)
        for number in range(start * RECORDS, (start + 1) * RECORDS):
            _take(log, producer, number)
        close(log)
    _say("done")
    return 0


ERASED, KEPT = "SW-" + "A" * 24, "SW-" + "B" * 24
_SEAL = Identities(bytes(32))
_WHO = {"name": "Kanarienvogel^Anna", "patient_id": "QX4711"}
_WHY = Caller(Identity.AUDITOR, purpose=audit_pb2.PURPOSE_OF_USE_PATRQT, reference="ERA-1")


def guard(folder: str) -> int:
    """Seal the identities of two persons, erase one, let a new key sign, start again and append."""
    place = Path(folder)
    producer = Producer()
    log = _again(lambda: _open(place))
    assert isinstance(log, Log)
    for number, subject in enumerate((ERASED, KEPT)):
        made = producer.received(500 + number, study=500 + number)
        made.subject = subject
        made.identification.sealed = _SEAL.seal(_WHO, subject, made.idempotency_key)
        prepared = [producer.prepared(made)]
        index = _again(lambda prepared=prepared: log.submit(prepared).result(30).indexes[0])
        _say(f"taken {made.idempotency_key} {index}")
        _say(f"sealed {subject} {index}")
    _again(lambda: log.perform(Erase(log.vault, _WHY, subject=ERASED)).result(30))  # type: ignore[arg-type]
    _say("erased")
    _again(lambda: Rotator(log, place / "keys").rotate())
    _say("rotated")
    close(log)
    log = _again(lambda: _open(place))
    assert isinstance(log, Log)
    _take(log, producer, 601)
    close(log)
    _say("done")
    return 0


# Outside.


def _traced(nursery: Nursery, folder: Path, options: Sequence[str], out: str, piece: str) -> tuple[Child, int]:
    folder.mkdir(parents=True)
    if piece == "guard":  # on a log that is there already
        keys.create(folder / "keys", origin=ORIGIN, development=True)
        close(_open(folder))
        shutil.copy(folder / "keys" / keys.VERIFICATION, folder / "first.vkey")
    child = nursery.spawn(f"tests.faults.syscalls:{piece}", folder / "out", arguments=[str(folder)], traced=True)
    command = ["strace", "-f", "-qq", "-o", out, *options, "-p", str(child.pid)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL):
        status = nursery.reap(child.pid)
    return child, status


def occurrences(nursery: Nursery, folder: Path, piece: str = "work") -> dict[str, int]:
    """How often the work makes each call, in the thread that makes it most."""
    trace = folder / "trace"
    folder.mkdir(parents=True)
    child, status = _traced(nursery, folder / "work", ["-e", f"trace={','.join(CALLS)}"], str(trace), piece)
    assert (status, child.lines()[-1]) == (0, "done"), child.lines()
    counted: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text().splitlines():
        thread, _, rest = line.partition(" ")
        name = rest.strip().partition("(")[0]
        if name in CALLS:
            counted[thread, name] += 1
    most: dict[str, int] = {}
    for (_, name), count in counted.items():
        most[name] = max(most.get(name, 0), count)
    return most


def faults(counts: dict[str, int], every: int = 1, first: int = 0) -> Iterator[Fault]:
    """One of `every` faults, a few beyond the last occurrence too: a call that fails is made again."""
    number = first
    for call, count in sorted(counts.items()):
        for occurrence in range(1, count + 3):
            for error in FAULTS:
                if number % every == 0:
                    yield Fault(call, error, occurrence)
                number += 1


class Outcome(NamedTuple):
    """What came of one fault."""

    status: int
    refusals: tuple[str, ...]
    acknowledged: int


def strike(nursery: Nursery, folder: Path, fault: Fault, piece: str = "work") -> Outcome:
    """Do the work under one fault, then hold what is there against what was acknowledged. Raises AssertionError."""
    child, status = _traced(nursery, folder, fault.options, os.devnull, piece)
    said = [line.split() for line in child.lines()]
    taken = {words[1]: int(words[2]) for words in said if words[0] == "taken"}
    refusals = tuple(words[1] for words in said if words[0] == "refused")
    _check(folder, taken)
    if piece == "guard":
        _check_guarded(folder, said)
    return Outcome(status, refusals, len(taken))


def _check(folder: Path, taken: dict[str, int]) -> None:
    keys.create(folder / "keys", origin=ORIGIN, development=True)
    log = _open(folder)
    producer = Producer()
    log.submit([producer.prepared(producer.received(1_000_000))]).result(30)
    close(log)
    write_export(f"sqlite:///{folder / 'audit.db'}", folder / "export.zip")
    vkey = folder / "first.vkey" if (folder / "first.vkey").exists() else folder / "keys" / keys.VERIFICATION
    report = verify.verify(str(folder / "export.zip"), key=vkey.read_text().strip())
    assert (report.code, report.gaps) == (verify.PROVED, []), (report.problems, report.gaps)
    found: dict[str, int] = {}
    for index, leaf in enumerate(forging.leaves(forging.read(folder / "export.zip"))):
        members = record.parse(leaf)
        if members["producer"] == Identity.AUDIT.value:
            continue  # the log's own, of an erasure or a change of its key
        key = members["key"]
        assert key not in found, "a record is there twice"
        found[key] = index
    assert taken.items() <= found.items(), "an acknowledged record is not there"
    # The one more of here, and at most one that was under way when the work ended.
    assert len(found) - 1 - len(taken) <= 1, "records are there that nobody handed in"


def _check_guarded(folder: Path, said: list[list[str]]) -> None:
    """Who was not erased can still be looked up, who was erased cannot."""
    sealed = {words[1]: int(words[2]) for words in said if words[0] == "sealed"}
    log = _open(folder)
    try:
        for subject, index in sealed.items():
            act = LookUp(log.vault, _WHY, index)  # type: ignore[arg-type]
            log.perform(act).result(30)
            found = _SEAL.open(act.sealed, act.subject, act.key) if act.sealed else None
            if subject == KEPT:
                assert found is not None, "an identity that nobody erased is lost"
                assert found["name"] == _WHO["name"]
            elif ["erased"] in said:
                assert found is None, "an erasure that was acknowledged did not last"
    finally:
        close(log)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    struck: Counter[str] = Counter()
    violations: list[str] = []
    counts: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="stepwedge-faults-") as text, Nursery() as nursery:
        for piece in PIECES:
            counts[piece] = occurrences(nursery, Path(text) / f"count-{piece}", piece)
        struck_with = [(piece, fault) for piece in PIECES for fault in faults(counts[piece], given.every)]
        for number, (piece, fault) in enumerate(struck_with):
            folder = Path(text) / str(number)
            try:
                outcome = strike(nursery, folder, fault, piece)
            except Exception as error:
                violations.append(f"{piece}: {fault}: {type(error).__name__}: {error}"[:2000])
                sys.stderr.write(f"{violations[-1]}\n")
            else:
                struck[f"{piece}: {fault.call} {fault.error}"] += 1
                struck["runs that ended before the work was done"] += outcome.status != 0
                struck["runs with a refusal"] += bool(outcome.refusals)
                shutil.rmtree(folder)
            if number % 100 == 0:
                sys.stderr.write(f"{number} faults, {time.monotonic() - began:.0f} s\n")
        result = {"occurrences": counts, "struck": dict(struck), "violations": violations}
        print(json.dumps({"seconds": round(time.monotonic() - began, 1), **result}, indent=2, sort_keys=True))
        if violations:
            shutil.copytree(text, tempfile.mkdtemp(prefix="stepwedge-kept-"), dirs_exist_ok=True)
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(_main())
