"""The log that is attacked: made once for each database by the real service, with a real witness."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.scene import Databases, Place, Scene, Town, make_scene, postgres_databases, sqlite_databases
from tests.faults.nursery import Nursery


@pytest.fixture(scope="session")
def town(pki_folder: Path) -> Iterator[Town]:
    """Certificates, and an interpreter whose children are the processes."""
    with Nursery() as nursery:
        yield Town(pki_folder, nursery)


@pytest.fixture(scope="session", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def databases(request: pytest.FixtureRequest) -> Databases:
    """The two kinds of database."""
    if request.param == "sqlite":
        return sqlite_databases()
    return postgres_databases(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def scene(town: Town, databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """An honest log at rest; whoever tampers does so with a `copy`."""
    made = make_scene(town, databases, tmp_path_factory.mktemp(f"scene-{databases.kind}"))
    yield made
    if made.witness.process is not None:
        made.witness.stop()


@pytest.fixture
def copy(scene: Scene) -> Place:
    """The log once more, with its keys, to tamper with."""
    return scene.copy()
