"""`stepwedge backup`: everything that must not be lost, copied into one folder while the cluster goes on.

The order matters. Ingest's database is copied before the log: what it refers to is then in the copy of the log. The
objects are listed last: none is ever deleted, so whatever the databases name is among them. What is acknowledged while
this runs may stand in the copy of the log and not in that of ingest; `stepwedge restore` names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cli import configuration, copies, terminal
from cli.key_archive import KeyArchive
from shared import keys
from shared.build import software_build
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone, open_store

if TYPE_CHECKING:
    from shared.settings import Settings

FORMAT = "stepwedge.backup/1"
MANIFEST = "manifest.json"
KEY_ARCHIVE = "keys.sealed"
DATABASES = ("ingest", "audit", "console")
"""In the order in which they are copied."""
APART = (keys.MASTER,)
"""Keys that are never part of a backup: an old one beside an old log opens what was erased since."""

_NEWEST = "SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1"


def backup(folder: Path, config: Path | None, *, with_objects: bool, with_keys: Path | None, json_lines: bool) -> None:
    """Make a backup in `folder`, which must not be there yet; it appears when it is whole.

    Parameters
    ----------
    with_objects
        Copy the objects too, not only their list.
    with_keys
        File of the passphrase under which the keys go along; without it they are named only.

    Raises
    ------
    StepwedgeError
        FILE where the folder is there, or a database is not; whatever a database or the object store answers.
    """
    settings = configuration.load(config)
    if folder.exists():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{folder}: is there already")
    if not folder.parent.is_dir():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{folder}: its folder does not exist")
    passphrase = None if with_keys is None else _passphrase(with_keys)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir(mode=0o700)
    try:
        manifest = _copy_everything(settings, part, with_objects=with_objects, passphrase=passphrase)
        _write(part / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
        part.rename(folder)
        _synchronise(folder.parent)
    finally:
        if part.exists():
            shutil.rmtree(part, ignore_errors=True)
    _tell(folder, manifest, json_lines=json_lines)


def _copy_everything(
    settings: Settings, folder: Path, *, with_objects: bool, passphrase: bytes | None
) -> dict[str, Any]:
    begun = datetime.now(UTC)
    before = _size_of_log(settings.audit.database)
    databases = {}
    for name in DATABASES:
        url = getattr(settings, name).database
        if name == "console" and not copies.is_there(url):
            continue
        file = folder / f"{name}.db"
        terminal.note(f"copying the database of {name}")
        copies.copy(name, url, file)
        databases[name] = _described(file)
    size, note = _head_of_copy(folder / "audit.db")
    store = open_store(settings.objects, set(Zone))
    objects = {zone.value: _list_objects(store, zone, folder, copied=with_objects) for zone in Zone}
    archive = KeyArchive.of(settings)
    if passphrase is not None:
        _write(folder / KEY_ARCHIVE, archive.sealed(passphrase))
    return {
        "format": FORMAT,
        "begun_at": begun.isoformat(),
        "ended_at": datetime.now(UTC).isoformat(),
        "software_build": software_build(),
        "log": {"origin": settings.audit.origin, "size": size, "size_at_begin": before, "checkpoint": note},
        "log_key": _log_key(settings),
        "databases": databases,
        "objects": objects,
        "keys": {
            "included": passphrase is not None,
            "files": archive.named(),
            "apart": list(APART),
            **({"sealed": _described(folder / KEY_ARCHIVE)} if passphrase is not None else {}),
        },
    }


def _size_of_log(url: str) -> int:
    """Entries under the newest checkpoint in a log's database; 0 where it has none."""
    if not copies.is_there(url):
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, "there is no database of audit")
    engine = copies.read_only(url)
    try:
        with engine.connect() as connection:
            found = connection.execute(sa.text(_NEWEST)).one_or_none()
    except sa.exc.DBAPIError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, "the database of audit holds no log") from None
    finally:
        engine.dispose()
    return 0 if found is None else int(found.size)


def _head_of_copy(file: Path) -> tuple[int, str]:
    """Size and note of the newest checkpoint of a copy, without a byte of it changing."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as opened:
        found = opened.execute(_NEWEST).fetchone()
    return (0, "") if found is None else (int(found[0]), str(found[1]))


def inventory_file(zone: Zone) -> str:
    """Name of the list of a zone's objects: a line each, digest and size in bytes."""
    return f"objects.{zone.value}.txt"


def _list_objects(store: ObjectStore, zone: Zone, folder: Path, *, copied: bool) -> dict[str, Any]:
    """Write the list of a zone, and its objects where they are `copied`; what the manifest says of them."""
    count = total = 0
    file = folder / inventory_file(zone)
    target = folder / "objects" / zone.value
    with open(file, "w", encoding="ascii", opener=_private) as lines, terminal.counter("objects", zone.value) as show:
        for sha256, size in store.inventory(zone):
            if copied:
                place = target / sha256[:2]
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
                _write(place / sha256, store.get(zone, sha256))
            lines.write(f"{sha256} {size}\n")
            count, total = count + 1, total + size
            show(count)
        lines.flush()
        os.fsync(lines.fileno())
    return {"count": count, "bytes": total, "copied": copied, **_described(file)}


def _log_key(settings: Settings) -> str:
    for folder in (settings.audit.keys, settings.cluster.keys):
        with suppress(OSError):
            return (folder / keys.VERIFICATION).read_text("ascii").strip()
    return ""


def _passphrase(file: Path) -> bytes:
    found = file.read_bytes().strip()
    if len(found) < 12:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, f"{file}: a passphrase has 12 characters at least")
    return found


def _described(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": file.name, "sha256": digest, "size": file.stat().st_size}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write(file: Path, data: bytes) -> None:
    with open(file, "xb", opener=_private) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tell(folder: Path, manifest: Mapping[str, Any], *, json_lines: bool) -> None:
    log, objects, secrets = manifest["log"], manifest["objects"], manifest["keys"]
    if json_lines:
        counts = {zone: one["count"] for zone, one in objects.items()}
        terminal.emit({"folder": str(folder), "log_size": log["size"], "objects": counts, "keys": secrets["included"]})
        return
    say = terminal.out().print
    say(f"{folder}: whole", markup=False, soft_wrap=True)
    say(f"  databases  {', '.join(manifest['databases'])}; the log has {log['size']} entries", markup=False)
    for zone, one in objects.items():
        words = "copied" if one["copied"] else "listed, not copied: back the store itself up too"
        say(
            f"  objects    {one['count']} in {zone}, {terminal.size(one['bytes'])}, {words}",
            markup=False,
            soft_wrap=True,
        )
    named = ", ".join(sorted(secrets["files"]))
    words = "sealed under the passphrase" if secrets["included"] else "NOT included"
    say(f"  keys       {words}: {named}", markup=False, soft_wrap=True)
    say(
        f"  apart      {', '.join(APART)}: keep its newest state elsewhere, never an old one",
        markup=False,
        soft_wrap=True,
    )
    say("  then       stepwedge restore --drill says whether it can be relied on", markup=False)
