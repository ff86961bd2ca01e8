"""C2SP tlog-proof: an entry's place and inclusion proof with a checkpoint, in one text that stands alone."""

import base64
import re
from dataclasses import dataclass

from shared.transparency import merkle
from shared.transparency.note import MAX_NOTE, Checkpoint, MalformedNoteError, Note, decode_base64

FORMAT = "c2sp.org/tlog-proof@v1"
"""The first line."""

SUFFIX = ".tlog-proof"
"""File extension."""

MAX_EXTRA = 65_535
"""Longest extra data, bytes: that of an entry."""

MAX_FILE = MAX_NOTE + merkle.MAX_PROOF * 45 + (MAX_EXTRA + 2) // 3 * 4 + 128
"""Longest file that is read, bytes."""

_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class TlogProof:
    """Where an entry lies, and what proves it."""

    index: int
    """0-based."""
    path: tuple[bytes, ...]
    """Inclusion proof (RFC 6962 2.1.1) from the leaf upwards, 32 bytes each."""
    note: Note
    """The checkpoint with every signature."""
    extra: bytes | None = None
    """Opaque, and not authenticated by itself. In the proofs of this log it is the entry."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What the note says."""
        return Checkpoint.parse(self.note.text)

    def __str__(self) -> str:
        lines = [FORMAT]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines.extend(base64.b64encode(one).decode() for one in self.path)
        return "\n".join([*lines, "", str(self.note)])

    @classmethod
    def parse(cls, data: bytes) -> "TlogProof":
        """Read a proof. Raises MalformedNoteError for anything but its one form, also where it proves nothing.

        An index beyond the tree, and more or fewer hashes than its place in the tree needs, are refused here.
        """
        if len(data) > MAX_FILE:
            raise MalformedNoteError("the proof is too long")
        head, blank, signed = data.partition(b"\n\n")
        if not blank:
            raise MalformedNoteError("no empty line before the checkpoint")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise MalformedNoteError("the lines before the checkpoint are not ASCII") from None
        if any(map(_CONTROL.search, lines)) or lines.pop(0) != FORMAT:
            raise MalformedNoteError(f"the first line is not {FORMAT}")
        extra = _extra(lines)
        index = _INDEX.fullmatch(lines.pop(0)) if lines else None
        if index is None or int(index[1]) >= 2**63:
            raise MalformedNoteError("the index is absent or not a canonical number")
        if len(lines) > merkle.MAX_PROOF:
            raise MalformedNoteError(f"an inclusion proof has at most {merkle.MAX_PROOF} hashes")
        path = tuple(decode_base64(line) for line in lines)
        if any(len(one) != merkle.HASH_SIZE for one in path):
            raise MalformedNoteError("a hash of the proof is not 32 bytes")
        note = Note.parse(signed)
        size = Checkpoint.parse(note.text).size
        if int(index[1]) >= size:
            raise MalformedNoteError("the index lies beyond the tree of the checkpoint")
        if len(path) != path_length(int(index[1]), size):
            raise MalformedNoteError("the proof has not as many hashes as the place in the tree needs")
        return cls(int(index[1]), path, note, extra)

    def proves(self, hash_of_leaf: bytes) -> bool:
        """Whether the entry with this hash lies at the index in the tree of the checkpoint; signatures apart."""
        head = self.checkpoint
        return merkle.verify_inclusion(hash_of_leaf, self.index, head.size, self.path, head.root)


def path_length(index: int, size: int) -> int:
    """How many hashes the inclusion proof of `index` in a tree of `size` leaves has, index < size (RFC 6962 2.1.1)."""
    inner = (index ^ (size - 1)).bit_length()  # up to where the paths of this leaf and of the last one meet
    return inner + (index >> inner).bit_count()


def _extra(lines: list[str]) -> bytes | None:
    if not lines or not lines[0].startswith("extra "):
        return None
    data = decode_base64(lines.pop(0).removeprefix("extra "))
    if not 0 < len(data) <= MAX_EXTRA:
        raise MalformedNoteError("the extra data is empty or too long")
    return data
