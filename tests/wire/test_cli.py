"""The command against a running cluster, each time as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from cli.exit_codes import Exit
from stepwedge.audit.v1 import audit_pb2
from tests.wire.cluster import RunningCluster, eventually, running_cluster
from tests.wire.command import COMMAND, ROOT, environment, stepwedge
from verifier import verify as verifier

CT = Path(get_testdata_file("CT_small.dcm"))
MR = Path(get_testdata_file("MR_small_jp2klossless.dcm"))
CT_STUDY = str(pydicom.dcmread(CT, stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("cli")) as cluster:
        sent = stepwedge("send", CT, MR, "--to", address(cluster), "--aet", "STEPWEDGE")
        assert sent.status == 0, sent
        cluster.decided(CT_STUDY)
        cluster.decided(str(pydicom.dcmread(MR, stop_before_pixels=True).StudyInstanceUID))
        yield cluster


def address(cluster: RunningCluster) -> str:
    return f"{cluster.dimse.host}:{cluster.dimse.port}"


def fresh(folder: Path, source: Path = CT) -> tuple[Path, str]:
    """A copy of an object under UIDs of its own; the file and its Study Instance UID."""
    ds = pydicom.dcmread(source)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file = folder / f"{ds.SOPInstanceUID}.dcm"
    ds.save_as(file, enforce_file_format=True)
    return file, str(ds.StudyInstanceUID)


def test_send_sums_up_by_status_and_names_what_is_not_dicom(cluster: RunningCluster, tmp_path: Path) -> None:
    file, _ = fresh(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing to see")
    ran = stepwedge("send", tmp_path, "--to", address(cluster), "--aet", "STEPWEDGE")
    assert ran.status == Exit.NEGATIVE
    assert "1  0x0000                 stored" in ran.out
    assert "1  NOT_DICOM " in ran.out
    assert ran.err == f"error NOT_DICOM: {tmp_path / 'notes.txt'}: not a DICOM file (PS3.10)\n"
    assert file.exists()


def test_send_with_json_prints_one_object_a_file_and_nothing_else(cluster: RunningCluster, tmp_path: Path) -> None:
    file, _ = fresh(tmp_path)
    ran = stepwedge("send", file, "--to", address(cluster), "--aet", "STEPWEDGE", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert [(line["file"], line["ok"], line["status"]) for line in ran.lines] == [(str(file), True, "0x0000")]


def test_the_same_file_sent_again_is_the_same_success(cluster: RunningCluster) -> None:
    received = {"study": cluster.decided(CT_STUDY).pseudonym, "kind": audit_pb2.RECORD_KIND_RECEIVED}
    before = len(cluster.entries(**received))
    ran = stepwedge("send", CT, "--to", address(cluster), "--aet", "STEPWEDGE", "--json")
    assert ran.lines[0]["status"] == "0x0000"
    assert len(cluster.entries(**received)) == before


def test_submit_hands_files_in_over_grpc(cluster: RunningCluster, tmp_path: Path) -> None:
    file, study = fresh(tmp_path)
    (tmp_path / "zero").write_bytes(b"")
    ran = stepwedge("submit", file, tmp_path / "zero", "--config", cluster.file, "--as", "pacs", "--json")
    assert ran.status == Exit.NEGATIVE
    assert [line["status"] for line in ran.lines] == ["OK", "NOT_DICOM"]
    assert cluster.decided(study).decisions


def test_studies_lists_what_there_is_newest_first(cluster: RunningCluster) -> None:
    listed = stepwedge("studies", "--config", cluster.file, "--json")
    assert listed.status == 0
    times = [line["first_received_at"] for line in listed.lines]
    assert times == sorted(times, reverse=True)
    (ct,) = [line for line in listed.lines if line["study_instance_uid"] == CT_STUDY]
    assert (ct["state"], ct["decisions"][0]["verdict"]) == ("DONE", "ACCEPT")
    shown = stepwedge("studies", "--config", cluster.file)
    assert CT_STUDY in shown.out
    assert "ACCEPT" in shown.out


def test_studies_of_a_state_are_those_alone(cluster: RunningCluster) -> None:
    assert stepwedge("studies", "--config", cluster.file, "--state", "dead-letter", "--json").lines == []
    assert stepwedge("studies", "--config", cluster.file, "--state", "done", "--limit", "1", "--json").lines
    wrong = stepwedge("studies", "--config", cluster.file, "--state", "lost")
    assert wrong.status == Exit.USAGE
    assert wrong.failed_in_one_line("INVALID_REQUEST")


def test_explain_answers_to_either_name_of_a_study(cluster: RunningCluster) -> None:
    by_uid = stepwedge("explain", CT_STUDY, "--config", cluster.file, "--json")
    assert by_uid.status == 0
    (story,) = by_uid.lines
    assert story["where"]
    assert story["why"]
    assert story["next"]
    assert [step["record_index"] for step in story["steps"] if step["record_index"] is not None]
    pseudonym = story["study"]["pseudonym"]
    assert stepwedge("explain", pseudonym, "--config", cluster.file, "--json").lines == by_uid.lines
    told = stepwedge("explain", CT_STUDY, "--config", cluster.file)
    assert story["where"] in told.out
    assert pseudonym in told.out


def test_a_study_that_is_not_there_is_an_error_of_its_own(cluster: RunningCluster) -> None:
    ran = stepwedge("explain", "1.2.3.4", "--config", cluster.file)
    assert ran.status == Exit.NOT_FOUND
    assert ran.failed_in_one_line("STUDY_NOT_FOUND")


def test_a_name_that_is_no_uid_is_refused_before_it_is_sent(cluster: RunningCluster) -> None:
    ran = stepwedge("explain", "MUSTERMANN^ERIKA", "--config", cluster.file)
    assert ran.failed_in_one_line("INVALID_UID")
    assert "MUSTERMANN" not in ran.err


@pytest.mark.parametrize("command", ["explain", "requeue"])
def test_no_name_at_all_is_a_wrong_command_line(cluster: RunningCluster, command: str) -> None:
    ran = stepwedge(command, "", "--config", cluster.file)
    assert ran.status == Exit.USAGE
    assert ran.failed_in_one_line("INVALID_REQUEST")


def test_a_study_that_is_not_in_the_dead_letter_is_not_requeued(cluster: RunningCluster) -> None:
    ran = stepwedge("requeue", CT_STUDY, "--config", cluster.file)
    assert ran.status == Exit.NEGATIVE
    assert ran.failed_in_one_line("WRONG_STATE")


def test_watch_tells_past_decisions_and_goes_on_after_a_cursor(cluster: RunningCluster, tmp_path: Path) -> None:
    first = stepwedge("watch", "--config", cluster.file, "--count", "1", "--json")
    assert first.status == 0
    (decision,) = first.lines
    second = stepwedge("watch", "--config", cluster.file, "--count", "1", "--since", decision["cursor"], "--json")
    assert second.lines[0]["record_index"] > decision["record_index"]


def test_watch_tells_a_decision_as_it_is_made_and_ends_well_at_ctrl_c(cluster: RunningCluster, tmp_path: Path) -> None:
    command = [*COMMAND, "watch", "--config", str(cluster.file), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=ROOT
    ) as watching:
        assert watching.stdout is not None
        seen: list[bytes] = []
        reader = threading.Thread(target=lambda: seen.extend(iter(watching.stdout.readline, b"")))
        reader.start()
        file, study = fresh(tmp_path)
        cluster.store([file])
        eventually(lambda: any(study.encode() in line for line in seen), what="the decision in the watch")
        watching.send_signal(signal.SIGINT)
        reader.join()
        assert watching.wait(10) == 0
        assert watching.stderr is not None
        assert watching.stderr.read() == b""


def test_watch_goes_on_where_it_was_when_ingest_comes_back(cluster: RunningCluster, tmp_path: Path) -> None:
    past = stepwedge("watch", "--config", cluster.file, "--count", "2", "--json").lines
    command = [*COMMAND, "watch", "--config", str(cluster.file), "--json", "--since", past[0]["cursor"]]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=ROOT, text=True
    ) as watching:
        assert watching.stdout is not None
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(iter(watching.stdout.readline, "")))
        reader.start()
        eventually(lambda: seen, what="the past decisions in the watch")
        for number in (signal.SIGKILL, signal.SIGTERM):
            cluster.kill("ingest", number, hold=True)
            cluster.release("ingest")
            cluster.wait_ready()
            file, study = fresh(tmp_path)
            cluster.store([file])
            eventually(lambda study=study: any(study in line for line in seen), what="the decision in the watch")
        watching.send_signal(signal.SIGINT)
        reader.join()
        assert watching.wait(10) == 0
        assert watching.stderr is not None
        # Once for both, unless the machine is so slow that the watch had settled in between.
        told = watching.stderr.read().splitlines()
        assert set(told) == {"ingest went away; what it decides is told when it is back (Ctrl-C to end)"}
        assert len(told) <= 2
    cursors = [json.loads(line)["cursor"] for line in seen]
    assert cursors == [line["cursor"] for line in told_after(cluster, past[0]["cursor"], len(seen))]


def told_after(cluster: RunningCluster, cursor: str, count: int) -> list[dict[str, Any]]:
    return stepwedge("watch", "--config", cluster.file, "--since", cursor, "--count", str(count), "--json").lines


def test_an_identity_that_may_not_is_refused(cluster: RunningCluster) -> None:
    ran = stepwedge("studies", "--config", cluster.file, "--as", "auditor")
    assert ran.status == Exit.REFUSED
    assert ran.failed_in_one_line("PERMISSION_DENIED")


def test_verify_proves_the_log_of_the_cluster(cluster: RunningCluster) -> None:
    ran = stepwedge("verify", "--config", cluster.file, "--as", "auditor", "--json")
    assert ran.status == 0, ran
    assert ran.lines[0]["status"] == verifier.PROVED
    said = stepwedge("verify", "--config", cluster.file)
    assert said.status == 0
    assert said.out.startswith("PROVED: ")


def test_an_export_is_verified_offline_and_a_changed_one_is_not(cluster: RunningCluster, tmp_path: Path) -> None:
    from cli.demo.forgery import forge

    file, forged = tmp_path / "log.zip", tmp_path / "forged.zip"
    assert stepwedge("export", file, "--config", cluster.file).status == 0
    key = cluster.settings.cluster.keys / "audit.vkey"
    assert stepwedge("verify", "--export", file, "--key", key, cwd=tmp_path).status == verifier.PROVED
    assert stepwedge("verify", "--export", file, "--older", file, cwd=tmp_path).status == verifier.PROVED
    what = forge(file, forged)
    assert what is not None
    ran = stepwedge("verify", "--export", forged, "--key", key, cwd=tmp_path)
    assert ran.status == verifier.ALTERED
    assert ran.failed_in_one_line("ALTERED")
    assert str(what.record) in ran.err
    cut = tmp_path / "cut.zip"
    cut.write_bytes(file.read_bytes()[:1000])
    assert stepwedge("verify", "--export", cut, cwd=tmp_path).status == verifier.TRUNCATED


def test_an_export_that_cannot_be_written_leaves_nothing_behind(cluster: RunningCluster, tmp_path: Path) -> None:
    ran = stepwedge("export", tmp_path / "no" / "log.zip", "--config", cluster.file)
    assert ran.status == Exit.FILE
    assert ran.err == f"error FILE: {tmp_path / 'no' / 'log.zip'}: its folder does not exist\n"
    assert list(tmp_path.iterdir()) == []
    ran = stepwedge("export", tmp_path / ("x" * 300), "--config", cluster.file)
    assert ran.status == Exit.FILE
    assert ran.err == f"error FILE: {tmp_path / ('x' * 300)}: file name too long\n"
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_a_file_only_when_told_to(cluster: RunningCluster, tmp_path: Path) -> None:
    file = tmp_path / "log.zip"
    file.write_text("another's")
    ran = stepwedge("export", file, "--config", cluster.file)
    assert ran.status == Exit.FILE
    assert ran.err == f"error FILE: {file}: exists already; --force replaces it\n"
    assert file.read_text() == "another's"
    assert stepwedge("export", file, "--config", cluster.file, "--force").status == 0
    assert file.read_bytes()[:2] == b"PK"
    assert list(tmp_path.iterdir()) == [file]


def test_doctor_finds_a_running_cluster_well(cluster: RunningCluster) -> None:
    ran = stepwedge("doctor", "--config", cluster.file, "--json")
    bad = [line for line in ran.lines if line["level"] == "fail"]
    assert bad == []
    assert ran.status == 0
    checks = {line["check"]: line["level"] for line in ran.lines}
    for service in ("ingest", "redaction", "inference", "audit", "dicom", "model", "policy", "keys", "certificates"):
        assert checks[service] == "ok", ran.out


def test_a_reader_that_went_away_is_no_error_message(cluster: RunningCluster) -> None:
    command = [*COMMAND, "studies", "--config", str(cluster.file), "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment(), cwd=ROOT, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (Exit.BROKEN_PIPE, b"")
