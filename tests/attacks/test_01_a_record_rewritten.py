"""Attack 1: one byte of one old record is changed in the database."""

from stepwedge.audit.v1 import audit_pb2
from tests.attacks import insider
from tests.attacks.calling import code_of
from tests.attacks.insider import VICTIM
from tests.attacks.scene import ALTERED, Place, Scene
from tests.unit.verifier import forging


def test_01_one_byte_changed_in_the_database_is_altered_and_the_record_is_named(scene: Scene, copy: Place) -> None:
    forged = insider.flipped(insider.leaves_of(copy)[VICTIM])
    copy.sql('UPDATE entries SET leaf = :leaf WHERE "index" = :place', leaf=forged, place=VICTIM)
    told = scene.judge(copy.export())
    assert (told.code, told.indexes) == (ALTERED, [VICTIM])


def test_01_the_tree_rebuilt_to_fit_the_change_no_longer_has_the_root_that_was_signed(
    scene: Scene, copy: Place
) -> None:
    records = insider.EDITS["one record rewritten"](insider.leaves_of(copy))
    insider.put(copy, records)
    insider.rebuild_tree(copy, records)
    told = scene.judge(copy.export())
    assert told.code == ALTERED
    assert "root that was signed" in told.words


def test_01_the_service_neither_hands_the_record_out_nor_exports_it(scene: Scene, copy: Place) -> None:
    forged = insider.flipped(insider.leaves_of(copy)[VICTIM])
    copy.sql('UPDATE entries SET leaf = :leaf WHERE "index" = :place', leaf=forged, place=VICTIM)
    with scene.town.serving(copy) as service:
        reader = service.stub(scene.auditor)
        assert code_of(lambda: reader.GetEntry(audit_pb2.GetEntryRequest(index=VICTIM), timeout=20)) == (
            "LOG_INCONSISTENT"
        )
        assert scene.judge(service.export(copy.folder / "served.zip")).code == ALTERED


def test_01_a_byte_changed_anywhere_in_an_export_is_never_proved(scene: Scene) -> None:
    files = forging.read(scene.export)
    for name in ("tile/entries/000", "tile/0/001", "tile/1/000.p/2", "checkpoint", "manifest.json"):
        data = bytearray(files[name])
        data[len(data) // 2] ^= 1
        forged = forging.write(scene.folder / "one-byte.zip", {**files, name: bytes(data)})
        assert scene.judge(forged).code >= ALTERED, name
