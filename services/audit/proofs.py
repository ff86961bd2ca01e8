"""Proofs that stand alone (C2SP tlog-proof), and the rotation of the signing key, which is proved by one."""

import threading
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from services.audit import signing, store
from services.audit.log import Log
from services.audit.reading import newest
from services.audit.state import inconsistent, unavailable
from services.audit.store import Store
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency import merkle
from shared.transparency.note import MalformedNoteError, Note
from shared.transparency.tlog_proof import TlogProof

_COMMIT_SECONDS = 30.0

_logger = logs.get_logger(__name__)


def proof_of(the_store: Store, index: int, size: int = 0) -> TlogProof:
    """The proof of an entry, with the entry as its extra data where the log still has it.

    Parameters
    ----------
    the_store
        The log.
    index
        Position of the entry.
    size
        Size of a tree of which a checkpoint is stored; 0 for the newest that enough witnesses cosigned, where it
        covers the entry, else the newest.

    Raises
    ------
    StepwedgeError
        ENTRY_NOT_FOUND, INVALID_REQUEST (no checkpoint of this size is stored), LOG_INCONSISTENT.
    """
    with the_store.reading() as connection:
        note = _checkpoint(connection, index, size)
        head = Note.parse(note.encode())
        proof_size = int(head.text.split("\n", 2)[1])
        if not 0 <= index < proof_size:
            raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the tree has no such entry")
        node = store.node_reader(connection)
        try:
            path = merkle.inclusion_proof(index, proof_size, node)
            leaf_hash = node(0, index)
        except LookupError:
            raise inconsistent("tiles of the tree are missing") from None
        rows = store.leaves(connection, index, index + 1)
        leaf = rows[0].leaf if rows and rows[0].leaf else None
    if leaf is not None and merkle.leaf_hash(leaf) != leaf_hash:
        raise inconsistent(f"the entry {index} is not the one in the tree; `stepwedge verify` tells more")
    try:
        proof = TlogProof.parse(str(TlogProof(index, tuple(path), head, leaf)).encode())
    except MalformedNoteError:
        raise inconsistent("the checkpoint cannot be read") from None
    if not proof.proves(leaf_hash):
        raise inconsistent("the stored tree does not have the root that was signed")
    return proof


def _checkpoint(connection: sa.Connection, index: int, size: int) -> str:
    """The stored checkpoint that a proof is to be under."""
    head, cosigned = newest(connection), store.cosigned(connection)
    if size == 0:
        return cosigned.note if cosigned is not None and index < cosigned.size else head.note
    known = {key.from_size: key.note for key in store.keys(connection) if key.note is not None}
    known |= {one.size: one.note for one in (head, cosigned) if one is not None}
    found = known.get(size) or store.checkpoint(connection, size)
    if found is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "no checkpoint of this size is stored")
    return found


class Rotated(NamedTuple):
    """What a rotation did."""

    old_key: str
    new_key: str
    from_size: int
    proof: str


class Rotator:
    """Replaces the key that the log signs with; one rotation at a time."""

    def __init__(self, log: Log, folder: Path) -> None:
        self._log = log
        self._folder = folder
        self._one_at_a_time = threading.Lock()

    def rotate(self) -> Rotated:
        """Make a key, let it take over, destroy the old one. Raises StepwedgeError, and then the old one may sign on.

        AUDIT_UNAVAILABLE also where it is not known whether the new key took over: the log itself tells.
        """
        with self._one_at_a_time:
            self._log.check()
            # The newest key that the database names signs now; if it is still under its other name, it is put in place.
            signing.signer(self._folder, self._log.origin, str(self._log.key))
            old = str(self._log.key)
            following = signing.make_next(self._folder, self._log.origin)
            try:
                receipt = self._log.rotate(following).result(_COMMIT_SECONDS)
            except TimeoutError:
                raise unavailable("the log did not say in time whether the new key took over") from None
            from_size = int(receipt.checkpoint.split("\n", 2)[1])
            try:
                signing.take_over(self._folder, following)
            except OSError as error:
                # The log signs with the new key already; the next start, or the next rotation, puts it in place.
                _logger.error("the old signing key could not be destroyed", **logs.describe(error))
            _logger.info("the signing key was rotated", index=from_size - 1)
            return Rotated(old, str(following.key), from_size, str(proof_of(self._log.store, from_size - 1, from_size)))
