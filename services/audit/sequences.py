"""What arrived of a producer's numbering: which numbers are missing, and which brought nothing new.

A producer numbers its records from 1 for each of its starts (an incarnation). Several calls may be under way at once,
so numbers arrive in any order: one is missing only when it has not come for `GRACE_SECONDS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GRACE_SECONDS = 30.0
"""How long a number may be overtaken by later ones before it counts as missing."""

_MOST_GAPS = 256
_MOST_REPEATS = 4096


@dataclass(slots=True)
class Gap:
    """Numbers that did not come yet."""

    first: int
    last: int
    since_us: int
    """When a later one overtook them."""
    reported: bool = False


@dataclass(slots=True)
class Incarnation:
    """One start of one producer."""

    producer: str
    name: str
    highest: int = 0
    gaps: list[Gap] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    """Numbers used up by idempotency keys that were known; the next leaf of this incarnation names them."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Incarnation":
        """Out of the table `producers`."""
        gaps = [Gap(*gap) for gap in row["gaps"]]
        return cls(row["producer"], row["incarnation"], row["highest"], gaps, list(row["repeats"]))

    def row(self) -> dict[str, Any]:
        """For the table `producers`."""
        return {
            "producer": self.producer,
            "incarnation": self.name,
            "highest": self.highest,
            "gaps": [[gap.first, gap.last, gap.since_us, gap.reported] for gap in self.gaps],
            "repeats": self.repeats,
            "unreported": any(not gap.reported for gap in self.gaps),
        }

    def copy(self) -> "Incarnation":
        """An independent one."""
        gaps = [Gap(gap.first, gap.last, gap.since_us, gap.reported) for gap in self.gaps]
        return Incarnation(self.producer, self.name, self.highest, gaps, list(self.repeats))

    def take(self, number: int, now_us: int) -> bool:
        """Note that a number came; False where it had come before."""
        if number > self.highest:
            if number > self.highest + 1:
                self.gaps.append(Gap(self.highest + 1, number - 1, now_us))
                del self.gaps[:-_MOST_GAPS]
            self.highest = number
            return True
        for position, gap in enumerate(self.gaps):
            if gap.first <= number <= gap.last:
                rest = [
                    Gap(first, last, gap.since_us, gap.reported)
                    for first, last in ((gap.first, number - 1), (number + 1, gap.last))
                    if first <= last
                ]
                self.gaps[position : position + 1] = rest
                return True
        return False

    def repeat(self, number: int, now_us: int) -> None:
        """Note a number that came with a key that was known."""
        if self.take(number, now_us) and len(self.repeats) < _MOST_REPEATS:
            self.repeats.append(number)

    def overdue(self, now_us: int) -> list[Gap]:
        """Gaps to report now; the caller marks them."""
        return [gap for gap in self.gaps if not gap.reported and now_us - gap.since_us >= GRACE_SECONDS * 1e6]
