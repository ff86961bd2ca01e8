"""What an administrator who also holds the signing key can do: write the whole log anew, and leave no seam."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from services.audit import record, tiles
from shared.transparency import merkle
from shared.transparency.note import Checkpoint, Signer
from tests.attacks.scene import Place
from tests.unit.verifier import forging

Leaves = list[bytes]

VICTIM = 123
"""The record that the attacker wants changed: of the early part, which the auditor's first export covers."""


def leaves_of(place: Place) -> Leaves:
    """Every record."""
    return [bytes(row["leaf"]) for row in place.rows('SELECT leaf FROM entries ORDER BY "index"')]


def flipped(leaf: bytes) -> bytes:
    """One byte of a record changed, a digit for a digit."""
    place = leaf.index(b'"size_bytes":') + len(b'"size_bytes":')
    return leaf[:place] + (b"7" if leaf[place : place + 1] != b"7" else b"8") + leaf[place + 1 :]


EDITS: dict[str, Callable[[Leaves], Leaves]] = {
    "one record rewritten": lambda records: [*records[:VICTIM], flipped(records[VICTIM]), *records[VICTIM + 1 :]],
    "the tail cut off": lambda records: records[:-50],
    "a record deleted from the middle": lambda records: records[:VICTIM] + records[VICTIM + 1 :],
    "two records exchanged": lambda records: [*records[:10], records[11], records[10], *records[12:]],
    "a record inserted": lambda records: [*records[:50], records[5], *records[50:]],
}
"""What the attacker makes of the records."""


def renumbered(records: Leaves) -> Leaves:
    """The records with indexes that fit their places."""
    return forging.renumbered(records)


def put(place: Place, records: Sequence[bytes]) -> None:
    """Make these the entries of the database; every other column stays with its record, by the record's id."""
    engine = sa.create_engine(place.engine_url)
    table = sa.Table("entries", sa.MetaData(), autoload_with=engine)
    with engine.begin() as connection:
        rows = {_id(bytes(row["leaf"])): dict(row) for row in connection.execute(sa.select(table)).mappings()}
        made: list[dict[str, Any]] = []
        used: set[bytes] = set()
        for index, leaf in enumerate(records):
            row = {**rows[_id(leaf)], "index": index, "leaf": leaf}
            if row["key_hash"] in used:  # a copy needs a key of its own, or the database would refuse it
                row["key_hash"] = merkle.leaf_hash(leaf)
            used.add(row["key_hash"])
            made.append(row)
        connection.execute(sa.delete(table))
        connection.execute(sa.insert(table), made)
    engine.dispose()


def _id(leaf: bytes) -> str:
    return str(json.loads(leaf)["id"])


def root_of(records: Sequence[bytes]) -> bytes:
    """The root of the tree over the records."""
    compact = merkle.CompactRange()
    for leaf in records:
        compact.append(merkle.leaf_hash(leaf), lambda *_: None)
    return compact.root()


def rebuild_tree(place: Place, records: Sequence[bytes]) -> None:
    """Write every tile anew, so that the tree follows from the records."""
    rows: dict[int, list[bytes]] = {}

    def keep(height: int, _: int, node: bytes) -> None:
        if height % 8 == 0:
            rows.setdefault(height // 8, []).append(node)

    compact = merkle.CompactRange()
    for leaf in records:
        compact.append(merkle.leaf_hash(leaf), keep)
    place.sql("DELETE FROM tiles")
    for tile in tiles.tiles_of(len(records)):
        if tile.level == 0 and tile.width < tiles.WIDTH:
            continue
        row = rows[tile.level][tile.index * tiles.WIDTH : tile.index * tiles.WIDTH + tile.width]
        place.sql(
            'INSERT INTO tiles (level, "index", hashes) VALUES (:level, :place, :hashes)',
            level=tile.level,
            place=tile.index,
            hashes=b"".join(row),
        )


def sign_anew(place: Place, records: Sequence[bytes], signer: Signer, *, forget_witness: bool = True) -> None:
    """One checkpoint over the records, signed by `signer`, in place of all others."""
    note = str(Checkpoint(signer.key.name, len(records), root_of(records)).sign([signer]))
    place.sql("DELETE FROM checkpoints")
    place.sql("INSERT INTO checkpoints (size, note, signed_us) VALUES (:size, :note, 1)", size=len(records), note=note)
    if forget_witness:
        place.sql("DELETE FROM cosigned")
    drop_what_nobody_refers_to(place, records)


def drop_what_nobody_refers_to(place: Place, records: Sequence[bytes]) -> None:
    """Attachments of records that are gone would be seen."""
    whole = b"".join(records)
    for row in place.rows("SELECT sha256 FROM attachments"):
        if row["sha256"].encode() not in whole:
            place.sql("DELETE FROM attachments WHERE sha256 = :digest", digest=row["sha256"])


def write_anew(place: Place, records: Leaves, *, mark: bool = True) -> Leaves:
    """The whole log of these records: entries, tree, checkpoint under the real key, and the high-water mark."""
    records = renumbered(records)
    put(place, records)
    rebuild_tree(place, records)
    sign_anew(place, records, place.signer)
    if mark:
        place.set_mark(len(records), root_of(records))
    return records


def changed(leaf: bytes, **event: object) -> bytes:
    """A record with other members of its event, canonical again."""
    members = json.loads(leaf)
    members["event"].update(event)
    return record.encode(members)
