"""What a witness must never forget: the newest checkpoint of each log that it cosigned, in one file."""

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from shared import canonical
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency.cosignature import WitnessKey, cosigners
from shared.transparency.note import BadSignatureError, Checkpoint, MalformedNoteError, Note
from shared.transparency.rotation import Rotation
from shared.transparency.tlog_proof import SUFFIX, TlogProof

FORMAT = "stepwedge.witness/1"
"""Names the layout of the file."""

MAX_EVIDENCE = 64
"""Most conflicting checkpoints that are kept; each is proof of its own, so more of them prove nothing more."""


class State:
    """Holds the file for one process alone.

    The file is replaced as a whole: written beside, synchronised, renamed, the folder synchronised. What is answered
    before `keep` came back was never answered, so a crash at any moment forgets nothing that was said.
    """

    def __init__(self, path: Path, key: WitnessKey) -> None:
        """Raises CONFIGURATION where the file is absent, damaged, another witness's or held by another process.

        It is never made here: a witness that lost its memory would cosign a log that was rolled back.
        """
        self._path = path
        self._lock = _hold(path.with_name(f"{path.name}.lock"))
        try:
            self._notes = _read(path, key)
            self._folder = path.with_name(f"{path.name}.rotations")
            self._rotations = _read_rotations(self._folder)
        except BaseException:
            os.close(self._lock)
            raise

    @classmethod
    def create(cls, path: Path, key: WitnessKey) -> None:
        """Make the file of a witness that has cosigned nothing. Raises CONFIGURATION where there is one."""
        if path.exists():
            raise _refused("the state of a witness is there already")
        _write(path, key, {})

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._lock)

    def newest(self, origin: str) -> Checkpoint | None:
        """The newest checkpoint of a log that was cosigned; None where there was none."""
        note = self._notes.get(origin)
        return None if note is None else Checkpoint.parse(note.text)

    def keep(self, origin: str, cosigned: Note, key: WitnessKey) -> None:
        """Make a checkpoint the newest one, durably. Raises OSError, and then nothing may be said of it."""
        following = {**self._notes, origin: cosigned}
        _write(self._path, key, following)
        self._notes = following

    def rotations(self) -> list[TlogProof]:
        """The proofs of changes of keys that were learned."""
        return list(self._rotations)

    def keep_rotation(self, proof: TlogProof) -> None:
        """Keep the proof of a change of a log's key, durably. Raises OSError, and then it was not learned."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        origin = sha256(proof.checkpoint.origin.encode()).hexdigest()[:16]
        _replace(self._folder / f"{origin}-{proof.checkpoint.size}{SUFFIX}", str(proof).encode())
        _synchronise(self._folder.parent)
        self._rotations.append(proof)

    def keep_evidence(self, origin: str, conflicting: Note) -> None:
        """Keep a checkpoint that a log signed and that does not go with what it signed before, beside that one."""
        folder = self._path.with_name(f"{self._path.name}.evidence")
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            held = self._notes.get(origin)
            content = str(conflicting).encode() + (b"" if held is None else b"\n" + str(held).encode())
            file = folder / f"{sha256(conflicting.text.encode()).hexdigest()[:32]}.txt"
            if not file.exists() and len(list(folder.iterdir())) < MAX_EVIDENCE:
                file.write_bytes(content)


def _refused(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)


def _hold(path: Path) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        raise _refused("the state of the witness cannot be used; `stepwedge witness --init` makes one") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise _refused("another witness runs on this state") from None
    return file


def _read(path: Path, key: WitnessKey) -> dict[str, Note]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _refused("the witness has no state; `stepwedge witness --init` makes one, once") from None
    except OSError:
        raise _refused("the state of the witness cannot be read") from None
    try:
        whole = json.loads(data)
        if whole["format"] != FORMAT or whole["witness"] != str(key):
            raise _refused("the state is of another witness, or of another format")
        notes = {origin: Note.parse(text.encode()) for origin, text in whole["logs"].items()}
        for origin, note in notes.items():
            # Our own signature is the check that the file is what we wrote.
            if Checkpoint.parse(note.text).origin != origin or not cosigners(note, [key]):
                raise MalformedNoteError("not what this witness cosigned")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _refused("the state of the witness is damaged: a witness that forgot must not go on") from None
    return notes


def _write(path: Path, key: WitnessKey, notes: Mapping[str, Note]) -> None:
    logs = {origin: str(note) for origin, note in notes.items()}
    _replace(path, canonical.canonical_json({"format": FORMAT, "witness": str(key), "logs": logs}) + b"\n")


def _read_rotations(folder: Path) -> list[TlogProof]:
    found = []
    try:
        for file in sorted(folder.glob(f"*{SUFFIX}")):
            found.append(TlogProof.parse(file.read_bytes()))
            Rotation.of(found[-1])
    except (OSError, MalformedNoteError, BadSignatureError):
        raise _refused("a change of a log's key that the witness had learned is damaged") from None
    return found


def _replace(path: Path, data: bytes) -> None:
    """Write beside, synchronise, rename, synchronise the folder."""
    temporary = path.with_name(f".{path.name}.new")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _synchronise(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
