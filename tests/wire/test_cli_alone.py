"""The command where there is no cluster."""

from __future__ import annotations

import resource
import socket
import subprocess
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from cli import configuration
from cli.exit_codes import MEANING, Exit
from tests.wire.command import COMMAND, ROOT, environment, stepwedge

CT = Path(get_testdata_file("CT_small.dcm"))


def test_the_help_shows_every_exit_status() -> None:
    ran = stepwedge("--help", env={"COLUMNS": "140"})
    assert ran.status == 0
    for code, meaning in MEANING.items():
        assert f"{int(code)}  {meaning}" in ran.out


def test_the_help_comes_in_half_a_second() -> None:
    def processor_seconds() -> float:  # of the command alone, however busy the machine is
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert stepwedge("--help").status == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(processor_seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["send", str(CT)],
        ["send", str(CT), "--to", "nowhere", "--aet", "X"],
        ["send", str(CT), "--to", "localhost:104", "--aet", "AN_AE_TITLE_TOO_LONG"],
        ["studies", "--limit", "-1"],
        ["explain"],
        ["verify", "--as", "nobody"],
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str]) -> None:
    ran = stepwedge(*arguments)
    assert ran.status == Exit.USAGE, ran
    assert ran.err.startswith("error ")
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_no_command_is_answered_with_the_help() -> None:
    ran = stepwedge()
    assert ran.status == Exit.USAGE
    assert "Usage: stepwedge" in ran.out
    assert ran.err == ""


def test_the_version_names_the_build() -> None:
    ran = stepwedge("--version")
    assert ran.status == 0
    assert ran.out.startswith("stepwedge 0.")


@pytest.mark.parametrize(
    "command", [["studies"], ["explain", "1.2.3"], ["requeue", "1.2.3"], ["watch"], ["verify"], ["submit", str(CT)]]
)
def test_a_cluster_that_is_not_up_is_unreachable(command: list[str], tmp_path: Path) -> None:
    file = configuration.on_free_ports(tmp_path / "data")
    configuration.prepare(configuration.load(file))
    ran = stepwedge(*command, "--config", file)
    assert ran.status == Exit.UNREACHABLE, ran
    assert ran.failed_in_one_line("DEPENDENCY_UNAVAILABLE")
    assert "stepwedge up" in ran.err


def test_without_a_certificate_there_is_nothing_to_show(tmp_path: Path) -> None:
    ran = stepwedge("studies", "--config", configuration.on_free_ports(tmp_path / "data"))
    assert ran.status == Exit.CONFIGURATION
    assert ran.failed_in_one_line("CONFIGURATION")


@pytest.mark.parametrize("text", ["[ingest]\nlissen = 1\n", "not toml", '[ingest]\nlisten = "nowhere"\n', "\x00"])
def test_settings_that_are_wrong_are_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "stepwedge.toml"
    file.write_text(text)
    ran = stepwedge("studies", "--config", file)
    assert ran.status == Exit.CONFIGURATION
    assert ran.failed_in_one_line("CONFIGURATION")


def test_nobody_to_send_to_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        ran = stepwedge("send", CT, "--to", f"127.0.0.1:{taken.getsockname()[1]}", "--aet", "X")
    assert ran.status == Exit.UNREACHABLE
    assert ran.failed_in_one_line("DEPENDENCY_UNAVAILABLE")


def test_a_peer_that_speaks_something_else_is_not_a_dicom_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with subprocess.Popen(
            [*COMMAND, "send", str(CT), "--to", f"127.0.0.1:{port}", "--aet", "X"],
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
            text=True,
        ) as sending:
            peer, _ = server.accept()
            peer.recv(100)
            peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            peer.close()
            assert sending.wait(30) == Exit.UNREACHABLE
            assert sending.stderr is not None
            assert sending.stderr.read().count("\n") == 1


def test_a_path_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ran = stepwedge("send", tmp_path / "nothing", "--to", "127.0.0.1:104", "--aet", "X")
    assert ran.status == Exit.FILE
    assert ran.failed_in_one_line("FILE")


def test_doctor_says_what_to_do_before_the_first_start(tmp_path: Path) -> None:
    file = configuration.on_free_ports(tmp_path / "data")
    ran = stepwedge("doctor", "--config", file, "--json")
    levels = {line["check"]: line["level"] for line in ran.lines}
    assert levels["keys"] == levels["certificates"] == levels["ingest"] == "warn"
    assert all(line["advice"] for line in ran.lines if line["level"] != "ok")
    assert ran.status == 0


def test_doctor_fails_where_a_key_is_open_to_others_and_a_port_is_taken(tmp_path: Path) -> None:
    file = configuration.on_free_ports(tmp_path / "data")
    settings = configuration.load(file)
    configuration.prepare(settings)
    (settings.cluster.keys / "pseudonyms.key").chmod(0o644)
    port = int(settings.audit.listen.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        ran = stepwedge("doctor", "--config", file, "--json")
    failed = {line["check"] for line in ran.lines if line["level"] == "fail"}
    assert failed == {"keys", "audit"}
    assert ran.status == Exit.NEGATIVE


def test_doctor_reads_settings_that_are_wrong_to_the_user(tmp_path: Path) -> None:
    file = tmp_path / "stepwedge.toml"
    file.write_text("[cluster]\nproduction = 7\n")
    ran = stepwedge("doctor", "--config", file)
    assert ran.status == Exit.NEGATIVE
    assert "cluster.production" in ran.out
