"""Attack 18: the database's superuser switches off whatever rules the database has, and changes rows.

The database's rules guard against mistakes. What proves is the checkpoint that lies outside it.
"""

from tests.attacks import insider
from tests.attacks.insider import VICTIM
from tests.attacks.scene import ALTERED, FORKED, MISSING_WITNESS, TRUNCATED, Place, Scene


def disarm(place: Place) -> None:
    """Switch off every trigger, rule, row-level policy and index that is not a primary key's."""
    if place.databases.kind == "sqlite":
        for row in place.rows("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql > ''"):
            place.sql(f'DROP {row["type"].upper()} "{row["name"]}"')
        return
    tables = [row["tablename"] for row in place.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    for table in tables:
        place.sql(
            f'ALTER TABLE "{table}" DISABLE TRIGGER ALL',
            f'ALTER TABLE "{table}" DISABLE ROW LEVEL SECURITY',
        )
    for row in place.rows("SELECT tablename, rulename FROM pg_rules WHERE schemaname = 'public'"):
        place.sql(f'DROP RULE "{row["rulename"]}" ON "{row["tablename"]}"')


def test_18_a_superuser_s_change_of_a_row_is_altered_and_named(scene: Scene, copy: Place) -> None:
    disarm(copy)
    forged = insider.flipped(insider.leaves_of(copy)[VICTIM])
    copy.sql('UPDATE entries SET leaf = :leaf WHERE "index" = :place', leaf=forged, place=VICTIM)
    told = scene.judge(copy.export())
    assert (told.code, told.indexes) == (ALTERED, [VICTIM])


def test_18_a_superuser_s_deletion_of_the_end_is_truncated(scene: Scene, copy: Place) -> None:
    disarm(copy)
    copy.sql('DELETE FROM entries WHERE "index" >= 500')
    assert scene.judge(copy.export()).code == TRUNCATED


def test_18_a_superuser_who_has_the_key_too_is_caught_only_from_outside(scene: Scene, copy: Place) -> None:
    disarm(copy)
    insider.write_anew(copy, insider.EDITS["one record rewritten"](insider.leaves_of(copy)))
    export = copy.export()
    scene.uncaught(export)
    assert scene.judge(export, older=scene.early).code == FORKED
    assert scene.judge(export, witness=[scene.witness.vkey]).code == MISSING_WITNESS
