"""Four eyes: what one person asks for and another must agree to before it is done.

All methods block. A request holds pseudonyms only.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import DateTime, Engine, Integer, String, select
from sqlalchemy.orm import Mapped, mapped_column, sessionmaker

from services.console.accounts import Base
from shared.errors import ErrorCode, StepwedgeError

LASTS: Final = timedelta(days=7)
"""A request that nobody settled for so long is void."""
PENDING, DONE, WITHDRAWN, CLAIMED = "pending", "done", "withdrawn", "claimed"


class Request(Base):
    """One request, and what became of it."""

    __tablename__ = "requests"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    act: Mapped[str] = mapped_column(String(16))
    """"erase", "hold" or "release"."""
    target: Mapped[str] = mapped_column(String(80))
    """Pseudonym of a subject, de-identified Study Instance UID, or identifier of a hold."""
    purpose: Mapped[str] = mapped_column(String(16))
    reference: Mapped[str] = mapped_column(String(64))
    asked_by: Mapped[str] = mapped_column(String(64))
    asked_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    settled_by: Mapped[str | None] = mapped_column(String(64))
    settled_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    outcome: Mapped[str] = mapped_column(String(16), default=PENDING, index=True)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for."""

    act: str
    target: str
    purpose: str
    reference: str


class Requests:
    """The requests of the console's people."""

    def __init__(self, engine: Engine) -> None:
        self._sessions = sessionmaker(engine, expire_on_commit=False)

    def ask(self, asked: Asked, person: str) -> int:
        """Write a request down; return its number."""
        with self._sessions.begin() as session:
            made = Request(
                act=asked.act,
                target=asked.target,
                purpose=asked.purpose,
                reference=asked.reference,
                asked_by=person,
                asked_at=datetime.now(UTC),
            )
            session.add(made)
            session.flush()
            return made.id

    def newest(self, most: int = 50) -> list[Request]:
        """Requests, newest first."""
        with self._sessions.begin() as session:
            return list(session.scalars(select(Request).order_by(Request.id.desc()).limit(most)))

    def claim(self, number: int, person: str) -> Request:
        """Agree to a request: from here on nobody else can. Raises PERMISSION_DENIED for whoever asked, WRONG_STATE."""
        with self._sessions.begin() as session:
            found = session.get(Request, number, with_for_update=True)
            asked_at = None if found is None else found.asked_at
            if found is None or found.outcome != PENDING or asked_at is None:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "this request is settled already")
            if datetime.now(UTC) - (asked_at if asked_at.tzinfo else asked_at.replace(tzinfo=UTC)) > LASTS:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "this request is too old; ask anew")
            if found.asked_by == person:
                raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, "a second person must agree")
            found.outcome, found.settled_by, found.settled_at = CLAIMED, person, datetime.now(UTC)
            return found

    def settle(self, number: int, outcome: str) -> None:
        """Say what became of a claimed request; PENDING puts it back, as it could not be carried out."""
        with self._sessions.begin() as session:
            found = session.get_one(Request, number, with_for_update=True)
            found.outcome = outcome
            if outcome == PENDING:
                found.settled_by = found.settled_at = None

    def withdraw(self, number: int, person: str) -> None:
        """Take a request back; anyone who may agree may also say no. Raises WRONG_STATE."""
        with self._sessions.begin() as session:
            found = session.get(Request, number, with_for_update=True)
            if found is None or found.outcome != PENDING:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "this request is settled already")
            found.outcome, found.settled_by, found.settled_at = WITHDRAWN, person, datetime.now(UTC)
