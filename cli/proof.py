"""`stepwedge log proof`, `rotate-key` and `verify-stamp`: what the log hands to those who keep its proofs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import configuration, connect, terminal
from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from shared.identity import Identity
    from shared.settings import Settings


def proof(index: int, file: Path, config: Path | None, identity: str, *, force: bool, json: bool) -> None:
    """Write the proof of one record (C2SP tlog-proof), with the record in it."""
    from shared.identity import Identity

    _refuse_to_replace(file, force=force)
    size = fetch(index, file, configuration.load(config), Identity(identity))
    if json:
        terminal.emit({"file": str(file), "index": index, "size": size})
    else:
        terminal.note(f"{file}: record {index} in the log of {size}; verify it with verifier/verify.py proof")


def fetch(index: int, file: Path, settings: Settings, identity: Identity) -> int:
    """Write the proof of one record to `file`; return how many records the log has."""
    from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc

    with connect.channel(settings, "audit", identity) as link:
        stub = audit_pb2_grpc.AuditServiceStub(link)
        answer = connect.call(stub.GetProof, audit_pb2.GetProofRequest(index=index))
    _write(file, answer.proof)
    return answer.size


def rotate_key(folder: Path, config: Path | None, identity: str, *, json: bool) -> None:
    """Let a new key sign from now on, and write what convinces whoever trusts the old one."""
    from shared.identity import Identity
    from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc

    if not folder.is_dir():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{folder}: no such folder")
    settings = configuration.load(config)
    with connect.channel(settings, "audit", Identity(identity)) as link:
        stub = audit_pb2_grpc.AuditServiceStub(link)
        done = connect.call(stub.RotateKey, audit_pb2.RotateKeyRequest(), seconds=60.0)
    file = folder / f"rotation-{done.from_size}.tlog-proof"
    told: dict[str, Any] = {
        "old_key": done.old_key,
        "new_key": done.new_key,
        "from_size": done.from_size,
        "file": str(file),
    }
    try:
        _write(file, done.proof)
    finally:  # whatever becomes of the file: the key has changed, and this is the place to learn it
        if json:
            terminal.emit(told)
        else:
            terminal.note(f"the log signs with a new key from {done.from_size} records on:")
            terminal.note(done.new_key)
    if not json:
        terminal.note(f"{file}: give it to auditors; witnesses learn of the change from the log, or by --rotation")


def verify_stamp(token: Path, checkpoint: Path, certificates: Path, *, json: bool) -> int:
    """Verify a time stamp with its authority's certificates; the exit status of the command."""
    from shared.stamps import StampError, verify

    try:
        answer, note, trusted = token.read_bytes(), checkpoint.read_bytes(), certificates.read_bytes()
    except OSError as error:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{error.filename}: {error.strerror}") from None
    try:
        moment = verify(answer, note, trusted)
    except StampError as error:
        if json:
            terminal.emit({"verified": False, "reason": str(error)})
        else:
            terminal.error("BAD_SIGNATURE", str(error))
        return Exit.NEGATIVE
    if json:
        terminal.emit({"verified": True, "time": moment.isoformat()})
    else:
        terminal.note(f"the authority saw {checkpoint} at {moment.isoformat()}")
    return Exit.OK


def _refuse_to_replace(file: Path, *, force: bool) -> None:
    if not file.parent.is_dir():
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: its folder does not exist")
    if file.exists() and not force:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: exists already; --force replaces it")


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.part")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{file}: {error.strerror}") from None
