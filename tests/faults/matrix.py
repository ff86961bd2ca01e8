"""A cluster of several machines under load, hurt at random moments in every way that a site knows, again and again.

    python -m tests.faults.matrix --moments 1000 --seed 1 --state /tmp/matrix.json

A moment is one fault: a process killed with SIGKILL (the service or one of its workers), frozen, or told to end;
PostgreSQL restarted or crashed; the object store answering errors; the network between two services cut, frozen, and
healed; a disk full, of the services or of PostgreSQL; the clock of one machine stepped. After each, what was
acknowledged three moments before must have ended in a verdict or in the dead letter, and new objects must be taken
again. After every 20 moments the load stops and everything is held against the log (`tests.faults.invariants`): nothing
acknowledged lost, nothing recorded, decided or delivered twice, the log verifies and every object is there. Then it
begins anew.

Every 20 moments are seeded by their number: a run that was interrupted goes on from `--state`. Prints one JSON object;
exit status 1 for a violation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cli.receiver import receiver
from tests.faults import invariants
from tests.faults.farm import (
    CREDENTIALS,
    MODULES,
    Clock,
    Farm,
    Machine,
    Modality,
    Place,
    Violation,
    certificates,
    clock_library,
    until,
)
from tests.faults.front import Fronts
from tests.faults.nursery import Nursery
from tests.faults.test_postgres import Server

MOMENTS_OF_A_FARM = 20
COUNTS = {"audit": 1, "redaction": 2, "inference": 2, "ingest": 2}
MODALITIES = 3
PACE_SECONDS = 0.25
"""Between the studies of one modality: load enough that something is under way at every moment."""
MOST_BEHIND = 12
"""Studies that are acknowledged and not decided yet; beyond, the modalities wait. Something is under way at every
moment all the same, and a moment does not wait for a backlog, which says nothing of faults."""
LONGEST_WAIT = 0.4
LONGEST_CUT = 1.5
FLOW_SECONDS = 180.0
STEPS = (-240, -30, 30, 600, 7200)
"""Seconds by which a clock is stepped, and back."""


@dataclass
class Hurt:
    """A farm at work, and what may be done to it."""

    farm: Farm
    chance: random.Random
    clocks: tuple[Clock, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)

    def pause(self) -> None:
        """For as long as a fault lasts."""
        time.sleep(self.chance.uniform(0.1, LONGEST_CUT))

    def kill(self) -> str:
        """SIGKILL of any process, a worker alone at times."""
        member = self.chance.choice(self.farm.members)
        found = member.processes()
        workers = found[1:]
        if workers and self.chance.random() < 0.3:
            with suppress(psutil.NoSuchProcess):
                self.chance.choice(workers).kill()
            return f"worker of {member.service} killed"
        self.farm.kill(member)
        return f"{member.service} killed"

    def kill_two(self) -> str:
        """Two processes of any services at one moment."""
        for member in self.chance.sample(self.farm.members, 2):
            self.farm.kill(member)
        return "two killed at once"

    def drain(self) -> str:
        """SIGTERM, as a rolling restart does."""
        member = self.chance.choice(self.farm.members)
        self.farm.kill(member, signal.SIGTERM)
        return f"{member.service} told to end"

    def freeze(self) -> str:
        """A process that stands still for a while, as a machine does that swaps."""
        member = self.chance.choice(self.farm.members)
        found = member.processes()
        for one in found:
            with suppress(psutil.NoSuchProcess):
                one.suspend()
        self.pause()
        for one in found:
            with suppress(psutil.NoSuchProcess):
                one.resume()
        return f"{member.service} frozen"

    def cut(self) -> str:
        """The network before a service is cut, or swallows everything; then it is healed."""
        name = self.chance.choice(sorted(self.farm.fronts))
        mode = self.chance.choice(("cut", "frozen"))
        front = self.farm.fronts[name]
        self.farm.place.fronts.set(front, mode)
        self.pause()
        self.farm.place.fronts.set(front, "through")
        return f"network to {name} {mode}"

    def store_errors(self) -> str:
        """The object store answers 503."""
        front = self.farm.fronts["store"]
        self.farm.place.fronts.set(front, "errors")
        self.pause()
        self.farm.place.fronts.set(front, "cut")  # connections that were answered errors are not kept
        self.farm.place.fronts.set(front, "through")
        return "store answers errors"

    def postgres_restarted(self) -> str:
        """PostgreSQL stops at once and starts again."""
        self.farm.place.postgres.control("-m", self.chance.choice(("immediate", "fast")), "restart")
        return "postgresql restarted"

    def postgres_crashed(self) -> str:
        """A backend dies; PostgreSQL throws out all others and recovers."""
        backends = self.farm.place.postgres.backends()
        if backends:
            with suppress(psutil.NoSuchProcess):
                self.chance.choice(backends).send_signal(signal.SIGKILL)
        return "postgresql crashed"

    def disk_full(self) -> str:
        """No room for what the services write: incoming objects, the log's high-water mark."""
        return "disk of the services full" if self._fill(self.farm.place.disk) else self.kill()

    def postgres_full(self) -> str:
        """No room for PostgreSQL."""
        server = self.farm.place.postgres
        if not self._fill(server.folder.parent):
            return self.kill()
        until(lambda: server.answers() or not _runs(server), 30, "PostgreSQL after the full disk")
        if not server.answers():
            server.control("start")
        return "disk of postgresql full"

    def _fill(self, disk: Path) -> bool:
        if not disk.is_mount():
            return False
        filling = disk / "filling"
        with suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        self.pause()
        filling.unlink()
        return True

    def clock(self) -> str:
        """The clock of one machine is stepped, and set right a while later."""
        if not self.clocks:
            return self.kill()
        clock = self.chance.choice(self.clocks)
        clock.step(self.chance.choice(STEPS))
        self.pause()
        clock.step(0)
        return "clock stepped"


FAULTS: Mapping[Callable[[Hurt], str], int] = {
    Hurt.kill: 60,
    Hurt.kill_two: 5,
    Hurt.drain: 5,
    Hurt.freeze: 4,
    Hurt.cut: 10,
    Hurt.store_errors: 4,
    Hurt.postgres_restarted: 3,
    Hurt.postgres_crashed: 3,
    Hurt.disk_full: 3,
    Hurt.postgres_full: 1,
    Hurt.clock: 2,
}
"""How often each is drawn, in a hundred."""


def _runs(server: Server) -> bool:
    try:
        return bool(server.processes())
    except (OSError, psutil.NoSuchProcess, ValueError, IndexError):
        return False


@contextmanager
def _mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A small file system at a folder; the plain folder where nobody may mount."""
    folder.mkdir()
    folder.chmod(0o755)
    options = f"size={megabytes}m,mode=0755"
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def place(*, clock: bool = True, machines: int = 2) -> Iterator[tuple[Place, tuple[Clock, ...]]]:
    """Everything that farms share: PostgreSQL and the services' files on small disks, fronts, nurseries, a PACS."""
    os.environ |= CREDENTIALS  # of a store that asks for none
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="sw-"))
        folder.chmod(0o755)
        stack.callback(subprocess.run, ["rm", "-rf", str(folder)], check=False)
        disk = stack.enter_context(_mounted(folder / "disk", 96))
        below = stack.enter_context(_mounted(folder / "pg", 768))
        (below / "data").mkdir()
        server = Server(below / "data")
        stack.callback(server.cleanup)
        library = clock_library(folder) if clock else None
        clocks = tuple(Clock(folder / f"clock-{number}", library) for number in range(machines)) if library else ()
        nurseries = tuple(
            stack.enter_context(Nursery(*MODULES, environment=clocks[number].environment() if clocks else None))
            for number in range(machines)
        )
        fronts = stack.enter_context(Fronts())
        pacs = stack.enter_context(receiver("PACS"))
        where = tuple(Machine(nursery) for nursery in nurseries)
        yield Place(folder, certificates(folder), disk, server, fronts, pacs, where), clocks


def run_farm(
    shared: Place,
    clocks: tuple[Clock, ...],
    name: str,
    seed: int,
    moments: int,
    told: Callable[[str], None],
    only: Collection[str] = (),
) -> Counter[str]:
    """Moments on one farm from nothing, and everything held at their end; what was counted. Raises Violation.

    `only`: names of the faults to draw from; all of them where it is empty.
    """
    drawn = {fault: weight for fault, weight in FAULTS.items() if not only or fault.__name__ in only}
    chance = random.Random(seed)
    farm = Farm(shared, name, COUNTS, seed=seed)
    hurt = Hurt(farm, chance, clocks)
    repeats = shared.receiver.repeats
    modalities = [
        Modality(farm.fronts["dicom"].address, random.Random(f"{seed}/{number}"), pause=PACE_SECONDS)
        for number in range(MODALITIES)
    ]
    try:
        farm.start()
        for modality in modalities:
            modality.start()
        _flows(farm, modalities, 3)
        earlier: deque[set[str]] = deque([set(), set()])
        for _ in range(moments):
            _keep_pace(farm, modalities)
            earlier.append(_studies(modalities))
            time.sleep(chance.uniform(0, LONGEST_WAIT))  # the random moment
            [fault] = chance.choices(list(drawn), weights=list(drawn.values()))
            what = fault(hurt)
            hurt.counts[what] += 1
            hurt.counts["moments"] += 1
            told(f"{name}: {hurt.counts['moments']} {what}")
            _flows(farm, modalities, 2)
            invariants.finished(farm, earlier.popleft())
        for modality in modalities:
            modality.stop()
        farm.wait_ready()
        hurt.counts.update(invariants.hold(farm, modalities))
        hurt.counts["came to the PACS again"] += shared.receiver.repeats - repeats
        hurt.counts["refused or unanswered"] += sum(sum(one.refused.values()) for one in modalities)
        hurt.counts.update({f"ended by itself: {one}": count for one, count in farm.ended.items()})
        statuses = farm.stop()
        if set(statuses.values()) != {0}:
            raise Violation(f"not every process ends in good order: {statuses}")
    except Violation as violation:
        told(farm.tail())
        raise Violation(f"farm of seed {seed}, after {dict(hurt.counts)}: {violation}") from None
    finally:
        for modality in modalities:
            modality._stop.set()
        farm.abandon()
        subprocess.run(["rm", "-rf", str(farm.folder), str(farm.disk)], check=False)
    hurt.counts["farms"] += 1
    return hurt.counts


def _studies(modalities: list[Modality]) -> set[str]:
    return {study for modality in modalities for study, _ in list(modality.acknowledged)}


def _keep_pace(farm: Farm, modalities: list[Modality]) -> None:
    """Let modalities pause while the work behind them is far behind: on a busy machine that says nothing of faults."""
    far = len(farm.unfinished(_studies(modalities))) > MOST_BEHIND
    for modality in modalities:
        if far:
            modality.goes_on.clear()
    if far:
        until(lambda: len(farm.unfinished(_studies(modalities))) < MOST_BEHIND // 2, FLOW_SECONDS * 2, "the backlog")
    for modality in modalities:
        modality.goes_on.set()


def _flows(farm: Farm, modalities: list[Modality], more: int) -> None:
    """Return when so many more objects were acknowledged. Raises Violation."""
    goal = sum(len(one.acknowledged) for one in modalities) + more
    try:
        until(lambda: sum(len(one.acknowledged) for one in modalities) >= goal, FLOW_SECONDS, "objects taken again")
    except Violation as violation:
        refused = sum((one.refused for one in modalities), Counter[str]())
        ready = {member.name: member.ready for member in farm.members}
        raise Violation(f"{violation}; refused {dict(refused)}; ready {ready}") from None


def run(
    moments: int, seed: int, *, state: Path | None = None, per_farm: int = MOMENTS_OF_A_FARM, clock: bool = True,
    seconds: float = float("inf"), only: Collection[str] = (), say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """So many moments, or as many farms of them as fit into `seconds`; the counts and the violations."""
    result: dict[str, Any] = {"seed": seed, "seconds": 0.0, "counts": {}, "violations": []}
    if state is not None and state.exists():
        result = json.loads(state.read_text())
        if result["seed"] != seed:
            raise ValueError("the state is of another seed")
    counts = Counter(result["counts"])
    began = time.monotonic()
    with place(clock=clock) as (shared, clocks):
        while counts["moments"] < moments and time.monotonic() - began < seconds:
            number = result.get("farms", 0)
            lap = time.monotonic()
            wanted = min(per_farm, moments - counts["moments"])
            try:
                counts += run_farm(shared, clocks, f"f{number}", seed * 100_000 + number, wanted, say, only)
            except Violation as violation:
                result["violations"].append(str(violation))
                counts["farms that broke"] += 1
                say(str(violation))
            result["farms"] = number + 1
            result["seconds"] = round(result["seconds"] + time.monotonic() - lap, 1)
            result["counts"] = dict(sorted(counts.items()))
            say(f"{counts['moments']} moments, {result['seconds']:.0f} s, {len(result['violations'])} violations")
            if state is not None:
                state.write_text(json.dumps(result, indent=1))
            if counts["farms that broke"] > 20:
                break
    return result


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, help="file that remembers how far it is")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no farm after so long")
    parser.add_argument("--only", default="", help="names of faults, by commas: clock,postgres_full")
    parser.add_argument("--no-clock", action="store_true", help="do not step clocks (that needs a C compiler)")
    given = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what was started is ended

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    only = [name for name in given.only.split(",") if name]
    result = run(
        given.moments,
        given.seed,
        state=given.state,
        only=only,
        clock=not given.no_clock,
        seconds=given.seconds,
        say=say,
    )
    print(json.dumps(result, indent=2))
    return int(bool(result["violations"]))


if __name__ == "__main__":
    sys.exit(_main())
