"""`stepwedge keys`: the keys that pseudonyms are made with."""

from __future__ import annotations

from pathlib import Path

from cli import configuration, terminal
from shared import keys, pseudonym_keys
from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import key_id_of, read_keys
from shared.settings import Settings


def show(key: Path | None, project: str, config: Path | None, *, json: bool) -> None:
    """Print each key by its id and what has become of it."""
    for one in pseudonym_keys.listed(_file(key, config), project):
        if json:
            terminal.emit({"key_id": one.id, "state": one.state, "since": one.since})
        else:
            terminal.out().print(f"{one.id}  {one.state} {one.since}".rstrip(), markup=False)


def rotate(key: Path | None, config: Path | None, *, json: bool) -> None:
    """Put a new key into use."""
    key_id = pseudonym_keys.rotate(_file(key, config))
    if json:
        terminal.emit({"key_id": key_id, "state": "in use"})
        return
    terminal.out().print(f"{key_id}  in use from the next start of ingest and redaction", markup=False)


def destroy(key_id: str, key: Path | None, config: Path | None, *, sure: bool, json: bool) -> None:
    """Forget a retired key, in the copies of the services too.

    Raises INVALID_REQUEST where nobody says that it is meant, WRONG_STATE where services were last started with the key
    in use: they, or what they come back to after a crash, would go on with it.
    """
    if not sure:
        words = f"{key_id} would be gone for good, and with it every way back; --yes says that it is meant"
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
    file = _file(key, config)
    copies = [] if key is not None else _copies(configuration.load(config), key_id)
    pseudonym_keys.destroy(file, key_id)
    for copy in copies:
        pseudonym_keys.destroy(copy, key_id)
    if json:
        terminal.emit({"key_id": key_id, "state": "destroyed"})
        return
    terminal.out().print(f"{key_id}  destroyed here; destroy its copies in backups too", markup=False)


def _copies(settings: Settings, key_id: str) -> list[Path]:
    """The copies of the key file that `stepwedge up` gave to services and that hold the key."""
    held = {
        file: [key_id_of(one) for one in read_keys(file)]
        for file in sorted((settings.cluster.data / "run").glob(f"*.secrets/{keys.PSEUDONYMS}"))
    }
    if any(ids[0] == key_id for ids in held.values()):
        words = "the services were last started with that key in use: end `stepwedge up`, start it again, then destroy"
        raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, words)
    return [file for file, ids in held.items() if key_id in ids]


def _file(key: Path | None, config: Path | None) -> Path:
    file = key if key is not None else configuration.load(config).cluster.keys / keys.PSEUDONYMS
    if not file.is_file():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: no such file")
    return file
