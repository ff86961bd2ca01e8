"""What each child of the cluster is told, and what it is not."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import cluster, configuration, tables
from shared import keys, pki
from shared.errors import StepwedgeError
from shared.identity import SERVICES, Identity
from shared.settings import Settings, load

KEY = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=("Cs",)))
SCALAR = st.one_of(
    TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
PLAIN = st.dictionaries(KEY, st.one_of(SCALAR, st.lists(TEXT, max_size=3)), max_size=4)
SECTION = st.dictionaries(KEY, st.one_of(SCALAR, st.lists(PLAIN, min_size=1, max_size=3)), max_size=4)


@given(st.dictionaries(KEY, st.one_of(SCALAR, SECTION), max_size=5))
def test_settings_written_as_toml_read_back_the_same(settings: dict[str, Any]) -> None:
    assert tomllib.loads(tables.dumps(settings)) == settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    destination = {"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": 11113}
    return load(configuration.on_free_ports(tmp_path / "data", ingest={"destinations": [destination]}))


def test_the_first_run_makes_certificates_and_keys_that_only_the_owner_reads(settings: Settings) -> None:
    configuration.prepare(settings)
    secrets = [*settings.cluster.pki.glob("*.key"), *settings.cluster.keys.glob("*.key")]
    made = {keys.PSEUDONYMS, keys.SIGNING, keys.IDENTITY, keys.BLIND_INDEX}
    assert {one.name for one in secrets} == {"ca.key"} | {f"{identity}.key" for identity in Identity} | made
    assert {stat.S_IMODE(secret.stat().st_mode) for secret in secrets} == {0o600}
    assert stat.S_IMODE(settings.cluster.data.stat().st_mode) == 0o700


def test_a_second_run_keeps_what_the_first_one_made(settings: Settings) -> None:
    configuration.prepare(settings)
    before = {file: file.read_bytes() for file in settings.cluster.keys.iterdir()}
    configuration.prepare(settings)
    assert {file: file.read_bytes() for file in settings.cluster.keys.iterdir()} == before


def test_production_makes_nothing_and_says_what_is_missing(settings: Settings) -> None:
    settings.cluster.production = True
    with pytest.raises(StepwedgeError) as caught:
        configuration.prepare(settings)
    assert caught.value.name == "CONFIGURATION"
    assert not settings.cluster.keys.exists()


def test_production_refuses_what_was_made_for_development(settings: Settings) -> None:
    configuration.prepare(settings)
    settings.cluster.production = True
    with pytest.raises(StepwedgeError) as caught:
        configuration.prepare(settings)
    assert caught.value.name == "CONFIGURATION"


@pytest.mark.parametrize("service", SERVICES)
def test_a_child_reads_its_own_settings_as_the_whole_file_says(settings: Settings, service: Identity) -> None:
    folder = configuration.prepare(settings)
    told = load(configuration.write_for_service(settings, service.value, folder / f"{service}.toml"))
    said, whole = told.for_service(service).model_dump_json(), settings.for_service(service).model_dump_json()
    assert said.replace(str(told.cluster.pki), str(settings.cluster.pki)) == whole  # but for where its own copies lie
    for other in SERVICES:
        assert told.for_service(other).address == settings.for_service(other).address


@pytest.mark.parametrize("service", SERVICES)
def test_a_child_is_given_its_own_certificate_and_keys_and_nobody_elses(settings: Settings, service: Identity) -> None:
    folder = configuration.prepare(settings)
    told = load(configuration.write_for_service(settings, service.value, folder / f"{service}.toml"))
    pki.Credentials.load(told.cluster.pki, service)
    there = {file.name for file in (*told.cluster.pki.iterdir(), *told.cluster.keys.iterdir())}
    own = {
        Identity.INGEST: {keys.PSEUDONYMS, keys.IDENTITY, keys.BLIND_INDEX},
        Identity.REDACTION: {keys.PSEUDONYMS},
        Identity.INFERENCE: {keys.VERIFICATION},
        Identity.AUDIT: set(),
    }
    assert there == {"ca.crt", f"{service}.crt", f"{service}.key"} | own[service]


def test_the_log_replaces_its_key_where_it_lies_and_no_copy_of_it(settings: Settings) -> None:
    folder = configuration.prepare(settings)
    told = load(configuration.write_for_service(settings, "audit", folder / "audit.toml"))
    assert told.audit.keys == settings.cluster.keys
    assert told.audit.master_key.parent == settings.cluster.keys


def test_inference_is_told_no_path_of_the_originals_the_databases_or_the_keys(settings: Settings) -> None:
    folder = configuration.prepare(settings)
    told = configuration.write_for_service(settings, "inference", folder / "inference.toml").read_text()
    assert settings.objects.original not in told
    assert settings.ingest.database not in told
    assert settings.audit.database not in told
    assert str(settings.cluster.keys) not in told
    assert str(settings.cluster.pki) not in told
    assert f'data = "{settings.cluster.data}"' not in told
    assert settings.objects.deidentified in told


@pytest.mark.parametrize("service", ["ingest", "redaction", "inference"])
def test_only_the_log_is_told_where_its_database_lies(settings: Settings, service: str) -> None:
    folder = configuration.prepare(settings)
    told = configuration.write_for_service(settings, service, folder / f"{service}.toml").read_text()
    assert settings.audit.database not in told


@pytest.mark.parametrize("service", SERVICES)
def test_the_environment_of_a_child_holds_no_secret_of_its_parent(
    settings: Settings, service: Identity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    monkeypatch.setenv("STEPWEDGE_AUDIT__DATABASE", "postgresql://user:secret@host/audit")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-store")
    environment = cluster.environment(service.value, tmp_path / "x.toml")
    assert "secret" not in environment.values()
    assert not [name for name in environment if name.startswith("STEPWEDGE_") and name != "STEPWEDGE_CONFIG"]
    assert ("AWS_SECRET_ACCESS_KEY" in environment) == (service is not Identity.AUDIT)
    assert environment["PATH"] == os.environ["PATH"]


def test_free_ports_differ_and_are_free() -> None:
    import socket

    ports = configuration.free_ports(9)
    assert len(set(ports)) == 9
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_settings_lie_in_the_working_folder_where_nothing_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEPWEDGE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stepwedge.toml").write_text("[ingest]\nquiet_seconds = 3.5\n")
    assert configuration.load(None).ingest.quiet_seconds == 3.5
