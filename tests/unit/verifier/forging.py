"""What somebody with every right on the log's files and database can do to an export of it."""

import json
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from services.audit import record, tiles
from services.audit.tiles import Tile
from shared.transparency import merkle
from shared.transparency.note import Checkpoint, Signer

Files = dict[str, bytes]


def read(archive: Path) -> Files:
    """The files of an export."""
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def write(archive: Path, files: Files) -> Path:
    """An export of these files, with a manifest that fits unless they bring their own."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return archive


def with_manifest(files: Files) -> Files:
    """The files with a manifest whose digests fit them."""
    manifest = json.loads(files["manifest.json"])
    rest = {name: data for name, data in files.items() if name != "manifest.json"}
    manifest["files"] = {name: sha256(data).hexdigest() for name, data in rest.items()}
    return {**rest, "manifest.json": record.encode(manifest)}


def leaves(files: Files) -> list[bytes]:
    """Every record of an export, in order."""
    bundles = sorted(name for name in files if name.startswith("tile/entries/"))
    order = sorted(bundles, key=lambda name: tiles.parse_path(name).index)
    return [leaf for name in order for leaf in tiles.decode_bundle(files[name])]


def rebuilt(files: Files, records: list[bytes], signer: Signer | None = None, *, trees: bool = True) -> Files:
    """The export of a log of these records: bundles, and with `trees` the tiles, and with a signer the checkpoint."""
    result = {name: data for name, data in files.items() if not name.startswith("tile/")}
    if not trees:
        result |= {name: data for name, data in files.items() if name.startswith("tile/") and "entries" not in name}
    for bundle in tiles.bundles_of(len(records)):
        start = bundle.index * 256
        result[bundle.path] = tiles.encode_bundle(records[start : start + bundle.width])
    rows: dict[int, list[bytes]] = {}
    compact = merkle.CompactRange()

    def keep(height: int, _: int, node: bytes) -> None:
        if height % 8 == 0:
            rows.setdefault(height // 8, []).append(node)

    for leaf in records:
        compact.append(merkle.leaf_hash(leaf), keep)
    if trees:
        for tile in tiles.tiles_of(len(records)):
            row = rows[tile.level][tile.index * 256 : tile.index * 256 + tile.width]
            result[Tile(tile.level, tile.index, tile.width).path] = b"".join(row)
    if signer is not None:
        result["checkpoint"] = str(Checkpoint(signer.key.name, len(records), compact.root()).sign([signer])).encode()
        result["vkey"] = f"{signer.key}\n".encode()
        manifest = json.loads(result["manifest.json"])
        manifest["size"] = len(records)
        manifest["keys"] = [{"verification_key": str(signer.key), "from_size": 0}]
        result["manifest.json"] = record.encode(manifest)
    return with_manifest(result)


def renumbered(records: list[bytes]) -> list[bytes]:
    """The records with the indexes that they have now."""
    return [record.encode({**json.loads(leaf), "index": index}) for index, leaf in enumerate(records)]


def changed(leaf: bytes, change: Callable[[dict[str, object]], None]) -> bytes:
    """A record with something else in it, canonical again."""
    members = json.loads(leaf)
    change(members)
    return record.encode(members)
