"""Settings: one file, overridden by the environment, and an error in one line for everything that is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import StepwedgeError
from shared.identity import Identity
from shared.paths import ROOT
from shared.settings import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site" / "stepwedge.toml"


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_without_a_file_everything_lies_below_var_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load()
    var = tmp_path / "var"
    assert (settings.cluster.data, settings.cluster.pki, settings.cluster.keys) == (var, var / "pki", var / "keys")
    assert settings.objects.original == str(var / "objects" / "original")
    assert settings.ingest.database == f"sqlite:///{var}/ingest.db"
    assert settings.audit.database == f"sqlite:///{var}/audit.db"
    assert settings.audit.high_water == var / "audit.high-water"
    assert not settings.cluster.production
    assert [settings.for_service(name).address for name in ("ingest", "redaction", "inference", "audit")] == [
        f"127.0.0.1:{port}" for port in (7101, 7102, 7103, 7104)
    ]
    assert settings.for_service(Identity.AUDIT) is settings.audit


def test_relative_paths_are_below_the_folder_of_the_file(file: Path) -> None:
    _write(
        file,
        """
        [cluster]
        data = "data"
        pki = "../certificates"
        [objects]
        deidentified = "elsewhere"
        [ingest]
        database = "sqlite:///my.db"
        policy = "policy.toml"
        """,
    )
    settings = load(file)
    assert settings.cluster.data == file.parent / "data"
    assert settings.cluster.pki.resolve() == file.parent.parent / "certificates"
    assert settings.objects.original == str(file.parent / "data" / "objects" / "original")
    assert settings.objects.deidentified == str(file.parent / "elsewhere")
    assert settings.ingest.database == f"sqlite:///{file.parent}/my.db"
    assert settings.ingest.policy == file.parent / "policy.toml"


def test_the_environment_names_the_file_and_overrides_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(file, '[ingest]\nlisten = "127.0.0.1:1"\nworkers = 3\n')
    monkeypatch.setenv("STEPWEDGE_CONFIG", str(file))
    monkeypatch.setenv("STEPWEDGE_INGEST__LISTEN", "0.0.0.0:2")
    monkeypatch.setenv("STEPWEDGE_INGEST__CALLING_AE_TITLES", '["ONE", "TWO"]')
    monkeypatch.setenv("STEPWEDGE_CLUSTER__DATA", "from-the-environment")
    settings = load()
    assert settings.ingest.listen == "0.0.0.0:2"
    assert settings.ingest.address == "127.0.0.1:2"
    assert settings.ingest.workers == 3
    assert settings.ingest.calling_ae_titles == ["ONE", "TWO"]
    assert settings.cluster.data == file.parent / "from-the-environment"


def test_destinations_are_read_with_what_goes_there(file: Path) -> None:
    _write(
        file,
        """
        [[ingest.destinations]]
        name = "archive"
        ae_title = "ARCHIVE"
        host = "192.0.2.1"
        port = 104
        verdicts = ["ACCEPT", "REVIEW"]
        """,
    )
    (destination,) = load(file).ingest.destinations
    assert (destination.name, destination.port, destination.verdicts) == ("archive", 104, ["ACCEPT", "REVIEW"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[ingest]\nlistn = 'x'", "ingest.listn: no such key"),
        ("[injest]\nlisten = 'x'", "injest: no such key"),
        ("[ingest]\nlisten = 'no port'", "ingest.listen: must be host:port"),
        ("[ingest]\nlisten = 'host:70000'", "ingest.listen: must be host:port"),
        ("[ingest]\nmax_attempts = 0", "ingest.max_attempts"),
        ("[ingest]\nquiet_seconds = inf", "ingest.quiet_seconds"),
        ("[ingest]\nae_title = 'LONGER THAN SIXTEEN'", "ingest.ae_title: must be an AE title"),
        ("[ingest]\nae_title = 'BACK\\\\SLASH'", "ingest.ae_title: must be an AE title"),
        ("[ingest]\n[[ingest.destinations]]\nname='a'", "ingest.destinations.0: a destination has either"),
        (
            "[ingest]\n[[ingest.destinations]]\nname='a'\nurl='http://a/b'\ntoken_file='t'",
            "ingest.destinations.0: a token is sent over https alone",
        ),
        (
            "[ingest]\n[[ingest.destinations]]\nname='a'\nurl='http://pacs.example/dicom-web'",
            "ingest.destinations.0: a url with http:// is a loopback address, unless clear_text",
        ),
        (
            "[ingest]\n[[ingest.destinations]]\nname='a'\nurl='http://127.0.0.1.example/dicom-web'",
            "ingest.destinations.0: a url with http:// is a loopback address, unless clear_text",
        ),
        ("[ingest]\n[[ingest.routes]]\nname='r'\ndestinations=['nowhere']", "a route names a destination"),
        ("[audit]\norigin = 'with a blank'", "audit.origin"),
        ("[objects]\nkind = 's3'", "original must be s3://bucket/prefix"),
        ("[objects]\noriginal = 's3://bucket/x'", "original must be a path where kind is directory"),
        ("[objects]\nkind = 'tape'", "objects.kind"),
        ("[telemetry]\nlog_level = 'LOUD'", "telemetry.log_level"),
        ("this is no TOML", "the settings file cannot be read"),
        ("\xff\xfe", "the settings file cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_key(file: Path, text: str, words: str) -> None:
    file.parent.mkdir()
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(StepwedgeError) as raised:
        load(file)
    assert raised.value.name == "CONFIGURATION"
    assert words in raised.value.message
    assert "\n" not in raised.value.message


def test_a_wrong_value_is_not_repeated(file: Path) -> None:
    _write(file, '[ingest]\nworkers = "the password"\n')
    with pytest.raises(StepwedgeError) as raised:
        load(file)
    assert "the password" not in raised.value.message


@pytest.mark.parametrize("name", ["STEPWEDGE_INJEST__LISTEN", "STEPWEDGE_INGEST__LISTN"])
def test_an_override_of_nothing_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(StepwedgeError, match="CONFIGURATION"):
        load()


def test_an_override_that_is_not_the_json_its_key_needs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWEDGE_INGEST__CALLING_AE_TITLES", "[not json")
    with pytest.raises(StepwedgeError, match="CONFIGURATION"):
        load()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepwedgeError, match=r"absent\.toml is not there"):
        load(tmp_path / "absent.toml")


def test_the_url_of_a_database_is_not_shown(file: Path) -> None:
    _write(file, '[audit]\ndatabase = "postgresql://user:secret@host/db"\n')
    assert "secret" not in repr(load(file))


def test_the_section_of_no_service_is_an_error() -> None:
    for name in ("cluster", "nothing", "__class__"):
        with pytest.raises(StepwedgeError, match="CONFIGURATION"):
            load().for_service(name)


def test_a_process_with_wrong_settings_ends_with_one_line_and_no_traceback(file: Path) -> None:
    _write(file, "[ingest]\nlistn = 'x'")
    program = (
        "import asyncio; from shared import rpc; from shared.identity import Identity;"
        "asyncio.run(rpc.main(Identity.AUDIT, None))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"STEPWEDGE_CONFIG": str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 78
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert "ingest.listn: no such key" in ended.stderr
