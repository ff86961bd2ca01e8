"""Several processes come to what one comes to, and the account of numbers and of archives holds on any input."""

import io
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.verify import ORIGIN, make_bundle
from shared.transparency.note import Signer
from tests.unit.verifier import forging
from verifier import verify

SIGNER = Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x21" * 32))
KEY = str(SIGNER.key)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of so many records that they are read in several parts."""
    place = tmp_path_factory.mktemp("long") / "export.zip"
    make_bundle(place, 64 * 256 + 300, SIGNER)
    return place


def both_ways(place: Path, monkeypatch: pytest.MonkeyPatch) -> verify.Report:
    """What one process finds, held to be what several find."""
    monkeypatch.setattr(verify, "_MANY_RECORDS", 1)
    alone = verify.verify(str(place), key=KEY)
    together = verify.verify(str(place), key=KEY, processes=2)
    assert alone.as_json() == together.as_json()
    return alone


def test_several_processes_find_what_one_finds(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = both_ways(long, monkeypatch)
    assert (report.code, report.size, report.gaps) == (verify.PROVED, 16684, [])
    assert sum(report.kinds.values()) == report.size


@pytest.mark.parametrize("what", ["edited", "dropped", "cut", "swapped", "damaged"])
def test_what_is_wrong_anywhere_is_found_by_several_as_by_one(
    what: str, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = forging.read(long)
    middle, last = "tile/entries/040", "tile/entries/065.p/44"
    if what == "edited":
        files[middle] = files[middle].replace(b'"outcome":"SUCCESS"', b'"outcome":"FAILURE"', 1)
    elif what == "dropped":
        del files[middle]
    elif what == "cut":
        del files[last]
    elif what == "swapped":
        files[middle], files["tile/entries/041"] = files["tile/entries/041"], files[middle]
    else:
        files[middle] = files[middle][:-5]
    forged = forging.write(tmp_path / "forged.zip", forging.with_manifest(files))
    report = both_ways(forged, monkeypatch)
    assert report.code == (verify.TRUNCATED if what == "cut" else verify.ALTERED), report.problems


@given(st.lists(st.lists(st.integers(1, 40), max_size=30), max_size=4))
@settings(max_examples=200, deadline=None)
def test_numbers_in_parts_are_accounted_for_as_one_list(parts: list[list[int]]) -> None:
    everything = [number for part in parts for number in part]
    ranges: verify.Ranges = []
    again = 0
    for part in parts:
        found, repeated = verify._ranges(part)
        ranges += found
        again += repeated
    missing, across = verify._missing(sorted(ranges))
    there = set(everything)
    absent = sorted(set(range(1, max(there, default=0) + 1)) - there)
    assert [number for first, last in missing for number in range(first, last + 1)] == absent
    # A number that three parts hold is counted as often as it came again.
    assert again + across == len(everything) - len(there)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_time_stamp_or_are_refused(data: bytes) -> None:
    with pytest.raises(verify.VerificationError) as refused:
        verify.read_stamp(data)
    assert refused.value.code == verify.MALFORMED


def archive(files: dict[str, bytes]) -> bytes:
    kept = io.BytesIO()
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return kept.getvalue()


BOMBS = {
    "a checkpoint": "checkpoint",
    "a key": "vkey",
    "a tile": "tile/0/000.p/5",
    "a stamp": "stamps/5.tsr",
    "a rotation": "rotation/5",
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_file_that_unpacks_to_far_more_than_it_may_be_is_not_read(what: str, tmp_path: Path) -> None:
    files = {"checkpoint": b"x", "vkey": b"x", "manifest.json": b"{}"}
    files[BOMBS[what]] = bytes(64 << 20)
    place = tmp_path / "bomb.zip"
    place.write_bytes(archive(files))
    assert place.stat().st_size < 1 << 20
    source = verify.Source(place)
    with pytest.raises(verify.VerificationError) as refused:
        source.read(BOMBS[what])
    assert refused.value.code == verify.MALFORMED
    assert verify.verify(str(place), key=KEY).code == verify.MALFORMED


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "checkpoint",
                "vkey",
                "manifest.json",
                "tile/0/000",
                "tile/entries/000",
                "stamps/1.tsr",
                "rotation/1",
                "../x",
            ]
        ),
        st.binary(max_size=200),
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_archive_gets_a_report(tmp_path: Path, files: dict[str, bytes]) -> None:
    place = tmp_path / "any.zip"
    place.write_bytes(archive(files))
    assert verify.verify(str(place)).code in (verify.MALFORMED, verify.BAD_SIGNATURE)
