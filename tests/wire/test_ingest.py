"""The gRPC door and the hallway: submit, decide, explain, watch, requeue, deliver, and what each failure leads to."""

import threading
import time
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from pynetdicom import AE, AllStoragePresentationContexts, evt

from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.identity import Identity
from shared.pki import Credentials
from stepwedge.common.v1 import common_pb2
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.wire.cluster import eventually
from tests.wire.ingest_house import (
    CANARY_WORDS,
    DX,
    House,
    Sender,
    assessed,
    dx,
    house,
    part10,
    refused_with,
    submit,
)
from tests.wire.ports import port

EXPLICIT = "1.2.840.10008.1.2.1"


class Pacs:
    """A storage SCP of another maker's library that keeps what it gets, or answers as it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.status = 0x0000
        self.ae = AE("PACS")
        self.ae.supported_contexts = AllStoragePresentationContexts
        self.server: Any = None
        self.port = 0

    def start(self) -> None:
        handlers = [(evt.EVT_C_STORE, self._store)]
        self.server = self.ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = self.server.server_address[1]

    def stop(self) -> None:
        self.server.shutdown()

    def _store(self, event: Any) -> int:
        if self.status == 0:
            self.got.append((str(event.request.AffectedSOPInstanceUID), event.request.DataSet.getvalue()))
        return self.status


@pytest.fixture(scope="module")
def pacs() -> Iterator[Pacs]:
    made = Pacs()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory, pacs: Pacs) -> Iterator[House]:
    """One house for all tests of this file; REJECTed studies go to the PACS."""
    toml = f"""
max_attempts = 2
max_object_bytes = 4000000
[[ingest.destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs.port}
verdicts = ["REJECT"]
"""
    with house(tmp_path_factory.mktemp("ingest"), port, toml) as made:
        yield made


@pytest.fixture
def nothing_told(at_home: House) -> Iterator[None]:
    """The neighbours answer as usual again after the test."""
    yield
    at_home.redaction.answers.clear()
    at_home.inference.answers.clear()


def rejected(answer: Any) -> Any:
    """Inference finds the image blank."""
    return assessed(common_pb2.REASON_BLANK_IMAGE, common_pb2.OUTCOME_FAIL, detail="Blank, all of it.")


def key(uid: str) -> ingest_pb2.StudyKey:
    return ingest_pb2.StudyKey(study_instance_uid=uid)


def kinds(at_home: House, study: ingest_pb2.Study) -> list[str]:
    """The kinds of the records on a study, in the order of the log."""
    return [str(record.WhichOneof("event")) for record in at_home.entries(study=study.pseudonym)]


def test_a_submitted_object_is_kept_as_it_is_recorded_and_decided(at_home: House):
    ds = dx()
    data = part10(ds)
    answer = submit(at_home.ingest(Identity.PACS), data, 1000)
    assert answer.sha256 == sha256(data).hexdigest()
    assert at_home.stored()[answer.sha256] == data
    assert (answer.study_instance_uid, answer.sop_instance_uid) == (ds.StudyInstanceUID, ds.SOPInstanceUID)
    study = at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    (decision,) = study.decisions
    assert (decision.verdict, decision.revision, decision.instances) == (common_pb2.VERDICT_ACCEPT, 1, 1)
    records = at_home.entries(study=study.pseudonym)
    assert [record.WhichOneof("event") for record in records] == ["received", "decided"]
    assert records[1].pins.policy_sha256 == decision.policy_sha256
    assert records[1].idempotency_key == f"decided/{study.pseudonym}/1"
    assert answer.record_index < decision.record_index


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "NOT_DICOM"),
        (b"GIF89a" * 50, "NOT_DICOM"),
        (part10(dx())[:900], "MALFORMED_DICOM"),
        (part10(dx())[:140], "MALFORMED_DICOM"),
        (part10(dx()) + bytes(4_000_001), "OBJECT_TOO_LARGE"),
    ],
    ids=["nothing", "a picture", "truncated", "only a beginning", "too large"],
)
def test_a_bad_object_is_refused_with_its_code_and_leaves_nothing(at_home: House, data: bytes, code: str):
    before = set(at_home.stored())
    with refused_with(code):
        submit(at_home.ingest(), data)
    assert set(at_home.stored()) == before
    assert at_home.incoming_files() == []


def test_a_file_whose_header_names_another_class_than_its_data_set_is_refused(at_home: House):
    ds = dx()
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    from io import BytesIO

    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=False)
    with refused_with("SOP_CLASS_MISMATCH"):
        submit(at_home.ingest(), buffer.getvalue())


def test_a_chunk_over_the_limit_is_refused(at_home: House):
    with refused_with("INVALID_REQUEST"):
        submit(at_home.ingest(), bytes(1_500_000), 1_200_000)


def test_a_message_over_the_limit_of_the_transport_is_refused(at_home: House):
    ca, certificate, private_key = Credentials.load(at_home.settings.cluster.pki, Identity.PACS).read()
    channel = grpc.secure_channel(
        at_home.settings.ingest.address,
        grpc.ssl_channel_credentials(ca, private_key, certificate),
        # A client that does not keep to the limit by itself.
        [("grpc.ssl_target_name_override", Identity.INGEST.host), ("grpc.max_send_message_length", -1)],
    )
    with channel, refused_with("INVALID_REQUEST"):  # RESOURCE_EXHAUSTED, from the transport
        submit(ingest_pb2_grpc.IngestServiceStub(channel), bytes(5_000_000), 5_000_000)
    assert submit(at_home.ingest(), part10(dx())).sha256


def test_a_stream_that_is_broken_off_leaves_nothing_and_the_next_one_works(at_home: House):
    data = part10(dx())
    stub = at_home.ingest()
    hold = threading.Event()

    def chunks() -> Iterator[ingest_pb2.SubmitInstanceRequest]:
        yield ingest_pb2.SubmitInstanceRequest(chunk=data[:500])
        hold.wait(20)

    call = stub.SubmitInstance.future(chunks(), timeout=20)
    eventually(lambda: len(at_home.incoming_files()) == 1, what="a file being received")
    call.cancel()
    eventually(lambda: at_home.incoming_files() == [], what="no half-received file")
    hold.set()
    assert submit(stub, data).duplicate is False


def test_a_stream_broken_off_between_two_elements_is_not_taken_for_a_shorter_object(at_home: House):
    stub = at_home.ingest()
    uids = []
    for _ in range(20):
        ds = dx()
        data = part10(ds)
        uids.append(ds.StudyInstanceUID)
        hold = threading.Event()

        def chunks(head: bytes, until: threading.Event) -> Iterator[ingest_pb2.SubmitInstanceRequest]:
            yield ingest_pb2.SubmitInstanceRequest(chunk=head)
            until.wait(20)

        call = stub.SubmitInstance.future(chunks(data[: data.index(b"\xe0\x7f\x10\x00")], hold), timeout=20)
        eventually(lambda: len(at_home.incoming_files()) == 1, what="a file being received")
        call.cancel()
        hold.set()
        eventually(lambda: at_home.incoming_files() == [], what="no half-received file")
    assert [at_home.study(uid) for uid in uids] == [None] * 20


def test_identities_may_call_what_the_table_says_and_no_more(at_home: House):
    for identity in (Identity.AUDITOR, Identity.REDACTION, Identity.INFERENCE):
        with refused_with("PERMISSION_DENIED"):
            submit(at_home.ingest(identity), part10(dx()))
    with refused_with("PERMISSION_DENIED"):
        at_home.ingest(Identity.PACS).RequeueStudy(ingest_pb2.RequeueStudyRequest(study=key("1.2.3")), timeout=5)


def test_an_unknown_study_is_not_found_and_an_unnamed_one_is_no_request(at_home: House):
    stub = at_home.ingest()
    with refused_with("STUDY_NOT_FOUND"):
        stub.GetStudy(ingest_pb2.GetStudyRequest(study=key("1.2.3.4")), timeout=5)
    with refused_with("INVALID_REQUEST"):
        stub.ExplainStudy(ingest_pb2.ExplainStudyRequest(), timeout=5)
    with refused_with("INVALID_REQUEST"):
        stub.ListStudies(ingest_pb2.ListStudiesRequest(page_token="'; DROP TABLE studies"), timeout=5)


def test_a_study_is_found_by_its_pseudonym_and_listed_newest_first(at_home: House):
    stub = at_home.ingest()
    uids = [submit(stub, part10(dx())).study_instance_uid for _ in range(3)]
    found = at_home.study(uids[0])
    assert found is not None
    request = ingest_pb2.GetStudyRequest(study=ingest_pb2.StudyKey(pseudonym=found.pseudonym))
    assert stub.GetStudy(request, timeout=5).study.study_instance_uid == uids[0]
    first = stub.ListStudies(ingest_pb2.ListStudiesRequest(page_size=2), timeout=5)
    second = stub.ListStudies(ingest_pb2.ListStudiesRequest(page_size=2, page_token=first.next_page_token), timeout=5)
    listed = [study.study_instance_uid for study in (*first.studies, *second.studies)]
    assert listed[:3] == uids[::-1]


def test_a_late_image_makes_a_second_revision_that_names_the_first(at_home: House):
    first = dx()
    stub = at_home.ingest()
    submit(stub, part10(first))
    at_home.in_state(first.StudyInstanceUID, "DONE", revision=1)
    submit(stub, part10(dx(study=first.StudyInstanceUID, seed=3)))
    study = at_home.in_state(first.StudyInstanceUID, "DONE", revision=2)
    assert [decision.instances for decision in study.decisions] == [1, 2]
    records = [record.decided for record in at_home.entries(study=study.pseudonym) if record.HasField("decided")]
    assert [record.revision for record in records] == [1, 2]
    assert records[1].previous_index == study.decisions[0].record_index


@pytest.mark.usefixtures("nothing_told")
def test_burned_in_text_is_not_passed_on_and_makes_a_review(at_home: House):
    ds = dx()

    def burned(answer: Any) -> Any:
        answer.receipt.burned_in_text_possible = True
        answer.receipt.burned_in_text_detail = "Ultrasound frames carry text."
        return answer

    at_home.redaction.answers[ds.SOPInstanceUID] = burned
    submit(at_home.ingest(), part10(ds))
    study = at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    (instance,) = study.instances
    assert instance.verdict == common_pb2.VERDICT_NOT_ASSESSABLE
    assert list(instance.reasons) == [common_pb2.REASON_BURNED_IN_TEXT_POSSIBLE]
    assert study.decisions[0].verdict == common_pb2.VERDICT_REVIEW
    assert list(study.decisions[0].details) == ["Ultrasound frames carry text."]
    assert instance.pseudonym not in at_home.inference.calls


@pytest.mark.usefixtures("nothing_told")
@pytest.mark.parametrize("code", ["NOT_REDACTABLE", "RESIDUAL_IDENTITY", "MALFORMED_DICOM"])
def test_an_object_that_redaction_refuses_is_recorded_as_failed_and_reviewed_not_tried_again(at_home: House, code: str):
    ds = dx()
    at_home.redaction.answers[ds.SOPInstanceUID] = StepwedgeError(ErrorCode.Value(f"ERROR_CODE_{code}"), "refused")
    submit(at_home.ingest(), part10(ds))
    study = at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    assert list(study.decisions[0].reasons) == [common_pb2.REASON_NOT_REDACTABLE]
    assert study.decisions[0].verdict == common_pb2.VERDICT_REVIEW
    assert kinds(at_home, study) == ["received", "failed", "decided"]
    failed = at_home.entries(study=study.pseudonym)[1].failed
    assert (failed.step, failed.permanent, failed.attempts) == ("redact", True, 1)
    assert at_home.redaction.calls.count(ds.SOPInstanceUID) == 1


@pytest.mark.usefixtures("nothing_told")
def test_the_policy_turns_findings_into_the_verdict_and_its_words(at_home: House, pacs: Pacs):
    ds = dx()
    at_home.inference.answers[at_home.redaction.pseudonyms.uid(ds.SOPInstanceUID)] = rejected
    submit(at_home.ingest(), part10(ds))
    study = at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    decision = study.decisions[0]
    assert decision.verdict == common_pb2.VERDICT_REJECT
    assert list(decision.reasons) == [common_pb2.REASON_BLANK_IMAGE]
    assert list(decision.details) == ["Blank, all of it."]
    # A REJECT goes to the destination that asks for it, once, byte for byte, after the record of the decision.
    assert [content for uid, content in pacs.got if uid == ds.SOPInstanceUID] == [part10(ds)[-len(pacs.got[-1][1]) :]]
    assert kinds(at_home, study) == ["received", "decided", "delivered"]


@pytest.mark.usefixtures("nothing_told")
def test_the_verdict_on_an_image_is_shown_no_sooner_than_the_recorded_decision(at_home: House):
    ds = dx()
    at_home.inference.answers[at_home.redaction.pseudonyms.uid(ds.SOPInstanceUID)] = rejected
    submit(at_home.ingest(), part10(ds))
    before = set()

    def decided() -> ingest_pb2.Study | None:
        study = at_home.study(ds.StudyInstanceUID)
        if study is not None and study.decisions:
            return study
        before.update((one.state, one.verdict, *one.reasons) for one in (study.instances if study else []))
        return None

    study = eventually(decided)
    assert {verdict for _, verdict, *_ in before} == {common_pb2.VERDICT_UNSPECIFIED}
    assert all(len(seen) == 2 for seen in before), "no reason either"
    assert study.instances[0].verdict == common_pb2.VERDICT_REJECT
    assert list(study.instances[0].reasons) == [common_pb2.REASON_BLANK_IMAGE]


def test_uploads_that_fall_silent_leave_places_for_questions(at_home: House):
    stub = at_home.ingest()
    chunk = ingest_pb2.SubmitInstanceRequest(chunk=b"\0" * 128)
    over = threading.Event()

    def forever() -> Iterator[ingest_pb2.SubmitInstanceRequest]:
        yield chunk
        over.wait()

    silent = [stub.SubmitInstance.future(forever(), timeout=60) for _ in range(80)]
    try:
        refused = [call for call in silent if _refused_soon(call)]
        assert len(refused) == 80 - 32
        assert stub.ListStudies(ingest_pb2.ListStudiesRequest(page_size=1), timeout=5).studies
    finally:
        for call in silent:
            call.cancel()
        over.set()
    ds = dx()
    eventually(lambda: _taken(at_home, part10(ds)), what="a place for the next upload")


def _refused_soon(call: Any) -> bool:
    try:
        return from_rpc(call.exception(timeout=0.2)).code == ErrorCode.ERROR_CODE_OVERLOADED
    except grpc.FutureTimeoutError:
        return False


def _taken(at_home: House, data: bytes) -> bool:
    try:
        return bool(submit(at_home.ingest(), data).sha256)
    except grpc.RpcError:
        return False


@pytest.mark.usefixtures("nothing_told")
def test_a_second_revision_sends_only_what_the_destination_has_not_got(at_home: House, pacs: Pacs):
    at_home.inference.answers["*"] = rejected
    stub = at_home.ingest()
    first = dx()
    submit(stub, part10(first))
    at_home.in_state(first.StudyInstanceUID, "DONE", revision=1)
    second = dx(study=first.StudyInstanceUID)
    submit(stub, part10(second))
    at_home.in_state(first.StudyInstanceUID, "DONE", revision=2)
    got = [uid for uid, _ in pacs.got if uid in (first.SOPInstanceUID, second.SOPInstanceUID)]
    assert got == [first.SOPInstanceUID, second.SOPInstanceUID]


@pytest.mark.usefixtures("nothing_told")
def test_a_destination_that_refuses_for_good_puts_the_study_into_the_dead_letter_until_a_person_requeues_it(
    at_home: House, pacs: Pacs
):
    at_home.inference.answers["*"] = rejected
    ds = dx()
    pacs.status = 0xA900
    try:
        submit(at_home.ingest(), part10(ds))
        study = at_home.in_state(ds.StudyInstanceUID, "DEAD_LETTER")
    finally:
        pacs.status = 0
    assert study.decisions[0].verdict == common_pb2.VERDICT_REJECT, "the verdict is out all the same"
    assert kinds(at_home, study) == ["received", "decided", "failed"]
    stub = at_home.ingest()
    explained = stub.ExplainStudy(ingest_pb2.ExplainStudyRequest(study=key(ds.StudyInstanceUID)), timeout=5)
    assert "dead letter" in explained.where
    assert "requeue" in explained.next
    stub.RequeueStudy(ingest_pb2.RequeueStudyRequest(study=key(ds.StudyInstanceUID)), timeout=10)
    study = at_home.in_state(ds.StudyInstanceUID, "DONE")
    assert [decision.revision for decision in study.decisions] == [1], "requeued to deliver, not to decide again"
    assert kinds(at_home, study)[3:] == ["requeued", "delivered"]
    with refused_with("WRONG_STATE"):
        stub.RequeueStudy(ingest_pb2.RequeueStudyRequest(study=key(ds.StudyInstanceUID)), timeout=10)


@pytest.mark.usefixtures("nothing_told")
def test_a_destination_that_is_away_is_tried_again_without_an_attempt_being_counted_against_the_study(
    at_home: House, pacs: Pacs
):
    at_home.inference.answers["*"] = rejected
    ds = dx()
    pacs.stop()
    try:
        submit(at_home.ingest(), part10(ds))
        at_home.in_state(ds.StudyInstanceUID, "DELIVERING")

        def failed() -> bool:
            study = at_home.study(ds.StudyInstanceUID)
            return study is not None and "failed" in kinds(at_home, study)

        eventually(failed, what="the failed delivery in the log")
    finally:
        pacs.start()
    at_home.in_state(ds.StudyInstanceUID, "DONE", 20)
    assert [uid for uid, _ in pacs.got].count(ds.SOPInstanceUID) == 1


@pytest.mark.usefixtures("nothing_told")
def test_a_defect_is_tried_again_and_ends_in_the_dead_letter_where_nothing_is_lost(at_home: House):
    ds = dx()

    def defect(answer: Any) -> Any:
        raise RuntimeError(f"{ds.PatientName} must not turn up")

    at_home.redaction.answers[ds.SOPInstanceUID] = defect
    submit(at_home.ingest(), part10(ds))
    study = at_home.in_state(ds.StudyInstanceUID, "DEAD_LETTER")
    assert study.last_error == ErrorCode.ERROR_CODE_INTERNAL
    failed = [record.failed for record in at_home.entries(study=study.pseudonym) if record.HasField("failed")]
    assert [(one.attempts, one.permanent) for one in failed] == [(1, False), (2, True)]
    # A late image is kept and recorded, and waits there too.
    late = dx(study=ds.StudyInstanceUID)
    submit(at_home.ingest(), part10(late))
    at_home.in_state(ds.StudyInstanceUID, "DEAD_LETTER")
    del at_home.redaction.answers[ds.SOPInstanceUID]
    at_home.ingest().RequeueStudy(ingest_pb2.RequeueStudyRequest(study=key(ds.StudyInstanceUID)), timeout=10)
    study = at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    assert study.decisions[0].instances == 2


@pytest.mark.usefixtures("nothing_told")
def test_an_image_that_waits_for_its_next_attempt_is_waited_for_and_no_defect_is_counted(at_home: House):
    ds = dx()
    other = dx(study=ds.StudyInstanceUID)
    submit(at_home.ingest(), part10(other))
    seen: list[float] = []

    def late_and_once(answer: Any) -> Any:
        seen.append(time.monotonic())
        if len(seen) == 1:
            time.sleep(0.5)  # a slow answer: the quiet period ends meanwhile
            raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "a worker of redaction died", permanent=False)
        return answer

    at_home.redaction.answers[ds.SOPInstanceUID] = late_and_once
    submit(at_home.ingest(), part10(ds))
    study = at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    failed = [record.failed for record in at_home.entries(study=study.pseudonym) if record.HasField("failed")]
    assert [(one.step, one.attempts) for one in failed] == [("redact", 1)]
    assert study.decisions[-1].instances == 2
    assert not [one for one in at_home.log_events("ingest") if one.get("event") == "worker stumbled over a study"]


@pytest.mark.usefixtures("nothing_told")
def test_a_redaction_with_another_key_for_pseudonyms_is_waited_for_as_set_up_wrongly(at_home: House):
    ds = dx()

    def of_another_key(answer: Any) -> Any:
        answer.instance = "2.25.4711"
        return answer

    at_home.redaction.answers[ds.SOPInstanceUID] = of_another_key
    submit(at_home.ingest(), part10(ds))
    wanted = ErrorCode.ERROR_CODE_CONFIGURATION
    eventually(
        lambda: (at_home.study(ds.StudyInstanceUID) or ingest_pb2.Study()).last_error == wanted, what="the error"
    )
    at_home.redaction.answers.clear()
    study = at_home.in_state(ds.StudyInstanceUID, "DONE", 20, revision=1)
    failed = [record.failed for record in at_home.entries(study=study.pseudonym) if record.HasField("failed")]
    assert [(one.step, one.error, one.attempts) for one in failed] == [("redact", wanted, 0)]


@pytest.mark.usefixtures("nothing_told")
def test_a_dependency_that_is_away_stops_the_work_and_counts_against_no_study(at_home: House):
    away = StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the object store does not answer")
    at_home.redaction.answers["*"] = away
    stub = at_home.ingest()
    uids = [submit(stub, part10(dx())).study_instance_uid for _ in range(3)]

    def waiting() -> bool:
        found = [at_home.study(uid) for uid in uids]
        return all(study is not None and study.last_error == away.code for study in found)

    eventually(waiting, what="every study waiting")
    explained = stub.ExplainStudy(ingest_pb2.ExplainStudyRequest(study=key(uids[0])), timeout=5)
    assert "waits for redaction" in explained.why
    at_home.redaction.answers.clear()
    for uid in uids:
        study = at_home.in_state(uid, "DONE", 20, revision=1)
        failed = [record.failed for record in at_home.entries(study=study.pseudonym) if record.HasField("failed")]
        assert len(failed) <= 1, "no flood of records"
        assert all(one.attempts == 0 for one in failed)


def test_decisions_are_watched_from_a_cursor_on_without_missing_or_repeating_one(at_home: House):
    stub = at_home.ingest(Identity.PACS)

    def watch(cursor: str, count: int) -> list[ingest_pb2.WatchDecisionsResponse]:
        call = stub.WatchDecisions(ingest_pb2.WatchDecisionsRequest(cursor=cursor))
        seen = [next(call) for _ in range(count)]
        call.cancel()
        return seen

    for _ in range(2):
        at_home.in_state(submit(at_home.ingest(), part10(dx())).study_instance_uid, "DONE", revision=1)
    everything = watch("", 2)
    ds = dx()
    done = threading.Event()

    def later() -> None:
        done.wait(10)
        submit(at_home.ingest(), part10(ds))

    submitting = threading.Thread(target=later)
    submitting.start()
    rest: list[ingest_pb2.WatchDecisionsResponse] = []
    call = stub.WatchDecisions(ingest_pb2.WatchDecisionsRequest(cursor=everything[0].cursor))
    done.set()
    for response in call:
        rest.append(response)
        if response.decision.study_instance_uid == ds.StudyInstanceUID:
            break
    call.cancel()
    submitting.join()
    assert rest[0] == everything[1]
    cursors = [int(one.cursor) for one in rest]
    assert cursors == list(range(cursors[0], cursors[0] + len(cursors))), "none missing, none twice"
    assert watch(rest[-2].cursor, 1) == [rest[-1]]
    with refused_with("INVALID_REQUEST"):
        next(stub.WatchDecisions(ingest_pb2.WatchDecisionsRequest(cursor="-1")))


def test_an_explanation_tells_the_story_of_a_study_with_the_places_in_the_log(at_home: House):
    ds = dx()
    submit(at_home.ingest(), part10(ds))
    at_home.in_state(ds.StudyInstanceUID, "DONE", revision=1)
    answer = at_home.ingest().ExplainStudy(ingest_pb2.ExplainStudyRequest(study=key(ds.StudyInstanceUID)), timeout=5)
    assert answer.where == "Done: revision 1 is ACCEPT."
    assert answer.why == "Every step so far succeeded."
    assert [step.what for step in answer.steps] == [
        "Instance 1 (DX) received by GRPC.",
        "Instance 1 (DX) de-identified.",
        "Instance 1 (DX) assessed.",
        "Revision 1 decided: ACCEPT.",
    ]
    assert all(step.HasField("record_index") for step in answer.steps)


def test_nothing_that_names_a_person_is_in_logs_metrics_records_database_or_file_names(at_home: House):
    with urllib.request.urlopen(f"http://{at_home.settings.ingest.metrics}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert "stepwedge_ingest_received_objects_total" in metrics
    data = at_home.settings.cluster.data
    places = {
        "log lines": at_home.log_text(),
        "metrics": metrics,
        "records": "".join(str(record) for record in at_home.entries()),
        "database": "".join(path.read_bytes().decode("latin-1") for path in data.glob("ingest.db*")),
        "log database": "".join(path.read_bytes().decode("latin-1") for path in data.glob("audit*")),
        "file names": "".join(str(path) for path in data.rglob("*")),
    }
    for place, text in places.items():
        assert text, place
        for word in CANARY_WORDS:
            assert word not in text, (place, word)


def test_when_the_log_is_away_nothing_is_acknowledged_and_afterwards_all_of_it_is_finished(
    tmp_path: Path, free_port: Any
):
    with house(tmp_path, free_port) as made:
        before, during, after = dx(), dx(), dx()
        submit(made.ingest(), part10(before))
        made.stop("audit", 9)
        with Sender(made.dimse, [(DX, EXPLICIT), ("1.2.840.10008.1.1", "1.2.840.10008.1.2")]) as one:
            began = time.monotonic()
            answer = one.store(during)
            assert (hex(answer.Status), answer.ErrorComment) == ("0xa700", "AUDIT_UNAVAILABLE")
            assert time.monotonic() - began < 15
            eventually(lambda: one.association.send_c_echo().Status == 0x0110, 10, what="an echo that says not ready")
        with refused_with("AUDIT_UNAVAILABLE"):
            submit(made.ingest(), part10(after))
        made.start("audit")
        made.wait_serving("audit")
        with Sender(made.dimse, [(DX, EXPLICIT)]) as one:
            assert one.store(during).Status == 0
            assert one.store(after).Status == 0
        for ds in (before, during, after):
            study = made.in_state(ds.StudyInstanceUID, "DONE", revision=1)
            assert kinds(made, study) == ["received", "decided"], "each once"


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_what_a_killed_process_stored_and_did_not_record_is_recorded_by_the_next(
    tmp_path: Path, free_port: Any, database_url: str
):
    with house(tmp_path, free_port, database=database_url) as made:
        ds = dx()
        # The log stands still while ingest waits for it: the row is there, its record is not; then ingest is killed.
        made.processes["audit"].send_signal(19)  # SIGSTOP
        with Sender(made.dimse, [(DX, EXPLICIT)]) as one:
            from tests.wire.ingest_house import data_set

            one.send(data_set(ds), DX, str(ds.SOPInstanceUID))
            eventually(lambda: made.study(ds.StudyInstanceUID), 10, what="the row of the study")
            made.stop("ingest", 9)
        made.processes["audit"].send_signal(18)  # SIGCONT
        made.start("ingest")
        study = made.in_state(ds.StudyInstanceUID, "DONE", revision=1)
        assert kinds(made, study) == ["received", "decided"]
        with Sender(made.dimse, [(DX, EXPLICIT)]) as one:
            assert one.store(ds).Status == 0, "the sender, which never got its answer, tries again"
        assert kinds(made, study) == ["received", "decided"]


def test_below_the_low_water_mark_nothing_is_taken_and_the_sender_is_told_to_try_again(tmp_path: Path, free_port: Any):
    with house(tmp_path, free_port, "[objects]\nlow_water_bytes = 1000000000000000", wait=False) as made:
        with Sender(made.dimse, [(DX, EXPLICIT)]) as one:
            answer = one.store(dx())
            assert (hex(answer.Status), answer.ErrorComment) == ("0xa700", "STORAGE_FULL")
        with refused_with("STORAGE_FULL"):
            submit(made.ingest(), part10(dx()))
        assert made.incoming_files() == []
        assert made.stored() == {}
        assert made.entries() == []


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_two_processes_over_one_database_share_the_work_and_decide_each_study_once(
    tmp_path: Path, free_port: Any, database_url: str
):
    with house(tmp_path, free_port, database=database_url) as made:
        second = tmp_path / "second.toml"
        text = made.config.read_text()
        for address in (made.settings.ingest.listen, made.settings.ingest.metrics, made.settings.ingest.dimse):
            text = text.replace(address, f"127.0.0.1:{free_port()}")
        second.write_text(text)
        made.start("ingest", second, "second")
        studies = [dx() for _ in range(16)]
        with Sender(made.dimse, [(DX, EXPLICIT)]) as one:
            assert [one.store(ds).Status for ds in studies] == [0] * 16
        made.stop("second", 9)
        for ds in studies:
            study = made.in_state(ds.StudyInstanceUID, "DONE", 40, revision=1)
            assert kinds(made, study) == ["received", "decided"]
