"""The badly behaved PACS against a real cluster: each behaviour is answered as it must be; a bad peer is found out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from cli.exit_codes import Exit
from cli.simulate import names
from cli.simulate_objects import Material
from tests.wire.cluster import RunningCluster, running_cluster
from tests.wire.command import stepwedge

DX = "1.2.840.10008.5.1.4.1.1.1.1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("simulate"), ingest={"quiet_seconds": 1.0}) as cluster:
        yield cluster


def address(cluster: RunningCluster) -> str:
    return f"{cluster.dimse.host}:{cluster.dimse.port}"


@pytest.mark.timeout(300)
def test_a_cluster_answers_every_behaviour_as_it_must(cluster: RunningCluster) -> None:
    given = ("--to", address(cluster), "--config", cluster.file, "--seed", "7", "--huge", "8", "--json")
    ran = stepwedge("simulate", *given, seconds=280)
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["behaviour"] for one in told] == [name for name, _, _ in names()]
    assert [one for one in told if not one["pass"]] == []
    assert ran.status == Exit.OK


def test_a_user_s_own_files_are_sent_under_other_names_and_for_a_patient_who_does_not_exist(
    cluster: RunningCluster,
) -> None:
    file = Path(get_testdata_file("CT_small.dcm"))
    ran = stepwedge(
        *("simulate", "--to", address(cluster), "--config", cluster.file, "--from", file, "--json"),
        *("--only", "well-behaved", "--only", "lying-uid"),
    )
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["pass"] for one in told] == [True, True]
    sent = Material(1, "run", [file]).study(1)[0]
    assert b"CompressedSamples^CT1" not in sent.data_set
    assert b"SIMULATED^PATIENT" in sent.data_set


def test_the_same_seed_and_run_give_the_same_bytes() -> None:
    one, other, another = (Material(3, run).study(2) for run in ("a", "a", "b"))
    assert one == other
    assert one[0].study != another[0].study


def test_a_peer_that_stores_whatever_comes_fails_the_test_and_is_told_for_what() -> None:
    entity = AE("CARELESS")
    entity.add_supported_context(Verification)
    entity.add_supported_context(DX)
    handlers = [(evt.EVT_C_STORE, lambda event: 0x0000), (evt.EVT_C_ECHO, lambda event: 0x0000)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        port = server.server_address[1]
        ran = stepwedge(
            *("simulate", "--to", f"127.0.0.1:{port}", "--aet", "CARELESS", "--no-check", "--json"),
            *("--only", "echo", "--only", "truncated", "--only", "lying-announcement"),
        )
    finally:
        server.shutdown()
    told = {one["behaviour"]: one for one in map(json.loads, ran.out.splitlines())}
    assert told["echo"]["pass"]
    assert not told["truncated"]["pass"]
    assert not told["lying-announcement"]["pass"]
    assert told["truncated"]["end_states"] == "not asked"
    assert ran.status == Exit.NEGATIVE


def test_nobody_there_is_a_failure_of_each_behaviour_and_no_traceback() -> None:
    ran = stepwedge("simulate", "--to", "127.0.0.1:9", "--no-check", "--only", "echo")
    assert ran.status == Exit.NEGATIVE
    assert "FAIL" in ran.out
    assert "Traceback" not in ran.err


def test_a_behaviour_that_nobody_knows_is_refused_with_those_that_there_are() -> None:
    ran = stepwedge("simulate", "--to", "127.0.0.1:9", "--no-check", "--only", "sleepy")
    assert ran.status == Exit.USAGE
    assert "well-behaved" in ran.err
