"""The log while the kernel fails its system calls, or kills it in the middle of one.

A different sample of all occurrences at each run, or one of STEPWEDGE_FAULTS_EVERY; all of them:
`python -m tests.faults.syscalls`.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import syscalls
from tests.faults.nursery import Nursery
from tests.faults.syscalls import KILL, Fault

EVERY = int(os.environ.get("STEPWEDGE_FAULTS_EVERY", "149"))

needs_strace = pytest.mark.skipif(not syscalls.can_trace(), reason="needs strace and the right to trace")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@needs_strace
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("piece", syscalls.PIECES)
def test_whichever_call_fails_nothing_acknowledged_is_lost_none_is_there_twice_and_the_log_opens_and_verifies(
    nursery: Nursery, tmp_path: Path, piece: str
) -> None:
    counts = syscalls.occurrences(nursery, tmp_path / "count", piece)
    assert counts["fdatasync"] >= 6
    assert counts["pwrite64"] > 50
    done = 0
    for number, fault in enumerate(syscalls.faults(counts, EVERY, secrets.randbelow(EVERY))):
        try:
            syscalls.strike(nursery, tmp_path / str(number), fault, piece)
        except AssertionError as error:
            error.add_note(str(fault))
            raise
        done += 1
    assert done * (EVERY + 1) >= sum(counts.values())


REFUSED = {
    "a sync of the write-ahead log": Fault("fdatasync", "EIO", 7),
    "a write that finds the disk full": Fault("pwrite64", "ENOSPC", 120),
    "the link that gives a key file its name": Fault("link", "EIO", 1),
}


@needs_strace
@pytest.mark.parametrize("name", REFUSED)
def test_what_fails_is_refused_and_the_work_is_done_all_the_same(nursery: Nursery, tmp_path: Path, name: str) -> None:
    outcome = syscalls.strike(nursery, tmp_path / "log", REFUSED[name])
    assert outcome.refusals, "no call failed"
    assert (outcome.status, outcome.acknowledged) == (0, 2 * syscalls.RECORDS)


@needs_strace
def test_killed_in_the_middle_of_a_sync_it_opens_again_with_all_that_it_acknowledged(
    nursery: Nursery, tmp_path: Path
) -> None:
    last = syscalls.occurrences(nursery, tmp_path / "count")["fdatasync"]
    for moment in (last, last - 3, last - 6):
        outcome = syscalls.strike(nursery, tmp_path / str(moment), Fault("fdatasync", KILL, moment))
        assert outcome.status == -9
        assert 0 < outcome.acknowledged < 2 * syscalls.RECORDS
