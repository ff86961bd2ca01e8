"""What needs more than one image, the policy tried on past studies, and the constancy test, in a whole cluster."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from cli.exit_codes import Exit
from shared import paths, phantom
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.ingest.v1 import ingest_pb2
from tests.wire.cluster import RunningCluster, running_cluster
from tests.wire.command import stepwedge

CT = Path(get_testdata_file("CT_small.dcm"))
SITES = {"NORTH_CT": "north"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    folder = tmp_path_factory.mktemp("quality")
    with running_cluster(folder, ingest={"quiet_seconds": 0.5, "sites": SITES}) as cluster:
        yield cluster


def a_series(folder: Path, places: list[float], **changes: dict[int, object]) -> tuple[list[Path], str]:
    """Slices of a real CT at these places, mm, with pixels of their own; changes: keyword -> place in the list ->
    value. The files and the Study Instance UID."""
    study, series = generate_uid(), generate_uid()
    files = []
    for number, place in enumerate(places):
        dataset = pydicom.dcmread(CT)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.InstanceNumber, dataset.StationName = number + 1, "NORTH_CT"
        dataset.ImagePositionPatient = [-158.1, -179.0, place]
        pixels = dataset.pixel_array.copy()
        pixels[number, number] += 1
        dataset.PixelData = pixels.astype(np.int16).tobytes()
        for keyword, of in changes.items():
            if number in of:
                setattr(dataset, keyword, of[number])
        files.append(folder / f"{number}.dcm")
        dataset.save_as(files[-1])
    return files, study


def decided(cluster: RunningCluster, files: list[Path], study: str) -> ingest_pb2.Study:
    cluster.store(files)
    return cluster.decided(study)


def reasons(study: ingest_pb2.Study) -> set[str]:
    return {common_pb2.Reason.Name(one).removeprefix("REASON_") for one in study.decisions[-1].reasons}


def outcomes(study: ingest_pb2.Study) -> dict[str, str]:
    return {
        common_pb2.Reason.Name(one.code).removeprefix("REASON_"): common_pb2.Outcome.Name(one.outcome).removeprefix(
            "OUTCOME_"
        )
        for one in study.findings
    }


def test_a_whole_series_passes_and_its_site_is_known(cluster: RunningCluster, tmp_path: Path) -> None:
    study = decided(cluster, *a_series(tmp_path, [0, 5, 10, 15, 20, 25]))
    found = outcomes(study)
    assert {found[code] for code in ("SLICES", "GEOMETRY", "DUPLICATE_IMAGES", "MIXED_PATIENTS")} == {"PASS"}
    assert found["NOISE"] == "NOT_ASSESSABLE"
    assert {one.site for one in study.instances} == {"north"}
    record = cluster.entries(study=study.pseudonym, kind=audit_pb2.RECORD_KIND_DECIDED)[-1].record
    assert list(record.decided.sites) == ["north"]
    assert {(one.code, one.outcome) for one in record.decided.findings} == {(f.code, f.outcome) for f in study.findings}


def test_a_series_that_lost_a_slice_is_for_review_and_the_log_says_why(cluster: RunningCluster, tmp_path: Path) -> None:
    study = decided(cluster, *a_series(tmp_path, [0, 5, 10, 20, 25, 30, 35]))
    assert study.decisions[-1].verdict == common_pb2.VERDICT_REVIEW
    assert "SLICES" in reasons(study)
    assert "a slice is missing" in list(study.decisions[-1].details)
    record = cluster.entries(study=study.pseudonym, kind=audit_pb2.RECORD_KIND_DECIDED)[-1].record
    assert ("missing_slices", "1") in {(one.name, one.value) for one in record.decided.measurements}


def test_a_study_of_two_patients_is_for_review(cluster: RunningCluster, tmp_path: Path) -> None:
    files, uid = a_series(tmp_path, [0, 5, 10, 15], PatientID={2: "SOMEBODY-ELSE"})
    study = decided(cluster, files, uid)
    assert study.decisions[-1].verdict == common_pb2.VERDICT_REVIEW
    assert "MIXED_PATIENTS" in reasons(study)
    assert "SOMEBODY" not in str(study.decisions[-1])


def test_an_image_that_was_sent_under_another_uid_too_is_found(cluster: RunningCluster, tmp_path: Path) -> None:
    files, uid = a_series(tmp_path, [0, 5, 10, 15, 20])
    again = pydicom.dcmread(files[2])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    again.save_as(tmp_path / "again.dcm")
    study = decided(cluster, [*files, tmp_path / "again.dcm"], uid)
    assert {"DUPLICATE_IMAGES", "SLICES"} <= reasons(study)


# --- the policy --------------------------------------------------------------------------------------------------


def test_the_policy_in_use_changes_nothing_its_file_can_be_had_and_nobody_is_named(cluster: RunningCluster) -> None:
    ran = stepwedge("policy", "check", paths.POLICY, "--config", cluster.file, "--all")
    assert (ran.status, ran.err) == (Exit.OK, "")
    assert "all would be decided as they were" in ran.out
    shown = stepwedge("policy", "show", "--config", cluster.file, "--json")
    assert shown.lines[0]["toml"] == paths.POLICY.read_text()
    known = pydicom.dcmread(CT)
    for value in (str(known.PatientName), known.PatientID, "SOMEBODY-ELSE", "NORTH_CT"):
        assert str(value) not in ran.out
    received = cluster.ingest.ListStudies(ingest_pb2.ListStudiesRequest(), timeout=10).studies
    assert not any(study.study_instance_uid in ran.out for study in received)


def test_a_stricter_policy_is_explained_before_it_is_switched_on(cluster: RunningCluster, tmp_path: Path) -> None:
    file = tmp_path / "stricter.toml"
    text = paths.POLICY.read_text().replace(
        'finding = "SLICES"\nFAIL = "REVIEW"', 'finding = "SLICES"\nFAIL = "REJECT"'
    )
    file.write_text(
        text + '\n[[rule]]\nfinding = "UNUSED_DEPTH"\nsites = ["south"]\nFAIL = "REJECT"\nwhy = "nobody is there"\n'
    )
    ran = stepwedge("policy", "check", file, "--config", cluster.file, "--json")
    assert ran.status == Exit.NEGATIVE
    assert "no setting of ingest.sites names: south" in ran.err
    *changed, sums = ran.lines
    assert sums["changed"] == len(changed) == 2
    assert all(one["verdict"] == {"old": "REVIEW", "new": "REJECT"} for one in changed)
    assert {"old": "REVIEW", "new": "REJECT", "studies": 2} in sums["verdicts"]
    assert sums["policy_sha256"]["in_use"] != sums["policy_sha256"]["new"]
    told = stepwedge("policy", "check", file, "--config", cluster.file)
    assert "REVIEW -> REJECT" in told.out
    assert "4 studies; 2 would be decided otherwise" in told.out


def test_a_file_that_is_no_policy_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text('version = 1\n[[rule]]\nfinding = "NO_SUCH"\nwhy = "x"\n')
    ran = stepwedge("policy", "check", file)
    assert ran.status == Exit.CONFIGURATION
    assert ran.failed_in_one_line("CONFIGURATION")


# --- constancy ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_the_cluster_is_tested_with_phantoms_and_a_drift_is_an_alarm(cluster: RunningCluster) -> None:
    address = f"{cluster.dimse.host}:{cluster.dimse.port}"
    first = stepwedge("constancy", "--set-baseline", "--to", address, "--config", cluster.file, "--json", seconds=200)
    assert (first.status, first.lines[0]["drifted"], first.lines[0]["baseline"]["version"]) == (Exit.OK, 0, 1)
    studies = cluster.ingest.ListStudies(ingest_pb2.ListStudiesRequest(), timeout=10).studies
    key = ingest_pb2.StudyKey(pseudonym=next(one.pseudonym for one in studies if one.constancy))
    again = cluster.ingest.CheckConstancy(ingest_pb2.CheckConstancyRequest(study=key), timeout=10)
    assert (again.drifted, again.baseline_version, again.baseline_set) == (0, 1, False)
    values = {(one["phantom"], one["name"]): one["value"] for one in first.lines[0]["values"]}
    assert {one for one, _ in values} == set(phantom.CONSTANCY_NAMES.values())
    expected = {
        ("plain", "verdict"): "ACCEPT",
        ("cut-off", "lung_margin_top"): "FAIL",
        ("inverted", "inverted_polarity"): "FAIL",
        ("turned", "turned"): "FAIL",
        ("mirrored", "mirrored"): "WARN",
        ("underexposed", "exposure"): "FAIL",
    }
    outcomes = {(one["phantom"], one["name"]): one["value"] for one in first.lines[0]["values"] if not one["unit"]}
    assert expected.items() <= outcomes.items()

    # The same as a change of model or policy would look like: the baseline says something else.
    with sqlite3.connect(cluster.settings.ingest.database.removeprefix("sqlite:///")) as database:
        database.execute(
            'UPDATE baselines SET content = replace(content, \'"lung_margin_top", "FAIL"\', '
            '\'"lung_margin_top", "PASS"\') WHERE version = 1'
        )
    drifted = stepwedge("constancy", "--config", cluster.file, "--json", seconds=200)
    assert (drifted.status, drifted.lines[0]["drifted"]) == (Exit.NEGATIVE, 1)
    (record, *_) = reversed(cluster.entries(kind=audit_pb2.RECORD_KIND_CONSTANCY))
    told = record.record.constancy
    assert (told.drifted, told.baseline_version, told.requested_by) == (1, 1, "operator")
    assert [(one.phantom, one.name, one.value, one.expected) for one in told.values] == [
        ("cut-off", "lung_margin_top", "FAIL", "PASS")
    ]
    assert record.record.outcome == audit_pb2.EVENT_OUTCOME_MINOR_FAILURE


def test_phantoms_count_as_nobodys_images(cluster: RunningCluster) -> None:
    listed = list(cluster.ingest.ListStudies(ingest_pb2.ListStudiesRequest(), timeout=10).studies)
    assert sum(one.constancy for one in listed) == 2
    counts = cluster.ingest.SummarizeDecisions(ingest_pb2.SummarizeDecisionsRequest(), timeout=10)
    assert sum(one.count for one in counts.decisions) == sum(not one.constancy for one in listed)


def test_a_patients_study_is_no_constancy_test(cluster: RunningCluster) -> None:
    listed = cluster.ingest.ListStudies(ingest_pb2.ListStudiesRequest(), timeout=10).studies
    patients = next(one for one in listed if not one.constancy)
    request = ingest_pb2.CheckConstancyRequest(study=ingest_pb2.StudyKey(pseudonym=patients.pseudonym))
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        cluster.ingest.CheckConstancy(request, timeout=10)
