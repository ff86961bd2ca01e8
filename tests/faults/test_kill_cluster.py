"""The real cluster under load while its services are killed one after the other: nothing acknowledged is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.paths import ROOT
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from tests.wire.cluster import RunningCluster, eventually, running_cluster
from tests.wire.ingest_house import CANARY_WORDS, DX, Sender, dx

EXPLICIT = "1.2.840.10008.1.2.1"


class Modality:
    """Sends one study after the other over as many associations as it takes, and remembers what was acknowledged."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._address = (cluster.dimse.host, cluster.dimse.port)
        self.acknowledged: list[str] = []
        """Study Instance UIDs, each of one image."""
        self.refused: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Modality:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            ds = dx(seed=number)
            # The same object until it is acknowledged, as a modality does.
            while not self._stop.is_set() and not self._sent(ds):
                time.sleep(0.1)

    def _sent(self, ds) -> bool:
        try:
            with Sender(self._address, [(DX, EXPLICIT)]) as sender:
                answer = sender.store(ds)
        except (AssertionError, OSError, RuntimeError, ValueError, StopIteration, AttributeError):
            self.refused["no answer"] += 1
            return False
        if answer.Status == 0:
            self.acknowledged.append(str(ds.StudyInstanceUID))
            return True
        self.refused[str(answer.get("ErrorComment"))] += 1
        return False


def records_by_kind(cluster: RunningCluster, pseudonym: str) -> Counter[str]:
    return Counter(str(entry.record.WhichOneof("event")) for entry in cluster.entries(study=pseudonym))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """One cluster for both tests; the second looks at the log of both."""
    folder = tmp_path_factory.mktemp("kill")
    with running_cluster(folder, ingest={"quiet_seconds": 0.3, "lease_seconds": 5}) as made:
        yield made


@pytest.mark.timeout(200)
def test_while_the_log_is_away_nothing_is_acknowledged_and_its_return_lets_everything_go_on(cluster: RunningCluster):
    with Modality(cluster) as modality:
        eventually(lambda: len(modality.acknowledged) >= 2, 60, what="studies that flow")
        cluster.kill("audit", hold=True)
        eventually(lambda: modality.refused["AUDIT_UNAVAILABLE"] >= 3, 40, what="refusals")
        settled = len(modality.acknowledged)
        eventually(lambda: modality.refused["AUDIT_UNAVAILABLE"] >= 6, 40, what="more refusals")
        assert len(modality.acknowledged) == settled
        cluster.release("audit")
        eventually(lambda: len(modality.acknowledged) >= settled + 2, 60, what="studies that flow again")
        for uid in modality.acknowledged[: settled + 2]:
            study = cluster.decided(uid, 60)
            kinds = records_by_kind(cluster, study.pseudonym)
            assert (kinds["received"], kinds["decided"]) == (1, 1)
        # The log saw no gap in what ingest numbered.
        alerts = [entry.record.alert for entry in cluster.entries(kind=audit_pb2.RECORD_KIND_ALERT)]
        assert [alert for alert in alerts if alert.code == audit_pb2.ALERT_CODE_SEQUENCE_REUSED] == []


@pytest.mark.timeout(300)
def test_every_service_killed_in_turn_under_load_loses_nothing_and_decides_everything_once(
    cluster: RunningCluster, tmp_path: Path
):
    with Modality(cluster) as modality:
        for service in ("redaction", "inference", "audit", "ingest", "audit", "ingest"):
            before = len(modality.acknowledged)
            eventually(lambda before=before: len(modality.acknowledged) >= before + 4, 60, what="studies that flow")
            cluster.kill(service)
        cluster.wait_ready()
        before = len(modality.acknowledged)
        eventually(lambda: len(modality.acknowledged) >= before + 3, 60, what="studies that flow again")
    assert len(set(modality.acknowledged)) == len(modality.acknowledged)
    for uid in modality.acknowledged:
        study = cluster.decided(uid, 90)
        assert len(study.instances) == 1
        assert [decision.revision for decision in study.decisions] == [1]
        kinds = records_by_kind(cluster, study.pseudonym)
        once = {kind: kinds[kind] for kind in ("received", "redacted", "assessed", "decided")}
        assert once == {"received": 1, "redacted": 1, "assessed": 1, "decided": 1}, kinds
        assert study.decisions[0].verdict != common_pb2.VERDICT_UNSPECIFIED
    export = cluster.export(tmp_path / "log.zip")
    verified = subprocess.run(
        [sys.executable, str(ROOT / "verifier" / "verify.py"), str(export)], capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert_no_canary(cluster)


def assert_no_canary(cluster: RunningCluster) -> None:
    """Nothing that names the patient is outside the zone `original` and ingest's memory of UIDs."""
    texts = {
        **{f"stderr of {name}": "\n".join(cluster.log_lines(name)) for name in cluster.pids()},
        "records": "".join(str(entry) for entry in cluster.entries()),
        "file names": "".join(str(path) for path in cluster.data.rglob("*")),
    }
    original = Path(cluster.settings.objects.original)
    for path in cluster.data.rglob("*"):
        if path.is_file() and original not in path.parents:
            texts[f"file {path.name}"] = path.read_bytes().decode("latin-1")
    for place, text in texts.items():
        for word in CANARY_WORDS:
            assert word not in text, (place, word)
