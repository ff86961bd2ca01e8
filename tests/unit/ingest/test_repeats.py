"""Reject and repeat analysis: what counts as a repeat, and under which day, device and reason."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from services.ingest import repeats
from services.ingest.activity import Activity
from services.ingest.arrival import Arrival
from services.ingest.tables import Failure, Instance, Study
from shared.dicom import Belonging
from stepwedge.common.v1.common_pb2 import ErrorCode, Reason, Verdict
from tests.unit.ingest.conftest import new_study

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
TOP, BLANK = Reason.REASON_LUNG_MARGIN_TOP, Reason.REASON_BLANK_IMAGE
CHEST = Belonging(view="PA", body_part="CHEST")
_numbers = itertools.count(1)


class Room:
    """Where images are taken, and settled at once unless they are left for later."""

    def __init__(self, engine: Engine, arrival: Arrival) -> None:
        self.engine, self.arrival = engine, arrival

    def take(
        self,
        minute: float,
        *reasons: int,
        subject: str = "SW-AAAAAAAAAAAAAAAAAAAAAAAA",
        belonging: Belonging = CHEST,
        modality: str = "DX",
        device: int | None = 1,
        constancy: bool = False,
        uid: str = "",
        settle: bool = True,
    ) -> int:
        """One image; rejected where it has reasons."""
        at, name = NOW + timedelta(minutes=minute), f"1.2.{next(_numbers)}"
        said = replace(self.arrival, subject=subject, belonging=belonging, modality=modality)
        with Session(self.engine) as session, session.begin():
            study = new_study(session, name, at, constancy=constancy)
            instance = Instance(
                study_id=study.id,
                sop_instance_uid=uid or name,
                series_instance_uid=name,
                pseudonym=name,
                series_pseudonym=name,
                subject=subject,
                sop_class_uid="1.2",
                transfer_syntax_uid="1.2",
                modality=modality,
                sha256="",
                content_sha256=name,
                size_bytes=1,
                commitment="",
                channel="DIMSE",
                state="ASSESSED",
                received_at=at,
                device_id=device,
                exposure=repeats.exposure(said),
            )
            session.add(instance)
            session.flush()
            row = instance.id
        if settle:
            self.settle(row, *reasons)
        return row

    def settle(self, row: int, *reasons: int) -> None:
        with Session(self.engine) as session, session.begin():
            instance = session.get_one(Instance, row)
            instance.verdict = Verdict.VERDICT_REJECT if reasons else Verdict.VERDICT_ACCEPT
            instance.reasons = list(reasons)
            repeats.count(session, instance)

    def counts(self, *, by_day: bool = False, by_device: bool = False, by_reason: bool = False, **only: list[int]):
        found = repeats.Repeats(self.engine).counts(
            NOW - timedelta(days=9),
            NOW + timedelta(days=9),
            by_day=by_day,
            by_device=by_device,
            by_reason=by_reason,
            **only,
        )
        return [
            ((one.day[-2:], one.device_id, one.reason), (one.images, one.rejected, one.repeated, one.unsaid))
            for one in found
        ]

    @property
    def total(self) -> tuple[int, int, int, int]:
        ((_, values),) = self.counts()
        return values


@pytest.fixture
def room(engine: Engine, arrival) -> Room:
    return Room(engine, arrival())


def test_another_image_of_the_same_view_soon_after_a_rejected_one_is_a_repeat(room: Room) -> None:
    room.take(0, TOP, BLANK)
    room.take(5)
    assert room.total == (2, 1, 1, 0)
    assert room.counts(by_reason=True) == [
        (("", 0, 0), (2, 1, 1, 0)),
        *((("", 0, reason), (0, 1, 1, 0)) for reason in sorted((TOP, BLANK))),
    ]


def test_a_rejected_image_counts_once_and_a_rejected_repeat_is_itself_repeated(room: Room) -> None:
    room.take(0, TOP)
    room.take(4, TOP)
    room.take(8)
    room.take(9)
    assert room.total == (4, 2, 2, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"subject": "SW-BBBBBBBBBBBBBBBBBBBBBBBB"},
        {"belonging": replace(CHEST, view="LATERAL")},
        {"belonging": replace(CHEST, body_part="HAND")},
        {"belonging": replace(CHEST, laterality="L")},
        {"modality": "CT"},
        {"constancy": True},
        {"minute": repeats.WITHIN.total_seconds() / 60 + 1},
        {"minute": -5},
    ],
    ids=str,
)
def test_another_person_view_side_kind_or_time_is_no_repeat(room: Room, other) -> None:
    room.take(0, TOP)
    room.take(**{"minute": 5, **other})
    assert room.total[1:] == (1, 0, 0)


def test_the_same_object_changed_on_its_way_is_no_repeat(room: Room) -> None:
    room.take(0, TOP, uid="1.2.3")
    room.take(5, uid="1.2.3")
    assert room.total[1:] == (1, 0, 0)


def test_whichever_is_settled_first_the_repeat_is_seen_once(room: Room) -> None:
    first = room.take(0, settle=False)
    second = room.take(5, settle=False)
    room.settle(second)
    room.settle(first, TOP)
    assert room.total == (2, 1, 1, 0)


def test_nobody_can_tell_where_body_part_or_view_is_unsaid(room: Room) -> None:
    room.take(0, TOP, belonging=replace(CHEST, view=""))
    room.take(5, belonging=replace(CHEST, view=""))
    assert room.total == (2, 1, 0, 1)


def test_days_and_devices_are_kept_apart_and_a_repeat_counts_where_the_rejected_image_was_taken(room: Room) -> None:
    room.take(0, TOP, device=1)
    room.take(5, device=2)
    room.take(24 * 60, device=None)
    assert room.counts(by_day=True, by_device=True) == [
        (("22", 1, 0), (1, 1, 1, 0)),
        (("22", 2, 0), (1, 0, 0, 0)),
        (("23", 0, 0), (1, 0, 0, 0)),
    ]
    assert room.counts(by_day=True) == [(("22", 0, 0), (2, 1, 1, 0)), (("23", 0, 0), (1, 0, 0, 0))]
    assert room.counts(devices=[2]) == [(("", 0, 0), (1, 0, 0, 0))]
    assert room.counts(devices=[]) == []


def test_what_is_looked_for_is_found_by_its_index(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("the plan of PostgreSQL depends on how many rows there are")
    query = "EXPLAIN QUERY PLAN SELECT id FROM instances WHERE exposure = :e AND received_at >= :at"
    with engine.connect() as connection:
        plan = " ".join(str(row) for row in connection.execute(text(query), {"e": "x", "at": "2026"}))
    assert "INDEX ix_instances_exposure (exposure=? AND received_at>?)" in plan


def test_hours_are_whole_and_failures_are_counted_by_step_and_error(engine: Engine, room: Room) -> None:
    row = room.take(0)
    with Session(engine) as session, session.begin():
        instance = session.get_one(Instance, row)
        study = session.get_one(Study, instance.study_id)
        study.decided_at, study.instances = NOW - timedelta(minutes=30), 3
        for number, error in enumerate((ErrorCode.ERROR_CODE_OVERLOADED,) * 2 + (ErrorCode.ERROR_CODE_INTERNAL,)):
            session.add(
                Failure(
                    study_id=study.id,
                    key=f"failed/{number}",
                    step="assess",
                    error=error,
                    permanent=False,
                    attempts=1,
                    revision=1,
                    failed_at=NOW - timedelta(minutes=number),
                )
            )
    hours, errors = Activity(engine).of_the_last(3, NOW)
    assert [(one.began.hour, one.studies, one.images) for one in hours] == [(10, 0, 0), (11, 1, 3), (12, 0, 0)]
    assert [(one.error, one.step, one.count) for one in errors] == [
        (ErrorCode.ERROR_CODE_OVERLOADED, "assess", 2),
        (ErrorCode.ERROR_CODE_INTERNAL, "assess", 1),
    ]
    assert errors[0].newest == NOW
    assert Activity(engine).of_the_last(1, NOW + timedelta(hours=2))[1] == []
