"""The cluster as child processes: how it starts, what it survives, how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import configuration
from cli.cluster import DRAIN_ORDER, SERVICES, Cluster
from cli.exit_codes import Exit
from shared.errors import StepwedgeError
from tests.wire.cluster import RunningCluster, eventually, running_cluster
from tests.wire.command import COMMAND, ROOT, environment, stepwedge

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_service_is_a_process_of_its_own_and_serves(cluster: RunningCluster) -> None:
    pids = cluster.pids()
    assert set(pids) == set(SERVICES)
    assert len(set(pids.values())) == 4
    for service, pid in pids.items():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert command[1:3] == [b"-m", f"services.{service}".encode()]
        assert cluster.serving(service)


def test_a_child_is_told_in_its_environment_only_where_its_settings_lie(cluster: RunningCluster) -> None:
    for service, pid in cluster.pids().items():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ours = [variable for variable in variables if variable.startswith(b"STEPWEDGE_")]
        assert ours == [f"STEPWEDGE_CONFIG={cluster.data}/run/{service}.toml".encode()]
        assert str(cluster.settings.objects.original).encode() not in b"\0".join(variables)
        assert str(cluster.settings.cluster.keys).encode() not in b"\0".join(variables)


def test_no_serving_process_loads_torch(cluster: RunningCluster) -> None:
    for pid in cluster.pids().values():
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()


def test_inference_holds_no_file_of_the_originals_and_no_key_of_the_pseudonyms(cluster: RunningCluster) -> None:
    opened = [str(link.readlink()) for link in Path(f"/proc/{cluster.pids()['inference']}/fd").iterdir()]
    assert not [path for path in opened if "original" in path or "pseudonyms" in path or path.endswith(".db")]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_killed_starts_again_at_the_same_address(cluster: RunningCluster, service: str) -> None:
    before, address = cluster.pids()[service], cluster.children.children[service].address
    cluster.kill(service)
    cluster.wait_ready()
    assert cluster.pids()[service] != before
    assert cluster.children.children[service].address == address
    assert f"{service} was ended by SIGKILL" in cluster.said[-1]
    eventually(lambda: all(cluster.serving(name) for name in SERVICES), what="every service")


def test_a_held_service_stays_away_until_it_is_released(cluster: RunningCluster) -> None:
    cluster.kill("redaction", hold=True)
    eventually(lambda: "redaction" not in cluster.pids(), what="the end of redaction")
    time.sleep(0.5)  # longer than the first backoff: it would have come back
    assert "redaction" not in cluster.pids()
    cluster.release("redaction")
    cluster.wait_ready()
    assert cluster.serving("redaction")


def test_up_shows_the_addresses_refuses_a_second_up_and_drains_in_order_at_ctrl_c(tmp_path: Path) -> None:
    file = configuration.on_free_ports(tmp_path / "data")
    settings = configuration.load(file)
    with up(file) as process:
        shown = read_until(process, "Ctrl-C drains")
        for service in SERVICES:
            assert settings.for_service(service).address in shown
        assert settings.ingest.dimse in shown
        children = children_of(process.pid)
        assert len(children) == len(SERVICES) + 1, "the services and the console"
        second = stepwedge("up", "--config", file)
        assert second.failed_in_one_line("WRONG_STATE")  # two clusters do not share a data folder
        assert second.status == Exit.NEGATIVE
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        assert process.stderr is not None
        assert "drained" in process.stderr.read()
    assert not [pid for pid in children if alive(pid)]
    ends = {}
    for service in SERVICES:
        lines = (settings.cluster.data / "run" / "logs" / f"{service}.jsonl").read_text().splitlines()
        assert "stopped" in lines[-1], lines[-1]
        ends[service] = (settings.cluster.data / "run" / "logs" / f"{service}.jsonl").stat().st_mtime_ns
    assert ends[DRAIN_ORDER[0][0]] <= min(ends.values())
    assert ends[DRAIN_ORDER[-1][0]] >= max(ends.values())


def test_no_child_outlives_a_supervisor_that_is_killed_outright(tmp_path: Path) -> None:
    file = configuration.on_free_ports(tmp_path / "data")
    with up(file) as process:
        read_until(process, "Ctrl-C drains")
        children = children_of(process.pid)
        process.kill()
    assert len(children) == len(SERVICES) + 1
    eventually(lambda: not [pid for pid in children if alive(pid)], what="the end of every child")


def test_a_port_that_is_taken_is_told_in_one_line_and_leaves_nothing_running(tmp_path: Path) -> None:
    file = configuration.on_free_ports(tmp_path / "data")
    settings = configuration.load(file)
    with socket.create_server(("127.0.0.1", int(settings.audit.listen.rpartition(":")[2]))):
        ran = stepwedge("up", "--config", file)
    assert ran.status == Exit.CONFIGURATION
    assert "audit ended with status 78 before it was ready: CONFIGURATION: audit cannot listen on" in ran.err
    assert not listening(settings.ingest.listen)


def test_a_cluster_whose_log_is_broken_does_not_come_up(tmp_path: Path) -> None:
    settings = configuration.load(configuration.on_free_ports(tmp_path / "data"))
    (settings.cluster.data / "audit.db").write_bytes(b"this is not a database " * 100)
    cluster = Cluster(settings)
    with pytest.raises(StepwedgeError) as caught, cluster:
        pass
    assert "audit" in caught.value.message
    assert cluster.pids() == {}


def up(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "up", "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    )


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What the process says on stdout, up to the line that holds the words."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    assert process.stderr is not None
    raise AssertionError(f"it ended before it said so: {said}{process.stderr.read()}")


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
