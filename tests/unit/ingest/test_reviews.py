"""Reviews by people: of the newest decision only, counted, and with a note that the log never sees."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Engine, update

from services.ingest.reviews import Reviews
from services.ingest.store import Arrival, StudyStore
from services.ingest.tables import Decision, Study
from shared.errors import ErrorCode, StepwedgeError
from tests.unit.ingest.conftest import NOW

Make = Callable[..., Arrival]


@pytest.fixture
def reviews(engine: Engine) -> Reviews:
    return Reviews(engine, commit=lambda digest: digest[::-1])


def decided(studies: StudyStore, engine: Engine, arrival: Make, *, revision: int = 1) -> int:
    """A study whose decision is in the log."""
    study_id = studies.receive(arrival(), NOW)[0].study_id
    with studies._sessions.begin() as session:
        session.add(
            Decision(
                study_id=study_id,
                revision=revision,
                generation=1,
                verdict=2,
                reasons=[4],
                details=["words"],
                policy_sha256="0" * 64,
                software_build="0.1.0",
                instances=[],
                decided_at=NOW,
                record_index=5,
                cursor=1,
            )
        )
        session.execute(
            update(Study).where(Study.id == study_id).values(revision=revision, verdict=2, reasons=[4], decided_at=NOW)
        )
    return study_id


def said(reviews: Reviews, study_id: int, revision: int = 1, note: str = "") -> tuple[object, object]:
    return reviews.write(
        study_id, revision=revision, verdict=1, reason="agreed", note=note, reviewer="anna.b", role="radiographer"
    )


def test_a_review_is_of_the_newest_decision_and_never_changes_it(
    studies: StudyStore, engine: Engine, reviews: Reviews, arrival: Make
):
    study_id = decided(studies, engine, arrival)
    review, decision = said(reviews, study_id)
    assert reviews.confirm(review.id, 9).record_index == 9
    snapshot = studies.snapshot(study_id)
    assert [one.verdict for one in snapshot.decisions] == [2]
    assert [(one.decided, one.verdict, one.reviewer) for one in snapshot.reviews] == [(2, 1, "anna.b")]
    assert decision.record_index == 5


@pytest.mark.parametrize("revision", [0, 2])
def test_a_review_of_another_revision_is_refused(
    studies: StudyStore, engine: Engine, reviews: Reviews, arrival: Make, revision: int
):
    study_id = decided(studies, engine, arrival)
    with pytest.raises(StepwedgeError) as caught:
        said(reviews, study_id, revision)
    assert caught.value.code == ErrorCode.ERROR_CODE_WRONG_STATE


def test_a_study_that_is_not_decided_cannot_be_reviewed(studies: StudyStore, reviews: Reviews, arrival: Make):
    instance, _ = studies.receive(arrival(), NOW)
    with pytest.raises(StepwedgeError) as caught:
        said(reviews, instance.study_id)
    assert caught.value.code == ErrorCode.ERROR_CODE_WRONG_STATE


def test_the_log_gets_a_commitment_to_the_note_and_nothing_where_there_is_none(
    studies: StudyStore, engine: Engine, reviews: Reviews, arrival: Make
):
    study_id = decided(studies, engine, arrival)
    first, _ = said(reviews, study_id, note="asked the ward")
    second, _ = said(reviews, study_id, note="asked the ward")
    none, _ = said(reviews, study_id)
    assert len(reviews.commitment(first)) == 64
    assert reviews.commitment(first) != reviews.commitment(second)
    assert reviews.commitment(none) == ""


def test_decisions_reasons_and_reviews_are_counted_by_day(
    studies: StudyStore, engine: Engine, reviews: Reviews, arrival: Make
):
    study_id = decided(studies, engine, arrival)
    review, _ = said(reviews, study_id)
    day = NOW.date().isoformat()
    summed = reviews.summary(NOW - timedelta(days=1), NOW + timedelta(days=40_000), sum_days=True)
    whole = reviews.summary(NOW - timedelta(days=1), NOW + timedelta(days=40_000))
    assert (summed.decisions, summed.reasons, summed.reviews) == (whole.decisions, whole.reasons, whole.reviews)
    assert {day for day, *_ in (*summed.by_device, *summed.reasons_by_device)} <= {""}
    assert summed.by_device.total() == whole.by_device.total() > 0
    assert summed.reasons_by_device.total() == whole.reasons_by_device.total()
    found = reviews.summary(NOW - timedelta(days=1), NOW + timedelta(days=40_000))
    assert sum(found.decisions.values()) == 1
    assert next(iter(found.decisions))[0] == day
    assert found.reasons == {(day, 4): 1}
    assert not found.reviews, "a review whose record is not in the log counted"
    reviews.confirm(review.id, 9)
    found = reviews.summary(NOW - timedelta(days=1), NOW + timedelta(days=40_000))
    assert [(was, now) for _, was, now in found.reviews] == [(2, 1)]
    assert found.states["RECEIVING"][0] == 1
    assert not reviews.summary(NOW + timedelta(days=1), NOW + timedelta(days=2)).decisions
