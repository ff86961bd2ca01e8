"""The demo notices what goes otherwise than it must, and shows studies as they move."""

from __future__ import annotations

import json
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, SegmentationStorage

from cli import demo, terminal
from cli.demo import Demo
from cli.demo.board import Board
from cli.demo.forgery import forge
from cli.demo.material import CASES, Material
from cli.receiver import Receiver, receiver
from cli.send import Peer, Sent, send
from stepwedge.common.v1 import common_pb2
from stepwedge.ingest.v1 import ingest_pb2

CASE = CASES[0]
PATH = Path("CT_small.dcm")


def study(
    state: str = "DONE", verdict: str = "ACCEPT", reason: str = "NO_MODEL", instances: tuple[str, ...] = ("ASSESSED",)
) -> ingest_pb2.Study:
    decision = ingest_pb2.Decision(
        verdict=common_pb2.Verdict.Value(f"VERDICT_{verdict}"),
        reasons=[common_pb2.Reason.Value(f"REASON_{reason}")],
        details=["No model covers this."],
    )
    return ingest_pb2.Study(
        study_instance_uid="1.2.3",
        state=ingest_pb2.StudyState.Value(f"STUDY_STATE_{state}"),
        instances=[
            ingest_pb2.Instance(
                sop_instance_uid=f"1.2.3.{number}",
                state=ingest_pb2.InstanceState.Value(f"INSTANCE_STATE_{name}"),
            )
            for number, name in enumerate(instances)
        ],
        decisions=[decision] if state in ("DONE", "DELIVERING") else [],
    )


def concluded(of_study: ingest_pb2.Study | None, *, delivered: int = 1, sent: Sent | None = None) -> list[str]:
    """What a run of one case finds surprising."""
    run = Demo(Path(), Material(1, iter(()), {PATH: CASE}), own=False)
    run.sent = [sent or Sent(PATH, True, "0x0000", "stored", "1.2.3.0")]
    pacs = Receiver("PACS")
    pacs.instances = {f"1.2.3.{number}": str(CTImageStorage) for number in range(delivered)}
    pacs.instances["1.2.9"] = str(SegmentationStorage)  # a result is no image
    if of_study is not None:
        run.board.update(of_study, CASE.label)
    demo._conclude(run, pacs)
    return run.surprises


def test_a_run_as_it_must_be_holds_no_surprise() -> None:
    assert concluded(study()) == []


@pytest.mark.parametrize(
    ("of_study", "surprise"),
    [
        (study(verdict="REJECT"), "CT slice: REJECT, expected ACCEPT"),
        (study(reason="SATURATED"), "CT slice: without the reason NO_MODEL"),
        (study(state="PROCESSING"), "CT slice: no verdict"),
        (study(state="DEAD_LETTER"), "CT slice: no verdict"),
        (None, "CT slice: the study did not appear"),
    ],
)
def test_a_study_with_another_end_is_a_surprise(of_study: ingest_pb2.Study | None, surprise: str) -> None:
    assert surprise in concluded(of_study)


def test_an_accepted_image_that_did_not_reach_the_pacs_is_a_surprise() -> None:
    assert concluded(study(), delivered=0) == ["the PACS received 0 images and not 1"]


def test_an_object_that_was_not_stored_is_a_surprise() -> None:
    refused = Sent(PATH, False, "0xA700", "refused: out of resources")
    assert "CT_small.dcm was not stored: 0xA700 refused: out of resources" in concluded(None, sent=refused)


def test_where_nobody_sees_a_terminal_each_step_of_a_study_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.out.cache_clear()
    board = Board()
    with board.shown():
        board.update(study("RECEIVING", instances=("RECEIVED", "STORED")), "two images")
        board.update(study("RECEIVING", instances=("RECEIVED", "RECEIVED")), "two images")
        board.update(study("PROCESSING", instances=("ASSESSED", "ASSESSED")), "two images")
        board.update(study("PROCESSING", instances=("ASSESSED", "ASSESSED")), "two images")
        board.update(study("DONE", instances=("ASSESSED", "ASSESSED")), "two images")
    said = capsys.readouterr().out
    terminal.out.cache_clear()
    assert [" ".join(line.split()[2 if " s  " in line else 1 :]) for line in said.splitlines()] == [
        "two images received",
        "two images redacted, assessed",
        "two images decided ACCEPT",
        "No model covers this.",
    ]
    assert "\x1b" not in said


def export_of(records: list[dict[str, object]], file: Path) -> Path:
    leaves = [json.dumps(record, sort_keys=True, separators=(",", ":")).encode() for record in records]
    bundle = b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)
    path = f"tile/entries/000.p/{len(leaves)}"
    manifest = {"files": {path: sha256(bundle).hexdigest()}}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(path, bundle)
        archive.writestr("manifest.json", json.dumps(manifest))
    return file


def test_the_forger_changes_one_verdict_and_mends_the_manifest(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"index": 0, "kind": "RECEIVED", "event": {}},
        {"index": 1, "kind": "DECIDED", "event": {"verdict": "ACCEPT"}},
        {"index": 2, "kind": "DECIDED", "event": {"verdict": "REJECT"}},
    ]
    copy = tmp_path / "forged.zip"
    forged = forge(export_of(records, tmp_path / "log.zip"), copy)
    assert forged == (2, "REJECT", "ACCEPT")
    with zipfile.ZipFile(copy) as archive:
        bundle = archive.read("tile/entries/000.p/3")
        assert json.loads(archive.read("manifest.json"))["files"] == {
            "tile/entries/000.p/3": sha256(bundle).hexdigest()
        }
    assert b'"REJECT"' not in bundle
    assert bundle.count(b'"ACCEPT"') == 2


def test_a_log_without_a_decision_cannot_be_forged_so(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"index": 0, "kind": "RECEIVED", "event": {}}]
    assert forge(export_of(records, tmp_path / "log.zip"), tmp_path / "forged.zip") is None


def test_the_pacs_of_the_demo_counts_what_comes_again() -> None:
    from pydicom.data import get_testdata_file

    with receiver("DEMO_PACS") as pacs:
        for _ in range(2):
            send([Path(get_testdata_file("CT_small.dcm"))], Peer("127.0.0.1", pacs.port, "DEMO_PACS", "TESTER"))
        assert (len(pacs.instances), pacs.repeats) == (1, 1)
