"""Before any attack: the honest log is proved, by whatever the auditor holds."""

from tests.attacks.scene import EARLY, PROVED, RECORDS, Place, Scene


def test_00_the_log_that_nobody_touched_is_proved(scene: Scene, copy: Place) -> None:
    told = scene.judge(scene.export, older=scene.early, witness=[scene.witness.vkey])
    assert told.code == PROVED, told.words
    assert told.report["size"] > RECORDS
    assert told.report["older_size"] >= EARLY
    assert told.report["gaps"] == []
    assert scene.judge(copy.export(), older=scene.export).code == PROVED
