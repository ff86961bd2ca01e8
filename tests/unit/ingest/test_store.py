"""The rows of the queue, on SQLite and on PostgreSQL."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from services.ingest.explain import explain
from services.ingest.routing import Sending
from services.ingest.states import InstanceState, StudyState
from services.ingest.store import CONFIRM_GRACE, DAMAGED, Arrival, Claim, LeaseLostError, Settled, StudyStore
from services.ingest.tables import Base, Decision, Failure
from shared.errors import ErrorCode, StepwedgeError
from tests.unit.ingest.conftest import LEASE, NOW, QUIET

Make = Callable[..., Arrival]
SECOND = timedelta(seconds=1)
ACCEPT = Settled(1, (), b"")


def received(studies: StudyStore, arrival: Arrival, index: int = 0, at=NOW) -> int:
    instance, _ = studies.receive(arrival, at)
    studies.confirm_received({instance.id: index}, at)
    return instance.id


def claimed(studies: StudyStore, at=NOW, owner: str = "me") -> Claim:
    claim = studies.claim(owner, at, LEASE)
    assert claim is not None
    return claim


def settled(studies: StudyStore, claim: Claim, instance_id: int, at=NOW) -> None:
    studies.redacted(claim, instance_id, sha256="d" * 64, size_bytes=900, record_index=1, settled=None, now=at)
    studies.assessed(claim, instance_id, settled=ACCEPT, record_index=2, now=at)


def decision(studies: StudyStore, study_id: int, at=NOW) -> Decision:
    snapshot = studies.snapshot(study_id)
    previous = [one.record_index for one in snapshot.decisions]
    return Decision(
        study_id=study_id,
        generation=snapshot.study.generation,
        verdict=1,
        reasons=[],
        details=[],
        policy_sha256="e" * 64,
        software_build="0.1.0",
        previous_index=previous[-1] if previous else None,
        instances=[],
        decided_at=at,
    )


def decided(studies: StudyStore, claim: Claim, index: int, destinations=(), at=NOW + QUIET):
    studies.complete(claim, at)
    written = studies.write_decision(claim, decision(studies, claim.study_id, at))
    assert written is not None
    return studies.confirm_decision(claim, written.id, index, [Sending(name) for name in destinations], at)


def test_the_migration_makes_the_tables_that_the_code_describes(engine: Engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_same_object_again_is_the_same_row(studies: StudyStore, arrival: Make):
    first, known = studies.receive(arrival(), NOW)
    again, known_again = studies.receive(arrival(), NOW + SECOND)
    assert (known, known_again) == (False, True)
    assert again.id == first.id
    snapshot = studies.snapshot(first.study_id)
    assert len(snapshot.instances) == 1
    assert snapshot.study.last_received_at == NOW, "a duplicate does not put the decision off"


def test_the_same_bytes_are_the_same_row_though_the_digest_of_their_content_was_made_in_another_way(
    studies: StudyStore, arrival: Make
):
    before = replace(arrival(), content_sha256="0" * 64, channel="GRPC")
    first, _ = studies.receive(before, NOW)
    again, duplicate = studies.receive(arrival(), NOW)
    assert duplicate
    assert (again.id, again.conflict) == (first.id, False)


def test_the_same_uid_with_other_content_is_kept_and_both_are_flagged(studies: StudyStore, arrival: Make):
    first, _ = studies.receive(arrival(content="a"), NOW)
    second, known = studies.receive(arrival(content="b"), NOW)
    assert not known
    assert second.id != first.id
    instances = studies.snapshot(first.study_id).instances
    assert [(one.conflict, one.conflict_at_receipt) for one in instances] == [(True, False), (True, True)]


def test_a_conflict_across_two_studies_reopens_the_other_study(studies: StudyStore, arrival: Make):
    instance_id = received(studies, arrival(study="1", content="a"))
    claim = claimed(studies)
    settled(studies, claim, instance_id)
    assert decided(studies, claim, 7).state == StudyState.DONE
    studies.release(claim, NOW + QUIET)
    studies.receive(arrival(study="2", content="b"), NOW + QUIET)
    first = studies.snapshot(claim.study_id)
    assert first.study.state == StudyState.RECEIVING
    assert first.instances[0].conflict


def test_the_same_object_from_many_threads_at_once_is_one_row(studies: StudyStore, arrival: Make):
    gate = threading.Barrier(6)

    def send() -> int:
        gate.wait()
        return studies.receive(arrival(), NOW)[0].id

    with ThreadPoolExecutor(6) as pool:
        ids = {future.result() for future in [pool.submit(send) for _ in range(6)]}
    assert len(ids) == 1


def test_two_contents_of_one_uid_in_two_studies_at_once_do_not_miss_each_other(studies: StudyStore, arrival: Make):
    gate = threading.Barrier(4)

    def send(number: int) -> None:
        gate.wait()
        studies.receive(arrival(study=str(number), content=str(number)), NOW)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(send, number) for number in range(4)]:
            future.result()
    flags = [
        instance.conflict
        for study in studies.page(state=None, before=None, size=10)
        for instance in studies.snapshot(study.id).instances
    ]
    assert flags == [True] * 4


def test_an_instance_goes_to_work_only_when_its_record_is_confirmed(studies: StudyStore, arrival: Make):
    instance, _ = studies.receive(arrival(), NOW)
    assert studies.claim("me", NOW + SECOND, LEASE) is None
    assert studies.unconfirmed() == [instance.id]
    studies.confirm_received({instance.id: 4}, NOW + SECOND)
    assert studies.unconfirmed() == []
    claim = claimed(studies, NOW + SECOND)
    assert studies.snapshot(claim.study_id).instances[0].state == InstanceState.RECEIVED


def test_what_a_door_never_confirmed_is_due_after_the_grace(studies: StudyStore, arrival: Make):
    studies.receive(arrival(), NOW)
    assert studies.next_due() == NOW + CONFIRM_GRACE
    assert studies.claim("me", NOW + CONFIRM_GRACE, LEASE) is not None


def test_claims_of_many_workers_never_overlap(studies: StudyStore, arrival: Make):
    for number in range(24):
        received(studies, arrival(instance=str(number), study=str(number)))
    gate = threading.Barrier(6)

    def work(owner: int) -> list[int]:
        gate.wait()
        mine = []
        while (claim := studies.claim(f"worker-{owner}", NOW, LEASE)) is not None:
            mine.append(claim.study_id)
        return mine

    with ThreadPoolExecutor(6) as pool:
        taken = [future.result() for future in [pool.submit(work, owner) for owner in range(6)]]
    ids = [study_id for mine in taken for study_id in mine]
    assert len(ids) == 24
    assert len(set(ids)) == 24


def test_a_lease_that_ends_is_taken_by_another_and_the_first_can_write_no_more(studies: StudyStore, arrival: Make):
    instance_id = received(studies, arrival())
    first = claimed(studies, NOW, "first")
    assert studies.claim("second", NOW + SECOND, LEASE) is None
    second = claimed(studies, NOW + LEASE + SECOND, "second")
    with pytest.raises(LeaseLostError):
        settled(studies, first, instance_id)
    with pytest.raises(LeaseLostError):
        studies.release(first, NOW)
    with pytest.raises(LeaseLostError):
        studies.renew(first, NOW, LEASE)
    settled(studies, second, instance_id)


def test_what_a_clock_dated_two_hours_ahead_is_due_once_the_clock_is_right(studies: StudyStore, arrival: Make):
    ahead = NOW + timedelta(hours=2)
    for study in ("1", "2", "3"):
        received(studies, arrival(instance=study, study=study), at=ahead)
    dead = claimed(studies, ahead, "killed while its clock was wrong")
    failed = claimed(studies, ahead)
    instance = studies.snapshot(failed.study_id).instances[0].id
    studies.attempt_failed(failed, instance, error=1, attempts=1, next_attempt_at=ahead + 4 * SECOND)
    studies.release(failed, ahead)
    assert studies.claim("me", NOW, LEASE) is None

    assert studies.set_right(NOW, LEASE) == 3
    assert studies.set_right(NOW, LEASE) == 0
    due = [claimed(studies, NOW + SECOND) for _ in range(3)]
    assert {claim.study_id for claim in due} >= {dead.study_id, failed.study_id}
    assert studies.snapshot(failed.study_id).instances[0].next_attempt_at == NOW
    for claim in due:
        assert studies.snapshot(claim.study_id).study.last_received_at == NOW


def test_what_a_door_stored_with_a_clock_ahead_and_never_confirmed_is_due_at_once(studies: StudyStore, arrival: Make):
    studies.receive(arrival(), NOW + timedelta(hours=2))
    assert studies.set_right(NOW, LEASE) == 1
    studies.release(claimed(studies, NOW), NOW)
    assert studies.next_due() == NOW


def test_a_next_step_that_a_clock_dated_ten_minutes_ahead_is_due_at_once_without_a_failed_attempt(
    studies: StudyStore, arrival: Make
):
    ahead = NOW + timedelta(minutes=10)
    plain, failed = (received(studies, arrival(instance=name, study=name)) for name in ("1", "2"))
    for instance, attempts, at in ((plain, 0, ahead), (failed, 9, NOW + timedelta(minutes=6))):
        claim = claimed(studies, NOW)
        studies.attempt_failed(claim, instance, error=1, attempts=attempts, next_attempt_at=at)
        studies.release(claim, at if not attempts else NOW)
    assert studies.claim("me", NOW, LEASE) is None

    assert studies.set_right(NOW, LEASE) == 1, "the ninth attempt waits for its time"
    studies.release(claimed(studies, NOW), NOW)
    assert studies.next_due() == NOW


def test_a_study_whose_quiet_period_is_long_goes_on_waiting(engine: Engine, arrival: Make):
    studies = StudyStore(engine, quiet=timedelta(minutes=20))
    instance = received(studies, arrival())
    claim = claimed(studies)
    settled(studies, claim, instance)
    studies.release(claim, NOW)
    assert studies.next_due() == NOW + timedelta(minutes=20)
    assert studies.set_right(NOW, LEASE) == 0


def test_clocks_that_are_a_little_apart_are_left_as_they_are(studies: StudyStore, arrival: Make):
    received(studies, arrival(), at=NOW + timedelta(minutes=4))
    claimed(studies, NOW + timedelta(minutes=4), "a machine before us")
    assert studies.set_right(NOW, LEASE) == 0


def test_a_renewed_lease_is_held(studies: StudyStore, arrival: Make):
    received(studies, arrival())
    claim = claimed(studies)
    studies.renew(claim, NOW + 30 * SECOND, LEASE)
    assert studies.claim("other", NOW + LEASE + SECOND, LEASE) is None


def test_a_study_is_complete_when_the_quiet_period_has_passed_and_not_before(studies: StudyStore, arrival: Make):
    instance_id = received(studies, arrival())
    claim = claimed(studies)
    settled(studies, claim, instance_id)
    assert studies.complete(claim, NOW + QUIET - SECOND).state == StudyState.RECEIVING
    studies.release(claim, NOW + SECOND)
    assert studies.next_due() == NOW + QUIET
    claim = claimed(studies, NOW + QUIET)
    assert studies.complete(claim, NOW + QUIET).state == StudyState.PROCESSING


def test_a_decision_is_not_written_while_an_instance_is_unsettled(studies: StudyStore, arrival: Make):
    received(studies, arrival())
    claim = claimed(studies)
    studies.complete(claim, NOW + QUIET)
    assert studies.write_decision(claim, decision(studies, claim.study_id)) is None


def test_a_decision_is_visible_only_once_the_log_has_it(studies: StudyStore, arrival: Make):
    instance_id = received(studies, arrival())
    claim = claimed(studies)
    settled(studies, claim, instance_id)
    studies.complete(claim, NOW + QUIET)
    written = studies.write_decision(claim, decision(studies, claim.study_id))
    assert written is not None
    assert studies.decisions_after(0, 10) == []
    assert studies.snapshot(claim.study_id).pending_decision is not None
    studies.confirm_decision(claim, written.id, 9, [], NOW + QUIET)
    ((visible, study),) = studies.decisions_after(0, 10)
    assert (visible.record_index, visible.revision, study.state) == (9, 1, StudyState.DONE)


def test_a_late_image_opens_the_second_revision_which_names_the_first(studies: StudyStore, arrival: Make):
    instance_id = received(studies, arrival(instance="1"))
    claim = claimed(studies)
    settled(studies, claim, instance_id)
    decided(studies, claim, 9)
    studies.release(claim, NOW + QUIET)
    late = NOW + 2 * QUIET
    instance_id = received(studies, arrival(instance="2"), at=late)
    assert studies.snapshot(claim.study_id).study.state == StudyState.RECEIVING
    claim = claimed(studies, late)
    settled(studies, claim, instance_id)
    decided(studies, claim, 20, at=late + QUIET)
    first, second = studies.snapshot(claim.study_id).decisions
    assert (first.revision, second.revision, second.previous_index) == (1, 2, 9)


def test_an_image_that_comes_while_a_decision_is_handed_in_leaves_the_next_revision_open(
    studies: StudyStore, arrival: Make
):
    instance_id = received(studies, arrival(instance="1"))
    claim = claimed(studies)
    settled(studies, claim, instance_id)
    studies.complete(claim, NOW + QUIET)
    written = studies.write_decision(claim, decision(studies, claim.study_id))
    assert written is not None
    received(studies, arrival(instance="2"), at=NOW + QUIET)
    study = studies.confirm_decision(claim, written.id, 9, ["pacs"], NOW + QUIET)
    assert (study.state, study.revision) == (StudyState.RECEIVING, 1)
    assert len(studies.decisions_after(0, 10)) == 1
    assert studies.snapshot(claim.study_id).deliveries == [], "a decision that is already passed by is not delivered"


def test_a_reader_of_decisions_misses_none_and_sees_none_twice(studies: StudyStore, arrival: Make):
    claims = []
    for number in range(12):
        instance_id = received(studies, arrival(instance=str(number), study=str(number)))
        claim = claimed(studies, owner=f"worker-{number}")
        settled(studies, claim, instance_id)
        claims.append(claim)
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        cursor = 0
        while True:
            last = done.is_set()
            for one, _ in studies.decisions_after(cursor, 3):
                cursor = one.cursor or 0
                seen.append(one.study_id)
            if last and not studies.decisions_after(cursor, 1):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: decided(studies, one, 100 + one.study_id), claims))
    done.set()
    watcher.join(30)
    assert sorted(seen) == sorted(claim.study_id for claim in claims)


def test_deliveries_are_made_once_and_end_the_study(studies: StudyStore, arrival: Make):
    instance_id = received(studies, arrival())
    claim = claimed(studies)
    settled(studies, claim, instance_id)
    assert decided(studies, claim, 9, ["pacs"]).state == StudyState.DELIVERING
    (delivery,) = studies.snapshot(claim.study_id).deliveries
    (instance,) = studies.undelivered(claim, delivery)
    studies.delivered_instance(claim, delivery, instance.id, NOW)
    assert studies.undelivered(claim, delivery) == []
    assert studies.sent(claim, delivery.id, NOW).objects == 1
    studies.confirm_delivered(claim, delivery.id, 10)
    assert studies.snapshot(claim.study_id).study.state == StudyState.DONE


def test_a_dead_letter_keeps_everything_and_comes_back_with_fresh_attempts(studies: StudyStore, arrival: Make):
    instance_id = received(studies, arrival())
    claim = claimed(studies)
    studies.attempt_failed(claim, instance_id, error=1, attempts=5, next_attempt_at=NOW + QUIET)
    studies.give_up(claim, error=ErrorCode.ERROR_CODE_INTERNAL)
    studies.release(claim, NOW)
    assert studies.next_due() is None
    received(studies, arrival(instance="2"), at=NOW + SECOND)
    assert studies.snapshot(claim.study_id).study.state == StudyState.DEAD_LETTER
    assert studies.claim("me", NOW + 100 * LEASE, LEASE) is None
    requeue = studies.ask_requeue(claim.study_id, "operator", NOW)
    assert studies.claim("me", NOW + 100 * LEASE, LEASE) is None, "not before the log has it"
    studies.requeue(requeue.id, 12, NOW)
    snapshot = studies.snapshot(claimed(studies).study_id)
    assert [one.attempts for one in snapshot.instances] == [0, 0]
    with pytest.raises(StepwedgeError) as caught:
        studies.ask_requeue(claim.study_id, "operator", NOW)
    assert caught.value.code == ErrorCode.ERROR_CODE_WRONG_STATE


@pytest.mark.parametrize("error", DAMAGED)
def test_what_inference_found_damaged_is_redacted_again_after_a_requeue_and_nothing_else_is(
    studies: StudyStore, arrival: Make, error: int
):
    lost, whole = received(studies, arrival()), received(studies, arrival(instance="2"))
    claim = claimed(studies)
    for instance_id in (lost, whole):
        studies.redacted(claim, instance_id, sha256="ab", size_bytes=1, record_index=1, settled=None, now=NOW)
    studies.fail(
        claim,
        Failure(
            study_id=claim.study_id, instance_id=lost, key="failed/1", step="assess", error=error, permanent=True,
            attempts=1, revision=0, failed_at=NOW,
        ),
    )  # fmt: skip
    studies.give_up(claim, error=error)
    studies.release(claim, NOW)
    assert "redaction makes the derived object anew" in explain(studies.snapshot(claim.study_id), NOW)[2]
    studies.requeue(studies.ask_requeue(claim.study_id, "operator", NOW).id, 12, NOW)
    after = {one.id: one for one in studies.snapshot(claim.study_id).instances}
    assert (after[lost].state, after[lost].deidentified_sha256, after[lost].redacted_at) == ("RECEIVED", "", None)
    assert (after[whole].state, after[whole].deidentified_sha256) == ("REDACTED", "ab")
    again = claimed(studies)
    studies.redacted(again, lost, sha256="ab", size_bytes=1, record_index=1, settled=None, now=NOW)


def test_a_study_that_waits_for_a_dependency_is_due_when_that_returns(studies: StudyStore, arrival: Make):
    received(studies, arrival())
    claim = claimed(studies)
    studies.release(claim, NOW, waiting_for="redaction", pause=timedelta(minutes=5))
    assert studies.claim("me", NOW + SECOND, LEASE) is None
    assert studies.wake("inference", NOW) == 0
    assert studies.wake("redaction", NOW) == 1
    assert studies.claim("me", NOW + SECOND, LEASE) is not None


def test_a_failure_is_written_once_for_its_key(studies: StudyStore, arrival: Make):
    received(studies, arrival())
    claim = claimed(studies)

    def failure() -> Failure:
        return Failure(
            study_id=claim.study_id, key="failed/1/redact/1/1", step="redact", error=1, permanent=False, attempts=1,
            revision=0, failed_at=NOW,
        )  # fmt: skip

    first = studies.fail(claim, failure())
    assert studies.fail(claim, failure()).id == first.id
    studies.confirm_failure(first.id, 3)
    assert studies.fail(claim, failure()).record_index == 3


def test_pages_go_from_newest_to_oldest(studies: StudyStore, arrival: Make):
    for number in range(5):
        received(studies, arrival(instance=str(number), study=str(number)))
    first = studies.page(state=None, before=None, size=3)
    second = studies.page(state=StudyState.RECEIVING, before=first[-1].id, size=3)
    uids = [study.study_instance_uid for study in (*first, *second)]
    assert uids == [f"1.2.3.{number}" for number in (4, 3, 2, 1, 0)]
    by_state, due, age = studies.figures(NOW + SECOND)
    assert (by_state, due, age) == ({"RECEIVING": 5}, 5, 1.0)


def test_an_unknown_study_is_not_found(studies: StudyStore):
    with pytest.raises(StepwedgeError) as caught:
        studies.find(pseudonym="2.25.1")
    assert caught.value.code == ErrorCode.ERROR_CODE_STUDY_NOT_FOUND
