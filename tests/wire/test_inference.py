"""Inference as a process, beside a real log, over mutual TLS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import onnxruntime
import psutil
import pydicom
import pytest
from pydicom.data import get_testdata_file

from shared import phantom
from shared.errors import ErrorCode, from_rpc
from shared.identity import Identity
from shared.objects import Zone
from shared.paths import MODEL
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2
from tests.wire.inference_house import House, as_bytes, chest, uid

ASSESSED = audit_pb2.RECORD_KIND_ASSESSED

CANARY = "CANARY"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for the tests of this file."""
    built = House(tmp_path_factory.mktemp("inference"))
    assert built.start("audit").startswith("ready audit ")
    line = built.start("inference")
    assert line.startswith("ready inference "), built.errors.read_text()
    try:
        yield built
    finally:
        built.close()


def _code(call: Callable[[], Any]) -> int:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc(caught.value).code


def _bundled(file: str, number: int) -> bytes:
    """An object of pydicom's wheel with the UIDs that redaction would give it."""
    dataset = pydicom.dcmread(get_testdata_file(file, download=False))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(1), uid(2)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid(number)
    return as_bytes(dataset)


def test_an_assessment_is_answered_with_its_record(house: House) -> None:
    reference = house.reference(chest())
    answer = house.assess(reference)
    assert answer.instance == uid(101)
    assert all(one.outcome == common_pb2.OUTCOME_PASS for one in answer.assessment.findings)
    (entry,) = [one for one in house.entries(kind=3) if one.index == answer.record_index]
    leaf = json.loads(entry.leaf)
    assert (leaf["kind"], leaf["producer"], leaf["instance"]) == ("ASSESSED", "inference", uid(101))
    assert (leaf["study"], leaf["series"]) == (uid(1), uid(2))
    assert [one["code"] for one in leaf["event"]["findings"]] == [
        common_pb2.Reason.Name(one.code).removeprefix("REASON_") for one in answer.assessment.findings
    ]
    pins, model = leaf["pins"], answer.assessment.model
    assert pins["deidentified_sha256"] == reference.sha256
    assert pins["model"] == f"{model.name}/{model.version}"
    for key in ("preprocessed_sha256", "output_sha256", "calibration_sha256", "preprocessing", "execution_provider"):
        assert pins[key] == getattr(model, key), key
    assert pins["model_sha256"] == model.sha256
    assert pins["software_build"]


def test_masks_lie_in_the_store_as_png_of_the_size_of_the_image(house: House) -> None:
    answer = house.assess(house.reference(chest(2, 2)))
    truth = phantom.chest(2)
    assert [mask.structure for mask in answer.assessment.masks] == [1, 2, 3, 4]
    for mask in answer.assessment.masks:
        assert mask.png.zone == common_pb2.ZONE_DEIDENTIFIED
        data = house.store.get(Zone.DEIDENTIFIED, mask.png.sha256)
        assert len(data) == mask.png.size_bytes
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert picture.shape == truth.image.shape
        assert picture.dtype == np.uint8
        assert set(np.unique(picture)) == {0, 255}
    assert (answer.assessment.rows, answer.assessment.columns) == truth.image.shape


def test_the_same_object_again_is_the_same_record(house: House) -> None:
    reference = house.reference(chest(3, 3))
    one, other = house.assess(reference), house.assess(reference)
    assert one == other
    assert len([entry for entry in house.entries(kind=3) if entry.index == one.record_index]) == 1


@pytest.mark.parametrize(("file", "number"), [("CT_small.dcm", 201), ("JPEG2000.dcm", 202), ("test-SR.dcm", 203)])
def test_other_objects_get_the_general_checks_and_a_record(house: House, file: str, number: int) -> None:
    answer = house.assess(house.reference(_bundled(file, number)))
    assert not answer.assessment.HasField("model")
    assert not answer.assessment.masks
    found = {one.code for one in answer.assessment.findings if one.outcome != common_pb2.OUTCOME_PASS}
    assert found <= {common_pb2.REASON_NO_MODEL, common_pb2.REASON_NO_PIXELS}
    (entry,) = [one for one in house.entries(kind=3) if one.index == answer.record_index]
    assert "model" not in json.loads(entry.leaf)["pins"]


def test_pixels_that_do_not_decode_are_a_finding(house: House) -> None:
    dataset = pydicom.dcmread(BytesIO(chest(1, 4)))
    dataset.Rows = 4000
    answer = house.assess(house.reference(as_bytes(dataset)))
    failed = [one.code for one in answer.assessment.findings if one.outcome == common_pb2.OUTCOME_FAIL]
    assert failed == [common_pb2.REASON_PIXELS_UNDECODABLE, common_pb2.REASON_FRAMES]


def test_bad_references_and_bad_objects_are_codes(house: House) -> None:
    reference = house.reference(chest())
    zone = common_pb2.ZONE_DEIDENTIFIED
    cases: list[tuple[common_pb2.ObjectReference, int]] = [
        (common_pb2.ObjectReference(), ErrorCode.ERROR_CODE_INVALID_REQUEST),
        (common_pb2.ObjectReference(zone=zone, sha256="../../etc/passwd"), ErrorCode.ERROR_CODE_INVALID_REQUEST),
        (common_pb2.ObjectReference(zone=zone, sha256="0" * 64), ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND),
        (
            common_pb2.ObjectReference(zone=zone, sha256=reference.sha256, size_bytes=5),
            ErrorCode.ERROR_CODE_INVALID_REQUEST,
        ),
        (
            common_pb2.ObjectReference(zone=zone, sha256=reference.sha256, size_bytes=2 << 30),
            ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE,
        ),
        (house.reference(b"no image"), ErrorCode.ERROR_CODE_NOT_DICOM),
        (house.reference(b""), ErrorCode.ERROR_CODE_NOT_DICOM),
        (house.reference(chest()[:1000]), ErrorCode.ERROR_CODE_MALFORMED_DICOM),
    ]
    before = len(house.entries(kind=ASSESSED))
    for case, code in cases:
        assert _code(lambda case=case: house.assess(case)) == code, case
    assert len(house.entries(kind=ASSESSED)) == before


def test_an_object_that_was_tampered_with_in_the_store_is_corrupt(house: House) -> None:
    reference = house.reference(chest(1, 5))
    place = Path(house.settings.objects.deidentified) / reference.sha256[:2] / reference.sha256
    place.chmod(0o600)
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    assert _code(lambda: house.assess(reference)) == ErrorCode.ERROR_CODE_OBJECT_CORRUPT


def test_originals_cannot_be_named(house: House) -> None:
    reference = house.reference(chest(), Zone.ORIGINAL)
    assert _code(lambda: house.assess(reference)) == ErrorCode.ERROR_CODE_PERMISSION_DENIED


def test_the_process_cannot_open_an_original_even_where_its_store_points_to_one(house: House) -> None:
    """The same link to a file of its own zone is served, so that nothing but the confinement can be the reason."""
    original = house.reference(chest(1, 6), Zone.ORIGINAL)
    own = house.reference(chest(1, 7))
    folder = Path(house.settings.objects.deidentified)
    for reference, zone in ((original, "original"), (own, "deidentified")):
        target = Path(getattr(house.settings.objects, zone)) / reference.sha256[:2] / reference.sha256
        link = folder / reference.sha256[:2] / reference.sha256
        if zone == "deidentified":
            target = target.rename(folder / "moved")
        link.symlink_to(target)
    as_own = common_pb2.ObjectReference(zone=common_pb2.ZONE_DEIDENTIFIED, sha256=original.sha256)
    assert house.assess(own).instance == uid(107)
    assert _code(lambda: house.assess(as_own)) == ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE
    status = Path(f"/proc/{house.processes['inference'].pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status


@pytest.mark.parametrize("identity", [Identity.PACS, Identity.OPERATOR, Identity.AUDITOR, Identity.REDACTION])
def test_only_ingest_may_have_objects_assessed(house: House, identity: Identity) -> None:
    request = inference_pb2.AssessInstanceRequest(object=house.reference(chest()))
    stub = house.inference(identity)
    assert _code(lambda: stub.AssessInstance(request, timeout=10)) == ErrorCode.ERROR_CODE_PERMISSION_DENIED


def test_the_models_are_listed(house: House) -> None:
    (model,) = house.inference(Identity.OPERATOR).ListModels(inference_pb2.ListModelsRequest(), timeout=10).models
    manifest = json.loads((MODEL / "manifest.json").read_text())
    assert (model.name, model.version) == (manifest["name"], manifest["version"])
    assert model.sha256 == manifest["files"][manifest["served"]]["sha256"]
    assert model.self_test_passed
    assert len(model.structures) == 4


def test_the_process_holds_little_and_no_training_library(house: House) -> None:
    drawn = phantom.chest(3, columns=2048, rows=2500)
    uids = {"study_uid": uid(1), "series_uid": uid(2), "sop_instance_uid": uid(900)}
    house.assess(house.reference(as_bytes(phantom.to_dicom(drawn, patient_name="", patient_id="", **uids))))
    process = psutil.Process(house.processes["inference"].pid)
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    assert peak * 1024 < 250e6
    assert not [one.path for one in process.memory_maps() if "torch" in one.path]


def test_nothing_of_an_object_reaches_the_log_lines(house: House) -> None:
    dataset = pydicom.dcmread(BytesIO(chest(1, 8)))
    dataset.PatientName = dataset.StudyDescription = dataset.BodyPartExamined = CANARY
    dataset.PixelSpacing = ["0", "0"]
    house.assess(house.reference(as_bytes(dataset)))
    dataset.SOPInstanceUID = CANARY
    dataset.Rows = 7
    assert _code(lambda: house.assess(house.reference(as_bytes(dataset)))) == ErrorCode.ERROR_CODE_INVALID_UID
    assert CANARY not in house.errors.read_text()
    assert not [entry for entry in house.entries() if CANARY in str(entry)]


def test_without_the_log_there_is_no_answer(tmp_path: Path) -> None:
    house = House(tmp_path)
    try:
        house.start("audit")
        house.start("inference")
        reference = house.reference(chest())
        house.stop("audit")
        assert _code(lambda: house.assess(reference, seconds=5)) == ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE
        house.start("audit")
        assert house.entries(kind=ASSESSED) == []
        index = house.assess(reference).record_index
        assert [entry.index for entry in house.entries(kind=ASSESSED)] == [index]
    finally:
        house.close()


def _spoiled(folder: Path, spoil: Callable[[Path], None]) -> Path:
    copy = folder / "model"
    shutil.copytree(MODEL, copy)
    spoil(copy)
    return copy


def _flip(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return spoil


def _swap(folder: Path) -> None:
    shutil.copyfile(folder / "student.fp32.onnx", folder / "student.int8.onnx")


REFUSALS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a model file with one other bit": (_flip("student.int8.onnx"), "CPUExecutionProvider", "MODEL_DIGEST_MISMATCH"),
    "another model file": (_swap, "CPUExecutionProvider", "MODEL_DIGEST_MISMATCH"),
    "golden tensors with one other bit": (_flip("golden.npz"), "CPUExecutionProvider", "MODEL_DIGEST_MISMATCH"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "CPUExecutionProvider", "MODEL_NOT_FOUND"),
    "an absent provider": (lambda _: None, "NoSuchExecutionProvider", "PROVIDER_UNAVAILABLE"),
    **(
        {"CUDA where there is none": (lambda _: None, "CUDAExecutionProvider", "PROVIDER_UNAVAILABLE")}
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
        else {}
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_the_process_refuses_to_start_with_a_code(tmp_path: Path, what: str) -> None:
    spoil, provider, code = REFUSALS[what]
    house = House(tmp_path, model=_spoiled(tmp_path, spoil), provider=provider)
    assert house.start("inference") == ""
    assert house.processes["inference"].wait(10) == 1
    refused = json.loads(house.errors.read_text().splitlines()[-1])
    assert (refused["event"], refused["error"]) == ("refused to start", code)
    house.close()
