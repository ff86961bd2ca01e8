"""Local accounts and sessions: argon2id, forced first password, lock-out, and sessions that end.

All methods block; a session is known by the digest of its token, so that a copy of the database opens none.
"""

import hmac
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Boolean, DateTime, Engine, Integer, String, delete, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from shared.errors import ErrorCode, StepwedgeError
from shared.identity import PERSON_NAME
from shared.settings import RoleName

ROLES: Final[tuple[str, ...]] = get_args(RoleName)
LEAST_PASSWORD: Final = 12
"""Characters; NIST SP 800-63B asks for at least 8, and for length rather than classes of characters."""
LONGEST_PASSWORD: Final = 256
FAILURES: Final = 5
"""Wrong passwords in a row after which an account is locked."""
LOCKED: Final = timedelta(minutes=15)
NAME: Final = re.compile(PERSON_NAME)
"""What an account may be called; the same as the log takes for a person."""

# Passwords that everybody tries first; a longer list is of no use at twelve characters and a lock after five.
_COMMON: Final = ("password", "passwort", "123456", "qwert", "letmein", "stepwedge", "hospital", "radiolog")
# RFC 9106 4, second recommended option: 64 MiB, 3 passes; two at once at most, so that sign-ins cannot fill the memory.
_HASHER: Final = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=4)
_AT_ONCE: Final = threading.Semaphore(2)


class Base(DeclarativeBase):
    """The tables of the console."""


class Account(Base):
    """A person who may sign in with a password of ours."""

    __tablename__ = "accounts"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(32))
    password: Mapped[str] = mapped_column(String(256))
    must_change: Mapped[bool] = mapped_column(Boolean, default=True)
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    locked_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    signed_in_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class SessionRow(Base):
    """Somebody who is signed in."""

    __tablename__ = "sessions"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    person: Mapped[str] = mapped_column(String(64), index=True)
    role: Mapped[str] = mapped_column(String(32))
    method: Mapped[str] = mapped_column(String(8))
    csrf: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@dataclass(frozen=True, slots=True)
class Person:
    """Who is signed in, and how."""

    name: str
    role: str
    method: str
    csrf: str
    must_change: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of a password."""

    act: str
    """"sign_in", "refused" or "locked"; the word of the record."""
    person: str
    """The account, or "unknown"."""
    role: str = ""


Recorded = Callable[[], object]
"""Puts a change into the log, and raises where the log does not take it: then the change is not made."""


class Accounts:
    """Who may sign in, and who is signed in."""

    def __init__(self, engine: Engine, *, idle: timedelta, longest: timedelta) -> None:
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._idle, self._longest = idle, longest
        self._nobody = _HASHER.hash(secrets.token_urlsafe(16))

    # -- accounts -------------------------------------------------------------------------------------------------

    def first_administrator(self) -> str | None:
        """Make the account `admin` where there is none at all; return its first password, else None."""
        with self._sessions.begin() as session:
            if session.scalar(select(func.count()).select_from(Account)):
                return None
            return self._add(session, "admin", "administrator")

    def create(self, name: str, role: str, recorded: Recorded) -> str:
        """Make an account and return its first password, which must be changed at the first sign-in.

        Raises INVALID_REQUEST, and WRONG_STATE where the name is taken.
        """
        if not NAME.fullmatch(name) or name == "unknown":
            raise _invalid("a name is made of lower-case letters and digits, with single . _ or - between them")
        if role not in ROLES:
            raise _invalid("there is no such role")
        with self._sessions.begin() as session:
            if session.get(Account, name) is not None:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "the name is taken")
            password = self._add(session, name, role)
            session.flush()
            recorded()
            return password

    def everyone(self) -> list[Account]:
        """All accounts, by name."""
        with self._sessions.begin() as session:
            return list(session.scalars(select(Account).order_by(Account.name)))

    def set_role(self, name: str, role: str, recorded: Recorded) -> None:
        """Give an account another role and end its sessions. Raises INVALID_REQUEST, WRONG_STATE."""
        if role not in ROLES:
            raise _invalid("there is no such role")
        with self._sessions.begin() as session:
            account = _known(session, name)
            if account.role == "administrator" and role != account.role:
                _keep_one_administrator(session, name)
            account.role = role
            _end(session, name)
            recorded()

    def set_disabled(self, name: str, disabled: bool, recorded: Recorded) -> None:
        """Close an account, or open it again. Raises WRONG_STATE where it is the last administrator's."""
        with self._sessions.begin() as session:
            account = _known(session, name)
            if disabled and account.role == "administrator":
                _keep_one_administrator(session, name)
            account.disabled = disabled
            _end(session, name)
            recorded()

    def reset(self, name: str, recorded: Recorded) -> str:
        """Give an account a new first password and return it; unlocks it."""
        with self._sessions.begin() as session:
            account = _known(session, name)
            password = _new_password()
            account.password, account.must_change = _hash(password), True
            account.failures, account.locked_until = 0, None
            _end(session, name)
            recorded()
            return password

    def change_password(self, name: str, old: str, new: str, recorded: Recorded) -> None:
        """Change one's own password; other sessions of the account end. Raises INVALID_REQUEST with what is wrong."""
        if wrong := weakness(new, name):
            raise _invalid(wrong)
        with self._sessions.begin() as session:
            account = _known(session, name)
            if not _matches(account.password, old):
                raise _invalid("the present password is wrong")
            if hmac.compare_digest(old.encode(), new.encode()):
                raise _invalid("the new password is the present one")
            account.password, account.must_change = _hash(new), False
            _end(session, name)
            recorded()

    def _add(self, session: Session, name: str, role: str) -> str:
        password = _new_password()
        session.add(Account(name=name, role=role, password=_hash(password), created_at=datetime.now(UTC)))
        return password

    # -- sign-in --------------------------------------------------------------------------------------------------

    def attempt(self, name: str, password: str) -> Attempt:
        """Try a password. A name that is no account's takes as long as one that is, and is called "unknown"."""
        now = datetime.now(UTC)
        with self._sessions.begin() as session:
            account = session.get(Account, name) if NAME.fullmatch(name) else None
            stored = account.password if account is not None else self._nobody
        right = _matches(stored, password[: LONGEST_PASSWORD + 1])
        if account is None:
            return Attempt("refused", "unknown")
        with self._sessions.begin() as session:
            account = session.get(Account, name, with_for_update=True)
            if account is None:
                return Attempt("refused", "unknown")
            if account.locked_until is not None and _utc(account.locked_until) > now:
                return Attempt("locked", name, account.role)
            if account.disabled or not right:
                account.failures += 0 if account.disabled else 1
                if account.failures >= FAILURES:
                    account.locked_until, account.failures = now + LOCKED, 0
                    return Attempt("locked", name, account.role)
                return Attempt("refused", name, account.role)
            account.failures, account.locked_until, account.signed_in_at = 0, None, now
            return Attempt("sign_in", name, account.role)

    def open(self, name: str, role: str, method: str) -> str:
        """Open a session and return its token."""
        token, now = secrets.token_urlsafe(32), datetime.now(UTC)
        with self._sessions.begin() as session:
            session.execute(delete(SessionRow).where(SessionRow.created_at < now - self._longest))
            session.add(
                SessionRow(
                    token_sha256=_digest(token),
                    person=name,
                    role=role,
                    method=method,
                    csrf=secrets.token_urlsafe(32),
                    created_at=now,
                    seen_at=now,
                )
            )
        return token

    def person(self, token: str, *, renewing: bool = True) -> Person | None:
        """Who holds this token; None where the session has ended, or never was.

        Not `renewing`: a page that asks by itself, which is no sign that anybody sits before it.
        """
        now = datetime.now(UTC)
        with self._sessions.begin() as session:
            row = session.get(SessionRow, _digest(token))
            if row is None:
                return None
            if now - _utc(row.seen_at) > self._idle or now - _utc(row.created_at) > self._longest:
                session.delete(row)
                return None
            if renewing and now - _utc(row.seen_at) > self._idle / 20:  # not a write a request
                row.seen_at = now
            must_change = False
            if row.method == "local":
                account = session.get(Account, row.person)
                if account is None or account.disabled or account.role != row.role:
                    session.delete(row)
                    return None
                must_change = account.must_change
            return Person(row.person, row.role, row.method, row.csrf, must_change)

    def close(self, token: str) -> None:
        """End a session."""
        with self._sessions.begin() as session:
            session.execute(delete(SessionRow).where(SessionRow.token_sha256 == _digest(token)))


def weakness(password: str, name: str) -> str:
    """What is wrong with a new password, in words; empty where nothing is."""
    if len(password) < LEAST_PASSWORD:
        return f"a password has at least {LEAST_PASSWORD} characters"
    if len(password) > LONGEST_PASSWORD:
        return f"a password has at most {LONGEST_PASSWORD} characters"
    lower = password.lower()
    if (len(name) > 2 and name in lower) or any(word in lower for word in _COMMON) or len(set(password)) < 5:
        return "the password is too easy to guess"
    return ""


def _matches(stored: str, password: str) -> bool:
    with _AT_ONCE:
        try:
            return _HASHER.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


def _hash(password: str) -> str:
    with _AT_ONCE:
        return _HASHER.hash(password)


def _new_password() -> str:
    return "-".join(secrets.token_hex(3) for _ in range(4))


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # SQLite keeps no zone


def _known(session: Session, name: str) -> Account:
    account = session.get(Account, name, with_for_update=True)
    if account is None:
        raise _invalid("there is no such account")
    return account


def _keep_one_administrator(session: Session, but: str) -> None:
    others = session.scalar(
        select(func.count())
        .select_from(Account)
        .where(Account.role == "administrator", Account.disabled.is_(False), Account.name != but)
    )
    if not others:
        raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "this is the last administrator")


def _end(session: Session, name: str) -> None:
    session.execute(delete(SessionRow).where(SessionRow.person == name, SessionRow.method == "local"))


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
