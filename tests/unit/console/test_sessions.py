"""When a session ends: by rest, by age, by another role, by a closed account; a page that asks by itself keeps none."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from services.console.__main__ import MIGRATIONS
from services.console.accounts import Accounts, SessionRow
from shared import database

IDLE, LONGEST = timedelta(minutes=15), timedelta(hours=10)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = database.create_engine(f"sqlite:///{tmp_path / 'console.db'}")
    database.upgrade(made, MIGRATIONS)
    return made


@pytest.fixture
def accounts(engine: Engine) -> Accounts:
    made = Accounts(engine, idle=IDLE, longest=LONGEST)
    made.first_administrator()
    made.create("anna", "radiographer", lambda: None)
    return made


def pretend(engine: Engine, **ago: timedelta) -> None:
    """Put the moments of every session into the past."""
    with Session(engine) as session, session.begin():
        session.execute(update(SessionRow).values({name: datetime.now(UTC) - past for name, past in ago.items()}))


def test_a_session_lives_while_somebody_asks_and_ends_by_rest_and_by_age(engine: Engine, accounts: Accounts):
    token = accounts.open("anna", "radiographer", "local")
    for _ in range(3):
        pretend(engine, seen_at=IDLE - timedelta(minutes=1))
        assert accounts.person(token) is not None
    pretend(engine, seen_at=IDLE + timedelta(seconds=1))
    assert accounts.person(token) is None
    pretend(engine, seen_at=timedelta(0))
    assert accounts.person(token) is None, "what has ended does not come back"
    token = accounts.open("anna", "radiographer", "local")
    pretend(engine, created_at=LONGEST + timedelta(seconds=1))
    assert accounts.person(token) is None


def test_a_page_that_asks_by_itself_keeps_no_session_alive(engine: Engine, accounts: Accounts):
    token = accounts.open("anna", "radiographer", "local")
    pretend(engine, seen_at=IDLE - timedelta(minutes=1))
    assert accounts.person(token, renewing=False) is not None
    with Session(engine) as session:
        (row,) = session.query(SessionRow).all()
        assert datetime.now(UTC) - row.seen_at.replace(tzinfo=UTC) > timedelta(minutes=13)
    pretend(engine, seen_at=IDLE + timedelta(seconds=1))
    assert accounts.person(token, renewing=False) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda accounts: accounts.set_role("anna", "auditor", lambda: None),
        lambda accounts: accounts.set_disabled("anna", True, lambda: None),
        lambda accounts: accounts.reset("anna", lambda: None),
    ],
    ids=["another role", "a closed account", "a new first password"],
)
def test_what_becomes_of_an_account_ends_its_sessions(accounts: Accounts, change: Callable[[Accounts], object]):
    token = accounts.open("anna", "radiographer", "local")
    change(accounts)
    assert accounts.person(token) is None
