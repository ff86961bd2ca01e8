"""What a person does when an object is lost or damaged on disk: requeue, and where it is an original, send it again.

The disk is damaged for real; ingest, the log and the object store are the real ones.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from shared.errors import ErrorCode, StepwedgeError
from stepwedge.ingest.v1 import ingest_pb2
from tests.wire.ingest_house import DX, House, Sender, dx, house, part10, submit
from tests.wire.ports import port


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all tests of this file."""
    with house(tmp_path_factory.mktemp("mending"), port) as made:
        yield made


def overwritten(path: Path) -> None:
    path.chmod(0o640)
    path.write_bytes(b"X" + path.read_bytes()[1:])


def cut(path: Path) -> None:
    path.chmod(0o640)
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {"overwritten": overwritten, "cut short": cut, "gone": Path.unlink}


def key(uid: str) -> ingest_pb2.StudyKey:
    return ingest_pb2.StudyKey(study_instance_uid=uid)


def explained(at_home: House, uid: str) -> Any:
    return at_home.ingest().ExplainStudy(ingest_pb2.ExplainStudyRequest(study=key(uid)), timeout=5)


def requeue(at_home: House, uid: str) -> None:
    at_home.ingest().RequeueStudy(ingest_pb2.RequeueStudyRequest(study=key(uid)), timeout=10)


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_a_damaged_deidentified_object_is_made_anew_after_a_requeue(at_home: House, name: str):
    ds = dx()
    zone = Path(at_home.settings.objects.deidentified)
    redaction: Any = at_home.redaction  # type: ignore[attr-defined]

    def damaged(response: Any) -> Any:
        DAMAGES[name](zone / response.object.sha256[:2] / response.object.sha256)
        return response

    redaction.answers[ds.SOPInstanceUID] = damaged
    submit(at_home.ingest(), part10(ds))
    at_home.in_state(ds.StudyInstanceUID, "DEAD_LETTER")
    story = explained(at_home, ds.StudyInstanceUID)
    assert "redaction makes the derived object anew" in story.next
    assert ("no longer in the object store" if name == "gone" else "not those that were stored") in story.why

    del redaction.answers[ds.SOPInstanceUID]
    requeue(at_home, ds.StudyInstanceUID)
    at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)


def again_by_dimse(at_home: House, ds: Any) -> None:
    with Sender(at_home.dimse, [(DX, str(ExplicitVRLittleEndian))]) as one:
        assert one.store(ds).Status == 0


def again_by_grpc(at_home: House, ds: Any) -> None:
    submit(at_home.ingest(), part10(ds))


@pytest.mark.parametrize("send", [again_by_dimse, again_by_grpc])
@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_a_damaged_original_is_mended_by_sending_it_again_and_a_requeue(
    at_home: House, name: str, send: Callable[[House, Any], None]
):
    ds = dx()
    redaction: Any = at_home.redaction  # type: ignore[attr-defined]
    # The first answer holds the study back until its object is damaged on the disk; from then on the store answers.
    redaction.answers[ds.SOPInstanceUID] = StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_CORRUPT, "damaged")
    send(at_home, ds)
    study = at_home.in_state(ds.StudyInstanceUID, "DEAD_LETTER")
    del redaction.answers[ds.SOPInstanceUID]
    sha256 = study.instances[0].sha256
    DAMAGES[name](Path(at_home.settings.objects.original) / sha256[:2] / sha256)
    requeue(at_home, ds.StudyInstanceUID)
    study = at_home.in_state(ds.StudyInstanceUID, "DEAD_LETTER")
    assert "sends the original again" in explained(at_home, ds.StudyInstanceUID).next

    send(at_home, ds)
    assert len(at_home.stored()[sha256]) == study.instances[0].size_bytes
    requeue(at_home, ds.StudyInstanceUID)
    study = at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    assert len(study.instances) == 1, "the same object is the same instance"
