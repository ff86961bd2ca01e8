"""Logs that are honest or not, and what they would ask of a witness."""

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.witness.state import State
from services.witness.witness import Witness
from shared.transparency import add_checkpoint, merkle
from shared.transparency.cosignature import Cosigner
from shared.transparency.note import Checkpoint, Signer

ORIGIN = "test.example/log"
NAME = "witness.example/one"
LOG_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(b"\x42" * 32)


class Tree:
    """A log of short entries that can prove whatever it holds."""

    def __init__(self, entries: Sequence[bytes], *, origin: str = ORIGIN, key: Ed25519PrivateKey = LOG_KEY) -> None:
        self.hashes = [merkle.leaf_hash(entry) for entry in entries]
        self.signer = Signer(origin, key)

    def _node(self, height: int, index: int) -> bytes:
        return merkle.perfect_root(self.hashes[index << height : (index + 1) << height])

    def root(self, size: int) -> bytes:
        return merkle.root_of(size, self._node)

    def checkpoint(self, size: int) -> str:
        """The signed note of the first `size` entries."""
        return str(Checkpoint(self.signer.key.name, size, self.root(size)).sign([self.signer]))

    def proof(self, older: int, newer: int) -> list[bytes]:
        return merkle.consistency_proof(older, newer, self._node) if older else []

    def asks(self, older: int, newer: int) -> bytes:
        """The body of add-checkpoint."""
        return add_checkpoint.encode(older, self.proof(older, newer), self.checkpoint(newer))


def entries(count: int, *, other_from: int | None = None) -> list[bytes]:
    """Entries; from `other_from` on they are others than those of the honest log."""
    return [b"%d%s" % (n, b"*" if other_from is not None and n >= other_from else b"") for n in range(count)]


HONEST = Tree(entries(300))
FORKED = Tree(entries(300, other_from=5))


def new_witness(folder: Path) -> tuple[Witness, State]:
    """A witness of the log that has cosigned nothing."""
    cosigner = Cosigner(NAME, WITNESS_KEY)
    State.create(folder / "state", cosigner.key)
    state = State(folder / "state", cosigner.key)
    return Witness(cosigner, [HONEST.signer.key], state), state
