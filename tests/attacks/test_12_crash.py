"""Attack 12: the service is killed at any moment, or the kernel fails it. A taste; the whole is in tests/faults.

A thousand kills: `python -m tests.faults.kills`. Every occurrence of every system call: `python -m
tests.faults.syscalls`. PostgreSQL restarted, cut off and out of disk: tests/faults/test_postgres.py.
"""

import secrets
from pathlib import Path

import pytest

from tests.attacks.scene import Databases, Town
from tests.faults import kills, syscalls
from tests.faults.syscalls import KILL, Fault


async def test_12_killed_while_it_appends_it_loses_nothing_that_it_acknowledged_and_verifies(
    town: Town, databases: Databases, tmp_path: Path
) -> None:
    lane = kills.Lane(databases.kind, tmp_path, town.pki, databases.new, secrets.randbits(32))
    await kills.run([(lane, 3)])  # raises where an acknowledged record is lost or the verifier does not prove the log
    assert lane.counts["kills"] == 3


FAULTS = (Fault("fdatasync", "EIO", 9), Fault("pwrite64", "ENOSPC", 150), Fault("pwrite64", KILL, 100))


@pytest.mark.skipif(not syscalls.can_trace(), reason="needs strace and the right to trace")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_12_a_call_that_the_kernel_fails_costs_nothing_that_was_acknowledged(
    town: Town, tmp_path: Path, fault: Fault
) -> None:
    syscalls.strike(town.nursery, tmp_path / "log", fault)
