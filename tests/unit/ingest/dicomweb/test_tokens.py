"""Bearer tokens: good for what they were made for, for as long as they were made for, and kept nowhere."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.ingest.dicomweb.tokens import Scope, Tokens
from services.ingest.store import MIGRATIONS
from shared import database
from shared.errors import StepwedgeError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
READ, STORE = Scope.READ, Scope.STORE


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    engine = database.create_engine(f"sqlite:///{tmp_path / 'ingest.db'}")
    database.upgrade(engine, MIGRATIONS)
    return Tokens(engine)


def made(tokens: Tokens, *scopes: Scope, days: int = 1) -> tuple[str, str]:
    bearer, row = tokens.make("pacs-1", scopes, days, NOW)
    tokens.keep(row)
    return bearer, row.id


def code(tokens: Tokens, authorization: str, scope: Scope = READ, now: datetime = NOW) -> str:
    try:
        return tokens.check(authorization, scope, now).name
    except StepwedgeError as error:
        return error.name


def test_a_token_is_good_for_its_scopes_until_it_expires(tokens: Tokens):
    bearer, _ = made(tokens, READ)
    assert code(tokens, f"Bearer {bearer}") == "pacs-1"
    assert code(tokens, f"bearer  {bearer} ") == "pacs-1", "RFC 9110 11.1: the scheme in any case"
    assert code(tokens, f"Bearer {bearer}", STORE) == "PERMISSION_DENIED"
    assert code(tokens, f"Bearer {bearer}", now=NOW + timedelta(days=1)) == "UNAUTHENTICATED"
    assert code(tokens, f"Bearer {bearer}", now=NOW - timedelta(seconds=1)) == "UNAUTHENTICATED"


def test_a_revoked_token_is_good_for_nothing_from_then_on(tokens: Tokens):
    bearer, token_id = made(tokens, READ, STORE)
    other, _ = made(tokens, READ)
    assert tokens.revoke(token_id, NOW).revoked_at == NOW
    assert tokens.revoke(token_id, NOW + timedelta(hours=1)).revoked_at == NOW, "the first revocation stands"
    assert code(tokens, f"Bearer {bearer}") == "UNAUTHENTICATED"
    assert code(tokens, f"Bearer {other}") == "pacs-1"


def test_whatever_is_wrong_with_a_token_the_answer_is_the_same(tokens: Tokens):
    bearer, _ = made(tokens, READ)
    other, _ = made(tokens, READ)
    private, length = bearer[20:], len("sw_0123456789abcdef_")
    assert bearer[length - 1] == "_"
    mixed = bearer[:length] + other[length:]
    wrong = ["", "Bearer", f"Basic {bearer}", bearer, f"Bearer {bearer[:19]}", f"Bearer {private}", f"Bearer {mixed}"]
    wrong += [
        f"Bearer {bearer}x",
        f"Bearer {bearer[:-1]}",
        f"Bearer {bearer}\0",
        "Bearer sw_é_ü",
        "Bearer " + "x" * 9999,
    ]
    assert {code(tokens, one) for one in wrong} == {"UNAUTHENTICATED"}


def test_nothing_of_the_private_part_is_kept(tokens: Tokens, tmp_path: Path):
    bearer, _ = made(tokens, READ)
    assert len({made(tokens, READ)[0] for _ in range(20)}) == 20
    assert not any(bearer[20:].encode() in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("client", "scopes", "days"),
    [("", [READ], 1), ("Anna B", [READ], 1), ("pacs", [], 1), ("pacs", [READ], 0), ("a", [READ], 9999)],
)
def test_a_token_that_should_not_be_is_not_made(client: str, scopes: list[Scope], days: int):
    with pytest.raises(StepwedgeError) as caught:
        Tokens.make(client, scopes, days, NOW)
    assert caught.value.name == "INVALID_REQUEST"
