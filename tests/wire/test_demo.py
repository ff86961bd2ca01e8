"""`make demo` as a newcomer runs it: a process of its own, to its end."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from cli.demo.material import CASES
from cli.exit_codes import Exit
from tests.wire.command import Ran, stepwedge
from verifier import verify


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path, float]:
    data = tmp_path_factory.mktemp("demo") / "data"
    began = time.monotonic()
    ran = stepwedge("demo", "--data", data, seconds=110)
    return ran, data, time.monotonic() - began


def test_the_demo_goes_as_it_must_within_a_minute(ran: tuple[Ran, Path, float]) -> None:
    done, _, seconds = ran
    assert done.status == 0, done.out + done.err
    assert "Everything went as it must" in done.out
    assert done.err == ""
    assert seconds < 60


def test_the_cluster_of_the_demo_is_ready_within_ten_seconds(ran: tuple[Ran, Path, float]) -> None:
    (ready,) = re.findall(r"ready in ([0-9.]+) s", ran[0].out)
    assert float(ready) < 10


def test_each_study_is_shown_as_it_moves_and_with_its_verdict(ran: tuple[Ran, Path, float]) -> None:
    lines = ran[0].out.splitlines()
    for case in CASES:
        moves = [line for line in lines if re.match(rf"\s+[0-9.]+ s  {re.escape(case.label)} ", line)]
        assert moves, case.label
        assert re.search(r"decided (ACCEPT|REVIEW|REJECT)$", moves[-1]), moves[-1]


def test_the_log_is_proved_and_the_forgery_is_named(ran: tuple[Ran, Path, float]) -> None:
    done, data, _ = ran
    assert re.search(r"PROVED: [0-9]+ records", done.out)
    (record,) = re.findall(r"record ([0-9]+): (?:REJECT|REVIEW) made into ACCEPT", done.out)
    assert re.search(rf"ALTERED: .*\b{record}\b", done.out)
    assert f"exit status {verify.ALTERED}" in done.out
    assert verify.verify(str(data / "log.zip")).code == verify.PROVED
    assert verify.verify(str(data / "log-forged.zip")).code == verify.ALTERED


def test_the_output_is_plain_text_for_a_hundred_columns(ran: tuple[Ran, Path, float]) -> None:
    done, data, _ = ran
    assert "\x1b" not in done.out
    assert "\r" not in done.out
    assert [line for line in done.out.splitlines() if len(line) > 100 and str(data) not in line] == []


def test_nothing_of_the_demo_is_left_running(ran: tuple[Ran, Path, float]) -> None:
    _, data, _ = ran
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            commands.append((process / "environ").read_bytes())
        except OSError:
            continue
    assert not [command for command in commands if str(data).encode() in command]


def test_the_users_own_folder_is_sent_and_what_is_not_dicom_is_named(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm", "reportsi.dcm"):
        shutil.copy(get_testdata_file(name), own)
    (own / "README.txt").write_text("about these images")
    done = stepwedge("demo", "--input", own, "--data", tmp_path / "data", seconds=110)
    assert done.status == 0, done.out + done.err
    assert "not taken: README.txt: NOT_DICOM" in done.out
    for name in ("CT_small.dcm", "MR_small.dcm", "reportsi.dcm"):
        assert re.search(rf"{name} .*decided (ACCEPT|REVIEW|REJECT)", done.out)


def test_a_folder_without_one_image_does_not_go_as_it_must(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "README.txt").write_text("about no images")
    done = stepwedge("demo", "--input", own, "--data", tmp_path / "data", seconds=110)
    assert done.status == Exit.NEGATIVE
    assert "error UNEXPECTED: not one file was stored" in done.err


def test_a_data_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    done = stepwedge("demo", "--data", tmp_path)
    assert done.status == Exit.FILE
    assert done.failed_in_one_line("FILE")
