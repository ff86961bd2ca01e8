"""The pseudonym key and the log's signing key: made once, readable by their owner, marked when for development."""

import base64
import hashlib
import stat
from pathlib import Path

import pytest

from shared import keys
from shared.errors import StepwedgeError


def test_the_keys_are_made_once_and_read_by_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keys.create(folder, development=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    keys.create(folder, development=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    private = ["audit-signing.key", "blind-index.key", "identity.key", "pseudonyms.key"]
    assert sorted(before) == sorted(["DEVELOPMENT", "audit.vkey", *private])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in private:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert len(keys.pseudonym_secret(folder)) == 32


def test_the_verification_key_is_the_public_half_in_the_form_of_c2sp(tmp_path: Path) -> None:
    keys.create(tmp_path, origin="example.org/log", development=True)
    name, key_hash, encoded = (tmp_path / "audit.vkey").read_text().strip().split("+", 2)
    material = base64.b64decode(encoded)
    assert name == "example.org/log"
    assert material == b"\x01" + keys.signing_key(tmp_path).public_key().public_bytes_raw()
    assert key_hash == hashlib.sha256(b"example.org/log\n" + material).hexdigest()[:8]


def test_production_refuses_keys_made_for_development(tmp_path: Path) -> None:
    keys.create(tmp_path / "d", development=True)
    keys.create(tmp_path / "p", development=False)
    keys.refuse_development(tmp_path / "p", production=True)
    keys.refuse_development(tmp_path / "d", production=False)
    with pytest.raises(StepwedgeError, match="CONFIGURATION"):
        keys.refuse_development(tmp_path / "d", production=True)


@pytest.mark.parametrize("content", [None, "", "zz" * 32, "ab" * 31])
def test_a_key_that_is_absent_or_none_is_a_configuration_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / keys.PSEUDONYMS).write_text(content)
        (tmp_path / keys.SIGNING).write_text(content)
    for read in (keys.pseudonym_secret, keys.signing_key):
        with pytest.raises(StepwedgeError, match="CONFIGURATION"):
            read(tmp_path)


def test_a_secret_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    keys.create(tmp_path, development=True)
    assert len(keys.secret(tmp_path, keys.IDENTITY)) == 32
    (tmp_path / keys.IDENTITY).chmod(0o644)
    with pytest.raises(StepwedgeError, match="everybody"):
        keys.secret(tmp_path, keys.IDENTITY)
