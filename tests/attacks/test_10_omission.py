"""Attack 10: an act is done and not recorded: a record is skipped, or the log is away, or its disk is full.

That whole services refuse to act without the log is shown by tests/faults/test_kill_cluster.py and tests/wire.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from services.audit.sequences import GRACE_SECONDS
from shared.audit import Recorder
from shared.errors import StepwedgeError
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import channel
from stepwedge.audit.v1 import audit_pb2
from tests.attacks import clock
from tests.attacks.scene import PROVED, Place, Scene, Service, until, until_ready
from tests.unit.audit.making import Producer, digest, uid


def test_10_a_number_that_a_producer_skipped_is_a_gap_that_the_verifier_reports(scene: Scene, copy: Place) -> None:
    with scene.town.serving(copy) as service:
        producer = Producer()
        service.fill(producer, 3, first=60_000)
        producer.sequence += 2  # two acts that were done and never recorded
        service.fill(producer, 3, first=60_010)
        told = scene.judge(service.export(copy.folder / "export.zip"))
    assert told.code == PROVED, "what is in the log is as it was signed"
    (gap,) = told.report["gaps"]
    assert (gap["producer"], gap["incarnation"], gap["missing"]) == ("ingest", producer.incarnation, [[4, 5]])


def test_10_the_log_itself_raises_an_alert_when_the_numbers_do_not_come(scene: Scene, copy: Place) -> None:
    file = copy.folder / "clock"
    file.write_text("0")
    environment = {**scene.town.environment(copy), clock.VARIABLE: str(file)}
    child = scene.town.nursery.spawn("tests.attacks.clock:serve", copy.folder / "out", environment=environment)
    service = Service(child, until_ready(child), scene.town.pki, scene.town.nursery)
    producer = Producer()
    service.fill(producer, 2, first=61_000)
    producer.sequence += 1
    service.fill(producer, 1, first=61_010)
    clock.set_to(file, GRACE_SECONDS + 1)  # half a minute later
    (alert,) = until(lambda: service.alerts(audit_pb2.ALERT_CODE_SEQUENCE_GAP))
    assert (alert.about, alert.first_sequence, alert.last_sequence) == ("ingest", 3, 3)
    assert service.stop() == 0


def test_10_who_deletes_a_record_with_the_real_key_leaves_the_gap_in_the_log_for_ever(
    scene: Scene, copy: Place
) -> None:
    from tests.attacks import insider

    records = insider.leaves_of(copy)
    insider.write_anew(copy, records[:200] + records[201:])
    told = scene.judge(copy.export())
    assert [gap["missing_count"] for gap in told.report["gaps"]] == [1]


async def test_10_without_the_log_a_service_s_act_is_refused(scene: Scene, copy: Place) -> None:
    """Fail closed: who calls `record` before it shows anything gets an error, and has nothing to show."""
    child = scene.town.spawn(copy)
    to = channel(until_ready(child), Credentials.load(scene.town.pki, Identity.INGEST), server=Identity.AUDIT)
    recorder = Recorder(to, deadline_seconds=2.0)
    assert await _record(recorder, 1) > 0
    child.kill(signal.SIGKILL)
    scene.town.nursery.reap(child.pid)
    with pytest.raises(StepwedgeError) as raised:
        await _record(recorder, 2)
    assert raised.value.name == "AUDIT_UNAVAILABLE"
    await recorder.close()
    await to.close()


async def _record(recorder: Recorder, number: int) -> int:
    event = audit_pb2.ReceivedEvent(
        channel="GRPC",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.7",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        size_bytes=number,
    )
    return await recorder.record(
        key=f"received/{uid(number)}/{digest(99_000 + number)}",
        outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
        event=event,
        instance=uid(number),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_10_on_a_full_disk_records_are_refused_and_what_was_acknowledged_stays(scene: Scene, tmp_path: Path) -> None:
    if scene.place.databases.kind != "sqlite":
        pytest.skip("PostgreSQL's full disk: tests/faults/test_postgres.py")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=5m", "none", str(disk)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount")
    try:
        place = scene.place.copy(disk / "log")
        (disk / "filling").write_bytes(b"x" * (1 << 20))
        with scene.town.serving(place) as service:
            producer = Producer()
            acknowledged = 0
            refused = ""
            while not refused:
                batch = [producer.received(70_000 + acknowledged + number) for number in range(50)]
                try:
                    service.append(producer, *batch)
                except Exception as error:
                    refused = str(error)
                else:
                    acknowledged += len(batch)
                assert acknowledged < 20_000, "the disk was never full"
            assert "AUDIT_UNAVAILABLE" in refused or "UNAVAILABLE" in refused
            (disk / "filling").unlink()
            assert until(lambda: _appended(service, batch))
            told = scene.judge(service.export(tmp_path / "export.zip"), older=scene.export)
        assert told.code == PROVED, told.words
        assert told.report["gaps"] == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _appended(service: Service, batch: list[audit_pb2.Record]) -> bool:
    try:
        service.append(Producer(), *batch)
    except Exception:
        return False
    return True
