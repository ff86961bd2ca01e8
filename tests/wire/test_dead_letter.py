"""The dead letter from the command line: listed with reason and cure, put back by error, on the record."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError
from tests.wire.command import stepwedge
from tests.wire.ingest_house import DX, House, Sender, dx, house
from tests.wire.ports import port


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("dead"), port, "max_attempts = 1") as made:
        yield made


@pytest.mark.timeout(300)
def test_what_was_given_up_is_listed_with_its_reason_and_its_cure_and_goes_back_by_error(at_home: House):
    empty = stepwedge("dead-letter", "--config", at_home.config)
    assert (empty.status, empty.out.strip()) == (Exit.OK, "the dead letter is empty")

    at_home.redaction.answers["*"] = StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "a defect")
    studies = [dx(), dx()]
    with Sender(at_home.dimse, [(DX, str(ExplicitVRLittleEndian))]) as sender:
        assert [int(sender.store(ds).Status) for ds in studies] == [0, 0]
    for ds in studies:
        at_home.in_state(ds.StudyInstanceUID, "DEAD_LETTER")

    listed = stepwedge("dead-letter", "--config", at_home.config)
    assert listed.status == Exit.NEGATIVE
    for needle in (*(str(ds.StudyInstanceUID) for ds in studies), "INTERNAL", "requeues it", "2 in the dead letter"):
        assert needle in listed.out
    as_json = stepwedge("dead-letter", "--config", at_home.config, "--json").lines
    assert {one["study"] for one in as_json} == {str(ds.StudyInstanceUID) for ds in studies}
    assert {one["error"] for one in as_json} == {"INTERNAL"}
    assert all(one["why"] and one["next"] for one in as_json)

    other = stepwedge("dead-letter", "--config", at_home.config, "--error", "STORAGE_FULL", "--requeue")
    assert other.status == Exit.OK
    assert stepwedge("dead-letter", "--config", at_home.config, "--error", "NOPE").failed_in_one_line("INVALID_REQUEST")

    at_home.redaction.answers.clear()
    back = stepwedge("dead-letter", "--config", at_home.config, "--error", "internal", "--requeue", "--json")
    assert back.status == Exit.OK
    assert [one["requeued"] for one in back.lines] == [True, True]
    for ds in studies:
        study = at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
        records = at_home.entries(study=study.pseudonym)
        assert [one.requeued.requested_by for one in records if one.HasField("requeued")] == ["operator"]
