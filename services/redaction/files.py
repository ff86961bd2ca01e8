"""Redaction of a file to a file, without a cluster: what `stepwedge redact` runs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

from services.redaction.engine import Redacted, redact
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
    try:
        same = target.exists() and source.resolve() == target.resolve()
    except OSError:  # a folder above it may not be searched
        raise _file_error("the result cannot be written") from None
    if same:
        raise _file_error("the result may not replace the original")
    redacted = _redacted(data, pseudonyms, profile or Profile.basic())
    _write(target, redacted.data)
    return {**_names(redacted), "output": target.name, **redacted.receipt.as_json()}


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
