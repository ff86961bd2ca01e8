"""The body of add-checkpoint (C2SP tlog-witness), read strictly, and written for whoever asks a witness."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from shared.transparency.merkle import HASH_SIZE, MAX_PROOF
from shared.transparency.note import MAX_NOTE, Checkpoint, MalformedNoteError, Note, decode_base64

MAX_BODY = MAX_NOTE + 4096
"""Longest body that is read, bytes: a note, 63 lines of 45 characters, and the line of the old size."""

PATH = "/add-checkpoint"
"""Behind the submission prefix of a witness."""

ROTATION_PATH = "/add-rotation"
"""Beside it, and ours: C2SP tlog-witness leaves to the operator how a witness learns a log's new key."""

SIZE_TYPE = "text/x.tlog.size"
"""Content type of the answer 409: the size that the witness holds, in decimal, and a newline."""

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True)
class AddCheckpoint:
    """What is asked of a witness."""

    old_size: int
    """Size of the checkpoint that the witness is believed to hold."""
    proof: tuple[bytes, ...]
    """Consistency proof from there (RFC 6962 2.1.2), 32 bytes each."""
    note: Note
    checkpoint: Checkpoint

    @classmethod
    def parse(cls, body: bytes) -> "AddCheckpoint":
        """Read a body. Raises MalformedNoteError for anything but the one form that the specification gives it."""
        if len(body) > MAX_BODY:
            raise MalformedNoteError("the request is too long")
        head, blank, signed = body.partition(b"\n\n")
        if not blank:
            raise MalformedNoteError("no empty line before the checkpoint")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise MalformedNoteError("the lines before the checkpoint are not ASCII") from None
        old = _OLD.fullmatch(first)
        if old is None or int(old[1]) >= 2**63:
            raise MalformedNoteError("the first line is not the old size")
        if len(lines) > MAX_PROOF:
            raise MalformedNoteError(f"a consistency proof has at most {MAX_PROOF} hashes")
        proof = tuple(decode_base64(line) for line in lines)
        if any(len(one) != HASH_SIZE for one in proof):
            raise MalformedNoteError("a hash of the proof is not 32 bytes")
        note = Note.parse(signed)
        return cls(int(old[1]), proof, note, Checkpoint.parse(note.text))


def encode(old_size: int, proof: Sequence[bytes], note: str) -> bytes:
    """The body that asks for a cosignature."""
    lines = [f"old {old_size}", *(base64.b64encode(one).decode() for one in proof), "", note]
    return "\n".join(lines).encode()
