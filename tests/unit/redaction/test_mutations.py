"""Damaged objects: each is cleaned, or refused with a code; none brings redaction down, and none takes long.

A few hundred seeds here; STEPWEDGE_MUTATIONS=20000 runs as many, so does `python -m tests.unit.redaction.mutation_run`.
"""

import contextlib
import os
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from services.redaction import engine
from services.redaction.engine import redact
from services.redaction.profile import Profile
from shared import dicom
from shared.errors import StepwedgeError
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.canaries import everything
from tests.unit.redaction.mutation_run import FAILURES, STRUCTURAL, made, one, run, sources
from tests.unit.redaction.mutations import mutated

PSEUDONYMS = Pseudonyms(bytes(range(32)))
COUNT = int(os.environ.get("STEPWEDGE_MUTATIONS", "400"))
REFUSALS = {"NOT_DICOM", "MALFORMED_DICOM", "NOT_REDACTABLE", "RESIDUAL_IDENTITY", "PIXELS_UNDECODABLE"}


@pytest.mark.parametrize(
    ("profile", "first", "count"),
    [
        ("basic", 0, COUNT // 2),
        ("research", 1_000_000, COUNT // 2),
        ("basic-pixels", 2_000_000, COUNT // 4),
        ("research", STRUCTURAL, COUNT // 4),
    ],
    ids=["basic", "research", "basic-pixels", "structure"],
)
def test_a_damaged_object_is_cleaned_or_refused_with_a_code(profile: str, first: int, count: int) -> None:
    counts, failed, most_memory = run(range(first, first + count), profile)
    assert failed == []
    assert set(counts) <= REFUSALS | {"redacted"}
    assert counts["redacted"] > count // 20
    assert sum(counts.values()) == count
    assert most_memory < 1 << 30


@pytest.mark.parametrize(
    ("profile", "name", "seed"),
    [
        ("basic-pixels", "examples_ybr_color.dcm", 20_000_633),
        ("basic-pixels", "693_J2KI.dcm", 20_009_105),
        ("research-release", "examples_palette.dcm", 40_008_255),
    ],
    ids=[
        "a loop whose colours become RGB",
        "cells that hold more bits than the header says",
        "a frame that is shown otherwise once it is blanked",
    ],
)
def test_what_was_blanked_leaves_nothing_to_blank_in_a_second_pass(profile: str, name: str, seed: int) -> None:
    """Objects of which a run of 20,000 made a result that a second pass changed."""
    data = mutated(Path(str(get_testdata_file(name))).read_bytes(), seed)
    assert one(data, PSEUDONYMS, Profile.load(Profile.file(profile))) == "redacted"


@pytest.mark.parametrize(
    ("profile", "seed"),
    [("basic", 1_000_202_464), ("research-release", 1_000_202_200), ("research-release", 1_000_301_556)],
    ids=["a number as the character set", "moved dates and no UID", "a date of separators alone"],
)
def test_what_was_rearranged_is_taken_again(profile: str, seed: int) -> None:
    """Objects of which runs made a result that pydicom could not read, or that was held when redacted again."""
    assert one(made(sources(), seed), PSEUDONYMS, Profile.load(Profile.file(profile))) == "redacted"


UNSETTLED = [
    ("basic-pixels", "SC_rgb_jpeg_dcmd.dcm", 30_004_996, "00220012"),
    ("research-release", "winter.dcm", 20_010_352, "00080012"),
    ("research-release", "", 20_016_879, ""),
]
"""Damaged objects that say something else once they are mended: how they are encoded, whose they are and when they were
made, what a content item is. The attribute is one that only a second pass takes out."""


def _unsettled(name: str, seed: int) -> bytes:
    bundle = Path(pydicom.__file__).parent / "data"
    return mutated(next(bundle.rglob(name)).read_bytes() if name else everything()[0], seed)


@pytest.mark.parametrize(("profile", "name", "seed", "attribute"), UNSETTLED, ids=["encoding", "dates", "content"])
def test_a_pass_that_changes_something_is_followed_by_another(
    profile: str, name: str, seed: int, attribute: str
) -> None:
    compiled = Profile.load(Profile.file(profile))
    done = redact(_unsettled(name, seed), PSEUDONYMS, compiled)
    assert redact(done.data, PSEUDONYMS, compiled).data == done.data
    assert attribute in {"", *(tag for tags in done.receipt.attributes.values() for tag in tags)}


@pytest.mark.parametrize(("profile", "name", "seed", "attribute"), UNSETTLED, ids=["encoding", "dates", "content"])
def test_an_object_whose_passes_come_to_no_end_is_refused(
    profile: str, name: str, seed: int, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_MOST_PASSES", 2)  # these need three: two that change something, one that does not
    with pytest.raises(StepwedgeError) as refusal:
        redact(_unsettled(name, seed), PSEUDONYMS, Profile.load(Profile.file(profile)))
    assert refusal.value.name == "NOT_REDACTABLE"


def test_the_run_sees_what_it_is_there_to_see() -> None:
    """A check that cannot fail is none: an engine that raises, and one that is given a file it cannot take."""

    class Broken:
        def commitment(self, sha256_hex: str) -> str:
            raise ValueError(sha256_hex)

    assert one(sources()[0], Broken(), Profile.basic()).startswith(FAILURES)  # type: ignore[arg-type]
    assert one(b"nothing", PSEUDONYMS, Profile.basic()) == "NOT_DICOM"


def test_the_frames_of_a_damaged_object_decode_or_are_refused_with_a_code() -> None:
    objects = sources()
    for seed in range(150):
        with contextlib.suppress(StepwedgeError):
            assert next(dicom.frames(dicom.read(mutated(objects[seed % len(objects)], seed)), max_bytes=1 << 24)).size


def test_damage_lets_no_name_through_that_the_object_still_says() -> None:
    """Damage may take the name itself away, and other canaries may become values of attributes that are kept."""
    data, _ = everything()
    judged = 0
    for seed in range(70):
        damaged = mutated(data, seed)
        try:
            result = redact(damaged, PSEUDONYMS, Profile.basic())
        except StepwedgeError:
            continue
        header = dicom.read_header(damaged)
        if header.get("PatientName") == "Cnryson^Aurelia" and header.get("PatientID") == "CNRYPATIENT77":
            judged += 1
            assert b"cnryson" not in result.data.lower(), seed
            assert b"cnrypatient77" not in result.data.lower(), seed
    assert judged > 10
