"""Orthanc as the peer: it sends to us by DIMSE and by DICOMweb, asks for commitment, searches and fetches."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from services.ingest.door import data_set_offset
from tests.wire.cluster import eventually
from tests.wire.dicomweb_house import Web, dicomweb_house
from tests.wire.ingest_house import DX, dx, part10
from tests.wire.orthanc import Orthanc, needs_orthanc, needs_orthanc_dicomweb, running_orthanc
from tests.wire.ports import port


@pytest.fixture(scope="module")
def orthanc_dimse() -> int:
    """Where Orthanc listens, which ingest is told before; chosen late, so that nobody takes it meanwhile."""
    return port()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, orthanc_dimse: int) -> Iterator[Web]:
    peer = f'commitment_peers = [{{ ae_title = "ORTHANC", host = "127.0.0.1", port = {orthanc_dimse} }}]'
    with dicomweb_house(tmp_path_factory.mktemp("house"), port, ingest=peer) as made:
        yield made


@pytest.fixture(scope="module")
def orthanc(web: Web, tmp_path_factory: pytest.TempPathFactory, orthanc_dimse: int) -> Iterator[Orthanc]:
    server = {"Url": web.root, "HttpHeaders": {"Authorization": f"Bearer {web.token}"}}
    with running_orthanc(
        tmp_path_factory.mktemp("peer"),
        dimse_port=orthanc_dimse,
        modalities={"ours": ("STEPWEDGE", *web.house.dimse)},
        dicomweb_servers={"ours": server},
        options={"HttpsCACertificates": str(web.house.settings.cluster.pki / "ca.crt"), "HttpsVerifyPeers": True},
    ) as made:
        yield made


def data_sets(files: list[bytes]) -> set[str]:
    """Digests of the data sets alone: each side writes file meta information in its own way."""
    return {hashlib.sha256(data[data_set_offset(data) :]).hexdigest() for data in files}


def study(count: int) -> list[Dataset]:
    uid, series = generate_uid(None), generate_uid(None)
    return [dx(study=uid, series=series, seed=number) for number in range(count)]


@needs_orthanc
def test_orthanc_echoes_stores_by_dimse_and_has_it_committed(web: Web, orthanc: Orthanc):
    objects = study(5)
    names = [orthanc.add(part10(ds)) for ds in objects]
    orthanc.echo("ours")
    assert orthanc.store("ours", names)["FailedInstancesCount"] == 0
    assert data_sets([part10(ds) for ds in objects]) <= data_sets(list(web.house.stored().values()))
    web.house.in_state(objects[0].StudyInstanceUID, "DONE")
    path = orthanc.commit("ours", [(DX, str(ds.SOPInstanceUID)) for ds in objects])
    report = eventually(
        lambda: (found := orthanc.get(path))["Status"] != "Pending" and found, 30, what="the report of commitment"
    )
    assert report["Status"] == "Success"
    assert len(report["Success"]) == 5


@needs_orthanc_dicomweb
def test_orthanc_stores_by_its_dicomweb_plug_in(web: Web, orthanc: Orthanc):
    objects = study(5)
    names = [orthanc.add(part10(ds)) for ds in objects]
    orthanc.stow("ours", names)
    assert {part10(ds) for ds in objects} <= set(web.house.stored().values())
    found = web.house.in_state(objects[0].StudyInstanceUID, "DONE")
    assert len(found.instances) == 5
    received = [one.received for one in web.house.entries(study=found.pseudonym) if one.HasField("received")]
    assert {one.channel for one in received} == {"STOW"}


@needs_orthanc_dicomweb
def test_orthanc_searches_here_and_fetches_what_it_finds_unchanged(web: Web, orthanc: Orthanc):
    objects = study(3)
    for ds in objects:
        ds.PatientID, ds.StudyDate = "FETCH-ME", "20260315"
    assert web.stow([part10(ds) for ds in objects]).status == 200
    (found,) = orthanc.qido("ours", "/studies", PatientID="FETCH-ME", StudyDate="20260301-20260331")
    uid = found["0020000D"]["Value"][0]
    assert uid == objects[0].StudyInstanceUID
    orthanc.retrieve("ours", uid)
    for ds in objects:
        (name,) = orthanc.find("Instance", SOPInstanceUID=str(ds.SOPInstanceUID))
        fetched = orthanc.file(name)
        assert data_sets([fetched]) == data_sets([part10(ds)])
        assert pydicom.dcmread(io.BytesIO(fetched)).PatientID == "FETCH-ME"


@needs_orthanc_dicomweb
def test_orthanc_with_a_token_that_was_revoked_is_told_so_and_sends_nothing(web: Web, orthanc: Orthanc):
    from stepwedge.ingest.v1 import tokens_pb2

    made = web.mint("store", client="orthanc-2")
    server = {"Url": web.root, "HttpHeaders": {"Authorization": f"Bearer {made.bearer}"}}
    with running_orthanc(
        orthanc.folder,
        title="SECOND",
        dicomweb_servers={"ours": server},
        options={"HttpsCACertificates": str(web.house.settings.cluster.pki / "ca.crt")},
    ) as second:
        first, other = dx(), dx()
        second.stow("ours", [second.add(part10(first))])
        web.tokens.RevokeToken(tokens_pb2.RevokeTokenRequest(id=made.token.id), timeout=10)
        name = second.add(part10(other))
        with pytest.raises(OSError, match="HTTP Error"):
            second.stow("ours", [name])
    assert web.house.study(first.StudyInstanceUID) is not None
    assert web.house.study(other.StudyInstanceUID) is None
