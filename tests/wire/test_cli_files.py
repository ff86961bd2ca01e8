"""`stepwedge redact` and `stepwedge assess` on files, without a cluster."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from cli.exit_codes import Exit
from shared import paths
from shared.phantom import blank, chest, to_dicom
from tests.wire import canary
from tests.wire.command import Ran, stepwedge

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
    ran = stepwedge("redact", source, tmp_path / "out.dcm", "--key", key, "--profile", "basic", "--json")
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


@pytest.mark.parametrize(
    "name", ["Kowalczyk_Stanislawa.dcm", "mrn-0087731 chest.DCM", "CR.1.2.826.0.1.19991231.4.99.dcm", "1934-11-07"]
)
def test_a_file_that_is_redacted_into_a_folder_loses_a_name_that_leads_to_the_patient(
    name: str, key: Path, tmp_path: Path
) -> None:
    ds = pydicom.dcmread(CT)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Kowalczyk^Stanislawa", "MRN0087731", "19341107"
    ds.save_as(tmp_path / name)
    (tmp_path / "out").mkdir()
    ran = stepwedge("redact", tmp_path / name, tmp_path / "out", "--key", key, "--json")
    assert ran.status == 0
    (written,) = (tmp_path / "out").iterdir()
    assert Path(ran.lines[0]["output"]) == written
    assert not re.search("kowal|87731|19991231|1934", written.name, re.IGNORECASE)


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


CHANNELS = ("right_lung_field", "left_lung_field", "heart", "lungs_full")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom as DICOM, PNG, TIFF and JPEG, an empty exposure, an object without pixels, and what is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    phantom = chest(11)
    names = {"patient_name": "PHANTOM", "patient_id": "1", "study_uid": "1.2.3", "series_uid": "1.2.3.1"}
    to_dicom(phantom, **names, sop_instance_uid="1.2.3.1.1").save_as(folder / "object.dcm", enforce_file_format=True)
    eight = (phantom.image >> 4).astype(np.uint8)
    cv2.imwrite(str(folder / "sixteen.png"), phantom.image)
    cv2.imwrite(str(folder / "film.tif"), eight)
    cv2.imwrite(str(folder / "photo.jpg"), cv2.cvtColor(eight, cv2.COLOR_GRAY2BGR))
    cv2.imwrite(str(folder / "blank.png"), blank(phantom).image)
    shutil.copy(get_testdata_file("reportsi.dcm"), folder / "report.dcm")
    (folder / "broken.png").write_bytes((folder / "sixteen.png").read_bytes()[:5000])
    (folder / "cut.dcm").write_bytes((folder / "object.dcm").read_bytes()[:5000])
    (folder / "notes.txt").write_text("not a picture")
    (folder / "zero.dcm").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def assessed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    masks = tmp_path_factory.mktemp("out") / "masks"
    return stepwedge("assess", pictures, "--masks", masks, "--json"), masks


def test_each_file_is_assessed_in_a_line_and_those_that_fail_stop_nothing(
    assessed: tuple[Ran, Path], pictures: Path
) -> None:
    ran, _ = assessed
    assert (ran.status, ran.err) == (Exit.NEGATIVE, "")
    answers = {Path(line["file"]).name: line for line in ran.lines}
    assert set(answers) == {path.name for path in pictures.iterdir()}
    assert {name: line["verdict"] for name, line in answers.items()} == {
        "object.dcm": "ACCEPT",
        "sixteen.png": "ACCEPT",
        "film.tif": "ACCEPT",
        "photo.jpg": "ACCEPT",
        "blank.png": "REJECT",
        "report.dcm": "ACCEPT",
        "broken.png": "NOT_ASSESSABLE",
        "cut.dcm": "NOT_ASSESSABLE",
        "notes.txt": "NOT_ASSESSABLE",
        "zero.dcm": "NOT_ASSESSABLE",
    }
    assert {name: line["error"] for name, line in answers.items() if "error" in line} == {
        "cut.dcm": "MALFORMED_DICOM",
        "notes.txt": "NOT_DICOM",
        "zero.dcm": "NOT_DICOM",
    }
    assert answers["broken.png"]["reasons"] == ["PIXELS_UNDECODABLE"]
    assert answers["notes.txt"]["reasons"] == ["NOT_DICOM"]
    for line in answers.values():
        assert {"file", "verdict", "reasons", "findings", "measurements"} <= set(line)
    names = {measurement["name"] for measurement in answers["object.dcm"]["measurements"]}
    assert {"lung_margin_top", "lung_margin_right"} <= names


def test_masks_have_the_size_of_the_image_and_lie_on_the_lungs(assessed: tuple[Ran, Path]) -> None:
    ran, masks = assessed
    expected = {f"{stem}.{channel}.png" for stem in ("object", "sixteen", "film", "photo") for channel in CHANNELS}
    assert {path.name for path in masks.iterdir()} == expected
    told = {path for line in ran.lines for path in line.get("masks", {}).values()}
    assert told == {str(masks / name) for name in expected}
    phantom = chest(11)
    for stem in ("object", "sixteen", "film", "photo"):
        for channel in CHANNELS:
            mask = cv2.imread(str(masks / f"{stem}.{channel}.png"), cv2.IMREAD_UNCHANGED)
            assert mask.shape == phantom.image.shape
            assert set(np.unique(mask)) == {0, 255}
        found = cv2.imread(str(masks / f"{stem}.lungs_full.png"), cv2.IMREAD_UNCHANGED) > 0
        truth = phantom.masks["lungs_full"] > 0
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) >= 0.9


def test_two_files_of_one_stem_both_get_a_verdict_and_do_not_replace_each_others_masks(
    pictures: Path, tmp_path: Path
) -> None:
    shutil.copy(pictures / "object.dcm", tmp_path / "same.dcm")
    shutil.copy(pictures / "film.tif", tmp_path / "same.tif")
    ran = stepwedge("assess", tmp_path, "--masks", tmp_path / "masks", "--json")
    assert ran.status == Exit.NEGATIVE
    first, second = ran.lines
    assert set(first["masks"]) == set(CHANNELS)
    assert second["error"] == "FILE"
    assert second["verdict"] == first["verdict"] == "ACCEPT"
    assert second["findings"]
    assert len(list((tmp_path / "masks").iterdir())) == 4


def test_without_json_a_person_reads_the_verdict_and_its_reasons(pictures: Path) -> None:
    ran = stepwedge("assess", pictures / "blank.png", pictures / "notes.txt")
    assert ran.status == Exit.NEGATIVE
    verdict, reason, *_ = ran.out.splitlines()
    assert verdict.split() == ["REJECT", str(pictures / "blank.png")]
    assert reason.strip().startswith("BLANK_IMAGE: ")
    assert ran.failed_in_one_line("NOT_DICOM")


def test_a_model_that_was_tampered_with_is_not_used(pictures: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(paths.MODEL, model)
    for file in model.glob("*.onnx"):
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    settings = tmp_path / "stepwedge.toml"
    settings.write_text(f'[inference]\nmodel = "{model}"\n')
    ran = stepwedge("assess", pictures / "object.dcm", "--config", settings)
    assert ran.status == Exit.CONFIGURATION
    assert ran.failed_in_one_line("MODEL_DIGEST_MISMATCH")
