"""The certificates of a cluster: minted once, kept while valid, renewed in time."""

import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from shared import pki
from shared.errors import StepwedgeError
from shared.identity import SERVICES, Identity
from shared.paths import ROOT


def _certificate(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def _alternative(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_each_identity_gets_a_certificate_that_names_it_and_a_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    pki.create(tmp_path, Identity, names=["gateway.example", "192.0.2.7"], development=True)
    for identity in Identity:
        names = _alternative(_certificate(tmp_path, identity.value))
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://stepwedge/{identity.value}"]
        dns = names.get_values_for_type(x509.DNSName)
        addresses = [str(one) for one in names.get_values_for_type(x509.IPAddress)]
        if identity in SERVICES:
            assert dns == [f"{identity.value}.stepwedge", "localhost", "gateway.example"]
            assert addresses == ["127.0.0.1", "::1", "192.0.2.7"]
        pki.Credentials.load(tmp_path, identity)
    for key in tmp_path.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_second_run_keeps_everything_and_a_new_name_renews_what_lacks_it(tmp_path: Path) -> None:
    wanted = [Identity.AUDIT, Identity.AUDITOR]
    pki.create(tmp_path, wanted, development=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pki.create(tmp_path, wanted, development=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    pki.create(tmp_path, wanted, names=["new.example"], development=True)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after["ca.crt"] == before["ca.crt"]
    assert after["audit.crt"] != before["audit.crt"]
    assert after["auditor.crt"] == before["auditor.crt"]


@pytest.mark.parametrize("damage", ["absent key", "key of another", "certificate of another", "no certificate"])
def test_what_is_wrong_is_minted_again(tmp_path: Path, damage: str) -> None:
    pki.create(tmp_path, [Identity.AUDIT, Identity.INGEST], development=True)
    if damage == "absent key":
        (tmp_path / "audit.key").unlink()
    elif damage == "key of another":
        (tmp_path / "audit.key").write_bytes((tmp_path / "ingest.key").read_bytes())
    elif damage == "certificate of another":
        (tmp_path / "audit.crt").write_bytes((tmp_path / "ingest.crt").read_bytes())
    else:
        (tmp_path / "audit.crt").unlink()
    pki.create(tmp_path, [Identity.AUDIT], development=True)
    pki.Credentials.load(tmp_path, Identity.AUDIT)
    assert _alternative(_certificate(tmp_path, "audit")).get_values_for_type(x509.UniformResourceIdentifier) == [
        Identity.AUDIT.uri
    ]


def test_a_certificate_about_to_expire_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pki, "_LEAF_DAYS", 29)
    pki.create(tmp_path, [Identity.AUDIT], development=True)
    monkeypatch.undo()
    pki.create(tmp_path, [Identity.AUDIT], development=True)
    assert _certificate(tmp_path, "audit").not_valid_after_utc > datetime.now(UTC) + timedelta(days=300)


def test_a_certificate_that_has_expired_is_refused_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pki, "_LEAF_DAYS", -1)
    monkeypatch.setattr(pki, "_BACKDATED", timedelta(days=2))
    pki.create(tmp_path, [Identity.AUDIT], development=True)
    with pytest.raises(StepwedgeError, match="has expired"):
        pki.Credentials.load(tmp_path, Identity.AUDIT)


def test_without_the_key_of_the_ca_what_is_valid_serves_and_nothing_new_is_minted(tmp_path: Path) -> None:
    pki.create(tmp_path, [Identity.AUDIT], development=True)
    (tmp_path / "ca.key").unlink()
    pki.create(tmp_path, [Identity.AUDIT], development=True)
    with pytest.raises(StepwedgeError, match=r"CONFIGURATION: .* the CA's key is not there"):
        pki.create(tmp_path, [Identity.INGEST], development=True)


def test_a_development_ca_says_so_and_production_refuses_it(tmp_path: Path) -> None:
    pki.create(tmp_path / "d", [Identity.AUDIT], development=True)
    pki.create(tmp_path / "p", [Identity.AUDIT], development=False)
    made_for_development = pki.Credentials.load(tmp_path / "d", Identity.AUDIT)
    made_for_production = pki.Credentials.load(tmp_path / "p", Identity.AUDIT)
    assert "Stepwedge development" in _certificate(tmp_path / "d", "ca").subject.rfc4514_string()
    pki.refuse_development(made_for_development, production=False)
    pki.refuse_development(made_for_production, production=True)
    with pytest.raises(StepwedgeError, match="CONFIGURATION"):
        pki.refuse_development(made_for_development, production=True)
    with pytest.raises(StepwedgeError, match="other kind"):
        pki.create(tmp_path / "d", [Identity.AUDIT], development=False)


def test_absent_damaged_and_foreign_credentials_are_configuration_errors_without_paths(tmp_path: Path) -> None:
    pki.create(tmp_path, [Identity.AUDIT], development=True)
    (tmp_path / "ingest.crt").write_bytes((tmp_path / "audit.crt").read_bytes())
    (tmp_path / "ingest.key").write_bytes((tmp_path / "audit.key").read_bytes())
    (tmp_path / "pacs.crt").write_text("no certificate")
    (tmp_path / "pacs.key").write_text("no key")
    pki.create(tmp_path, [Identity.CONSOLE, Identity.AUDITOR], development=True)
    (tmp_path / "auditor.key").write_bytes((tmp_path / "console.key").read_bytes())
    for identity in (Identity.OPERATOR, Identity.INGEST, Identity.PACS, Identity.AUDITOR):
        with pytest.raises(StepwedgeError, match="CONFIGURATION") as raised:
            pki.Credentials.load(tmp_path, identity)
        assert str(tmp_path) not in raised.value.message


def test_processes_that_start_at_once_share_one_ca(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from shared import pki; from shared.identity import SERVICES;"
        "pki.create(Path(sys.argv[1]), SERVICES, development=True)"
    )
    started = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0] * 4
    ca = _certificate(tmp_path, "ca")
    for identity in SERVICES:
        _certificate(tmp_path, identity.value).verify_directly_issued_by(ca)
        pki.Credentials.load(tmp_path, identity)
