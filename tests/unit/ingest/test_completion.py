"""When a study is complete: what objects, peers and the site say, how long it waits, and who may end the wait."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from sqlalchemy import Engine

from services.ingest import availability, verdicts
from services.ingest.announcements import Announcements, by_count
from services.ingest.availability import NotUnderstoodError, Told, told
from services.ingest.completion import Announced, Held, Missing, missing
from services.ingest.states import StudyState
from services.ingest.store import Arrival, Settled, StudyStore
from shared import dicom, dicom_encoding, paths
from shared.dicom import Belonging
from shared.errors import ErrorCode, StepwedgeError
from shared.policy import Policy
from shared.settings import Completion
from stepwedge.common.v1.common_pb2 import Reason, Verdict
from stepwedge.inference.v1 import inference_pb2
from tests.unit.ingest.conftest import LEASE, NOW, QUIET
from tests.wire.ingest_house import dx, part10

Make = Callable[..., Arrival]
WAIT = timedelta(minutes=5)
TWO_VIEWS = Completion(
    wait_seconds=WAIT.total_seconds(),
    required=[
        {
            "name": "chest",
            "modalities": ["DX", "CR"],
            "body_parts": ["CHEST"],
            "needs": [{"views": ["PA", "AP"]}, {"views": ["LATERAL"]}],
        }
    ],  # type: ignore[list-item]
)
PA = Held("1.1", "1", "DX", "PA", "CHEST")


@pytest.mark.parametrize("view", ["LL", "RL", "LATERAL", "LAT", "PRONE LL"])
def test_a_rule_is_met_by_every_lateral_view(view: str):
    assert missing(TWO_VIEWS, [PA]).rules == ("chest",)
    assert not missing(TWO_VIEWS, [PA, Held("1.2", "1", "DX", view, "CHEST")])


def test_a_rule_holds_for_the_studies_it_names_alone():
    assert not missing(TWO_VIEWS, [replace(PA, body_part="HAND")])
    assert not missing(TWO_VIEWS, [replace(PA, modality="CT")])


def test_the_same_image_twice_counts_once():
    twice = Completion(required=[{"name": "pairs", "needs": [{"at_least": 2}]}])  # type: ignore[list-item]
    assert missing(twice, [PA, PA]).rules == ("pairs",)
    assert not missing(twice, [PA, replace(PA, sop_instance_uid="1.2")])


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([replace(PA, study_instances=3)], Missing(instances=2)),
        ([replace(PA, study_series=2)], Missing(series=1)),
        ([replace(PA, series_instances=4), Held("2.1", "2", series_instances=2)], Missing(instances=4)),
        ([replace(PA, study_instances=1, study_series=1, series_instances=1)], Missing()),
    ],
)
def test_the_numbers_in_the_objects_count_unless_the_site_says_no(held: list[Held], expected: Missing):
    assert missing(Completion(), held) == expected
    assert not missing(Completion(counts=False), held)


def test_what_was_announced_by_number_and_by_name_counts():
    assert missing(Completion(), [PA], Announced(instances=3, unseen=1)) == Missing(instances=2)
    assert missing(Completion(), [PA], Announced(instances=1, unseen=2)) == Missing(instances=2)


def test_an_object_tells_its_view_part_procedure_and_numbers_as_codes_and_nothing_else():
    ds = dx()
    ds.ViewPosition, ds.BodyPartExamined = "pa", "CHEST"
    ds.NumberOfStudyRelatedInstances, ds.NumberOfStudyRelatedSeries = 4, 2
    ds.NumberOfSeriesRelatedInstances = 3
    code = Dataset()
    code.CodeValue = "RPID1"
    ds.ProcedureCodeSequence = Sequence([code])
    ds.Laterality, ds.ImageLaterality = "R", "L"
    assert dicom.belonging(dicom_encoding.parse(part10(ds))) == Belonging("PA", "CHEST", "RPID1", 2, 4, 3, "L")
    ds.ViewPosition, ds.BodyPartExamined = "Mr. O'Neill;", "x" * 16
    code.CodeValue = "Ms. Smith!"
    ds.NumberOfStudyRelatedInstances = 0
    said = dicom.belonging(dicom_encoding.parse(part10(ds)))
    assert (said.view, said.procedure, said.study_instances) == ("", "", 0)


def test_a_view_that_is_said_by_its_code_alone_is_read():
    ds = dx()
    code = Dataset()
    code.CodeValue = "399348003"
    ds.ViewCodeSequence = Sequence([code])
    assert dicom.belonging(dicom_encoding.parse(part10(ds))).view == "AP"


# -- the wait -------------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(engine: Engine) -> StudyStore:
    return StudyStore(engine, quiet=QUIET, settings=TWO_VIEWS)


def settled(studies: StudyStore, arrival: Arrival, at=NOW) -> int:
    """An instance that came, was recorded and is settled; returns the row of its study."""
    row, _ = studies.receive(arrival, at)
    studies.confirm_received({row.id: row.id}, at)
    claim = studies.claim("settler", at, LEASE)
    assert claim is not None
    assessment = inference_pb2.Assessment().SerializeToString()
    studies.redacted(claim, row.id, sha256="0" * 64, size_bytes=1, record_index=1, settled=None, now=at)
    studies.assessed(claim, row.id, settled=Settled(Verdict.VERDICT_ACCEPT, (), assessment), record_index=2, now=at)
    studies.release(claim, at)
    return row.study_id


def state_at(studies: StudyStore, at) -> StudyState | None:
    """What a worker makes of the study at this time; None where it is not due."""
    claim = studies.claim("worker", at, LEASE)
    if claim is None:
        return None
    state = studies.complete(claim, at).state
    studies.release(claim, at)
    return StudyState(state)


def frontal(arrival: Make, **said: int) -> Arrival:
    return replace(arrival("1"), belonging=Belonging("PA", "CHEST", "", **said))


def test_a_study_that_lacks_a_view_waits_and_is_looked_at_again_no_sooner_than_it_may(
    waiting: StudyStore, arrival: Make
):
    settled(waiting, frontal(arrival))
    assert state_at(waiting, NOW + QUIET) is StudyState.RECEIVING
    assert state_at(waiting, NOW + WAIT - timedelta(seconds=1)) is None, "a worker that looks in vain"
    assert state_at(waiting, NOW + WAIT) is StudyState.PROCESSING


def test_the_view_that_was_lacking_ends_the_wait(waiting: StudyStore, arrival: Make):
    settled(waiting, frontal(arrival))
    assert state_at(waiting, NOW + QUIET) is StudyState.RECEIVING
    later = NOW + timedelta(seconds=60)
    settled(waiting, replace(arrival("2"), belonging=Belonging("LL", "CHEST")), later)
    assert state_at(waiting, later + QUIET) is StudyState.PROCESSING


def test_a_study_that_waited_in_vain_is_decided_as_incomplete(waiting: StudyStore, arrival: Make):
    study_id = settled(waiting, frontal(arrival))
    state_at(waiting, NOW + QUIET)
    state_at(waiting, NOW + WAIT)
    decision = verdicts.decide(Policy.load(paths.POLICY), waiting.snapshot(study_id), NOW)
    assert decision.verdict == Verdict.VERDICT_REVIEW
    assert decision.reasons[0] == Reason.REASON_INCOMPLETE
    assert "chest" in decision.details[0]
    event = verdicts.decided_event(decision)
    assert list(event.unmet_rules) == ["chest"]
    assert not event.HasField("missing_instances")
    assert event.forced_by == ""


def test_a_person_ends_the_wait_and_the_decision_names_both(waiting: StudyStore, arrival: Make):
    study_id = settled(waiting, frontal(arrival, study_instances=3))
    waiting.force(study_id, "anna.b", NOW)
    assert state_at(waiting, NOW) is StudyState.PROCESSING, "not even the quiet period is waited for"
    decision = verdicts.decide(Policy.load(paths.POLICY), waiting.snapshot(study_id), NOW)
    event = verdicts.decided_event(decision)
    assert (event.forced_by, event.missing_instances) == ("anna.b", 2)
    with pytest.raises(StepwedgeError) as caught:
        waiting.force(study_id, "anna.b", NOW)
    assert caught.value.code == ErrorCode.ERROR_CODE_WRONG_STATE


def test_an_image_that_comes_after_the_asking_is_waited_for_anew(waiting: StudyStore, arrival: Make):
    study_id = settled(waiting, frontal(arrival))
    waiting.force(study_id, "anna.b", NOW)
    settled(waiting, arrival("2"), NOW)
    assert state_at(waiting, NOW + QUIET) is StudyState.RECEIVING


# -- announcements --------------------------------------------------------------------------------------------------


def notification(study: str, *uids: str, availability: str = "ONLINE") -> Dataset:
    ds = Dataset()
    ds.ReferencedPerformedProcedureStepSequence = Sequence([])
    ds.StudyInstanceUID = study
    series = Dataset()
    series.SeriesInstanceUID = f"{study}.1"
    references = []
    for uid in uids:
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", uid
        one.InstanceAvailability, one.RetrieveAETitle = availability, "PACS"
        references.append(one)
    series.ReferencedSOPSequence = Sequence(references)
    ds.ReferencedSeriesSequence = Sequence([series])
    return ds


def test_a_notification_says_what_will_come_and_what_will_not():
    assert told(notification("1.2.3.1", "1.5", "1.6")) == Told("1.2.3.1", frozenset({"1.5", "1.6"}))
    gone = told(notification("1.2.3.1", "1.5", availability="UNAVAILABLE"))
    assert gone == Told("1.2.3.1", unavailable=frozenset({"1.5"}))


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda ds: ds.__delattr__("StudyInstanceUID"), availability.MISSING_ATTRIBUTE),
        (lambda ds: setattr(ds, "StudyInstanceUID", ""), availability.MISSING_VALUE),
        (lambda ds: setattr(ds, "StudyInstanceUID", "1.2.a"), availability.INVALID_VALUE),
        (lambda ds: ds.__delattr__("ReferencedSeriesSequence"), availability.MISSING_ATTRIBUTE),
        (lambda ds: setattr(ds, "ReferencedSeriesSequence", Sequence([])), availability.MISSING_VALUE),
    ],
)
def test_a_notification_that_lacks_what_it_is_about_is_answered_with_the_status_of_that(spoil, status: int):
    ds = notification("1.2.3.1", "1.5")
    spoil(ds)
    with pytest.raises(NotUnderstoodError) as caught:
        told(ds)
    assert caught.value.status == status


@pytest.fixture
def announced(engine: Engine) -> Announcements:
    return Announcements(engine)


def done(studies: StudyStore, study_id: int) -> None:
    claim = studies.claim("decider", NOW + QUIET, LEASE)
    assert claim is not None
    assert studies.complete(claim, NOW + QUIET).state == StudyState.PROCESSING
    decision = verdicts.decide(Policy.load(paths.POLICY), studies.snapshot(study_id), NOW)
    written = studies.write_decision(claim, decision)
    assert written is not None
    studies.confirm_decision(claim, written.id, 9, [], NOW)
    studies.release(claim, NOW + QUIET)
    assert studies.snapshot(study_id).study.state == StudyState.DONE


def test_what_was_announced_before_the_first_image_is_waited_for(
    studies: StudyStore, announced: Announcements, arrival: Make
):
    assert announced.announce(Told("1.2.3.1", frozenset({"1.2.3.1.1.1", "1.2.3.1.1.2"}))) is False
    settled(studies, arrival("1"))
    assert state_at(studies, NOW + QUIET) is StudyState.RECEIVING
    settled(studies, arrival("2"), NOW + QUIET)
    assert state_at(studies, NOW + 2 * QUIET) is StudyState.PROCESSING


def test_an_instance_that_will_not_come_is_no_longer_waited_for(
    studies: StudyStore, announced: Announcements, arrival: Make
):
    announced.announce(Told("1.2.3.1", frozenset({"1.2.3.1.1.1", "1.9"})))
    settled(studies, arrival("1"))
    assert state_at(studies, NOW + QUIET) is StudyState.RECEIVING
    announced.announce(Told("1.2.3.1", unavailable=frozenset({"1.9"})))
    assert state_at(studies, studies.next_due()) is StudyState.PROCESSING


def test_a_late_announcement_of_what_is_here_changes_nothing_and_of_more_opens_the_next_revision(
    studies: StudyStore, announced: Announcements, arrival: Make
):
    study_id = settled(studies, arrival("1"))
    done(studies, study_id)
    assert announced.announce(Told("1.2.3.1", frozenset({"1.2.3.1.1.1"}))) is False
    assert studies.snapshot(study_id).study.state == StudyState.DONE
    assert announced.announce(Told("1.2.3.1", frozenset({"1.2.3.1.1.1", "1.9"}))) is True
    assert studies.snapshot(study_id).study.state == StudyState.RECEIVING
    assert announced.announce(Told("1.2.3.1", frozenset({"1.9"}))) is True
    generation = studies.snapshot(study_id).study.generation
    assert announced.announce(Told("1.2.3.1", frozenset({"1.9"}))) is True
    assert studies.snapshot(study_id).study.generation == generation, "the same announcement again is nothing new"


def test_a_number_that_is_announced_by_call_is_waited_for(studies: StudyStore, announced: Announcements, arrival: Make):
    announced.announce(by_count("1.2.3.1", instances=2, series=0))
    study_id = settled(studies, arrival("1"))
    assert state_at(studies, NOW + QUIET) is StudyState.RECEIVING
    assert studies.snapshot(study_id).study.missing == {"instances": 1, "series": 0, "rules": []}


@pytest.mark.parametrize(
    "wrong", [{"instances": 0}, {"study": "no uid", "instances": 1}, {"instances": 1, "uids": ["x"]}]
)
def test_an_announcement_that_says_nothing_is_refused(wrong: dict):
    study = wrong.pop("study", "1.2.3.1")
    with pytest.raises(StepwedgeError) as caught:
        by_count(study, **{"series": 0, **wrong})
    assert caught.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST
