"""Redaction is a function of object, key and profile: the same twice, in any order, by any number of workers."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pydicom
import pytest

from services.redaction.engine import redact
from services.redaction.profile import PROFILES, Option, Profile
from shared.errors import StepwedgeError
from shared.pseudonyms import Pseudonyms

KEY = bytes(range(32))
PSEUDONYMS = Pseudonyms(KEY)
BUNDLE = sorted(path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file())
NAMES = sorted(path.stem for path in PROFILES.glob("*.toml"))
NEEDS_A_DETECTOR = {Option.CLEAN_PIXELS, Option.CLEAN_FACES}


def _profiles() -> list[Profile]:
    """Those that ship, and each option alone."""
    ships = [Profile.load(PROFILES / f"{name}.toml") for name in NAMES]
    alone = [
        Profile.parse(f'name = "{option}"\nedition = "2026c"\noptions = ["{option}"]\n'.encode())
        for option in Option
        if option not in NEEDS_A_DETECTOR
    ]
    return [profile for profile in ships if NEEDS_A_DETECTOR.isdisjoint(profile.options)] + alone


@pytest.mark.parametrize("profile", _profiles(), ids=lambda profile: profile.name)
def test_redacting_twice_changes_nothing_more(profile: Profile) -> None:
    done = 0
    for file in BUNDLE:
        if file.stat().st_size > 50_000:
            continue
        try:
            first = redact(file.read_bytes(), PSEUDONYMS, profile)
        except StepwedgeError:
            continue
        second = redact(first.data, PSEUDONYMS, profile)
        assert second.data == first.data, file.name
        assert (second.study, second.instance, second.subject) == (first.study, first.instance, first.subject)
        done += 1
    assert done > 60


def _digests(work: tuple[str, list[int]]) -> dict[int, str]:
    """What a worker of its own makes of some objects, in the order given."""
    name, numbers = work
    profile, pseudonyms = Profile.load(PROFILES / f"{name}.toml"), Pseudonyms(KEY)
    made = {}
    for number in numbers:
        try:
            made[number] = hashlib.sha256(redact(BUNDLE[number].read_bytes(), pseudonyms, profile).data).hexdigest()
        except StepwedgeError as error:
            made[number] = error.name
    return made


@pytest.mark.parametrize("name", ["basic", "research"])
def test_a_set_is_the_same_in_any_order_and_by_any_number_of_workers(name: str) -> None:
    numbers = [n for n, path in enumerate(BUNDLE) if path.stat().st_size < 100_000]
    alone = _digests((name, numbers))
    shuffled = random.Random(5).sample(numbers, len(numbers))
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as workers:
        together = {}
        for made in workers.map(_digests, [(name, shuffled[part::3]) for part in range(3)]):
            together |= made
    assert together == alone
    assert len(set(alone.values())) > 60


def test_references_between_redacted_objects_still_lead_to_each_other() -> None:
    ds = pydicom.dcmread(next(path for path in BUNDLE if path.name == "CT_small.dcm"))
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    other = pydicom.dcmread(next(path for path in BUNDLE if path.name == "MR_small.dcm"))
    other.ReferencedImageSequence = [reference]
    made = []
    for one in (other, ds):
        out = io.BytesIO()
        one.save_as(out)
        made.append(pydicom.dcmread(io.BytesIO(redact(out.getvalue(), PSEUDONYMS, Profile.basic()).data)))
    assert made[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID == made[1].SOPInstanceUID


def test_a_late_image_after_a_rotation_gets_the_names_of_its_study() -> None:
    file = next(path for path in BUNDLE if path.name == "CT_small.dcm").read_bytes()
    before = redact(file, PSEUDONYMS, Profile.basic())
    rotated = Pseudonyms(bytes(32), [KEY])
    late = redact(file, rotated, Profile.basic(), before.study)
    assert (late.study, late.series, late.instance, late.subject) == (
        before.study, before.series, before.instance, before.subject,
    )  # fmt: skip
    assert late.receipt == before.receipt
    assert late.data == before.data
    assert redact(file, rotated, Profile.basic()).study != before.study


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "SC_rgb_small_odd.dcm", "MR_small_RLE.dcm"])
def test_cleaning_pixels_twice_changes_nothing_more(name: str) -> None:
    profile = Profile.of([Option.CLEAN_PIXELS])
    first = redact(next(path for path in BUNDLE if path.name == name).read_bytes(), PSEUDONYMS, profile)
    assert redact(first.data, PSEUDONYMS, profile).data == first.data
