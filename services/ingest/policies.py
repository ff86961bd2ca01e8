"""The policies by which this cluster decided, kept as their files were, so that a digest in the log can be read."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import sessionmaker

from services.ingest.tables import PolicyFile
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.policy import Policy


class Policies:
    """The rows of policies. All methods block."""

    def __init__(self, engine: sa.Engine) -> None:
        self._sessions = sessionmaker(engine)
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)
        self._dialect = postgresql if engine.dialect.name == "postgresql" else sqlite
        self._current = ""

    def use(self, policy: Policy) -> None:
        """From now on this process decides by it."""
        values = {"sha256": policy.digest, "content": policy.toml, "first_used_at": datetime.now(UTC)}
        with self._sessions.begin() as session:
            session.execute(self._dialect.insert(PolicyFile).values(**values).on_conflict_do_nothing())
        self._current = policy.digest

    def get(self, sha256: str) -> PolicyFile:
        """One by its digest, "" for the one in use. Raises INVALID_REQUEST where there is none."""
        with self._reading.begin() as session:
            found = session.get(PolicyFile, sha256 or self._current)
        if found is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "no policy of this digest decided here")
        return found
