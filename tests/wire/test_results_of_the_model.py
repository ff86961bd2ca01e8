"""The outlines that the real model draws, in the SEG that goes to the PACS: where the console shows them, whatever the
image's shape, polarity and turn."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from PIL import Image as Picture
from pydicom import dcmread
from pydicom.uid import generate_uid

from shared import phantom
from shared.identity import Identity
from shared.objects import Zone, open_store
from shared.phantom import Phantom
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.wire.cluster import RunningCluster, running_cluster

SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.33"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("model"), ingest={"results": {"keep": ["seg", "sr"]}}) as made:
        yield made


def results(cluster: RunningCluster, study: str) -> dict[str, bytes]:
    from datetime import timedelta

    from services.ingest.store import StudyStore
    from shared import database

    objects = open_store(cluster.settings.objects, {Zone.ORIGINAL})
    engine = database.create_engine(cluster.settings.ingest.database)
    try:
        made = StudyStore(engine, quiet=timedelta(seconds=1)).results_of(study)
        return {one.sop_class_uid: objects.get(Zone.ORIGINAL, one.sha256) for one in made}
    finally:
        engine.dispose()


IMAGES = {
    "upright": phantom.chest(11, columns=700, rows=900),
    "wide, white is low": phantom.monochrome1(phantom.chest(12, columns=801, rows=643)),
    "turned": phantom.turned(phantom.chest(13, columns=512, rows=640), 1),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_segments_lie_where_the_console_draws_the_outlines(cluster: RunningCluster, image: Phantom, tmp_path: Path):
    uids = {name: str(generate_uid(None)) for name in ("study_uid", "series_uid", "sop_instance_uid")}
    ds = phantom.to_dicom(image, patient_name="PHANTOM^CHEST", patient_id="P-1", **uids)
    ds.save_as(tmp_path / "chest.dcm", enforce_file_format=True)
    cluster.store([tmp_path / "chest.dcm"])
    study = cluster.decided(uids["study_uid"], 90)
    made = results(cluster, uids["study_uid"])
    seg = hd.seg.segread(BytesIO(made[SEG]))
    assert (seg.Rows, seg.Columns) == (ds.Rows, ds.Columns)
    of_segment = {one.segment_label: frame > 0 for one, frame in zip(seg.SegmentSequence, seg.pixel_array, strict=True)}
    stub = inference_pb2_grpc.InferenceServiceStub(cluster.channel("inference", Identity.CONSOLE))
    labels = {1: "Right lung field", 2: "Left lung field", 3: "Heart", 4: "Lungs in full"}
    (instance,) = study.instances
    assert len(instance.masks) == 4
    for mask in instance.masks:
        request = inference_pb2.RenderObjectRequest(object=mask.png, longest_side=4096)
        shown = np.asarray(Picture.open(BytesIO(stub.RenderObject(request, timeout=30).png))) > 127
        assert np.array_equal(shown, of_segment[labels[mask.structure]]), labels[mask.structure]
    truth = image.masks["lungs_full"] > 0
    drawn = of_segment["Lungs in full"]
    assert 2 * (truth & drawn).sum() / (truth.sum() + drawn.sum()) > 0.8, "and both lie on the lungs of the picture"
    report = dcmread(BytesIO(made[SR]))
    assert report.StudyInstanceUID == uids["study_uid"]
    assert common_pb2.Verdict.Name(study.decisions[-1].verdict)
