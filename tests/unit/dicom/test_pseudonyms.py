"""What pseudonyms promise: the same under a key, unlinkable across keys, fixed under a second run."""

import re
from pathlib import Path

import pytest

from shared.dicom import is_uid
from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import Pseudonyms

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def test_the_same_key_gives_the_same_pseudonyms_in_any_instance() -> None:
    one, two = Pseudonyms(KEY), Pseudonyms(KEY)
    assert one.uid("1.2.3") == two.uid("1.2.3")
    assert one.subject("123", "A") == two.subject("123", "A")
    assert one.text("station", "X") == two.text("station", "X")
    assert one.commitment("ab") == two.commitment("ab")


def test_another_key_gives_others() -> None:
    one, two = Pseudonyms(KEY), Pseudonyms(OTHER)
    assert one.uid("1.2.3") != two.uid("1.2.3")
    assert one.subject("123") != two.subject("123")
    assert one.commitment("ab") != two.commitment("ab")


def test_a_new_uid_is_a_uuid_of_version_8_below_2_25() -> None:
    pseudonyms = Pseudonyms(KEY)
    seen = set()
    for number in range(5000):
        uid = pseudonyms.uid(f"1.2.840.{number}")
        value = int(uid.removeprefix("2.25."))
        assert is_uid(uid)
        assert value < 1 << 128
        assert (value >> 76) & 0xF == 8
        assert (value >> 62) & 3 == 2
        seen.add(uid)
    assert len(seen) == 5000


def test_what_we_issued_maps_to_itself_and_only_under_our_key() -> None:
    pseudonyms, other = Pseudonyms(KEY), Pseudonyms(OTHER)
    for number in range(500):
        uid, subject = pseudonyms.uid(f"1.{number}"), pseudonyms.subject(str(number))
        assert pseudonyms.uid(uid) == uid
        assert pseudonyms.subject(subject) == subject
        assert other.uid(uid) != uid
        assert other.subject(subject) != subject


def test_a_uid_of_another_with_our_root_is_not_taken_for_ours() -> None:
    pseudonyms = Pseudonyms(KEY)
    for uid in ("2.25.1", "2.25.329800735698586629295641978511506172918", "2.25." + "9" * 39, "2.25.", "2.25.01"):
        assert not pseudonyms.is_ours(uid)
        assert pseudonyms.uid(uid) != uid


def test_the_issuer_and_the_number_cannot_be_confused() -> None:
    pseudonyms = Pseudonyms(KEY)
    assert pseudonyms.subject("12", "3") != pseudonyms.subject("2", "31")
    assert pseudonyms.subject("12", "") != pseudonyms.subject("", "12")


def test_dates_move_by_the_same_days_for_a_person_and_never_by_none() -> None:
    pseudonyms = Pseudonyms(KEY)
    shifts = [pseudonyms.date_shift_days(str(number)) for number in range(3000)]
    assert shifts == [pseudonyms.date_shift_days(str(number)) for number in range(3000)]
    assert 0 not in shifts
    assert all(-3652 <= shift < 0 for shift in shifts)
    assert len(set(shifts)) > 1500


def test_a_pseudonym_shows_nothing_of_what_it_stands_for() -> None:
    pseudonyms = Pseudonyms(KEY)
    assert re.fullmatch(r"SW-[A-Z2-7]{24}", pseudonyms.subject("MRN12345"))
    assert "12345" not in pseudonyms.subject("MRN12345")


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 31, "00" * 33])
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "pseudonyms.key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(StepwedgeError) as caught:
        Pseudonyms.load(file)
    assert caught.value.code == ErrorCode.ERROR_CODE_CONFIGURATION


def test_a_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pseudonyms.key"
    file.write_text("00" * 32)
    file.chmod(0o644)
    with pytest.raises(StepwedgeError) as caught:
        Pseudonyms.load(file)
    assert caught.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    file.chmod(0o600)
    assert Pseudonyms.load(file).uid("1.2") == Pseudonyms(bytes(32)).uid("1.2")


def test_a_label_fits_an_ae_title_and_is_a_fixed_point() -> None:
    pseudonyms, other = Pseudonyms(KEY), Pseudonyms(OTHER)
    for number in range(200):
        label = pseudonyms.label("station", f"ROOM{number}")
        assert re.fullmatch(r"[A-Z2-7]{16}", label)
        assert pseudonyms.label("station", label) == label
        assert other.label("station", label) != label
    assert not pseudonyms.is_label("ROOM1")
