"""The key of each subject: the seal around identity that the log itself puts on, and that erasure breaks for good.

Ingest hands identity in sealed under a key that the log does not have (`shared.identification`). Around it the log puts
AES-256-GCM under a random key of the subject; the leaf holds only the SHA-256 of what ingest sealed. The keys of
subjects lie in the database, wrapped (AES-256-GCM) by a master key that lies in a file outside it.

Erasure deletes the subject's key, the sealed identities and the entries of the blind index, and replaces the master
key: every other key is wrapped anew, and the old master key is overwritten and gone. A copy of the database from before
then opens nothing: its keys are wrapped by a master key that is no more.

The new master key is on disk, beside the old one, before the transaction commits that wraps by it; the database names
the one that it is wrapped by, so whoever starts after a crash knows which of the two files counts.
"""

import os
import secrets
from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.audit import retention, store
from services.audit.acts import Caller, Own, trusted_leaf
from services.audit.record import Prepared
from services.audit.store import BLIND_INDEX, ENTRIES, FACETS, IDENTITIES, MASTER, SUBJECT_KEYS, Batch
from shared import keys, logs
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.audit.v1 import audit_pb2

_NONCE = 12
_KEY = 32
_CACHED = 4096
_CACHED_TOKENS = 65536
_WRAPPED_AT_ONCE = 5000

_logger = logs.get_logger(__name__)


class Master(NamedTuple):
    """A master key."""

    id: str
    """16 hexadecimal digits; says nothing of the key."""
    key: bytes

    @classmethod
    def of(cls, key: bytes) -> "Master":
        """With its id."""
        return cls(sha256(b"stepwedge identity master\n" + key).hexdigest()[:16], key)

    def wrap(self, key: bytes, subject: str, key_id: str) -> bytes:
        """The key of a subject, wrapped: nonce, ciphertext, tag."""
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(self.key).encrypt(nonce, key, f"{subject}\n{key_id}".encode())

    def unwrap(self, wrapped: bytes, subject: str, key_id: str) -> bytes:
        """The key of a subject. Raises LOG_INCONSISTENT where it was wrapped by another, or for another."""
        try:
            return AESGCM(self.key).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], f"{subject}\n{key_id}".encode())
        except (InvalidTag, ValueError):
            message = "the key of a subject does not open under the master key"
            raise StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message) from None


class SubjectKey(NamedTuple):
    """The key of one subject."""

    id: str
    key: bytes


class Vault:
    """The master key, and what is known of the keys that it wraps. Used by the sequencer's thread only."""

    def __init__(self, path: Path) -> None:
        """path: file of the master key; made where there is none and none is needed yet."""
        self._path = path
        self._staged = path.with_name(f"{path.name}.next")
        self._master: Master | None = None
        self.known: OrderedDict[str, SubjectKey] = OrderedDict()
        self.indexed: OrderedDict[tuple[bytes, str, str], None] = OrderedDict()

    @property
    def master(self) -> Master:
        """The one that wraps."""
        assert self._master is not None, "settle comes first"
        return self._master

    def settle(self, connection: sa.Connection) -> None:
        """Find the master key that the database is wrapped by. Raises CONFIGURATION where no file holds it."""
        self.known.clear()
        self.indexed.clear()
        wanted = connection.scalar(sa.select(MASTER.c.id))
        if wanted is None:
            if not self._path.exists():
                _write(self._path, secrets.token_bytes(_KEY))
            self._master = self._read(self._path)
            connection.execute(sa.insert(MASTER).values(id=self._master.id))
            return
        for path in (self._path, self._staged):
            if path.exists() and (found := self._read(path)).id == wanted:
                self._master = found
                if path == self._staged:
                    self._adopt()
                else:
                    _destroy(self._staged)
                return
        message = f"the file {self._path.name} does not hold the master key that this database is wrapped by"
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)

    def sealing(self, connection: sa.Connection) -> "Sealing":
        """For one batch."""
        return Sealing(self, connection)

    def committed(self, batch: Batch) -> None:
        """Nothing but what is committed is remembered."""
        for row in batch.tokens:
            self.indexed[row["token"], row["study"], row["subject"]] = None
        while len(self.indexed) > _CACHED_TOKENS:
            self.indexed.popitem(last=False)
        while len(self.known) > _CACHED:
            self.known.popitem(last=False)

    def stage(self) -> Master:
        """Put a new master key beside the old one, durably, and wrap by it from here on.

        Where the transaction fails, `settle` goes back to the old one.
        """
        _destroy(self._staged)
        key = secrets.token_bytes(_KEY)
        _write(self._staged, key)
        self._master = Master.of(key)
        return self._master

    def adopt(self) -> None:
        """The database is wrapped by the staged master key now: the old one goes."""
        if self._staged.exists():
            self._adopt()

    def _adopt(self) -> None:
        try:
            _overwrite(self._path)
            self._staged.replace(self._path)
            _sync(self._path.parent)
        except OSError:
            # The database names the new one, so the next start finishes this.
            _logger.error("the old master key could not be destroyed; it is when the service starts again")

    def _read(self, path: Path) -> Master:
        return Master.of(keys.secret(path.parent, path.name))


def _write(path: Path, key: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keys.write_new(path, key.hex().encode() + b"\n", 0o600)
        _sync(path.parent)
    except OSError:
        message = "the folder of the master key cannot be written (audit.master_key)"
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message) from None


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"0" * (2 * _KEY))
        file.flush()
        os.fsync(file.fileno())


def _destroy(path: Path) -> None:
    with suppress(FileNotFoundError):
        _overwrite(path)
        path.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Sealing:
    """Puts the subject's seal around what came with the records of one batch."""

    def __init__(self, vault: Vault, connection: sa.Connection) -> None:
        self._vault = vault
        self._connection = connection
        self._keys: dict[str, SubjectKey] = {}

    def keep(self, index: int, one: Prepared, batch: Batch) -> None:
        """Note for the batch what is to be kept of one record."""
        subject, study = one.members["subject"], one.members.get("study")
        key = self._key(subject, batch)
        nonce = os.urandom(_NONCE)
        sealed = nonce + AESGCM(key.key).encrypt(nonce, one.sealed, _bound(subject, one.key))
        batch.identities.append({"index": index, "subject": subject, "key_id": key.id, "sealed": sealed})
        if study is None:
            return
        for token in one.tokens:
            if (token, study, subject) not in self._vault.indexed:
                batch.tokens.append({"token": token, "study": study, "subject": subject})

    def _key(self, subject: str, batch: Batch) -> SubjectKey:
        found = self._keys.get(subject) or self._vault.known.get(subject)
        if found is None:
            wanted = sa.select(SUBJECT_KEYS).where(SUBJECT_KEYS.c.subject == subject)
            row = self._connection.execute(wanted).first()
            if row is not None:
                key = self._vault.master.unwrap(bytes(row.wrapped), subject, row.key_id)
                found = self._vault.known[subject] = SubjectKey(row.key_id, key)
            else:
                found = SubjectKey(secrets.token_hex(8), secrets.token_bytes(_KEY))
                wrapped = self._vault.master.wrap(found.key, subject, found.id)
                batch.subject_keys.append({"key_id": found.id, "subject": subject, "wrapped": wrapped})
            self._keys[subject] = found
        return found


def _bound(subject: str, key: str) -> bytes:
    """What a sealed identity is bound to: taken to another entry it does not open."""
    return f"stepwedge subject v1\n{subject}\n{key}".encode()


class Erase:
    """Destroy what ties a subject's records to a person. Raises ENTRY_NOT_FOUND where there is no such subject."""

    makes_facets: ClassVar[bool] = False

    def __init__(self, vault: Vault, caller: Caller, *, subject: str = "", token: bytes = b"") -> None:
        self._vault = vault
        self._caller = caller
        self._token = token
        self.subject = subject
        self.event = audit_pb2.ErasedEvent()
        self.index: int | None = None
        """Index of the record of an erasure before, where nothing was left for this one."""

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own | None:
        """See `Act`."""
        subject = self.subject = self.subject or self._named(connection)
        if connection.scalar(sa.select(ENTRIES.c.index).where(ENTRIES.c.subject == subject).limit(1)) is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the log has no entry of this subject")
        self.event = audit_pb2.ErasedEvent(**self._caller.fields())
        outcome = audit_pb2.EVENT_OUTCOME_SUCCESS
        if retention.holds(connection).keep_subject(connection, subject):
            self.event.refusal = ErrorCode.ERROR_CODE_LEGAL_HOLD
            outcome = audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE
        else:
            self._erase(connection, subject)
            if not (self.event.keys or self.event.identities or self.event.tokens):
                self.index = _erased_before(connection, subject)
                if self.index is not None:
                    return None
            if self.event.keys:
                self.event.master_key = rewrap(connection, self._vault).id
        return Own("erased", outcome, {"subject": subject, "erased": self.event})

    def committed(self) -> None:
        """See `Act`."""
        self._vault.known.pop(self.subject, None)
        self._vault.indexed.clear()
        self._vault.adopt()

    def _named(self, connection: sa.Connection) -> str:
        subjects = store.subjects_of_token(connection, self._token)
        if len(subjects) == 1:
            return subjects[0]
        if not subjects:
            raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the log has no subject with this number")
        message = f"{len(subjects)} subjects have this number; name the issuer, or the pseudonym"
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message)

    def _erase(self, connection: sa.Connection, subject: str) -> None:
        self._vault.known.pop(subject, None)
        for name, table in (("keys", SUBJECT_KEYS), ("identities", IDENTITIES), ("tokens", BLIND_INDEX)):
            deleted = connection.execute(sa.delete(table).where(table.c.subject == subject))
            setattr(self.event, name, deleted.rowcount)


def _erased_before(connection: sa.Connection, subject: str) -> int | None:
    """The newest record of an erasure of this subject."""
    wanted = sa.select(ENTRIES.c.index).join(FACETS, FACETS.c.id == ENTRIES.c.facet)
    erased = (FACETS.c.kind == audit_pb2.RECORD_KIND_ERASED, FACETS.c.outcome == audit_pb2.EVENT_OUTCOME_SUCCESS)
    found = connection.scalar(
        wanted.where(ENTRIES.c.subject == subject, *erased).order_by(ENTRIES.c.index.desc()).limit(1)
    )
    return None if found is None else int(found)


def rewrap(connection: sa.Connection, vault: Vault) -> Master:
    """Wrap every key by a new master key, which is on disk before this returns; the caller commits, then adopts it."""
    old, new = vault.master, vault.stage()
    last = ""
    while True:
        wanted = sa.select(SUBJECT_KEYS).where(SUBJECT_KEYS.c.key_id > last)
        rows = connection.execute(wanted.order_by(SUBJECT_KEYS.c.key_id).limit(_WRAPPED_AT_ONCE)).all()
        if not rows:
            break
        changes = []
        for row in rows:
            key = old.unwrap(bytes(row.wrapped), row.subject, row.key_id)
            changes.append({"place": row.key_id, "value": new.wrap(key, row.subject, row.key_id)})
        change = sa.update(SUBJECT_KEYS).where(SUBJECT_KEYS.c.key_id == sa.bindparam("place"))
        connection.execute(change.values(wrapped=sa.bindparam("value")), changes)
        last = rows[-1].key_id
    connection.execute(sa.update(MASTER).values(id=new.id))
    return new


class LookUp:
    """Take the subject's seal off the identity of an entry; what comes out opens under the identity key only."""

    makes_facets: ClassVar[bool] = False

    def __init__(self, vault: Vault, caller: Caller, index: int) -> None:
        self._vault = vault
        self._caller = caller
        self._index = index
        self.sealed = b""
        self.subject = ""
        self.key = ""

    def perform(self, connection: sa.Connection, now_us: int, size: int) -> Own:
        """See `Act`. Raises ENTRY_NOT_FOUND."""
        members = trusted_leaf(connection, self._index)
        self.subject, self.key = members.get("subject", ""), members["key"]
        self.sealed = self._opened(connection, members.get("identity_sha256", ""))
        event = audit_pb2.IdentityLookedUpEvent(**self._caller.fields(), index=self._index, found=bool(self.sealed))
        about: dict[str, Any] = {
            name: members[name] for name in ("subject", "study", "series", "instance") if name in members
        }
        return Own("identity", audit_pb2.EVENT_OUTCOME_SUCCESS, {**about, "identity_looked_up": event})

    def committed(self) -> None:
        """See `Act`."""

    def _opened(self, connection: sa.Connection, commitment: str) -> bytes:
        row = connection.execute(sa.select(IDENTITIES).where(IDENTITIES.c.index == self._index)).first()
        if row is None:
            return b""
        wanted = sa.select(SUBJECT_KEYS.c.wrapped).where(SUBJECT_KEYS.c.key_id == row.key_id)
        wrapped = connection.scalar(wanted)
        try:
            if wrapped is None or row.subject != self.subject:
                raise ValueError
            key = self._vault.master.unwrap(bytes(wrapped), row.subject, row.key_id)
            sealed = bytes(row.sealed)
            opened = AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], _bound(self.subject, self.key))
            if sha256(opened).hexdigest() != commitment:
                raise ValueError
        except (InvalidTag, ValueError):
            message = f"the sealed identity of the entry {self._index} is not the one that was recorded"
            raise StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, message) from None
        return opened
