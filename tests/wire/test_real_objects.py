"""Real objects and real radiographs through the running cluster, sent by us and by DCMTK."""

import csv
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from shared import phantom
from stepwedge.common.v1.common_pb2 import Reason, Verdict
from stepwedge.ingest.v1 import ingest_pb2
from tests.shared_material import SHARED, needs_shared
from tests.wire.cluster import RunningCluster, running_cluster

needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="needs DCMTK: apt-get install dcmtk")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), ingest={"workers": 2}) as cluster:
        yield cluster


def radiographs(count: int) -> list[dict[str, str]]:
    """Rows of the index, evenly from every source and split that may be looked at."""
    assert SHARED is not None
    with (SHARED / "data" / "cxr" / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in {"train", "val", "unlabelled"}]
    by_source: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row)
    each = -(-count // len(by_source))
    return [row for of_source in by_source.values() for row in of_source[:: max(1, len(of_source) // each)][:each]][
        :count
    ]


def as_digital_x_ray(row: dict[str, str], folder: Path) -> tuple[Path, str]:
    """A radiograph wrapped as a DX object of an invented person; its file and its Study Instance UID."""
    assert SHARED is not None
    image = cv2.imread(str(SHARED / "data" / "cxr" / "images" / f"{row['id']}.jpg"), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    template = phantom.chest(0, columns=64, rows=80)
    study = generate_uid()
    dataset = phantom.to_dicom(
        template,
        patient_name="Wrapped^Radiograph",
        patient_id=f"WR{row['id']}",
        study_uid=study,
        series_uid=generate_uid(),
        sop_instance_uid=generate_uid(),
    )
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.WindowCenter, dataset.WindowWidth = "128", "256"
    dataset.PixelData = image.tobytes() + b"\0" * (image.size % 2)
    dataset["PixelData"].VR = "OB"
    dataset.ViewPosition = row["view"]
    del dataset.ViewCodeSequence, dataset.ImagerPixelSpacing
    path = folder / f"{row['id']}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path, study


@needs_shared
def test_fifty_real_radiographs_and_two_real_objects_get_verdicts_from_the_student(
    cluster: RunningCluster, tmp_path: Path
) -> None:
    assert SHARED is not None
    wrapped = [as_digital_x_ray(row, tmp_path) for row in radiographs(50)]
    real = [SHARED / "data" / "dicom" / name for name in ("RG1_J2KI.dcm", "nih_dx_chest.dcm")]
    studies = [uid for _, uid in wrapped] + [str(pydicom.dcmread(path).StudyInstanceUID) for path in real]
    sent = cluster.store([path for path, _ in wrapped] + real)
    assert [one.code for one in sent] == ["0x0000"] * 52
    verdicts: dict[str, int] = {}
    for uid in studies:
        study = cluster.decided(uid, 120)
        verdict = Verdict.Name(study.decisions[-1].verdict)
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
        (instance,) = study.instances
        assert instance.state == ingest_pb2.INSTANCE_STATE_ASSESSED
        # The student ran on every one of them: nothing was held back, nothing was taken for another kind of image.
        assert Reason.REASON_BURNED_IN_TEXT_POSSIBLE not in instance.reasons
        assert Reason.REASON_NO_MODEL not in instance.reasons
    assert verdicts.get("VERDICT_ACCEPT", 0) >= 20, verdicts


@needs_dcmtk
def test_dcmtk_sends_and_its_bytes_are_kept_as_they_came(cluster: RunningCluster, tmp_path: Path) -> None:
    host, port = cluster.dimse.host, str(cluster.dimse.port)
    called = ["-aec", cluster.settings.ingest.ae_title]
    subprocess.run(["echoscu", *called, host, port], check=True, timeout=30)
    source = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    source.StudyInstanceUID, source.SOPInstanceUID = generate_uid(), generate_uid()
    source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
    path = tmp_path / "ct.dcm"
    source.save_as(path, enforce_file_format=True)
    subprocess.run(["storescu", *called, host, port, str(path)], check=True, timeout=30)
    study = cluster.decided(source.StudyInstanceUID)
    (instance,) = study.instances
    kept = next(Path(cluster.settings.objects.original).rglob(instance.sha256)).read_bytes()
    assert hashlib.sha256(kept).hexdigest() == instance.sha256
    again = pydicom.dcmread(path)
    received = tmp_path / "received.dcm"
    received.write_bytes(kept)
    assert pydicom.dcmread(received).PixelData == again.PixelData
    assert pydicom.dcmread(received).file_meta.TransferSyntaxUID == again.file_meta.TransferSyntaxUID
