"""Redaction of files and folders without a cluster."""

import json
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from services.redaction.files import redact_file, redact_folder
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


def test_a_folder_yields_one_object_a_file_and_a_bad_file_stops_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in"
    _put(source, "Doe^Jane/a.dcm", "CT_small.dcm")
    _put(source, "Doe^Jane/b.dcm", "MR_small.dcm")
    _put(source, "Doe^Jane/c.dcm", "CT_small.dcm")
    (source / "Doe^Jane" / "b2.txt").write_text("Jane Doe's note")
    (source / "z.dcm").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes()[:3000])
    lines = list(redact_folder(source, tmp_path / "out", PSEUDONYMS))
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line.get("error") for line in lines] == [None, None, "NOT_DICOM", None, "MALFORMED_DICOM"]
    assert "Jane" not in json.dumps(lines)
    outputs = {line["output"] for line in lines if "output" in line}
    assert len(outputs) == 3
    written = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert written == outputs
    assert "Doe" not in " ".join(written)


def test_the_original_is_never_replaced(tmp_path: Path) -> None:
    source = _put(tmp_path, "in.dcm", "CT_small.dcm")
    before = source.read_bytes()
    with pytest.raises(StepwedgeError) as caught:
        redact_file(source, source, PSEUDONYMS)
    assert caught.value.code == ErrorCode.ERROR_CODE_FILE
    assert source.read_bytes() == before
    with pytest.raises(StepwedgeError):
        list(redact_folder(tmp_path, tmp_path / "out", PSEUDONYMS))


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
