"""Attack 11: a record that was taken is submitted again, as it was or with other content."""

from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2
from tests.attacks.calling import code_of
from tests.attacks.scene import PROVED, Place, Scene
from tests.unit.audit.making import Producer
from tests.unit.verifier import forging


def test_11_a_record_comes_to_the_log_once_however_often_it_is_submitted(scene: Scene, copy: Place) -> None:
    producer = Producer()
    made = producer.received(80_000)
    with scene.town.serving(copy) as service:
        first = service.append(producer, made)
        for _ in range(5):
            assert service.append(producer, made) == first
        assert service.append(producer, made, made) == first * 2
    with scene.town.serving(copy) as service:  # and after a restart
        assert service.append(producer, made) == first
        told = scene.judge(service.export(copy.folder / "export.zip"))
    assert told.code == PROVED, told.words
    leaves = forging.leaves(forging.read(copy.folder / "export.zip"))
    assert sum(made.idempotency_key.encode() in leaf for leaf in leaves) == 1


def test_11_another_content_under_a_known_key_is_a_conflict(scene: Scene, copy: Place) -> None:
    producer = Producer()
    with scene.town.serving(copy) as service:
        made = producer.received(81_000)
        (index,) = service.append(producer, made)
        forged = audit_pb2.Record()
        forged.CopyFrom(made)
        forged.received.size_bytes += 1
        assert code_of(lambda: service.append(producer, forged)) == "IDEMPOTENCY_CONFLICT"
        assert service.append(producer, made) == [index]


def test_11_a_captured_request_is_of_no_use_to_another_service(scene: Scene, copy: Place) -> None:
    made = Producer().received(82_000)
    request = audit_pb2.AppendRequest(records=[made])
    with scene.town.serving(copy) as service:
        for identity in (Identity.REDACTION, Identity.INFERENCE, Identity.AUDITOR, Identity.OPERATOR, Identity.PACS):
            stub = service.stub(identity)
            assert code_of(lambda stub=stub: stub.Append(request, timeout=20)) == "PERMISSION_DENIED"
