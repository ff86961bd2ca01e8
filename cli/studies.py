"""`stepwedge studies`, `explain`, `watch`, `requeue`: where studies are, and why."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from cli import configuration, connect, terminal
from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from stepwedge.common.v1 import common_pb2
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

if TYPE_CHECKING:
    from stepwedge.ingest.v1.ingest_pb2_grpc import IngestServiceStub

PAGE = 100

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
"""Between two attempts to reach an ingest that went away; doubled each time."""
AWAY = (ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, ErrorCode.ERROR_CODE_OVERLOADED)
"""Errors of an ingest that is away, or has just come back."""

WIDEST = 10_000
"""Columns; no table of ours needs so many."""

STYLE_OF_STATE: Mapping[str, str] = {"DONE": "green", "DEAD_LETTER": "bold red", "DELIVERING": "cyan"}


def studies(config: Path | None, state: str, limit: int, identity: str, *, json: bool) -> None:
    """List studies, newest first."""
    wanted = _state(state)
    with _ingest(config, identity) as stub:
        found = list(_pages(stub, wanted, limit))
        # The list holds no decisions; a person wants the verdict beside each, so a page's worth is asked for.
        whole = [_get(stub, ingest_pb2.StudyKey(study_instance_uid=study.study_instance_uid)) for study in found]
    if json:
        for study in whole:
            terminal.emit(study_as_json(study))
        return
    print_studies(whole)


def explain(study: str, config: Path | None, identity: str, *, json: bool) -> Exit:
    """Tell a study's story; NEGATIVE where it is in the dead letter."""
    with _ingest(config, identity) as stub:
        answer = _by_either_name(
            study, lambda key: stub.ExplainStudy(ingest_pb2.ExplainStudyRequest(study=key), timeout=10)
        )
    if json:
        terminal.emit(_explanation_as_json(answer))
    else:
        _print_explanation(answer)
    return Exit.NEGATIVE if answer.study.state == ingest_pb2.STUDY_STATE_DEAD_LETTER else Exit.OK


def watch(config: Path | None, since: str, count: int, identity: str, *, json: bool) -> None:
    """Print decisions until interrupted, or until `count` of them."""
    try:
        with closing(_decisions(config, identity, since)) as answers:
            for number, answer in enumerate(answers, start=1):
                if json:
                    terminal.emit({**decision_as_json(answer.decision), "cursor": answer.cursor})
                else:
                    _print_decision(answer.decision)
                if number == count:
                    return
    except KeyboardInterrupt:
        return


def _decisions(config: Path | None, identity: str, since: str) -> Generator[ingest_pb2.WatchDecisionsResponse]:
    """Decisions after a cursor, for ever; where ingest goes away, on from the last one when it is back.

    Raises
    ------
    StepwedgeError
        DEPENDENCY_UNAVAILABLE where ingest was never reached; any other that it answered.
    """
    cursor, told, pause = since, False, FIRST_PAUSE_SECONDS
    reached = threading.Event()
    settings = configuration.load(config)
    while True:
        began = time.monotonic()
        try:
            # A channel of its own each time: one that failed waits for up to two minutes before it connects again.
            with connect.channel(settings, "ingest", Identity(identity)) as link:
                for answer in _stream(link, cursor, reached):
                    reached.set()
                    cursor = answer.cursor
                    yield answer
        except StepwedgeError as error:
            if error.code not in AWAY or not reached.is_set():
                raise
        if time.monotonic() - began > LONGEST_PAUSE_SECONDS:
            told, pause = False, FIRST_PAUSE_SECONDS
        if not told:
            terminal.note("ingest went away; what it decides is told when it is back (Ctrl-C to end)")
        told = True
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _stream(link: Any, cursor: str, reached: threading.Event) -> Iterator[ingest_pb2.WatchDecisionsResponse]:
    """Decisions after a cursor until the stream ends; sets `reached` once the channel is connected."""
    import grpc

    def told(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            reached.set()

    link.subscribe(told)
    stream = ingest_pb2_grpc.IngestServiceStub(link).WatchDecisions(ingest_pb2.WatchDecisionsRequest(cursor=cursor))
    try:
        yield from stream
    finally:
        stream.cancel()
        link.unsubscribe(told)
        # grpc asks for the channel's state every 0.2 s in a thread, which prints its end if the channel closes first.
        time.sleep(0.3)


def requeue(study: str, config: Path | None, identity: str, *, json: bool) -> None:
    """Put a study back in the queue."""
    with _ingest(config, identity) as stub:
        answer = _by_either_name(
            study, lambda key: stub.RequeueStudy(ingest_pb2.RequeueStudyRequest(study=key), timeout=10)
        )
    if json:
        terminal.emit(study_as_json(answer.study))
    else:
        terminal.out().print(f"{answer.study.study_instance_uid} is {state_name(answer.study)} again", soft_wrap=True)


def complete(study: str, config: Path | None, identity: str, *, json: bool) -> None:
    """Have a study decided now."""
    with _ingest(config, identity) as stub:
        answer = _by_either_name(
            study, lambda key: stub.CompleteStudy(ingest_pb2.CompleteStudyRequest(study=key), timeout=10)
        )
    if json:
        terminal.emit(study_as_json(answer.study))
    else:
        terminal.out().print(f"{answer.study.study_instance_uid} is decided with what it has", soft_wrap=True)


@contextmanager
def _ingest(config: Path | None, identity: str) -> Iterator[IngestServiceStub]:
    with connect.channel(configuration.load(config), "ingest", Identity(identity)) as link:
        yield ingest_pb2_grpc.IngestServiceStub(link)


def _by_either_name(study: str, call: Any) -> Any:
    """Call with the name as a Study Instance UID, and if there is none such, as a pseudonym."""
    import grpc

    from shared.errors import from_rpc

    if not study.strip():
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "no study is named")
    if not re.fullmatch(r"[0-9.]{1,64}", study):
        words = "a study is named by its Study Instance UID: at most 64 digits and full stops"
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_UID, words)
    try:
        return call(ingest_pb2.StudyKey(study_instance_uid=study))
    except grpc.RpcError as error:
        if from_rpc(error).code != ErrorCode.ERROR_CODE_STUDY_NOT_FOUND:
            raise
    return call(ingest_pb2.StudyKey(pseudonym=study))


def _get(stub: IngestServiceStub, key: ingest_pb2.StudyKey) -> ingest_pb2.Study:
    return stub.GetStudy(ingest_pb2.GetStudyRequest(study=key), timeout=10).study


def _pages(stub: IngestServiceStub, state: ingest_pb2.StudyState.ValueType, limit: int) -> Iterator[ingest_pb2.Study]:
    token = ""
    while limit > 0:
        request = ingest_pb2.ListStudiesRequest(state=state, page_size=min(limit, PAGE), page_token=token)
        page = stub.ListStudies(request, timeout=10)
        yield from page.studies
        limit -= len(page.studies)
        token = page.next_page_token
        if not token:
            return


def _state(name: str) -> ingest_pb2.StudyState.ValueType:
    if not name:
        return ingest_pb2.STUDY_STATE_UNSPECIFIED
    wanted = f"STUDY_STATE_{name.upper().replace('-', '_')}"
    if wanted not in ingest_pb2.StudyState.keys() or wanted.endswith("UNSPECIFIED"):  # noqa: SIM118 - not a mapping
        words = "a state is receiving, processing, delivering, done or dead-letter"
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
    return ingest_pb2.StudyState.Value(wanted)


# --- words


def state_name(study: ingest_pb2.Study) -> str:
    """`RECEIVING` and so on."""
    return ingest_pb2.StudyState.Name(study.state).removeprefix("STUDY_STATE_")


def instance_state_name(instance: ingest_pb2.Instance) -> str:
    """`STORED` and so on."""
    return ingest_pb2.InstanceState.Name(instance.state).removeprefix("INSTANCE_STATE_")


def verdict_name(number: common_pb2.Verdict.ValueType) -> str:
    """`ACCEPT` and so on; empty where none is given."""
    return common_pb2.Verdict.Name(number).removeprefix("VERDICT_") if number else ""


def reason_name(number: common_pb2.Reason.ValueType) -> str:
    """`BLANK_IMAGE` and so on."""
    return common_pb2.Reason.Name(number).removeprefix("REASON_")


def outcome_name(number: common_pb2.Outcome.ValueType) -> str:
    """`PASS` and so on."""
    return common_pb2.Outcome.Name(number).removeprefix("OUTCOME_")


def error_name(number: common_pb2.ErrorCode.ValueType) -> str:
    """`NOT_DICOM` and so on; empty where there is none."""
    return common_pb2.ErrorCode.Name(number).removeprefix("ERROR_CODE_") if number else ""


def iso(time: Timestamp) -> str:
    """A time in UTC, ISO 8601; empty where none is given."""
    return f"{time.ToDatetime().isoformat(timespec='milliseconds')}Z" if time.seconds else ""


def clock(time: Timestamp) -> str:
    """A time for a person at this machine: local, with the date only where it is not today's."""
    if not time.seconds:
        return ""
    local = datetime.fromtimestamp(time.seconds).astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().astimezone().date() else "%Y-%m-%d %H:%M:%S")


def _modality(instance: ingest_pb2.Instance) -> str:
    """The modality where it is the code that it should be (PS3.3 C.7.3.1.1.1); an object can hold anything there."""
    return instance.modality if re.fullmatch(r"[A-Z0-9]{1,16}", instance.modality) else "--"


# --- JSON


def study_as_json(study: ingest_pb2.Study) -> dict[str, Any]:
    """A study as the commands print it."""
    return {
        "study_instance_uid": study.study_instance_uid,
        "pseudonym": study.pseudonym,
        "state": state_name(study),
        "attempts": study.attempts,
        "last_error": error_name(study.last_error),
        "first_received_at": iso(study.first_received_at),
        "last_received_at": iso(study.last_received_at),
        "next_action_at": iso(study.next_action_at),
        "instances": [_instance_as_json(instance) for instance in study.instances],
        "decisions": [decision_as_json(decision) for decision in study.decisions],
    }


def _instance_as_json(instance: ingest_pb2.Instance) -> dict[str, Any]:
    return {
        "sop_instance_uid": instance.sop_instance_uid,
        "pseudonym": instance.pseudonym,
        "sop_class_uid": instance.sop_class_uid,
        "modality": _modality(instance),
        "sha256": instance.sha256,
        "size_bytes": instance.size_bytes,
        "state": instance_state_name(instance),
        "conflict": instance.conflict,
        "verdict": verdict_name(instance.verdict),
        "reasons": [reason_name(reason) for reason in instance.reasons],
        "findings": [
            {"code": reason_name(finding.code), "outcome": outcome_name(finding.outcome), "detail": finding.detail}
            for finding in instance.findings
        ],
        "last_error": error_name(instance.last_error),
    }


def decision_as_json(decision: ingest_pb2.Decision) -> dict[str, Any]:
    """A decision as the commands print it."""
    return {
        "study_instance_uid": decision.study_instance_uid,
        "pseudonym": decision.pseudonym,
        "revision": decision.revision,
        "verdict": verdict_name(decision.verdict),
        "reasons": [reason_name(reason) for reason in decision.reasons],
        "details": list(decision.details),
        "decided_at": iso(decision.decided_at),
        "record_index": decision.record_index,
        "policy_sha256": decision.policy_sha256,
        "instances": decision.instances,
    }


def _explanation_as_json(answer: ingest_pb2.ExplainStudyResponse) -> dict[str, Any]:
    return {
        "where": answer.where,
        "why": answer.why,
        "next": answer.next,
        "steps": [
            {
                "at": iso(step.at),
                "what": step.what,
                "record_index": step.record_index if step.HasField("record_index") else None,
            }
            for step in answer.steps
        ],
        "study": study_as_json(answer.study),
    }


# --- text


def print_studies(found: Sequence[ingest_pb2.Study]) -> None:
    """A line for each study; on a terminal that is too narrow for that, a paragraph. No UID, no code is ever cut."""
    from rich.table import Table

    if not found:
        terminal.note("no study")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("received", "study", "images", "state", "verdict"):
        table.add_column(title, no_wrap=True, justify="right" if title == "images" else "left")
    table.add_column("why", no_wrap=True)
    rows = [_row(study) for study in found]
    for row in rows:
        table.add_row(*row)
    console = terminal.out()
    width = console.measure(table, options=console.options.update(width=WIDEST)).maximum
    if not console.is_terminal:
        console.width = max(console.width, width)  # nobody sees it wrapped
    if width <= console.width:
        console.print(table)
        return
    for received, uid, images, state, verdict, why in rows:
        console.print(uid, soft_wrap=True)
        terminal.paragraph("  ".join(filter(None, (received, f"images: {images}", state, verdict))), 2)
        if why:
            terminal.paragraph(why, 2)


def _row(study: ingest_pb2.Study) -> tuple[str, str, str, str, str, str]:
    """When received, UID, number of images, state, verdict, and why; Rich markup."""
    state = state_name(study)
    style = STYLE_OF_STATE.get(state, "")
    newest = study.decisions[-1] if study.decisions else None
    return (
        clock(study.first_received_at),
        study.study_instance_uid,
        str(len(study.instances)),
        f"[{style}]{state}[/]" if style else state,
        terminal.verdict(verdict_name(newest.verdict)) if newest else "",
        ", ".join(reason_name(reason) for reason in newest.reasons) if newest else error_name(study.last_error),
    )


def _print_decision(decision: ingest_pb2.Decision) -> None:
    out = terminal.out()
    revision = f" (revision {decision.revision})" if decision.revision > 1 else ""
    verdict = terminal.verdict(verdict_name(decision.verdict))
    out.print(f"{clock(decision.decided_at)}  {verdict:<6}  {decision.study_instance_uid}{revision}", soft_wrap=True)
    for reason, detail in zip(decision.reasons, decision.details, strict=False):
        out.print(f"          {reason_name(reason)}: {detail}", markup=False, soft_wrap=True)


def _print_explanation(answer: ingest_pb2.ExplainStudyResponse) -> None:
    out = terminal.out()
    study = answer.study
    out.print(f"[bold]Study {study.study_instance_uid}[/]", soft_wrap=True)
    out.print(f"in the log as {study.pseudonym}", style="dim", soft_wrap=True)
    for title, words in (("where", answer.where), ("why", answer.why), ("next", answer.next)):
        out.print(f"[bold]{title:<6}[/]", end="")
        out.print(words, markup=False, soft_wrap=True)
    if answer.steps:
        out.print()
        for step in answer.steps:
            record = f"record {step.record_index}" if step.HasField("record_index") else ""
            out.print(f"  {clock(step.at)}  {record:<12}{step.what}", markup=False, soft_wrap=True)
    if study.instances:
        out.print()
    for instance in study.instances:
        verdict = verdict_name(instance.verdict) or instance_state_name(instance)
        reasons = ", ".join(reason_name(reason) for reason in instance.reasons)
        out.print(f"  {_modality(instance):<3} {terminal.verdict(verdict)} {reasons}", soft_wrap=True)
        for finding in instance.findings:
            if finding.outcome != common_pb2.OUTCOME_PASS:
                words = f"{reason_name(finding.code)} {outcome_name(finding.outcome)}: {finding.detail}"
                out.print(f"      {words}", markup=False, soft_wrap=True)
