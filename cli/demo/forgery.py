"""What an insider would try: change one verdict in an export, and put every digest that can be recomputed in order."""

from __future__ import annotations

import json
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

BUNDLES = "tile/entries/"
FLIPPED = {"REJECT": "ACCEPT", "REVIEW": "ACCEPT", "ACCEPT": "REJECT"}
"""What the forger makes of a verdict; a bad image that passes is worth most."""


class Forged(NamedTuple):
    """What was changed."""

    record: int
    """Position of the record in the log."""
    before: str
    after: str


def forge(export: Path, copy: Path) -> Forged | None:
    """Write a copy of an export in which one decision has another verdict; None where it holds no decision.

    The record stays well-formed and canonical and the manifest matches it: only the tree under the signature tells.
    """
    with zipfile.ZipFile(export) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    forged = next((found for wanted in FLIPPED if (found := _flip(files, wanted))), None)
    if forged is None:
        return None
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {name: sha256(files[name]).hexdigest() for name in manifest["files"]}
    files["manifest.json"] = _canonical(manifest)
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return forged


def _flip(files: dict[str, bytes], wanted: str) -> Forged | None:
    """Change the first decision with the wanted verdict, in place."""
    for name in sorted(name for name in files if name.startswith(BUNDLES)):
        entries = _entries(files[name])
        for number, leaf in enumerate(entries):
            record = json.loads(leaf)
            if record.get("kind") == "DECIDED" and record["event"].get("verdict") == wanted:
                record["event"]["verdict"] = FLIPPED[wanted]
                entries[number] = _canonical(record)
                files[name] = b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
                return Forged(record["index"], wanted, FLIPPED[wanted])
    return None


def _entries(bundle: bytes) -> list[bytes]:
    """Entries behind their lengths as big-endian uint16 (C2SP tlog-tiles)."""
    entries = []
    position = 0
    while position < len(bundle):
        start = position + 2
        position = start + int.from_bytes(bundle[position:start], "big")
        entries.append(bundle[start:position])
    return entries


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
