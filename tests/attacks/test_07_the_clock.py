"""Attack 7: whoever rules the machine sets its clock back, or forward, while the log runs or while it is stopped."""

from collections.abc import Iterator
from datetime import datetime

import pytest

from stepwedge.audit.v1 import audit_pb2
from tests.attacks import clock
from tests.attacks.scene import PROVED, Place, Scene, Service, until, until_ready
from tests.unit.audit.making import Producer

HOUR = 3600.0


class Moved:
    """The service on a copy of the log, and its clock."""

    def __init__(self, scene: Scene, place: Place) -> None:
        self.scene = scene
        self.place = place
        self.file = place.folder / "clock"
        self.file.write_text("0")
        self.service = self.start()

    def start(self) -> Service:
        town = self.scene.town
        environment = town.environment(self.place)
        out = self.place.folder / f"out.{len(list(self.place.folder.iterdir()))}"
        environment[clock.VARIABLE] = str(self.file)
        child = town.nursery.spawn("tests.attacks.clock:serve", out, environment=environment)
        return Service(child, until_ready(child), town.pki, town.nursery)

    def set(self, seconds: float) -> None:
        """Set the clock."""
        clock.set_to(self.file, seconds)

    def steps(self) -> list[float]:
        """The steps that the log recorded, hours."""
        alerts = self.service.alerts(audit_pb2.ALERT_CODE_CLOCK_STEP)
        return [round(alert.clock_step_ms / 3_600_000, 2) for alert in alerts]


@pytest.fixture
def moved(scene: Scene, copy: Place) -> Iterator[Moved]:
    made = Moved(scene, copy)
    yield made
    if made.service.child.pid in scene.town.nursery.living:
        made.service.stop()


def test_07_a_clock_set_back_or_forward_is_an_alert_in_the_log_and_the_order_stays(moved: Moved) -> None:
    producer = Producer()
    moved.service.fill(producer, 3, first=50_000)
    moved.set(-HOUR)
    moved.service.fill(producer, 3, first=50_010)
    until(lambda: moved.steps() == [-1.0])
    moved.set(HOUR)
    moved.service.fill(producer, 3, first=50_020)
    until(lambda: moved.steps() == [-1.0, 2.0])
    export = moved.service.export(moved.place.folder / "export.zip")
    told = moved.scene.judge(export, older=moved.scene.export)
    # Nothing was changed: a wrong clock is not a forged record. That it went back is said.
    assert told.code == PROVED, told.words
    assert told.report["times_set_back"] >= 1
    assert told.report["gaps"] == []


def test_07_a_clock_set_back_while_the_log_was_stopped_is_an_alert_at_the_next_start(moved: Moved) -> None:
    moved.service.fill(Producer(), 3, first=51_000)
    assert moved.service.stop() == 0
    moved.set(-24 * HOUR)
    moved.service = moved.start()
    moved.service.fill(Producer(), 1, first=51_010)
    assert [round(step) for step in until(moved.steps)] == [-24]


def test_07_a_clock_that_is_slewed_raises_no_alarm(moved: Moved) -> None:
    for number in range(5):
        moved.set(0.1 * number)
        moved.service.fill(Producer(), 1, first=52_000 + number)
    assert moved.steps() == []


def test_07_the_witness_s_own_clock_brackets_what_the_log_says(scene: Scene) -> None:
    """The cosignature bears the witness's time: the log cannot have been written after it."""
    told = scene.judge(scene.export, witness=[scene.witness.vkey])
    (one,) = told.report["witnesses"]
    assert abs(one["time"] - _seconds(told.report["last_recorded_at"])) < 60


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment[:19] + "+00:00").timestamp()
