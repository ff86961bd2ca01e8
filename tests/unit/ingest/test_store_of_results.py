"""The rows of results and of what each destination got of them, on SQLite and on PostgreSQL."""

from collections.abc import Callable
from datetime import timedelta

from services.ingest.results.material import Kind, Made
from services.ingest.routing import Sending
from services.ingest.states import StudyState
from services.ingest.store import Arrival, Claim, StudyStore
from services.ingest.tables import Result
from shared.errors import ErrorCode
from tests.unit.ingest.conftest import NOW, QUIET
from tests.unit.ingest.test_store import claimed, decision, received, settled

Make = Callable[..., Arrival]
BOTH = (Kind.SEG, Kind.SR)
SECOND = timedelta(seconds=1)


def decided(studies: StudyStore, claim: Claim, index: int, at=NOW + QUIET, contents=("ORIGINAL", "SEG", "SR")) -> None:
    studies.complete(claim, at)
    written = studies.write_decision(claim, decision(studies, claim.study_id, at))
    assert written is not None
    sendings = [Sending("pacs", contents, ("rule",)), Sending("images")]
    studies.confirm_decision(claim, written.id, index, sendings, at, kinds=BOTH)


def made(kind: Kind, number: int, image: int | None = None) -> Made:
    return Made(kind, "1.2", f"2.25.{number}", f"2.25.{number}1", "1.2.840.10008.1.2.1", "a" * 64, "b" * 64, 10, image)


def uids(rows: list[Result]) -> list[str]:
    return [row.sop_instance_uid for row in rows]


def first_revision(studies: StudyStore, arrival: Make) -> tuple[Claim, int]:
    instance_id = received(studies, arrival())
    claim = claimed(studies)
    settled(studies, claim, instance_id)
    decided(studies, claim, 9)
    return claim, instance_id


def test_a_study_is_done_when_its_results_are_made_and_everybody_has_what_is_theirs(studies: StudyStore, arrival: Make):
    claim, instance_id = first_revision(studies, arrival)
    snapshot = studies.snapshot(claim.study_id)
    (making,) = snapshot.makings
    assert (making.kinds, making.state, making.revision) == (["SEG", "SR"], "PENDING", 1)
    pacs, images = snapshot.deliveries
    assert (pacs.contents, pacs.routes, images.contents) == (["ORIGINAL", "SEG", "SR"], ["rule"], ["ORIGINAL"])
    studies.results_made(claim, making.id, [made(Kind.SEG, 1, instance_id), made(Kind.SR, 2)], NOW)
    seg, report = studies.undelivered_results(claim, pacs)
    assert (seg.instance_id, report.instance_id) == (instance_id, None)
    assert studies.undelivered_results(claim, images) == []
    studies.delivered_instance(claim, pacs, instance_id, NOW)
    studies.delivered_result(claim, pacs, seg.id, NOW)
    assert uids(studies.undelivered_results(claim, pacs)) == ["2.25.2"]
    studies.delivered_result(claim, pacs, report.id, NOW)
    assert studies.sent(claim, pacs.id, NOW).objects == 3
    studies.confirm_delivered(claim, pacs.id, 10)
    assert studies.snapshot(claim.study_id).study.state == StudyState.DELIVERING
    studies.sent(claim, images.id, NOW, objects=7)
    studies.confirm_delivered(claim, images.id, 11)
    after = studies.snapshot(claim.study_id)
    assert after.study.state == StudyState.DONE
    assert after.deliveries[1].objects == 7, "in shadow, what would have been sent"
    assert uids(studies.results_of(after.study.study_instance_uid)) == ["2.25.1", "2.25.2"]


def test_a_later_revision_sends_its_report_and_only_outlines_that_are_new(studies: StudyStore, arrival: Make):
    claim, instance_id = first_revision(studies, arrival)
    (making,) = studies.snapshot(claim.study_id).makings
    studies.results_made(claim, making.id, [made(Kind.SEG, 1, instance_id), made(Kind.SR, 2)], NOW)
    (pacs, _) = studies.snapshot(claim.study_id).deliveries
    (seg, report) = studies.undelivered_results(claim, pacs)
    studies.delivered_result(claim, pacs, seg.id, NOW)
    studies.release(claim, NOW)
    late = received(studies, arrival(instance="2"), at=NOW + SECOND)
    claim = claimed(studies, NOW + SECOND)
    settled(studies, claim, late)
    decided(studies, claim, 12, at=NOW + SECOND + QUIET)
    old, new = studies.snapshot(claim.study_id).makings
    assert (old.state, new.state) == ("MADE", "PENDING")
    studies.results_made(claim, new.id, [made(Kind.SEG, 3, late), made(Kind.SR, 4)], NOW)
    (again,) = [
        one for one in studies.snapshot(claim.study_id).deliveries if (one.revision, one.destination) == (2, "pacs")
    ]
    assert uids(studies.undelivered_results(claim, again)) == ["2.25.3", "2.25.4"]
    assert report.id not in {one.id for one in studies.undelivered_results(claim, again)}, "it is superseded"


def test_results_that_were_not_made_are_passed_by_when_the_next_decision_comes(studies: StudyStore, arrival: Make):
    claim, _ = first_revision(studies, arrival)
    studies.release(claim, NOW)
    late = received(studies, arrival(instance="2"), at=NOW + SECOND)
    claim = claimed(studies, NOW + SECOND)
    settled(studies, claim, late)
    decided(studies, claim, 12, at=NOW + SECOND + QUIET)
    assert [one.state for one in studies.snapshot(claim.study_id).makings] == ["SUPERSEDED", "PENDING"]


def test_what_waits_for_results_is_due_when_they_are_and_what_does_not_at_once(studies: StudyStore, arrival: Make):
    claim, _ = first_revision(studies, arrival)
    (making,) = studies.snapshot(claim.study_id).makings
    later = NOW + QUIET + timedelta(minutes=5)
    studies.making_failed(claim, making.id, error=1, attempts=1, next_attempt_at=later)
    (_, images) = studies.snapshot(claim.study_id).deliveries
    studies.sent(claim, images.id, NOW)
    studies.confirm_delivered(claim, images.id, 10)
    studies.release(claim, NOW + QUIET)
    assert studies.next_due() == later, "the delivery that wants results wakes nobody before"


def test_results_that_failed_for_good_are_made_anew_after_a_requeue(studies: StudyStore, arrival: Make):
    claim, _ = first_revision(studies, arrival)
    (making,) = studies.snapshot(claim.study_id).makings
    error = ErrorCode.ERROR_CODE_RESULT_INVALID
    studies.making_failed(claim, making.id, error=error, attempts=1, next_attempt_at=None)
    (pacs, _) = studies.snapshot(claim.study_id).deliveries
    studies.delivery_failed(claim, pacs.id, error=error, attempts=1, next_attempt_at=None)
    studies.give_up(claim, error=error)
    studies.release(claim, NOW)
    requeue = studies.ask_requeue(claim.study_id, "operator", NOW)
    studies.requeue(requeue.id, 20, NOW)
    after = studies.snapshot(claim.study_id)
    assert after.study.state == StudyState.DELIVERING
    assert [one.state for one in after.makings] == ["PENDING"]
    assert {one.state for one in after.deliveries} == {"PENDING"}


def test_results_of_ours_that_came_back_are_left_out_of_what_is_decided_on(studies: StudyStore, arrival: Make):
    claim, instance_id = first_revision(studies, arrival)
    (making,) = studies.snapshot(claim.study_id).makings
    echo = arrival(instance="2")
    report = Made(Kind.SR, "1.2", echo.sop_instance_uid, "2.25.7", "1.2.840.10008.1.2.1", "a" * 64, "b" * 64, 10)
    studies.results_made(claim, making.id, [report], NOW)
    studies.release(claim, NOW)
    received(studies, echo, at=NOW + SECOND)
    snapshot = studies.snapshot(claim.study_id)
    assert len(snapshot.instances) == 2
    assert [one.id for one in snapshot.without_echoes().instances] == [instance_id]
