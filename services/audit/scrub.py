"""Holds what queries search against what is in the tree, so that no entry can be hidden by changing a column.

Every column beside a leaf follows from the leaf, so it can be checked, and written anew. The newest entries are checked
at the start of the service, all of them over and over in the background at a low rate, and all at once on demand.
What differs is recorded as an alert, and queries are refused until it is mended: columns by `reindex`; leaves and tiles
only out of a copy that verifies.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import sqlalchemy as sa

from services.audit import meters, record, retention, store, tiles
from services.audit.acts import Own
from services.audit.log import Log
from services.audit.pruned import Pruned
from services.audit.reading import checkpoint_of, newest
from services.audit.state import inconsistent
from services.audit.store import ENTRIES, FACETS, Facet
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency import merkle
from stepwedge.audit.v1 import audit_pb2

AT_START = 16
"""Tiles of the newest entries that are checked before the service answers."""

_PROGRESS_TILES = 64
_PAUSE_SECONDS = 5.0

_logger = logs.get_logger(__name__)


@dataclass
class Findings:
    """What a check found so far."""

    size: int
    checked: int = 0
    pruned: int = 0
    columns: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)

    @property
    def first(self) -> int | None:
        """The first entry that is not as it should be."""
        return min((*self.columns[:1], *self.entries[:1], *self.missing[:1]), default=None)

    def add(self, other: "Findings") -> None:
        """Those of the next tile."""
        self.checked += other.checked
        self.pruned += other.pruned
        for name in ("columns", "entries", "missing"):
            getattr(self, name).extend(getattr(other, name))


def columns(members: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside a leaf, but for facet and time of the latest before it."""
    return {
        "key_hash": store.key_hash(members["producer"], members["key"]),
        "recorded_us": retention.microseconds(members["recorded_at"]),
        **{name: members.get(name) for name in ("study", "instance", "subject")},
    }


class Checker:
    """Checks tile by tile, at one moment of the log."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.head = newest(connection)
        self.size = self.head.size
        self.facets = {row[0]: Facet(*row[1:]) for row in connection.execute(sa.select(FACETS))}
        self.pruned = Pruned.of(connection)
        self._node = store.node_reader(connection)

    def tile(self, number: int) -> Findings:
        """The entries of one tile of level 0."""
        start = number * tiles.WIDTH
        end = min(start + tiles.WIDTH, self.size)
        found = Findings(self.size, checked=end - start)
        c = ENTRIES.c
        wanted = sa.select(ENTRIES).where(c.index >= max(0, start - 1), c.index < end).order_by(c.index)
        rows = {row[0]: row for row in self._connection.execute(wanted)}
        full = end - start == tiles.WIDTH
        hashes = store.tile(self._connection, 0, number) if full else b""
        if full and not self._is_in_the_tree(number, hashes):
            found.entries.extend(range(start, end))
            return found
        latest = rows[start - 1].recorded_max_us if start - 1 in rows else None
        for index in range(start, end):
            row = rows.get(index)
            if row is None:
                latest = None
                if index in self.pruned:
                    found.pruned += 1
                else:
                    found.missing.append(index)
                continue
            place = (index - start) * merkle.HASH_SIZE
            if full and merkle.leaf_hash(bytes(row.leaf)) != hashes[place : place + merkle.HASH_SIZE]:
                found.entries.append(index)
            elif not self._columns_are_right(row, latest if index else 0):
                found.columns.append(index)
            latest = row.recorded_max_us
        if found.missing:  # some may have been pruned since this began
            self.pruned = Pruned.of(self._connection)
            gone = [index for index in found.missing if index not in self.pruned]
            found.pruned, found.missing = found.pruned + len(found.missing) - len(gone), gone
        return found

    def _is_in_the_tree(self, number: int, hashes: bytes) -> bool:
        if len(hashes) != tiles.WIDTH * merkle.HASH_SIZE:
            return False
        leaves = [hashes[i : i + merkle.HASH_SIZE] for i in range(0, len(hashes), merkle.HASH_SIZE)]
        try:
            return merkle.perfect_root(leaves) == self._node(8, number)
        except LookupError:
            return False

    def _columns_are_right(self, row: Any, latest: int | None) -> bool:
        """latest: `recorded_max_us` of the entry before; None where that is not known."""
        try:
            members = record.parse(bytes(row.leaf))
            wanted = columns(members)
            facet = store.facet(members)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        stored = {**row._mapping, "key_hash": bytes(row.key_hash)}
        if any(stored[name] != value for name, value in wanted.items()) or self.facets.get(row.facet) != facet:
            return False
        at_least = max(latest or 0, wanted["recorded_us"])
        return bool(row.recorded_max_us >= at_least if latest is None else row.recorded_max_us == at_least)

    def upper_tiles(self) -> bool:
        """Whether the tiles above those of the leaves are those of the root that was signed."""
        level, width = 1, self.size // tiles.WIDTH
        try:
            while width:
                for number in range(width // tiles.WIDTH):
                    data = store.tile(self._connection, level, number)
                    whole = [data[i : i + merkle.HASH_SIZE] for i in range(0, len(data), merkle.HASH_SIZE)]
                    if len(whole) != tiles.WIDTH or merkle.perfect_root(whole) != self._node(8 * level + 8, number):
                        return False
                level, width = level + 1, width // tiles.WIDTH
            return merkle.root_of(self.size, self._node) == checkpoint_of(self.head).root
        except LookupError:
            return False


class Scrub:
    """Checks the log, and remembers whether queries must be refused."""

    def __init__(self, log: Log, per_second: int) -> None:
        self._log = log
        self._per_second = per_second
        self._told: set[tuple[int, int]] = set()
        self._refusal: StepwedgeError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)

    def start(self) -> None:
        """Check the newest entries, then go on in the background."""
        with self._log.store.reading() as connection:
            if store.head(connection) is None:
                return
            checker = Checker(connection)
            last = -(-checker.size // tiles.WIDTH)
            found = Findings(checker.size)
            for number in range(max(0, last - AT_START), last):
                found.add(checker.tile(number))
        self._tell(found)
        if self._per_second:
            self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def raise_if_refused(self) -> None:
        """Raise LOG_INCONSISTENT where a check found that queries could not be trusted."""
        if self._refusal is not None:
            raise self._refusal

    def check(self, first: int = 0, *, reindex: bool = False) -> Iterator[Findings]:
        """Check everything from the entry `first` on; what was found, as it goes, and at the end all of it.

        With `reindex`, columns that differ are written anew; where all is right then, queries are answered again.
        """
        with self._log.store.reading() as connection:
            size = newest(connection).size
        found = Findings(size)
        for start in range(first // tiles.WIDTH, -(-size // tiles.WIDTH), _PROGRESS_TILES):
            with self._log.store.reading() as connection:
                checker = Checker(connection)
                last = min(start + _PROGRESS_TILES, -(-size // tiles.WIDTH))
                for number in range(start, last):
                    found.add(checker.tile(number))
            yield found
        with self._log.store.reading() as connection:
            whole = Checker(connection).upper_tiles()
        if reindex and found.columns:
            for start in range(0, len(found.columns), 1000):
                self._log.perform(Reindex(found.columns[start : start + 1000])).result()
        self._tell(found, whole=whole)
        if first == 0 and whole and not found.entries and not found.missing and (reindex or not found.columns):
            self._refusal = None
            self._told.clear()
        if not whole and self._refusal is not None:
            raise self._refusal
        yield found

    def _tell(self, found: Findings, *, whole: bool = True) -> None:
        """Record what was found, each once, and refuse queries from now on."""
        for code, indexes, words in (
            (audit_pb2.ALERT_CODE_COLUMNS_ALTERED, found.columns, "the columns of entries do not say what they say"),
            (audit_pb2.ALERT_CODE_ENTRIES_ALTERED, found.entries, "entries are not those in the tree"),
            (audit_pb2.ALERT_CODE_ENTRIES_MISSING, found.missing, "entries are gone that were not pruned"),
        ):
            if not indexes:
                continue
            self._refusal = inconsistent(f"{words}, first {indexes[0]}; `stepwedge log check` tells more")
            if (code, indexes[0]) in self._told:
                continue
            self._told.add((code, indexes[0]))
            _logger.critical("the check of the log found what differs", count=len(indexes), index=indexes[0])
            alert = audit_pb2.AlertEvent(code=code, first_index=indexes[0], entries=len(indexes))
            try:
                self._log.alert(alert).result(30)
            except (StepwedgeError, TimeoutError):
                self._told.discard((code, indexes[0]))
        if not whole:
            self._refusal = inconsistent("tiles of the tree are not those of the root that was signed")
        meters.CHECK_REFUSES.set(self._refusal is not None)

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE_SECONDS):
            try:
                self._pass()
            except StepwedgeError as error:
                if error.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT:
                    self._refusal = error
                _logger.warning("the check of the log was broken off", **logs.describe(error))

    def _pass(self) -> None:
        """Once over the log, a tile at a time, no faster than the rate."""
        number, size = 0, 1
        while number * tiles.WIDTH < size:
            began = time.monotonic()
            with self._log.store.reading() as connection:
                checker = Checker(connection)
                size = checker.size
                found = checker.tile(number)
            self._tell(found)
            meters.CHECKED.inc(found.checked)
            number += 1
            if self._stop.wait(max(0.0, tiles.WIDTH / self._per_second - (time.monotonic() - began))):
                return
        with self._log.store.reading() as connection:
            self._tell(Findings(size), whole=Checker(connection).upper_tiles())


class Reindex:
    """Write the columns of entries anew, out of the leaves."""

    makes_facets: ClassVar[bool] = True

    def __init__(self, indexes: Sequence[int]) -> None:
        self._indexes = indexes

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own | None:
        """See `Act`; the check that led to it records an alert."""
        node = store.node_reader(connection)
        known = store.facets(connection)
        following = max(known.values(), default=0) + 1
        for index in self._indexes:
            rows = store.leaves(connection, index, index + 1)
            if not rows or node(0, index) != merkle.leaf_hash(rows[0].leaf):
                continue
            members = record.parse(rows[0].leaf)
            facet = store.facet(members)
            if facet not in known:
                connection.execute(sa.insert(FACETS).values(id=following, **facet._asdict()))
                known[facet], following = following, following + 1
            c = ENTRIES.c
            before = sa.select(c.recorded_max_us).where(c.index < index).order_by(c.index.desc()).limit(1)
            wanted = columns(members)
            latest = max(connection.scalar(before) or 0, wanted["recorded_us"])
            change = sa.update(ENTRIES).where(c.index == index)
            connection.execute(change.values(**wanted, facet=known[facet], recorded_max_us=latest))
        return None

    def committed(self) -> None:
        """See `Act`."""
