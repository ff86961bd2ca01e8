"""`stepwedge redact` and `stepwedge assess` on files, without a cluster."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from cli.exit_codes import Exit
from tests.wire import canary
from tests.wire.command import stepwedge

CT = Path(get_testdata_file("CT_small.dcm"))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "pseudonyms.key"
    file.write_text("5a" * 32 + "\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three objects of the canary, one of them under its name, and a file that is none."""
    folder = tmp_path / "in"
    named = folder / f"{canary.FAMILY}_{canary.GIVEN}"
    named.mkdir(parents=True)
    canary.write(canary.planted("CT_small.dcm", 1), folder / "0001.dcm")
    canary.write(canary.planted("MR_small_implicit.dcm", 2), named / f"{canary.NUMBER}.dcm")
    canary.write(canary.planted("reportsi.dcm", 3), folder / f"{canary.ROOT}.3.1.1.dcm")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_a_file_is_redacted_to_a_file_and_its_receipt_is_one_line(key: Path, tmp_path: Path) -> None:
    source = canary.write(canary.planted("CT_small.dcm", 1), tmp_path / "in.dcm")
    ran = stepwedge("redact", source, tmp_path / "out.dcm", "--key", key, "--json")
    assert (ran.status, ran.err) == (0, "")
    (receipt,) = ran.lines
    assert (receipt["file"], receipt["output"]) == (str(source), str(tmp_path / "out.dcm"))
    assert receipt["edition"] == "2026c"
    assert receipt["residual_hits"] == 0
    assert canary.found(ran.out.encode(), canary.WORDS) == []
    assert canary.found((tmp_path / "out.dcm").read_bytes(), [*canary.WORDS, canary.ROOT]) == []
    redacted = pydicom.dcmread(tmp_path / "out.dcm")
    assert redacted.PatientIdentityRemoved == "YES"
    assert redacted.pixel_array.tobytes() == pydicom.dcmread(source).pixel_array.tobytes()


def test_a_folder_is_redacted_to_a_folder_and_no_name_of_a_file_names_the_patient(
    folder: Path, key: Path, tmp_path: Path
) -> None:
    ran = stepwedge("redact", folder, tmp_path / "out", "--key", key, "--json")
    assert ran.status == Exit.NEGATIVE
    receipts = {Path(line["file"]).relative_to(folder).as_posix(): line for line in ran.lines}
    assert len(receipts) == 4
    assert receipts["notes.txt"]["error"] == "NOT_DICOM"
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written == sorted(Path(line["output"]) for line in ran.lines if "error" not in line)
    assert receipts["0001.dcm"]["output"] == str(tmp_path / "out" / "0001.dcm")
    for path in written:
        assert canary.found(str(path.relative_to(tmp_path / "out")).encode(), [*canary.WORDS, canary.ROOT]) == []
        assert canary.found(path.read_bytes(), [*canary.WORDS, canary.ROOT]) == []


def test_one_key_gives_one_result_and_another_key_another(folder: Path, key: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        stepwedge("redact", folder, tmp_path / name, "--key", key)
    assert tree(tmp_path / "first") == tree(tmp_path / "second")
    other = tmp_path / "other.key"
    other.write_text("a5" * 32)
    other.chmod(0o600)
    stepwedge("redact", folder, tmp_path / "third", "--key", other)
    assert set(tree(tmp_path / "third").values()).isdisjoint(tree(tmp_path / "first").values())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_key_a_random_one_is_used_and_said(tmp_path: Path) -> None:
    settings = tmp_path / "stepwedge.toml"
    settings.write_text('[cluster]\ndata = "none"\n')
    instances = set()
    for name in ("first.dcm", "second.dcm"):
        ran = stepwedge("redact", CT, tmp_path / name, "--config", settings, "--json")
        assert ran.status == 0
        assert ran.err.startswith("note: no pseudonym key")
        instances.add(ran.lines[0]["instance"])
    assert len(instances) == 2


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "open.key"
    key.write_text("5a" * 32)
    key.chmod(0o644)
    ran = stepwedge("redact", CT, tmp_path / "out.dcm", "--key", key)
    assert ran.status == Exit.CONFIGURATION
    assert ran.failed_in_one_line("CONFIGURATION")
    assert not (tmp_path / "out.dcm").exists()


def test_files_cut_short_anywhere_are_refused_with_a_line_each_and_nothing_is_written(
    key: Path, tmp_path: Path
) -> None:
    whole = canary.write(canary.planted("CT_small.dcm", 1), tmp_path / "whole.dcm").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    sizes = (0, 100, 131, 132, 200, 1000, 30000, len(whole) - 1)
    for size in sizes:
        (folder / f"{size:05}.dcm").write_bytes(whole[:size])
    ran = stepwedge("redact", folder, tmp_path / "out", "--key", key)
    assert ran.status == Exit.NEGATIVE
    told = ran.err.splitlines()
    assert len(told) == len(sizes)
    assert all(line.startswith(("error NOT_DICOM: ", "error MALFORMED_DICOM: ")) for line in told)
    assert canary.found(ran.err.encode(), canary.WORDS) == []
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_one_file_that_is_refused_is_one_line(key: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.dcm").write_bytes(CT.read_bytes()[:3000])
    ran = stepwedge("redact", tmp_path / "cut.dcm", tmp_path / "out.dcm", "--key", key)
    assert ran.status == Exit.NEGATIVE
    assert ran.failed_in_one_line("MALFORMED_DICOM")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.dcm"]


def test_a_folder_is_not_redacted_into_itself_nor_a_file_onto_itself(folder: Path, key: Path) -> None:
    before = tree(folder)
    assert stepwedge("redact", folder, folder / "out", "--key", key).status == Exit.FILE
    assert stepwedge("redact", folder, folder, "--key", key).status == Exit.FILE
    file = folder / "0001.dcm"
    assert stepwedge("redact", file, file, "--key", key).status != 0
    assert tree(folder) == before


def test_what_was_redacted_is_not_open_to_others(key: Path, tmp_path: Path) -> None:
    stepwedge("redact", CT, tmp_path / "out.dcm", "--key", key)
    assert not stat.S_IMODE((tmp_path / "out.dcm").stat().st_mode) & 0o007


def test_each_line_of_json_is_an_object_of_its_own(folder: Path, key: Path, tmp_path: Path) -> None:
    ran = stepwedge("redact", folder, tmp_path / "out", "--key", key, "--json")
    assert all(isinstance(json.loads(line), dict) for line in ran.out.splitlines())
    assert "\x1b" not in ran.out
