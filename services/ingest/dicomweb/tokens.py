"""Bearer tokens (RFC 6750): who may call the DICOMweb door, and for what. Only digests are kept."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import Engine, select
from sqlalchemy.orm import sessionmaker

from services.ingest.tables import Token
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import PERSON_NAME

MAX_DAYS: Final = 3650
_FORM: Final = re.compile(r"sw_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NOBODY: Final = hashlib.sha256(b"").hexdigest()


class Scope(StrEnum):
    """What a token is good for."""

    STORE = "store"
    """STOW-RS."""
    READ = "read"
    """QIDO-RS and WADO-RS."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who calls."""

    name: str
    token_id: str


class Tokens:
    """The rows of tokens; every method is one transaction and blocks."""

    def __init__(self, engine: Engine) -> None:
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)

    @staticmethod
    def make(client: str, scopes: Iterable[Scope], days: int, now: datetime) -> tuple[str, Token]:
        """A new token and its row, which is not kept yet. Raises INVALID_REQUEST."""
        wanted = sorted(set(scopes))
        if not re.fullmatch(PERSON_NAME, client):
            raise _invalid("a client is named by small letters and digits, joined by dots, hyphens or underscores")
        if not wanted:
            raise _invalid("a token needs a scope")
        if not 1 <= days <= MAX_DAYS:
            raise _invalid(f"a token is good for 1 to {MAX_DAYS} days")
        public, private = secrets.token_hex(8), secrets.token_urlsafe(32)
        row = Token(
            id=public,
            client=client,
            digest=_digest(private),
            scopes="+".join(wanted),
            created_at=now,
            expires_at=now + timedelta(days=days),
        )
        return f"sw_{public}_{private}", row

    def keep(self, token: Token) -> None:
        """From now on it is good."""
        with self._sessions.begin() as session:
            session.add(token)

    def listed(self) -> list[Token]:
        """Every token, newest first."""
        with self._reading.begin() as session:
            return list(session.scalars(select(Token).order_by(Token.created_at.desc(), Token.id)))

    def find(self, token_id: str) -> Token:
        """One token. Raises ENTRY_NOT_FOUND."""
        with self._reading.begin() as session:
            found = session.get(Token, token_id)
        if found is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "no token has this id")
        return found

    def revoke(self, token_id: str, now: datetime) -> Token:
        """From now on it is refused; the first revocation stands."""
        with self._sessions.begin() as session:
            found = session.get(Token, token_id)
            if found is None:
                raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "no token has this id")
            found.revoked_at = found.revoked_at or now
            return found

    def check(self, authorization: str, scope: Scope, now: datetime) -> Client:
        """Who calls, by the value of the header Authorization; nothing is remembered, so a revocation holds at once.

        Raises UNAUTHENTICATED, the same for whatever is wrong with a token; PERMISSION_DENIED for another scope.
        """
        scheme, _, given = authorization.strip().partition(" ")
        form = _FORM.fullmatch(given.strip()) if scheme.lower() == "bearer" else None
        public, private = (form[1], form[2]) if form else ("", "")
        row = None
        if public:
            with self._reading.begin() as session:
                row = session.get(Token, public)
        # Compared in any case, so that the time says nothing of which part was wrong.
        genuine = hmac.compare_digest(_digest(private), row.digest if row is not None else _NOBODY)
        if row is None or not genuine or row.revoked_at is not None or not row.created_at <= now < row.expires_at:
            raise StepwedgeError(ErrorCode.ERROR_CODE_UNAUTHENTICATED, "a valid bearer token is needed")
        if scope not in row.scopes.split("+"):
            raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, f"the token is not good for: {scope.value}")
        return Client(row.client, row.id)


def _digest(private: str) -> str:
    return hashlib.sha256(private.encode("ascii")).hexdigest()


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
