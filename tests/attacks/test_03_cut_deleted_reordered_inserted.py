"""Attack 3: the end is cut off, a record is deleted from the middle, two change places, one is inserted."""

import pytest

from tests.attacks import insider
from tests.attacks.insider import EDITS
from tests.attacks.scene import ALTERED, FORKED, MISSING_WITNESS, TRUNCATED, Place, Scene

NAMES = [name for name in EDITS if name != "one record rewritten"]
BY_HAND = {name: TRUNCATED if name == "the tail cut off" else ALTERED for name in NAMES}
SIGNED_ANEW = {
    "the tail cut off": TRUNCATED,
    "a record deleted from the middle": TRUNCATED,  # it is one record shorter than it was
    "two records exchanged": FORKED,
    "a record inserted": FORKED,
}


@pytest.mark.parametrize("name", NAMES)
def test_03_done_in_the_database_it_is_altered_or_truncated(scene: Scene, copy: Place, name: str) -> None:
    insider.put(copy, EDITS[name](insider.leaves_of(copy)))
    told = scene.judge(copy.export())
    assert told.code == BY_HAND[name], told.words


@pytest.mark.parametrize("name", NAMES)
def test_03_done_with_the_real_key_only_a_newer_export_or_the_witness_tells(
    scene: Scene, copy: Place, name: str
) -> None:
    insider.write_anew(copy, EDITS[name](insider.leaves_of(copy)))
    export = copy.export()
    scene.uncaught(export)
    newer = scene.place.folder / "newest.zip"
    if not newer.exists():
        scene.place.export(newer.name)
    assert scene.judge(export, older=newer).code == SIGNED_ANEW[name]
    assert name == "the tail cut off" or scene.judge(export, older=scene.early).code == FORKED
    assert scene.judge(export, witness=[scene.witness.vkey]).code == MISSING_WITNESS


def test_03_a_record_deleted_with_the_real_key_leaves_a_gap_in_its_producer_s_numbering(
    scene: Scene, copy: Place
) -> None:
    insider.write_anew(copy, EDITS["a record deleted from the middle"](insider.leaves_of(copy)))
    told = scene.judge(copy.export())
    assert sum(gap["missing_count"] for gap in told.report["gaps"]) == 1


def test_03_a_tail_that_is_missing_is_counted(scene: Scene, copy: Place) -> None:
    size = len(insider.leaves_of(copy))
    copy.sql('DELETE FROM entries WHERE "index" >= :first', first=size - 50)
    told = scene.judge(copy.export())
    assert told.code == TRUNCATED
    assert told.words.startswith(f"50 of {size} records are missing")


def test_03_a_tail_cut_off_behind_the_service_s_back_keeps_it_from_starting(scene: Scene, copy: Place) -> None:
    insider.write_anew(copy, EDITS["the tail cut off"](insider.leaves_of(copy)), mark=False)
    assert "once had" in scene.town.refuses_to_start(copy)
