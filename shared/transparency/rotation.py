"""How trust passes from one key of a log to the next: a record that names the new key, under a checkpoint of both keys.

The proof of that record, with the record as its extra data, is what convinces whoever trusts the old key. The tree's
size binds: the old key signs trees up to `from_size` entries, the new one trees from `from_size` on; the checkpoint of
`from_size` entries, the last of which is the record, is signed by both.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.transparency import merkle
from shared.transparency.note import BadSignatureError, MalformedNoteError, Note, VerificationKey
from shared.transparency.tlog_proof import TlogProof

KIND = "KEY_ROTATED"
"""Kind of the record."""


@dataclass(frozen=True)
class Rotation:
    """One change of the log's key."""

    old: VerificationKey
    new: VerificationKey
    from_size: int

    @classmethod
    def of(cls, proof: TlogProof) -> "Rotation":
        """The rotation that a proof is of; each of its claims is checked, but not whether the old key is trusted.

        Raises MalformedNoteError where it is the proof of something else; BadSignatureError where one of the keys did
        not sign.
        """
        leaf = proof.extra
        if leaf is None or not proof.proves(merkle.leaf_hash(leaf)):
            raise MalformedNoteError("the proof does not hold the entry that it proves")
        try:
            record = json.loads(leaf)
            event = record["event"]
            if record["kind"] != KIND or record["producer"] != "audit":
                raise MalformedNoteError("the proof is not of a rotation")
            rotation = cls(
                VerificationKey.parse(event["old_key"]), VerificationKey.parse(event["new_key"]), event["from_size"]
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, MalformedNoteError):
                raise
            raise MalformedNoteError("the proof is not of a rotation") from None
        rotation._check(proof)
        return rotation

    def _check(self, proof: TlogProof) -> None:
        head = proof.checkpoint
        if not self.old.name == self.new.name == head.origin:
            raise MalformedNoteError("the keys of the rotation are not of one log")
        if self.old.public == self.new.public:
            raise MalformedNoteError("the rotation names one key twice")
        if type(self.from_size) is not int or not self.from_size == proof.index + 1 == head.size:
            raise MalformedNoteError("the rotation does not hold from the checkpoint that proves it")
        if len(proof.note.verify([self.old, self.new])) != 2:
            raise BadSignatureError("the rotation is not signed by both keys")


@dataclass(frozen=True)
class Term:
    """A key, and the trees that it signs."""

    key: VerificationKey
    from_size: int = 0
    until_size: int | None = None
    """The last size that it signs; None for no end."""

    def covers(self, size: int) -> bool:
        """Whether the key signs a tree of this size."""
        return self.from_size <= size and (self.until_size is None or size <= self.until_size)


def terms(trusted: Iterable[VerificationKey], rotations: Sequence[Rotation]) -> list[Term]:
    """The keys of logs with the sizes that they sign: those that are trusted, and those that rotations lead to.

    Raises MalformedNoteError where a rotation comes from a key that is not trusted, or two from one key.
    """
    known = {str(key): Term(key) for key in trusted}
    for rotation in sorted(rotations, key=lambda one: one.from_size):
        before = known.get(str(rotation.old))
        if before is None:
            raise MalformedNoteError("a rotation comes from a key that is not trusted")
        if before.until_size is not None or rotation.from_size <= before.from_size:
            raise MalformedNoteError("two rotations contradict each other")
        known[str(rotation.old)] = Term(before.key, before.from_size, rotation.from_size)
        known[str(rotation.new)] = Term(rotation.new, rotation.from_size)
    return list(known.values())


def signers(note: Note, of: Iterable[Term], size: int) -> list[VerificationKey]:
    """The keys that signed a checkpoint of this size and might. Raises BadSignatureError where there is none."""
    known = list(of)
    allowed = [term.key for term in known if term.covers(size)]
    try:
        return note.verify(allowed)
    except BadSignatureError:
        out_of_term = [term.key for term in known if not term.covers(size)]
        if {(key.name, key.id) for key in out_of_term} & {(one.name, one.key_id) for one in note.signatures}:
            raise BadSignatureError("the key that signed does not sign trees of this size") from None
        raise
