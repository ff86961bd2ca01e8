"""Many studies through a cluster of several machines with faults all the while: how fast, how late, and is memory flat?

    python -m tests.faults.soak --studies 1500 --seed 1

Four modalities send until so many studies are acknowledged; a fault of `tests.faults.matrix` comes every 20 seconds or
so (not those of a full disk or a stepped clock). The memory of each process and its workers (PSS: what it holds alone
and its share of what it holds with others) is taken every 5 seconds; at the end a straight line is laid through what
each process held once it had warmed up. Then everything is held against the log. Prints one JSON object; exit status 1
for a violation, or where the memory of any process that lived ten minutes grows by more than 10 MB in 1,000 studies.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.faults import invariants, matrix
from tests.faults.farm import Farm, Modality, Violation
from tests.faults.matrix import Hurt

MODALITIES = 4
SAMPLE_SECONDS = 5.0
BETWEEN_FAULTS = (10.0, 30.0)
WARM_SHARE = 0.3
"""Share of a life that counts as warming up."""
LONG_ENOUGH = 600.0
MOST_GROWTH = 10.0
"""MB in 1,000 studies."""
FAULTS: tuple[tuple[Callable[[Hurt], str], int], ...] = (
    (Hurt.kill, 4),
    (Hurt.drain, 2),
    (Hurt.freeze, 1),
    (Hurt.cut, 3),
    (Hurt.store_errors, 1),
    (Hurt.postgres_crashed, 1),
)


@dataclass
class Life:
    """What one process held at each moment: (seconds, studies acknowledged, MB)."""

    service: str
    samples: list[tuple[float, int, float]] = field(default_factory=list)

    def slope(self) -> float | None:
        """MB in 1,000 studies, of the part after the warm-up; None where there is too little to say."""
        warm = self.samples[int(len(self.samples) * WARM_SHARE) :]
        if len(warm) < 10 or warm[-1][1] - warm[0][1] < 50:
            return None
        line = statistics.linear_regression([one[1] for one in warm], [one[2] for one in warm])
        return line.slope * 1000

    @property
    def seconds(self) -> float:
        return self.samples[-1][0] - self.samples[0][0] if self.samples else 0.0


def _sample(farm: Farm, lives: dict[tuple[str, int], Life], seconds: float, studies: int) -> None:
    for member in farm.members:
        held = 0.0
        found = member.processes()
        for one in found:
            with suppress(psutil.Error):
                held += one.memory_full_info().pss / 1e6
        if found and held:
            life = lives.setdefault((member.name, found[0].pid), Life(member.service))
            life.samples.append((seconds, studies, held))


def run(studies: int, seed: int, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """One soak; its figures. Raises Violation."""
    chance = random.Random(seed)
    with matrix.place(clock=False) as (shared, _):
        farm = Farm(shared, "soak", matrix.COUNTS, seed=seed)
        hurt = Hurt(farm, chance)
        senders = [
            Modality(
                farm.fronts["dicom"].address, random.Random(f"{seed}/{n}"), limit=studies // MODALITIES, pause=0.05
            )
            for n in range(MODALITIES)
        ]
        lives: dict[tuple[str, int], Life] = {}
        try:
            farm.start()
            began = time.monotonic()
            for sender in senders:
                sender.start()
            next_fault = began + chance.uniform(*BETWEEN_FAULTS)
            behind: list[int] = []
            while any(sender.alive for sender in senders):
                acknowledged = {study for sender in senders for study, _ in list(sender.acknowledged)}
                _sample(farm, lives, time.monotonic() - began, len(acknowledged))
                behind.append(len(farm.unfinished(acknowledged)))
                for sender in senders:
                    (sender.goes_on.clear if behind[-1] > 3 * matrix.MOST_BEHIND else sender.goes_on.set)()
                if time.monotonic() > next_fault:
                    [fault] = chance.choices([one for one, _ in FAULTS], weights=[weight for _, weight in FAULTS])
                    what = fault(hurt)
                    hurt.counts[what] += 1
                    next_fault = time.monotonic() + chance.uniform(*BETWEEN_FAULTS)
                    say(f"{len(acknowledged)} studies, {behind[-1]} not decided, {what}")
                time.sleep(SAMPLE_SECONDS)
            sent = time.monotonic() - began
            farm.wait_ready()
            counts = invariants.hold(farm, senders)
            took = time.monotonic() - began
            _sample(farm, lives, took, studies)
            result = _figures(farm, senders, hurt.counts, lives, counts, sent, took, behind)
            statuses = farm.stop()
            if set(statuses.values()) != {0}:
                raise Violation(f"not every process ends in good order: {statuses}")
            return result
        except Violation:
            say(farm.tail())
            raise
        finally:
            for sender in senders:
                sender._stop.set()
            farm.abandon()


def _figures(
    farm: Farm, senders: list[Modality], faults: Counter[str], lives: dict[tuple[str, int], Life],
    counts: Counter[str], sent: float, took: float, behind: list[int],
) -> dict[str, Any]:  # fmt: skip
    refused: Counter[str] = sum((sender.refused for sender in senders), Counter())
    waits = [
        float(row[0])
        for row in farm.query(
            "ingest",
            "SELECT extract(epoch FROM min(d.decided_at) - s.last_received_at) FROM studies s"
            " JOIN decisions d ON d.study_id = s.id AND d.revision = s.revision GROUP BY s.id",
        )
    ]
    memory: dict[str, list[dict[str, float]]] = defaultdict(list)
    for (_, _), life in sorted(lives.items()):
        slope = life.slope()
        held = [one[2] for one in life.samples]
        told = {"seconds": round(life.seconds), "first_mb": round(held[0], 1), "last_mb": round(held[-1], 1)}
        if slope is not None:
            told["mb_per_1000_studies"] = round(slope, 2)
        if life.seconds > 60:
            memory[life.service].append(told)
    return {
        "studies": len({study for sender in senders for study, _ in sender.acknowledged}),
        "seconds_sending": round(sent, 1),
        "seconds_to_the_last_verdict": round(took, 1),
        "faults": dict(sorted(faults.items())),
        "refused_or_unanswered": dict(refused),
        "verdict_after_the_last_image_seconds": {
            "median": round(statistics.median(waits), 2),
            "p99": round(statistics.quantiles(waits, n=100)[98], 2) if len(waits) > 2 else None,
            "worst": round(max(waits), 2),
        },
        "most_not_decided": max(behind, default=0),
        "held": dict(sorted(counts.items())),
        "memory": dict(memory),
    }


def grows(result: dict[str, Any]) -> list[str]:
    """Services of which a process that lived long enough holds more and more."""
    return [
        service
        for service, lives in result["memory"].items()
        for life in lives
        if life["seconds"] >= LONG_ENOUGH and life.get("mb_per_1000_studies", 0.0) > MOST_GROWTH
    ]


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    try:
        result = run(given.studies, given.seed, say=say)
    except Violation as violation:
        print(json.dumps({"violation": str(violation)}))
        return 1
    result["grows"] = grows(result)
    print(json.dumps(result, indent=1))
    return int(bool(result["grows"]))


if __name__ == "__main__":
    sys.exit(_main())
