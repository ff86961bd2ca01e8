"""Redaction of files and folders, without a cluster: what `stepwedge redact` runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from services.redaction.engine import Redacted, RefusedError, redact
from services.redaction.profile import Profile
from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import Pseudonyms

MAX_BYTES: Final = 2 << 30


def redact_file(source: Path, target: Path, pseudonyms: Pseudonyms, profile: Profile | None = None) -> dict[str, Any]:
    """Redact a file to a file, written whole or not at all.

    Returns the receipt as JSON values, with `study`, `series`, `instance`, `subject` and `output` (the target's name).
    Raises StepwedgeError: FILE where a file cannot be read or written, else as `redact`. The two may not be one file.
    """
    data = _read(source)
    if target.exists() and source.resolve() == target.resolve():
        raise _file_error("the result may not replace the original")
    redacted = _redacted(data, pseudonyms, profile or Profile.basic())
    _write(target, redacted.data)
    return {**_names(redacted), "output": target.name, **redacted.receipt.as_json()}


def redact_folder(
    source: Path, target: Path, pseudonyms: Pseudonyms, profile: Profile | None = None
) -> Iterator[dict[str, Any]]:
    """Redact every file below a folder; yields one object for each as soon as it is done.

    A redacted file is `<study>/<series>/<instance>.dcm` below `target`, by its new UIDs (a number stands for a UID that
    the original lacked). Each object holds `index` (place of the file among the sorted paths, from 0: the file's own
    name may be the patient's) and either the receipt with `output`, or `error` and `message` where it was refused or
    failed. A file that fails does not stop the rest. Raises FILE where the folders are unusable.
    """
    profile = profile or Profile.basic()
    if not source.is_dir():
        raise _file_error("the source is no folder")
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise _file_error("the target may not lie inside the source")
    try:
        paths = sorted(path for path in source.rglob("*") if path.is_file())
    except OSError:
        raise _file_error("the source cannot be listed") from None
    taken: set[str] = set()
    for index, path in enumerate(paths):
        yield {"index": index, **_one(path, target, index, taken, pseudonyms, profile)}


def _one(
    path: Path, target: Path, index: int, taken: set[str], pseudonyms: Pseudonyms, profile: Profile
) -> dict[str, Any]:
    try:
        redacted = _redacted(_read(path), pseudonyms, profile)
        name = _output_name(redacted, index, taken)
        _write(target / name, redacted.data)
    except StepwedgeError as error:
        failure: dict[str, Any] = {"error": error.name, "message": error.message}
        return {**failure, **(error.receipt.as_json() if isinstance(error, RefusedError) else {})}
    return {"output": name, **_names(redacted), **redacted.receipt.as_json()}


def _output_name(redacted: Redacted, index: int, taken: set[str]) -> str:
    """A name from the new UIDs; two objects of one UID and other content get two names."""
    number = f"{index:06d}"
    stem = f"{redacted.study or 'study'}/{redacted.series or 'series'}/{redacted.instance or number}"
    if stem in taken:
        stem = f"{stem}-{number}"
    taken.add(stem)
    return f"{stem}.dcm"


def _names(redacted: Redacted) -> dict[str, str]:
    return {
        "study": redacted.study,
        "series": redacted.series,
        "instance": redacted.instance,
        "subject": redacted.subject,
    }


def _redacted(data: bytes, pseudonyms: Pseudonyms, profile: Profile) -> Redacted:
    try:
        return redact(data, pseudonyms, profile)
    except StepwedgeError:
        raise
    except Exception:  # noqa: BLE001 - whatever its text quotes must not reach a terminal
        raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "redaction failed") from None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE, f"more than {MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError:
        raise _file_error("the file cannot be read") from None


def _write(path: Path, data: bytes) -> None:
    """The file whole or not at all: a temporary beside it, synced, then renamed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".redacted-")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o640)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        raise _file_error("the result cannot be written") from None


def _file_error(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_FILE, words)
