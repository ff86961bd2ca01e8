"""Attack 5: the database of yesterday is put back, and the log goes on from there."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from stepwedge.audit.v1 import audit_pb2
from tests.attacks.scene import FORKED, MISSING_WITNESS, TRUNCATED, Place, Scene, until
from tests.unit.audit.making import Producer
from tests.wire.witness_house import House


class Days(NamedTuple):
    """A log today and its backup of yesterday, with their witness."""

    today: Place
    yesterday: Place
    witness: House


@pytest.fixture(scope="module")
def days(scene: Scene) -> Iterator[Days]:
    today, yesterday = scene.copy(), scene.copy()
    with scene.witness_twin() as witness:
        with scene.town.serving(today, [witness]) as service:
            service.fill(Producer(), 30, first=20_000)
            service.export(today.folder / "export.zip")
        yield Days(today, yesterday, witness)


def test_05_the_service_refuses_to_start_below_what_it_once_signed(scene: Scene, days: Days) -> None:
    mark = days.yesterday.mark.read_bytes()
    days.yesterday.mark.write_bytes(days.today.mark.read_bytes())  # the backup is of the database alone
    assert "once had" in scene.town.refuses_to_start(days.yesterday)
    days.yesterday.mark.write_bytes(mark)


def test_05_with_its_high_water_mark_put_back_too_only_the_witness_or_a_newer_export_tells(
    scene: Scene, days: Days
) -> None:
    with scene.town.serving(days.yesterday, [days.witness]) as service:
        service.fill(Producer(), 3, first=30_000)
        until(lambda: service.alerts(audit_pb2.ALERT_CODE_WITNESS_REFUSED))
        shorter = service.export(days.yesterday.folder / "shorter.zip")
        service.fill(Producer(), 60, first=40_000)
        longer = service.export(days.yesterday.folder / "longer.zip")
    newer = days.today.folder / "export.zip"
    for export, code in ((shorter, TRUNCATED), (longer, FORKED)):
        scene.uncaught(export)
        assert scene.judge(export, older=newer).code == code
        told = scene.judge(export, witness=[days.witness.vkey])
        assert told.code == MISSING_WITNESS
        assert told.report["cosigned_size"] < told.report["size"], "yesterday's own cosignature covers yesterday"
