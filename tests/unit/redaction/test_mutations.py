"""Damaged objects: each is cleaned, or refused with a code; none brings redaction down, and none takes long."""

import contextlib
import io
import time
from pathlib import Path

import pydicom
import pytest

from services.redaction.engine import redact
from services.redaction.profile import Profile
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.canaries import everything
from tests.unit.redaction.mutations import mutated

PSEUDONYMS = Pseudonyms(bytes(range(32)))
SOURCES = [
    path.read_bytes()
    for path in sorted(Path(pydicom.__file__).parent.joinpath("data").rglob("*.dcm"))
    if path.stat().st_size < 100_000
]
REFUSALS = {
    ErrorCode.ERROR_CODE_NOT_DICOM,
    ErrorCode.ERROR_CODE_MALFORMED_DICOM,
    ErrorCode.ERROR_CODE_NOT_REDACTABLE,
    ErrorCode.ERROR_CODE_RESIDUAL_IDENTITY,
}


@pytest.mark.parametrize("block", range(6))
def test_a_damaged_object_is_cleaned_or_refused_with_a_code(block: int) -> None:
    refusals = set()
    for seed in range(block * 100, block * 100 + 100):
        data = mutated(SOURCES[seed % len(SOURCES)], seed)
        begun = time.monotonic()
        try:
            first = redact(data, PSEUDONYMS, Profile.basic())
        except StepwedgeError as error:
            refusals.add(error.code)
        else:
            assert redact(first.data, PSEUDONYMS, Profile.basic()).data == first.data, seed
            pydicom.dcmread(io.BytesIO(first.data)).save_as(io.BytesIO())
        with contextlib.suppress(StepwedgeError):
            assert next(dicom.frames(dicom.read(data), max_bytes=1 << 24)).size
        assert time.monotonic() - begun < 10, seed
    assert refusals <= REFUSALS


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
