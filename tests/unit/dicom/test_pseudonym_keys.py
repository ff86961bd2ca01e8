"""The life of a pseudonym key: rotation keeps what was issued, destruction leaves nothing, projects share nothing."""

from pathlib import Path

import pytest

from shared import keys, pseudonym_keys
from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import Pseudonyms


@pytest.fixture
def file(tmp_path: Path) -> Path:
    keys.create(tmp_path / "keys", development=True)
    return tmp_path / "keys" / keys.PSEUDONYMS


def test_rotation_puts_a_new_key_into_use_and_knows_what_the_old_one_issued(file: Path) -> None:
    old = Pseudonyms.load(file)
    uid, subject = old.uid("1.2.840.1"), old.subject("MRN1")
    new_id = pseudonym_keys.rotate(file)
    new = Pseudonyms.load(file)
    assert new.key_id == new_id != old.key_id
    assert new.uid("1.2.840.1") != uid
    assert new.subject("MRN1") != subject
    assert (new.uid(uid), new.subject(subject)) == (uid, subject), "redacted under the old key, it is left as it is"
    assert [key.state for key in pseudonym_keys.listed(file)] == ["in use", "retired"]
    assert keys.pseudonym_secret(file.parent) != b""
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_old_study_goes_on_under_the_key_that_its_receipt_names(file: Path) -> None:
    old = Pseudonyms.load(file)
    pseudonym_keys.rotate(file)
    pseudonym_keys.rotate(file)
    again = Pseudonyms.load(file, old.key_id)
    assert again.uid("1.2.840.1") == old.uid("1.2.840.1")
    assert again.date_shift_days("x") == old.date_shift_days("x")
    assert again.key_id == old.key_id


def test_after_destruction_nothing_can_be_derived_or_recognised(file: Path) -> None:
    old = Pseudonyms.load(file)
    secret = file.read_text().strip()
    uid = old.uid("1.2.840.1")
    with file.open("rb") as held:
        with pytest.raises(StepwedgeError, match="in use"):
            pseudonym_keys.destroy(file, old.key_id)
        pseudonym_keys.rotate(file)
        assert secret.encode() not in held.read(), "the blocks of the old file are overwritten"
    with file.open("rb") as held:
        pseudonym_keys.destroy(file, old.key_id)
        assert secret.encode() not in held.read()
    assert secret not in file.read_text()
    assert [path.name for path in file.parent.iterdir() if secret in path.read_text(errors="replace")] == []
    left = Pseudonyms.load(file)
    assert not left.is_ours(uid)
    assert left.uid(uid) != uid
    assert [(key.id, key.state) for key in pseudonym_keys.listed(file)][1:] == [(old.key_id, "destroyed")]
    with pytest.raises(StepwedgeError) as caught:
        Pseudonyms.load(file, old.key_id)
    assert caught.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    with pytest.raises(StepwedgeError, match="no pseudonym key"):
        pseudonym_keys.destroy(file, old.key_id)


def test_projects_of_one_key_share_nothing_and_are_the_same_each_time(file: Path) -> None:
    base = Pseudonyms.load(file)
    one, two = base.project("trial-7"), base.project("trial-8")
    for make in (
        lambda p: p.uid("1.2.840.1"),
        lambda p: p.subject("MRN1", "HOSP"),
        lambda p: p.text("station", "X"),
        lambda p: p.commitment("00" * 32),
        lambda p: p.key_id,
    ):
        assert len({make(base), make(one), make(two)}) == 3
        assert make(one) == make(Pseudonyms.load(file).project("trial-7"))
    assert not two.is_ours(one.uid("1.2.840.1"))
    assert base.project("") is base


def test_rotation_reaches_into_projects(file: Path) -> None:
    uid = Pseudonyms.load(file).project("p").uid("1.2.3")
    pseudonym_keys.rotate(file)
    assert Pseudonyms.load(file).project("p").is_ours(uid)


def test_a_file_that_others_may_read_is_not_rotated(file: Path) -> None:
    before = file.read_bytes()
    file.chmod(0o644)
    with pytest.raises(StepwedgeError):
        pseudonym_keys.rotate(file)
    assert file.read_bytes() == before


def test_what_a_retired_key_named_goes_on_to_be_named_by_it(file: Path) -> None:
    old = Pseudonyms.load(file)
    pseudonym_keys.rotate(file)
    middle = Pseudonyms.load(file)
    pseudonym_keys.rotate(file)
    new = Pseudonyms.load(file)
    for one in (old, middle, new):
        again = new.naming("1.2.840.1", one.uid("1.2.840.1"))
        assert again.key_id == one.key_id
        assert again.uid("1.2.840.2") == one.uid("1.2.840.2")
        assert again.subject("MRN1") == one.subject("MRN1")
        assert all(again.is_ours(other.uid("1.2.3")) for other in (old, middle, new))
    assert new.naming("1.2.840.1", "") is new
    assert new.naming("1.2.840.1", "2.25.1") is new
    assert (old.rotated, new.rotated) == (False, True)
