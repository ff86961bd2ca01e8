"""`stepwedge redact` and `stepwedge keys`: profiles, projects, keys, and what they tell of files and of people."""

from __future__ import annotations

import os
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from cli.exit_codes import Exit
from tests.wire import canary
from tests.wire.command import stepwedge

CT = Path(get_testdata_file("CT_small.dcm"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "pseudonyms.key"
    file.write_text("5a" * 32 + "\n")
    file.chmod(0o600)
    return file


def test_without_paths_nothing_that_is_told_names_the_patient(key: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in" / f"{canary.FAMILY}_{canary.GIVEN}"
    folder.mkdir(parents=True)
    canary.write(canary.planted("CT_small.dcm", 1), folder / f"{canary.NUMBER}.dcm")
    (folder / f"{canary.NUMBER}.txt").write_text("no object")
    for more in ((), ("--json",)):
        out = tmp_path / f"out{len(more)}"
        ran = stepwedge("redact", tmp_path / "in", out, "--key", key, "--no-paths", *more)
        assert ran.status == Exit.NEGATIVE
        assert canary.found((ran.out + ran.err).encode(), [*canary.WORDS, canary.ROOT]) == []
    assert [line["file"] for line in ran.lines] == ["#1", "#2"]
    assert ran.lines[1]["error"] == "NOT_DICOM"


def test_a_person_reads_the_receipt(key: Path, tmp_path: Path) -> None:
    ran = stepwedge("redact", CT, tmp_path / "out.dcm", "--key", key)
    assert ran.status == 0
    assert "second opinion: nothing found" in ran.out
    assert "UIDs replaced" in ran.out
    assert "CompressedSamples" not in ran.out


def test_projects_of_one_key_cannot_be_linked_and_an_unknown_profile_is_a_line(key: Path, tmp_path: Path) -> None:
    instances = set()
    for number, project in enumerate(("", "trial-7", "trial-8", "trial-7")):
        ran = stepwedge("redact", CT, tmp_path / f"{number}.dcm", "--key", key, "--project", project, "--json")
        instances.add(ran.lines[0]["instance"])
    assert len(instances) == 3
    ran = stepwedge("redact", CT, tmp_path / "x.dcm", "--key", key, "--profile", "nonesuch")
    assert ran.status == Exit.CONFIGURATION
    assert ran.failed_in_one_line("CONFIGURATION")


def test_a_key_is_rotated_and_an_old_study_goes_on_until_it_is_destroyed(key: Path, tmp_path: Path) -> None:
    first = stepwedge("redact", CT, tmp_path / "1.dcm", "--key", key, "--json").lines[0]
    old = stepwedge("keys", "list", "--key", key, "--json").lines[0]["key_id"]
    assert stepwedge("keys", "rotate", "--key", key).status == 0
    second = stepwedge("redact", CT, tmp_path / "2.dcm", "--key", key, "--json").lines[0]
    again = stepwedge("redact", CT, tmp_path / "3.dcm", "--key", key, "--key-id", old, "--json").lines[0]
    assert first["study"] == again["study"] != second["study"]
    assert pydicom.dcmread(tmp_path / "3.dcm").PatientID == pydicom.dcmread(tmp_path / "1.dcm").PatientID
    unsure = stepwedge("keys", "destroy", old, "--key", key)
    assert unsure.status == Exit.USAGE
    assert stepwedge("keys", "destroy", old, "--key", key, "--yes").status == 0
    states = [line["state"] for line in stepwedge("keys", "list", "--key", key, "--json").lines]
    assert states == ["in use", "destroyed"]
    gone = stepwedge("redact", CT, tmp_path / "4.dcm", "--key", key, "--key-id", old)
    assert gone.status == Exit.CONFIGURATION
    assert "5a5a5a" not in key.read_text()


def test_an_empty_path_is_wrong_usage_and_not_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(CT.read_bytes())
    for command in (("assess", ""), ("redact", "", "out"), ("redact", "x.dcm", "")):
        ran = stepwedge(*command, cwd=tmp_path)
        assert ran.status == Exit.USAGE, command
        assert ran.failed_in_one_line("USAGE")
    assert [path.name for path in tmp_path.iterdir()] == ["x.dcm"]


def test_a_file_that_does_not_exist_keeps_no_other_from_being_assessed(tmp_path: Path) -> None:
    ran = stepwedge("assess", tmp_path / "none.dcm", CT, "--json")
    assert ran.status == Exit.NEGATIVE
    assert [line.get("error") for line in ran.lines] == ["FILE", None]


def test_names_that_are_no_text_are_told_as_text(key: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"scan\xff.dcm")).write_bytes(CT.read_bytes())
    ran = stepwedge("redact", folder, tmp_path / "out", "--key", key, "--json")
    assert ran.status == 0
    assert ran.lines[0]["file"].endswith("scan\\xff.dcm")
    assert "\\ud" not in ran.out.lower()
