"""The results of a decision are found and fetched over DICOMweb beside the images that they are of."""

from __future__ import annotations

import io
from collections.abc import Iterator

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.wire.cluster import eventually
from tests.wire.dicomweb_house import Web, dicomweb_house, parts_of
from tests.wire.ingest_house import part10
from tests.wire.ports import port
from tests.wire.test_dicomweb_read import AS_IT_LIES, NATIVE, client
from tests.wire.test_results import assessed_with_outlines, outlines, radiograph


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    keep = '[ingest.results]\nkeep = ["seg", "sr"]\n'
    with dicomweb_house(tmp_path_factory.mktemp("results"), port, ingest=keep) as made:
        yield made


@pytest.fixture(scope="module")
def ds(web: Web) -> Dataset:
    """An image that was stored, and decided with outlines."""
    made = radiograph()
    web.house.inference.answers["*"] = assessed_with_outlines(web.house)  # type: ignore[attr-defined]
    assert web.stow([part10(made)]).status == 200
    web.house.in_state(made.StudyInstanceUID, "DONE")
    return made


def test_results_are_found_in_their_study(web: Web, ds: Dataset):
    uid = ds.StudyInstanceUID
    (study,) = eventually(
        lambda: (answer := web.get("/studies?ModalitiesInStudy=SEG")).status == 200 and answer.json, what="the results"
    )
    assert study["0020000D"]["Value"] == [uid]
    assert study["00080061"]["Value"] == ["DX", "SEG", "SR"]
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([3], [3])
    series = web.get(f"/studies/{uid}/series").json
    assert sorted(item["00080060"]["Value"][0] for item in series) == ["DX", "SEG", "SR"]
    (seg,) = web.get(f"/studies/{uid}/instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.66.4").json
    assert web.get(f"/instances?SOPInstanceUID={seg['00080018']['Value'][0]}").status == 200
    (report,) = client(web).search_for_series(uid, search_filters={"Modality": "SR"})
    assert Dataset.from_json(report).Modality == "SR"


def test_results_are_fetched_with_the_images_and_their_frames_are_the_outlines(web: Web, ds: Dataset):
    files = [content for _, content in parts_of(web.get(f"/studies/{ds.StudyInstanceUID}", AS_IT_LIES))]
    by_modality = {found.Modality: found for found in (pydicom.dcmread(io.BytesIO(data)) for data in files)}
    assert set(by_modality) == {"DX", "SEG", "SR"}
    seg = by_modality["SEG"]
    address = f"/studies/{seg.StudyInstanceUID}/series/{seg.SeriesInstanceUID}/instances/{seg.SOPInstanceUID}"
    numbers = ",".join(str(number) for number in range(1, int(seg.NumberOfFrames) + 1))
    frames = [content for _, content in parts_of(web.get(f"{address}/frames/{numbers}", NATIVE))]
    size = seg.Rows * seg.Columns
    pixels = [np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:size] for frame in frames]
    assert np.array_equal(
        np.reshape(pixels, (-1, seg.Rows, seg.Columns)), np.reshape(seg.pixel_array, (-1, seg.Rows, seg.Columns))
    )
    assert sorted(int(frame.sum()) for frame in pixels) == sorted(int(mask.sum()) for mask in outlines().values())
    assert web.get(f"{address}/metadata").status == 200
    report = by_modality["SR"]
    fetched = client(web).retrieve_instance(report.StudyInstanceUID, report.SeriesInstanceUID, report.SOPInstanceUID)
    assert hd.sr.srread(io.BytesIO(next(data for data in files if b"1.2.840.10008.5.1.4.1.1.88" in data))) is not None
    assert fetched.SOPInstanceUID == report.SOPInstanceUID
