"""The tree and its entries as C2SP tlog-tiles: paths, hash tiles of 256, entry bundles."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shared.transparency import merkle

WIDTH = 256
"""Hashes in a full tile; a tile spans eight levels of the tree."""

MAX_ENTRY = 65535
"""Longest entry in bytes: a bundle holds lengths as uint16."""

_INDEX = r"(?:x[0-9]{3}/)*[0-9]{3}"
_WIDTH = r"[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]"
_PATH = re.compile(rf"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/({_INDEX})(?:\.p/({_WIDTH}))?")

ENTRIES = -1
"""The level that stands for entry bundles."""


@dataclass(frozen=True)
class Tile:
    """One tile: `width` hashes (or entries, where level is ENTRIES) from `index * 256` on of its level."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """Path below the log's prefix, "tile/0/x001/234.p/56"."""
        digits = f"{self.index:03d}"
        if len(digits) % 3:
            digits = digits.zfill(len(digits) + 3 - len(digits) % 3)
        groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
        name = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        level = "entries" if self.level == ENTRIES else str(self.level)
        return f"tile/{level}/{name}" + ("" if self.width == WIDTH else f".p/{self.width}")


def parse_path(path: str) -> Tile:
    """The tile that a path names. Raises ValueError where the path is not in its one canonical form."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise ValueError("not the path of a tile")
    level, index, width = match.groups()
    number = int(index.replace("x", "").replace("/", ""))
    tile = Tile(ENTRIES if level == "entries" else int(level), number, int(width) if width else WIDTH)
    if tile.path != path:
        raise ValueError("a tile index with surplus leading zeros")
    return tile


def tiles_of(size: int) -> Iterator[Tile]:
    """Every hash tile of a tree of `size` leaves, level by level, the partial one of each level last."""
    level = 0
    while size:
        yield from (Tile(level, index) for index in range(size // WIDTH))
        if size % WIDTH:
            yield Tile(level, size // WIDTH, size % WIDTH)
        size //= WIDTH
        level += 1


def bundles_of(size: int) -> Iterator[Tile]:
    """Every entry bundle of a log of `size` entries."""
    yield from (Tile(ENTRIES, index) for index in range(size // WIDTH))
    if size % WIDTH:
        yield Tile(ENTRIES, size // WIDTH, size % WIDTH)


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Entries, each behind its length as a big-endian uint16. Raises OverflowError for an entry over 65,535 bytes."""
    return b"".join(part for entry in entries for part in (len(entry).to_bytes(2, "big"), entry))


def decode_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises ValueError where it ends inside an entry."""
    entries = []
    position = 0
    while position < len(data):
        start = position + 2
        position = start + int.from_bytes(data[position:start], "big")
        if start > len(data) or position > len(data):
            raise ValueError("an entry bundle that ends inside an entry")
        entries.append(data[start:position])
    return entries


def reader(fetch: Callable[[int, int], bytes]) -> merkle.Node:
    """Roots of perfect subtrees out of tiles; `fetch(level, index)` gives a tile's hashes, as many as there are.

    A tile is fetched once. Raises LookupError where the tiles do not reach far enough.
    """
    known: dict[tuple[int, int], bytes] = {}

    def node(height: int, index: int) -> bytes:
        level, inside = divmod(height, 8)
        first = index << inside
        place = level, first // WIDTH
        if place not in known:
            known[place] = fetch(*place)
        start = first % WIDTH * merkle.HASH_SIZE
        stop = start + (merkle.HASH_SIZE << inside)
        span = known[place][start:stop]
        if len(span) != stop - start:
            raise LookupError(f"tile {level}/{place[1]} is too short")
        return merkle.perfect_root([span[i : i + merkle.HASH_SIZE] for i in range(0, len(span), merkle.HASH_SIZE)])

    return node
