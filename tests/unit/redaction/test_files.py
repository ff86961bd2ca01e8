"""Redaction of files without a cluster."""

import json
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from cli.redact import redact
from services.redaction.files import redact_file
from services.redaction.profile import Profile
from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import Pseudonyms

PSEUDONYMS = Pseudonyms(bytes(range(32)))


def _put(folder: Path, name: str, source: str) -> Path:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(Path(get_testdata_file(source)).read_bytes())
    return target


def test_a_file_becomes_a_file_and_a_receipt(tmp_path: Path) -> None:
    source = _put(tmp_path, "in.dcm", "CT_small.dcm")
    receipt = redact_file(source, tmp_path / "out" / "o.dcm", PSEUDONYMS)
    ds = pydicom.dcmread(tmp_path / "out" / "o.dcm")
    assert ds.StudyInstanceUID == receipt["study"]
    assert receipt["edition"] == "2026c"
    assert receipt["output"] == "o.dcm"
    assert "CompressedSamples" not in json.dumps(receipt)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["o.dcm"]


def test_the_original_is_never_replaced(tmp_path: Path) -> None:
    source = _put(tmp_path, "in.dcm", "CT_small.dcm")
    before = source.read_bytes()
    with pytest.raises(StepwedgeError) as caught:
        redact_file(source, source, PSEUDONYMS)
    assert caught.value.code == ErrorCode.ERROR_CODE_FILE
    assert source.read_bytes() == before


def test_a_refused_file_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "in.dcm"
    source.write_bytes(b"not an object")
    with pytest.raises(StepwedgeError) as caught:
        redact_file(source, tmp_path / "out" / "o.dcm", PSEUDONYMS)
    assert caught.value.code == ErrorCode.ERROR_CODE_NOT_DICOM
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_a_code(tmp_path: Path) -> None:
    with pytest.raises(StepwedgeError) as caught:
        redact_file(tmp_path / "none.dcm", tmp_path / "o.dcm", PSEUDONYMS)
    assert caught.value.code == ErrorCode.ERROR_CODE_FILE


def test_a_path_that_cannot_even_be_looked_at_is_refused_by_a_code(tmp_path: Path) -> None:
    source = _put(tmp_path, "in.dcm", "CT_small.dcm")
    impossible = tmp_path / ("x" * 300)  # as a folder that may not be searched, for whoever is not root
    for call, code in (
        (lambda: redact_file(impossible, tmp_path / "o.dcm", PSEUDONYMS), ErrorCode.ERROR_CODE_FILE),
        (lambda: redact_file(source, impossible, PSEUDONYMS), ErrorCode.ERROR_CODE_FILE),
        (lambda: Profile.file(str(impossible)), ErrorCode.ERROR_CODE_CONFIGURATION),
        (lambda: redact(impossible, tmp_path / "o.dcm", None, None, json=True), ErrorCode.ERROR_CODE_FILE),
        (lambda: redact(source, tmp_path / "o.dcm", impossible, None, json=True), ErrorCode.ERROR_CODE_FILE),
        (lambda: redact(tmp_path, impossible, None, None, json=True), ErrorCode.ERROR_CODE_FILE),
    ):
        with pytest.raises(StepwedgeError) as caught:
            call()
        assert caught.value.code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.dcm"]
