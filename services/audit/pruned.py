"""Which entries were pruned, by what the log itself says."""

from bisect import bisect_right
from collections.abc import Sequence

import sqlalchemy as sa

from services.audit import retention, store


class Pruned:
    """Which indexes records of pruning speak of."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(ranges):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    @classmethod
    def of(cls, connection: sa.Connection) -> "Pruned":
        """Out of the log. Raises LOG_INCONSISTENT where a record of pruning was tampered with."""
        if not sa.inspect(connection).has_table(store.FACETS.name):
            return cls([])  # a database that is read as it is, from before there was pruning
        return cls(retention.pruned_ranges(connection))

    def __contains__(self, index: int) -> bool:
        place = bisect_right(self._firsts, index) - 1
        return place >= 0 and index <= self._lasts[place]

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in zip(self._firsts, self._lasts, strict=True))
