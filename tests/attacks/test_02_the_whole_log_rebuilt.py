"""Attack 2: an insider with the real key changes a record, rebuilds the whole tree and signs it."""

import pytest

from stepwedge.audit.v1 import audit_pb2
from tests.attacks import insider
from tests.attacks.keys_of_others import STRANGER
from tests.attacks.scene import BAD_SIGNATURE, FORKED, MISSING_WITNESS, Place, Scene, until
from tests.unit.verifier import forging


@pytest.fixture(scope="module")
def rewritten(scene: Scene) -> Place:
    """The log with one record changed, and everything else made to fit; and its export."""
    copy = scene.copy()
    insider.write_anew(copy, insider.EDITS["one record rewritten"](insider.leaves_of(copy)))
    copy.export()
    return copy


def test_02_with_the_key_alone_nobody_can_tell(scene: Scene, rewritten: Place) -> None:
    scene.uncaught(rewritten.folder / "export.zip")
    with scene.town.serving(rewritten) as service:  # nor does the service, which starts and goes on
        scene.uncaught(service.export(rewritten.folder / "served.zip"))


def test_02_an_earlier_export_of_the_auditor_s_shows_the_fork(scene: Scene, rewritten: Place) -> None:
    assert scene.judge(rewritten.folder / "export.zip", older=scene.early).code == FORKED


def test_02_an_earlier_checkpoint_alone_shows_the_fork(scene: Scene, rewritten: Place) -> None:
    note = scene.folder / "early-checkpoint"
    note.write_bytes(forging.read(scene.early)["checkpoint"])
    assert scene.judge(rewritten.folder / "export.zip", older=note).code == FORKED


def test_02_the_witness_s_cosignature_is_missing(scene: Scene, rewritten: Place) -> None:
    assert scene.judge(rewritten.folder / "export.zip", witness=[scene.witness.vkey]).code == MISSING_WITNESS


def test_02_the_cosignature_of_the_honest_log_does_not_fit(scene: Scene, rewritten: Place) -> None:
    honest = forging.read(scene.export)["checkpoint"]
    files = {**forging.read(rewritten.folder / "export.zip"), "cosigned-checkpoint": honest}
    forged = forging.write(rewritten.folder / "with-it.zip", forging.with_manifest(files))
    told = scene.judge(forged, witness=[scene.witness.vkey])
    assert told.code == FORKED, told.words


def test_02_the_witness_refuses_to_cosign_and_the_log_records_that(scene: Scene, rewritten: Place) -> None:
    with scene.town.serving(rewritten, [scene.witness]) as service:
        until(lambda: service.alerts(audit_pb2.ALERT_CODE_WITNESS_REFUSED))
        assert service.checkpoint().cosigned_checkpoint == ""


def test_02_without_the_key_the_forgery_is_not_signed_by_the_log(scene: Scene, copy: Place) -> None:
    records = insider.renumbered(insider.EDITS["one record rewritten"](insider.leaves_of(copy)))
    insider.put(copy, records)
    insider.rebuild_tree(copy, records)
    insider.sign_anew(copy, records, STRANGER)
    assert scene.judge(copy.export()).code == BAD_SIGNATURE


def test_02_a_high_water_mark_that_was_left_alone_keeps_the_service_from_starting(scene: Scene, copy: Place) -> None:
    insider.write_anew(copy, insider.EDITS["one record rewritten"](insider.leaves_of(copy)), mark=False)
    assert "not those that were once signed" in scene.town.refuses_to_start(copy)
