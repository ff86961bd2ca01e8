"""`stepwedge export` and `stepwedge verify`: the log as one file, and the proof that nobody touched it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cli import configuration, terminal
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from shared.settings import Settings

EXPORT_SECONDS = 3600.0
"""A log of millions of records takes minutes."""


def export(file: Path, form: str, config: Path | None, identity: str, *, force: bool, json: bool) -> None:
    """Write the log to `file`: as the archive ("bundle"), or its records as "csv", "fhir" or "dicom".

    Raises
    ------
    StepwedgeError
        FILE where the folder is not there, or the file is and may not be replaced (`force`).
    """
    if not file.parent.is_dir():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: its folder does not exist")
    if file.is_dir():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: is a folder")
    if os.path.lexists(file) and not force:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: exists already; --force replaces it")
    size = fetch(configuration.load(config), identity, file, form)
    if json:
        terminal.emit({"file": str(file), "format": form, "size_bytes": size})
    elif form != "bundle":
        terminal.note(f"{file}: {terminal.size(size)}; what proves these records is a bundle (`stepwedge export`)")
    else:
        terminal.note(
            f"{file}: {terminal.size(size)}; verify it with `stepwedge verify --export` or verifier/verify.py"
        )


def verify(
    file: Path | None,
    key: str,
    older: Path | None,
    config: Path | None,
    identity: str,
    witnesses: Sequence[str] = (),
    quorum: int | None = None,
    *,
    json: bool,
) -> int:
    """Verify an archive, or the log of the cluster as it is now; the exit status of the stand-alone verifier."""
    import tempfile

    if file is not None:
        if not file.exists():
            raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: no such file or folder")
        key = key or (key_of(configuration.load(config)) if config else "")
        return _verify(file, key, older, witnesses, quorum, json=json)
    settings = configuration.load(config)
    with tempfile.TemporaryDirectory(prefix="stepwedge-verify-") as folder:
        fetched = Path(folder, "log.zip")
        fetch(settings, identity, fetched)
        return _verify(fetched, key or key_of(settings), older, witnesses, quorum, json=json)


def _verify(
    file: Path, key: str, older: Path | None, witnesses: Sequence[str], quorum: int | None, *, json: bool
) -> int:
    from verifier import verify as verifier

    with terminal.counter("verifying", "records") as show:
        report = verifier.verify(
            str(file),
            key=key or None,
            older=str(older) if older else None,
            witnesses=witnesses,
            quorum=quorum,
            progress=show,
        )
    if json:
        terminal.emit({"status": report.code, **report.as_json()})
    elif report.code == verifier.PROVED:
        terminal.out().print(verifier.summary(report), markup=False, soft_wrap=True)
    else:
        word, _, sentence = verifier.summary(report).partition(": ")
        terminal.error(word, sentence)
    return report.code


def fetch(settings: Settings, identity: str, file: Path, form: str = "bundle") -> int:
    """Write the whole log in a format, all at once or not at all; the file's length in bytes."""
    from cli import connect
    from shared.identity import Identity
    from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc

    temporary = file.with_name(f".{os.getpid()}.part")  # short: the file's own name may be as long as names can be
    size = 0
    try:
        with (
            connect.channel(settings, "audit", Identity(identity)) as link,
            terminal.counter("exporting", "MB") as show,
        ):
            stub = audit_pb2_grpc.AuditServiceStub(link)
            request = audit_pb2.ExportRequest(format=audit_pb2.ExportFormat.Value(f"EXPORT_FORMAT_{form.upper()}"))
            with temporary.open("xb") as stream:
                for piece in stub.Export(request, timeout=EXPORT_SECONDS):
                    size += stream.write(piece.chunk)
                    show(size // 1_000_000)
        temporary.replace(file)
    except OSError as error:  # in the name that the user knows
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return size


def key_of(settings: Settings) -> str:
    """The file of the log's public key on this machine; empty where there is none."""
    from shared import keys

    file = settings.cluster.keys / keys.VERIFICATION
    return str(file) if file.is_file() else ""
