"""The list of studies, at every width."""

from collections.abc import Iterator

import pytest

from cli import studies, terminal
from stepwedge.common.v1 import common_pb2
from stepwedge.ingest.v1 import ingest_pb2

UID = "2.25." + "7" * 59
REASONS = [number for name, number in common_pb2.Reason.items() if not name.endswith("UNSPECIFIED")]
ERRORS = [number for name, number in common_pb2.ErrorCode.items() if not name.endswith("UNSPECIFIED")]


@pytest.fixture(params=["60", "80", "100", "132", "200", ""])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal of this width; where it is empty, stdout is no terminal."""
    if request.param:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", request.param)
    monkeypatch.setenv("TERM", "dumb")
    terminal.out.cache_clear()
    yield
    terminal.out.cache_clear()


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("error", ERRORS)
def test_no_uid_and_no_error_code_is_cut_or_wrapped(
    error: common_pb2.ErrorCode.ValueType, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ingest_pb2.Study(study_instance_uid=UID, state=ingest_pb2.STUDY_STATE_DEAD_LETTER, last_error=error)
    study.first_received_at.FromSeconds(1_700_000_000)
    studies.print_studies([study])
    said = capsys.readouterr().out
    assert UID in said
    assert studies.error_name(error) in said
    assert "DEAD_LETTER" in said
    assert "…" not in said


@pytest.mark.usefixtures("columns")
def test_many_reasons_are_wrapped_between_them(capsys: pytest.CaptureFixture[str]) -> None:
    decision = ingest_pb2.Decision(verdict=common_pb2.VERDICT_REVIEW, reasons=REASONS)
    study = ingest_pb2.Study(study_instance_uid=UID, state=ingest_pb2.STUDY_STATE_DONE, decisions=[decision])
    studies.print_studies([study])
    said = capsys.readouterr().out
    assert all(studies.reason_name(reason) in said for reason in REASONS)
