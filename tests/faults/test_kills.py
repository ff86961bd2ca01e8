"""The audit service killed at random moments under concurrent appends; 24 kills here, or STEPWEDGE_KILLS of them.

The thousand: `python -m tests.faults.kills --kills 1000`.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.faults import kills
from tests.faults.kills import Lane

KILLS = int(os.environ.get("STEPWEDGE_KILLS", "24"))


def _new_sqlite(folder: Path) -> str:
    return kills.sqlite(folder)


def _new_postgres(server: str) -> Callable[[Path], str]:
    url = sa.engine.make_url(server).set(drivername="postgresql+psycopg")

    def new(_: Path) -> str:
        name = f"kills_{secrets.token_hex(6)}"
        admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        admin.dispose()
        return url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)

    return new


@pytest.mark.timeout(120 + 4 * KILLS)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def test_killed_at_random_it_loses_nothing_acknowledged_repeats_nothing_leaves_no_gap_opens_and_verifies(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, pki_folder: Path
) -> None:
    new_url = _new_sqlite if kind == "sqlite" else _new_postgres(request.getfixturevalue("postgres_url"))
    seed = secrets.randbits(32)
    lane = Lane(kind, tmp_path, pki_folder, new_url, seed)
    try:
        await kills.run([(lane, KILLS // 2)])
    except AssertionError as error:
        error.add_note(f"seed {seed}, after {lane.counts['kills']} kills")
        raise
    assert lane.counts["kills"] == KILLS // 2
    assert lane.counts["acknowledged"] > 0
    assert lane.counts["calls under way at the kill"] > 0, "no kill came while a call was under way"
