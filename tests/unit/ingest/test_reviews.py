"""Reviews by people: of the newest decision only, counted, and with a note that the log never sees."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

from services.ingest.reviews import Reviews
from services.ingest.store import MIGRATIONS, Arrival, StudyStore
from services.ingest.tables import DecidedDay, Decision, Study
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from tests.unit.ingest.conftest import NOW, new_study

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


def test_the_counts_of_days_are_what_the_studies_say_whatever_becomes_of_them(engine: Engine, reviews: Reviews):
    chance, names = random.Random(5), itertools.count()

    def said() -> dict[str, object]:
        return {
            "decided_at": chance.choice((None, *(NOW + timedelta(days=day) for day in range(3)))),
            "verdict": chance.randrange(1, 4),
            "reasons": chance.sample((4, 5, 6), chance.randrange(3)),
            "modalities": chance.choice(("CT", "CT+DX", "DX")),
            "device_id": chance.choice((None, 1, 2)),
            "constancy": chance.random() < 0.2,
        }

    def make(session: Session) -> None:
        new_study(session, f"1.2.{next(names)}", NOW, **said())

    for _ in range(60):
        with Session(engine) as session, session.begin():
            make(session)
            known = session.scalars(select(Study)).all()
            if known:
                session.execute(update(Study).where(Study.id == chance.choice(known).id).values(**said()))
            if chance.random() < 0.3:
                session.delete(chance.choice(known))
    counted: Counter[tuple[object, ...]] = Counter()
    with Session(engine) as session:
        for study in session.scalars(select(Study).where(Study.decided_at.is_not(None), Study.constancy.is_(False))):
            assert study.decided_at is not None
            place = study.decided_at.date().isoformat(), study.device_id or 0, study.modalities, study.verdict
            counted.update((*place, reason) for reason in (0, *study.reasons))
        rows = session.scalars(select(DecidedDay).where(DecidedDay.count != 0)).all()
        kept = {(row.day, row.device_id, row.modalities, row.verdict, row.reason): row.count for row in rows}
    assert kept == counted
    assert min(kept.values()) > 0
    found = reviews.summary(NOW, NOW + timedelta(days=3))
    assert found.decisions.total() == sum(count for key, count in counted.items() if not key[-1])
    assert found.reasons_by_device.total() == sum(count for key, count in counted.items() if key[-1])


def test_studies_from_before_they_were_counted_by_day_are_counted_by_the_upgrade(tmp_path: Path):
    engine = database.create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    old = tmp_path / "old" / "versions"
    old.mkdir(parents=True)
    for version in sorted((MIGRATIONS / "versions").glob("00*.py")):
        if version.name < "0011":
            (old / version.name).write_text(version.read_text())
    database.upgrade(engine, old.parent)
    columns = "study_instance_uid, pseudonym, state, first_received_at, last_received_at, generation, revision,"
    columns += " waiting_for, attempts, last_error, modalities, instances, verdict, reasons, decided_at, constancy"
    with engine.begin() as connection:
        for name, verdict, reasons, decided, constancy in (
            ("1", 3, "[4, 5]", "2026-03-01 12:00:00.000000", 0),
            ("2", 3, "[4]", "2026-03-01 13:00:00.000000", 0),
            ("3", 0, "[]", None, 0),
            ("4", 3, "[4]", "2026-03-01 12:00:00.000000", 1),
        ):
            values = f"'{name}', '{name}', 'DONE', '2026-03-01', '2026-03-01', 1, 1, '', 0, 0, 'DX', 1, :v, :r, :d, :c"
            connection.execute(
                text(f"INSERT INTO studies ({columns}) VALUES ({values})"),
                {"v": verdict, "r": reasons, "d": decided, "c": constancy},
            )
    database.upgrade(engine, MIGRATIONS)
    with Session(engine) as session:
        kept = {
            (row.day, row.device_id, row.verdict, row.reason): row.count for row in session.scalars(select(DecidedDay))
        }
    assert kept == {("2026-03-01", 0, 3, 0): 2, ("2026-03-01", 0, 3, 4): 2, ("2026-03-01", 0, 3, 5): 1}
    engine.dispose()


def test_counts_are_told_by_the_week_and_studies_that_are_done_are_told_without_being_looked_through(
    engine: Engine, reviews: Reviews
):
    with Session(engine) as session, session.begin():
        for day, state in ((1, "DONE"), (2, "DONE"), (8, "DONE"), (9, "RECEIVING")):  # the 1st of March is a Sunday
            at = NOW.replace(day=day)
            new_study(session, f"1.2.{day}", at, state=state, decided_at=at, verdict=1, modalities="DX")
    found = reviews.summary(NOW, NOW + timedelta(days=20), by_week=True)
    assert found.decisions == {("2026-02-23", "DX", 1): 1, ("2026-03-02", "DX", 1): 2, ("2026-03-09", "DX", 1): 1}
    assert found.states == {"DONE": (3, None), "RECEIVING": (1, NOW.replace(day=9))}
