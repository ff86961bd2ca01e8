"""Attack 17: records are pruned too early, or against a legal hold, or by somebody who makes them look old."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared import keys
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2
from tests.attacks import clock, insider
from tests.attacks.calling import code_of
from tests.attacks.insider import VICTIM
from tests.attacks.scene import ALTERED, ORIGIN, PROVED, Place, Scene, Service, until, until_ready
from tests.unit.audit.making import Producer, uid
from tests.wire.witness_house import House

YEAR = 365.25 * 86400
OLD = 300
"""Records of eight years ago; the first tile of 256 is full of them."""
WHY = audit_pb2.Cause(purpose=audit_pb2.PURPOSE_OF_USE_HLEGAL)


@contextmanager
def serving_at(scene: Scene, place: Place, years: float, *witnesses: House) -> Iterator[Service]:
    """The service under a clock that is so many years ahead."""
    town = scene.town
    file = place.folder / "clock"
    file.write_text(str(years * YEAR))
    environment = {**town.environment(place, witnesses), clock.VARIABLE: str(file)}
    out = place.folder / f"out.{time.monotonic_ns()}"
    child = town.nursery.spawn("tests.attacks.clock:serve", out, environment=environment)
    service = Service(child, until_ready(child), town.pki, town.nursery)
    try:
        yield service
    finally:
        assert service.stop() == 0


@pytest.fixture(scope="module")
def aged(scene: Scene) -> Place:
    """A log whose first records are eight years old, of two studies."""
    folder = scene.folder / "aged"
    folder.mkdir()
    keys.create(folder / "keys", origin=ORIGIN, development=True)
    place = Place(folder, scene.place.databases.new(folder), scene.place.databases)
    producer = Producer()
    with serving_at(scene, place, -8) as service:
        for start in range(0, OLD, 100):
            batch = range(start, start + 100)
            service.append(producer, *(producer.received(number, study=1 + number % 2) for number in batch))
    with scene.town.serving(place) as service:
        service.fill(producer, 5, first=OLD)
        service.export(place.folder / "before.zip")
    return place


@pytest.fixture
def old(scene: Scene, aged: Place) -> Place:
    return aged.copy(scene.folder / f"aged-{time.monotonic_ns()}")


def judged(scene: Scene, place: Place, aged: Place) -> tuple[int, str]:
    """The verifier's answer, with the export of before pruning as the older one."""
    told = scene.judge(place.export("after.zip"), key=place.vkey, older=aged.folder / "before.zip")
    return told.code, told.words


def prune(service: Service, identity: Identity = Identity.AUDITOR, **wish: object) -> audit_pb2.PruneResponse:
    request = audit_pb2.PruneRequest(cause=WHY, **wish)  # type: ignore[arg-type]
    answer: audit_pb2.PruneResponse = service.stub(identity).Prune(request, timeout=60)
    return answer


def test_17_what_is_over_goes_by_a_record_of_it_and_every_proof_stands(scene: Scene, old: Place, aged: Place) -> None:
    with scene.town.serving(old) as service:
        answer = prune(service)
        assert answer.removed == 256, "what lies in full tiles"
    assert judged(scene, old, aged) == (PROVED, "")


def test_17_too_early_is_refused_and_the_refusal_is_a_record(scene: Scene, old: Place, aged: Place) -> None:
    with scene.town.serving(old) as service:
        tomorrow = int(time.time()) + 86400
        assert code_of(lambda: prune(service, before={"seconds": tomorrow})) == "RETAINED"
        request = audit_pb2.QueryEntriesRequest(kind=audit_pb2.RECORD_KIND_PRUNED)
        (entry,) = service.stub(Identity.AUDITOR).QueryEntries(request, timeout=20).entries
        assert entry.record.outcome == audit_pb2.EVENT_OUTCOME_SERIOUS_FAILURE
    assert judged(scene, old, aged) == (PROVED, "")
    assert len(insider.leaves_of(old)) > OLD


def test_17_what_is_under_a_legal_hold_stays(scene: Scene, old: Place, aged: Place) -> None:
    with scene.town.serving(old) as service:
        request = audit_pb2.SetHoldRequest(study=uid(9_000_001), cause=WHY)
        service.stub(Identity.AUDITOR).SetHold(request, timeout=20)
        answer = prune(service)
        assert (answer.removed, answer.held) == (128, 128)
    assert judged(scene, old, aged) == (PROVED, "")
    assert sum(uid(9_000_001).encode() in leaf for leaf in insider.leaves_of(old)) >= 150


def test_17_a_record_that_is_removed_without_a_record_of_it_is_altered(scene: Scene, old: Place, aged: Place) -> None:
    old.sql('DELETE FROM entries WHERE "index" = :place', place=VICTIM)
    assert judged(scene, old, aged)[0] == ALTERED


def test_17_who_makes_a_young_record_look_old_in_the_database_does_not_have_the_log_prune_it(
    scene: Scene, copy: Place
) -> None:
    leaf = json.loads(insider.leaves_of(copy)[VICTIM])
    leaf["recorded_at"] = "2001" + leaf["recorded_at"][4:]
    forged = json.dumps(leaf, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    copy.sql(
        'UPDATE entries SET leaf = :leaf, recorded_us = 1, recorded_max_us = 1 WHERE "index" = :place',
        'UPDATE entries SET recorded_max_us = 1 WHERE "index" < :place',
        leaf=forged,
        place=VICTIM,
    )
    child = scene.town.spawn(copy)
    try:
        service = Service(child, until_ready(child), scene.town.pki, scene.town.nursery)
    except AssertionError:
        scene.town.nursery.reap(child.pid)  # it saw the change at its start, and did not serve
    else:
        assert code_of(lambda: prune(service)) == "LOG_INCONSISTENT"
        service.stop()
    told = scene.judge(copy.export(), older=scene.export)
    assert (told.code, told.indexes) == (ALTERED, [VICTIM])


def test_17_who_removes_the_hold_from_the_database_is_found_out(scene: Scene, old: Place, aged: Place) -> None:
    with scene.town.serving(old) as service:
        request = audit_pb2.SetHoldRequest(study=uid(9_000_001), cause=WHY)
        index = service.stub(Identity.AUDITOR).SetHold(request, timeout=20).index
    old.sql('DELETE FROM entries WHERE "index" = :place', place=index)
    assert judged(scene, old, aged)[0] != PROVED


def test_17_a_clock_set_forward_to_prune_is_an_alert_before_the_record_of_the_pruning(
    scene: Scene, copy: Place
) -> None:
    """Who rules the clock rules what is over. The log says that the clock was set, by how much, and before what."""
    with serving_at(scene, copy, 0) as service:
        service.fill(Producer(), 1, first=120_000)
        clock.set_to(copy.folder / "clock", 11 * YEAR)
        service.fill(Producer(), 1, first=120_001)
        assert prune(service).removed == 512
        (alert,) = service.alerts(audit_pb2.ALERT_CODE_CLOCK_STEP)
        assert alert.clock_step_ms > 10 * YEAR * 1000


def test_17_with_a_witness_what_is_over_is_over_by_its_clock_too(scene: Scene, aged: Place, copy: Place) -> None:
    with scene.witness_twin() as witness:
        with serving_at(scene, copy, 11, witness) as service:
            service.fill(Producer(), 1, first=122_000)
            assert prune(service).removed == 0
            tomorrow = {"seconds": int(time.time()) + 86400}
            assert code_of(lambda: prune(service, before=tomorrow)) == "RETAINED"
        assert scene.judge(copy.export(), older=scene.export).code == PROVED
    old = aged.copy(scene.folder / f"aged-{time.monotonic_ns()}")
    with scene.witness_of(old) as witness, serving_at(scene, old, 0, witness) as service:
        until(lambda: service.checkpoint().cosigned_checkpoint)
        assert prune(service).removed == 256, "what is over by both clocks goes"


def test_17_without_a_witness_a_clock_set_forward_while_the_log_was_stopped_is_told_by_nothing_in_the_log(
    scene: Scene, copy: Place
) -> None:
    """The log takes it for a long rest. Only what was kept outside shows what time it was."""
    with serving_at(scene, copy, 11) as service:
        service.fill(Producer(), 1, first=121_000)
        assert prune(service).removed == 512
        assert not service.alerts(audit_pb2.ALERT_CODE_CLOCK_STEP)
    told = scene.judge(copy.export(), older=scene.export)
    assert told.code == PROVED, told.words
    honest = scene.judge(scene.export, witness=[scene.witness.vkey]).report["witnesses"][0]["time"]
    assert int(told.report["last_recorded_at"][:4]) - time.gmtime(honest).tm_year >= 10


def test_17_only_who_guards_the_log_may_prune_or_hold(scene: Scene, copy: Place) -> None:
    with scene.town.serving(copy) as service:
        for identity in (Identity.INGEST, Identity.INFERENCE, Identity.REDACTION, Identity.PACS):
            assert code_of(lambda identity=identity: prune(service, identity)) == "PERMISSION_DENIED"
