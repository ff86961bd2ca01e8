"""Attack 4: the log is shown to two people in two versions, each signed with the real key."""

import pytest

from stepwedge.audit.v1 import audit_pb2
from tests.attacks.scene import FORKED, MISSING_WITNESS, PROVED, Place, Scene, until
from tests.unit.audit.making import Producer
from tests.unit.verifier import forging


@pytest.fixture(scope="module")
def histories(scene: Scene) -> tuple[Place, Place]:
    """Two logs that were one, and the real service let each grow in its own way to the same size."""
    places = scene.copy(), scene.copy()
    for number, place in enumerate(places):
        with scene.town.serving(place) as service:
            service.fill(Producer(), 10, first=10_000 * (number + 1))
            service.export(place.folder / "export.zip")
    return places


def test_04_each_history_is_whole_in_itself(scene: Scene, histories: tuple[Place, Place]) -> None:
    for place in histories:
        scene.uncaught(place.folder / "export.zip")


def test_04_whoever_compares_the_two_checkpoints_sees_the_fork(scene: Scene, histories: tuple[Place, Place]) -> None:
    one, other = (place.folder / "export.zip" for place in histories)
    sizes = {scene.judge(export).report["size"] for export in (one, other)}
    assert len(sizes) == 1
    assert scene.judge(one, older=other).code == FORKED
    # The two signed notes are enough, and portable.
    note = scene.folder / "other-checkpoint"
    note.write_bytes(forging.read(other)["checkpoint"])
    assert scene.judge(one, older=note).code == FORKED


def test_04_of_two_histories_the_witness_cosigns_one_and_keeps_the_evidence(
    scene: Scene, histories: tuple[Place, Place]
) -> None:
    with scene.witness_twin() as witness:
        codes = []
        for place, refused in zip(histories, (False, True), strict=True):
            with scene.town.serving(place, [witness]) as service:
                size = service.checkpoint().size
                if refused:
                    until(lambda service=service: service.alerts(audit_pb2.ALERT_CODE_WITNESS_REFUSED))
                else:
                    until(lambda service=service, size=size: _cosigned(service.checkpoint()) >= size)
                export = service.export(place.folder / "witnessed.zip")
            codes.append(scene.judge(export, witness=[witness.vkey]).code)
            scene.uncaught(export)
        assert codes == [PROVED, MISSING_WITNESS]
        evidence = [file.read_text() for file in (witness.folder / "state.evidence").iterdir()]
    assert any(text.count("stepwedge/audit\n") >= 2 for text in evidence), "both notes, each signed by the log"


def _cosigned(answer: audit_pb2.GetCheckpointResponse) -> int:
    return int(answer.cosigned_checkpoint.split("\n")[1]) if answer.cosigned_checkpoint else 0
