"""`stepwedge dead-letter`: what was given up, why, what a person must do, and back into the queue by error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc

from cli import configuration, connect, terminal
from cli.exit_codes import Exit
from shared.errors import MEANING, ErrorCode, StepwedgeError, from_rpc
from shared.identity import Identity
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

PAGE = 200


def dead_letter(config: Path | None, identity: str, error: str, limit: int, *, requeue: bool, json: bool) -> Exit:
    """List the dead letter, or put it back in the queue; NEGATIVE where anything is left in it.

    Raises
    ------
    StepwedgeError
        INVALID_REQUEST for an error that there is not; what the cluster answers.
    """
    wanted = _code(error)
    left: Counter[int] = Counter()
    with connect.channel(configuration.load(config), "ingest", Identity(identity)) as link:
        stub = ingest_pb2_grpc.IngestServiceStub(link)
        for study in list(_given_up(stub, wanted, limit)):
            back = requeue and _requeued(stub, study)
            if not back:
                left[study.last_error] += 1
            _tell(stub, study, back=back, json=json)
    if not json:
        _sum_up(left, requeue=requeue)
    return Exit.NEGATIVE if left else Exit.OK


def _code(error: str) -> int:
    if not error:
        return 0
    try:
        return int(ErrorCode.Value(f"ERROR_CODE_{error.upper().replace('-', '_')}"))
    except ValueError:
        words = "no error is called that; `stepwedge dead-letter` lists those of the studies"
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words) from None


def _given_up(stub: ingest_pb2_grpc.IngestServiceStub, error: int, limit: int) -> Iterator[ingest_pb2.Study]:
    token = ""
    while limit > 0:
        request = ingest_pb2.ListStudiesRequest(
            state=ingest_pb2.STUDY_STATE_DEAD_LETTER, page_size=PAGE, page_token=token
        )
        page = stub.ListStudies(request, timeout=30)
        for study in page.studies:
            if (not error or study.last_error == error) and limit > 0:
                limit -= 1
                yield study
        token = page.next_page_token
        if not token:
            return


def _requeued(stub: ingest_pb2_grpc.IngestServiceStub, study: ingest_pb2.Study) -> bool:
    """Put a study back; False where somebody else did so meanwhile."""
    key = ingest_pb2.StudyKey(study_instance_uid=study.study_instance_uid)
    try:
        stub.RequeueStudy(ingest_pb2.RequeueStudyRequest(study=key), timeout=30)
    except grpc.RpcError as raised:
        if from_rpc(raised).code != ErrorCode.ERROR_CODE_WRONG_STATE:
            raise
    return True


def _tell(stub: ingest_pb2_grpc.IngestServiceStub, study: ingest_pb2.Study, *, back: bool, json: bool) -> None:
    name = _name(study.last_error)
    last = study.last_received_at.ToDatetime().isoformat(timespec="seconds")
    told = {"study": study.study_instance_uid, "pseudonym": study.pseudonym, "error": name, "requeued": back}
    key = ingest_pb2.StudyKey(study_instance_uid=study.study_instance_uid)
    answer = None if back else stub.ExplainStudy(ingest_pb2.ExplainStudyRequest(study=key), timeout=30)
    if json:
        more = {"why": answer.why, "next": answer.next} if answer is not None else {}
        terminal.emit({**told, "instances": study.instance_count, "last_received_at": f"{last}Z", **more})
        return
    out = terminal.out()
    if answer is None:
        out.print(f"{study.study_instance_uid} is back in the queue", soft_wrap=True, markup=False)
        return
    out.print(f"{study.study_instance_uid}  {study.instance_count} images, last {last}Z", soft_wrap=True, markup=False)
    out.print(f"  {answer.why}", soft_wrap=True, markup=False)
    out.print(f"  {answer.next}", soft_wrap=True, markup=False)


def _sum_up(left: Counter[int], *, requeue: bool) -> None:
    out = terminal.out()
    if not left:
        out.print("the dead letter is empty" if not requeue else "nothing of that is left in the dead letter")
        return
    out.print(f"{sum(left.values())} in the dead letter:", soft_wrap=True)
    for code, count in left.most_common():
        out.print(f"{count:>7}  {_name(code)}: {MEANING.get(code, '')}", soft_wrap=True, markup=False)  # type: ignore[call-overload]
    out.print("mend the cause, then: stepwedge dead-letter --error CODE --requeue", soft_wrap=True, markup=False)


def _name(code: int) -> str:
    return str(ErrorCode.Name(code)).removeprefix("ERROR_CODE_")  # type: ignore[arg-type]
