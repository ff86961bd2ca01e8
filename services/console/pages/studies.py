"""For the radiographer: the work list, and one study with its images, findings and reasons."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydicom.uid import UID
from starlette.responses import RedirectResponse, Response

from services.console import dossier, pictures
from services.console.gateway import call as ask
from services.console.gateway import not_found
from services.console.pages.guide import WHAT_TO_DO
from services.console.web import BY_ITSELF, OPERATOR, RADIOGRAPHER, Call, form, invalid, route, text_of
from shared import reasons
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1.common_pb2 import Outcome, Structure, Verdict
from stepwedge.inference.v1 import inference_pb2
from stepwedge.ingest.v1 import ingest_pb2

PAGE: Final = 50
WHO: Final = frozenset({RADIOGRAPHER, OPERATOR})
STATES: Final = ("RECEIVING", "PROCESSING", "DELIVERING", "DONE", "DEAD_LETTER")
VERDICTS: Final = ("REJECT", "REVIEW", "ACCEPT")
REVIEW_REASONS: Final[Mapping[str, str]] = {
    "agreed": "I agree",
    "positioning_acceptable": "Positioning is acceptable",
    "clinically_sufficient": "Sufficient for the question asked",
    "cannot_be_repeated": "The image cannot be repeated",
    "finding_is_wrong": "The finding is wrong",
    "defect_was_missed": "A defect was missed",
    "wrong_patient_or_side": "Wrong patient or side",
    "other": "Other",
}
"""Code of the record -> what a person reads."""
_UID: Final = re.compile(r"2\.25\.[1-9][0-9]{22,38}")
_WINDOW: Final = ("center", "width")
_WORST_FIRST: Final = (
    Outcome.OUTCOME_FAIL,
    Outcome.OUTCOME_WARN,
    Outcome.OUTCOME_NOT_ASSESSABLE,
    Outcome.OUTCOME_UNSPECIFIED,
    Outcome.OUTCOME_PASS,
)


async def work_list(call: Call) -> Response:
    """Studies as they arrive, newest first; `rows` alone when the page asks for news."""
    state, verdict, room, token = (call.query(name) for name in ("state", "verdict", "room", "page"))
    if (state and state not in STATES) or (verdict and verdict not in VERDICTS):
        raise invalid("there is no such filter")
    request = ingest_pb2.ListStudiesRequest(page_size=PAGE, page_token=token)
    if state:
        request.state = ingest_pb2.StudyState.Value(f"STUDY_STATE_{state}")
    if verdict:
        request.verdict = Verdict.Value(f"VERDICT_{verdict}")
    if room:
        request.device.room = room
    found = await ask(call.house.gateway.ingest.ListStudies, request)
    await call.listed("work_list", (one.pseudonym for one in found.studies), always=False)
    now = datetime.now(UTC)
    template = "study_rows.html" if call.query(BY_ITSELF) else "studies.html"
    return call.page(
        template,
        studies=found.studies,
        more=found.next_page_token,
        state=state,
        verdict=verdict,
        room=room,
        rooms=sorted({one.device.room for one in found.studies} - {""}),
        kept=urlencode({"state": state, "verdict": verdict, "room": room}),
        token=token,
        age=lambda stamp: _age(stamp, now),
        states=STATES,
        verdicts=VERDICTS,
        words=reasons.WORDS,
    )


async def study(call: Call) -> Response:
    """One study: the verdict, why, the images with what was found on them, what happened, what people said."""
    pseudonym = _pseudonym(call)
    await call.viewed("study", study=pseudonym)
    key = ingest_pb2.StudyKey(pseudonym=pseudonym)
    told = await ask(call.house.gateway.ingest.ExplainStudy, ingest_pb2.ExplainStudyRequest(study=key))
    place = _number(call.query("image") or "1")
    shown = told.study.instances[place - 1] if 0 < place <= len(told.study.instances) else None
    return call.page(
        "study.html",
        told=told,
        study=told.study,
        decision=told.study.decisions[-1] if told.study.decisions else None,
        instance=shown,
        place=place,
        layers=[] if shown is None else [(mask.structure, Structure.Name(mask.structure)) for mask in shown.masks],
        boxes=[] if shown is None else list(_boxes(shown)),
        window={name: call.query(name) for name in _WINDOW},
        words=reasons.WORDS,
        todo=WHAT_TO_DO,
        verdicts=("ACCEPT", "REVIEW", "REJECT"),
        review_reasons=REVIEW_REASONS,
        may_requeue=call.signed_in.role == OPERATOR,
        header=[] if shown is None else list(_header(shown)),
        found=[] if shown is None else sorted(shown.findings, key=lambda one: _WORST_FIRST.index(one.outcome)),
        passed=Outcome.OUTCOME_PASS,
    )


def _pseudonym(call: Call) -> str:
    text = call.path("study")
    if not _UID.fullmatch(text):
        raise not_found("there is no such study")
    return text


_SIDES: Final[Mapping[str, str]] = {"L": "left", "R": "right", "B": "both", "U": "unpaired"}


def _header(instance: ingest_pb2.Instance) -> Iterator[tuple[str, str]]:
    """What the header said of the image and of what made it: (name, value), nothing that names a patient."""
    device = instance.device
    said = (
        ("Modality", instance.modality),
        ("Body part", instance.body_part),
        ("View", instance.view),
        ("Side", _SIDES.get(instance.laterality, "")),
        ("Procedure", instance.procedure_code),
        ("Size", f"{instance.columns} × {instance.rows}" if instance.columns else ""),
        ("Kind of object", UID(instance.sop_class_uid).name),
        ("Room", device.room),
        ("Station", device.station),
        ("Department", device.department),
        ("Device", " ".join(filter(None, (device.manufacturer, device.model)))),
        ("Serial number", device.serial_number),
        ("Sent by", device.calling_ae_title),
        ("Site", instance.site),
    )
    return ((name, value) for name, value in said if value)


def _age(stamp: Timestamp, now: datetime) -> tuple[int, str]:
    """How long ago, as a number and its unit; no unit for less than a minute."""
    seconds = (now - stamp.ToDatetime(UTC)).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return int(seconds // length), unit
    return 0, ""


def _boxes(instance: ingest_pb2.Instance) -> Any:
    for found in instance.findings:
        if found.outcome != Outcome.OUTCOME_PASS:
            for box in found.boxes:
                yield found, box


async def image(call: Call) -> Response:
    """The picture of one image of a study, as the window asks."""
    instance = await _instance(call)
    request = inference_pb2.RenderObjectRequest(object=instance.deidentified, longest_side=1536)
    center, width = (call.query(name) for name in _WINDOW)
    if center and width:
        request.window_center, request.window_width = _share(center), max(0.01, _share(width))
    return await _picture(call, request)


async def mask(call: Call) -> Response:
    """The outline of one structure as a layer over the image."""
    instance = await _instance(call)
    wanted = call.path("structure")
    for one in instance.masks:
        if Structure.Name(one.structure) == wanted:
            request = inference_pb2.RenderObjectRequest(object=one.png, longest_side=1536)
            return await _picture(call, request, colour=pictures.COLOURS[one.structure])
    raise not_found("this structure was not outlined")


async def _instance(call: Call) -> ingest_pb2.Instance:
    pseudonym = _pseudonym(call)
    await call.viewed("study", study=pseudonym)
    key = ingest_pb2.StudyKey(pseudonym=pseudonym)
    found = await ask(call.house.gateway.ingest.GetStudy, ingest_pb2.GetStudyRequest(study=key))
    place = _number(call.path("place"))
    if not 0 < place <= len(found.study.instances):
        raise not_found("the study has no such image")
    instance: ingest_pb2.Instance = found.study.instances[place - 1]
    if not instance.HasField("deidentified"):
        raise not_found("the image is not de-identified yet")
    return instance


async def _picture(call: Call, request: Message, *, colour: tuple[int, int, int] | None = None) -> Response:
    found = await ask(call.house.gateway.inference.RenderObject, request)
    data = found.png if colour is None else pictures.layer(found.png, colour)
    return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=300"})


async def review(call: Call) -> Response:
    """A person confirms or overrules the newest decision."""
    fields, person = await form(call), call.signed_in
    pseudonym = _pseudonym(call)
    verdict, reason = text_of(fields, "verdict", 16), text_of(fields, "reason", 64)
    if verdict not in VERDICTS or reason not in REVIEW_REASONS:
        raise invalid("choose a verdict and a reason")
    request = ingest_pb2.ReviewStudyRequest(
        study=ingest_pb2.StudyKey(pseudonym=pseudonym),
        revision=_number(text_of(fields, "revision", 9)),
        verdict=Verdict.Value(f"VERDICT_{verdict}"),
        reason=reason,
        note=text_of(fields, "note", 500),
        reviewer=person.name,
        role=person.role,
    )
    await ask(call.house.gateway.ingest.ReviewStudy, request)
    return RedirectResponse(f"/studies/{pseudonym}", 303)


async def requeue(call: Call) -> Response:
    """Put a study of the dead letter back in the queue; its record names the person."""
    return await _asked_for(call, call.house.gateway.ingest.RequeueStudy, ingest_pb2.RequeueStudyRequest)


async def complete(call: Call) -> Response:
    """Decide a study now, with what has come; the record of the decision names the person."""
    return await _asked_for(call, call.house.gateway.ingest.CompleteStudy, ingest_pb2.CompleteStudyRequest)


async def _asked_for(call: Call, method: Any, request: Callable[..., Message]) -> Response:
    """Have something done with a study in the name of the person, and show the study again."""
    await form(call)
    pseudonym = _pseudonym(call)
    await ask(method, request(study=ingest_pb2.StudyKey(pseudonym=pseudonym), requested_by=call.signed_in.name))
    return RedirectResponse(f"/studies/{pseudonym}", 303)


async def proof(call: Call) -> Response:
    """The record of the newest decision with its proof, step by step: it holds pseudonyms only."""
    pseudonym, gateway = _pseudonym(call), call.house.gateway
    key = ingest_pb2.StudyKey(pseudonym=pseudonym)
    found = await ask(gateway.ingest.GetStudy, ingest_pb2.GetStudyRequest(study=key))
    if not found.study.decisions:
        raise not_found("the study is not decided yet")
    index = found.study.decisions[-1].record_index
    await gateway.viewed(call.signed_in, "entry", study=pseudonym)
    told = await ask(gateway.audit.GetEntry, audit_pb2.GetEntryRequest(index=index))
    head = await dossier.head_of(gateway)
    line = await dossier.line_of(gateway, told.entry, head)
    return call.page("entry.html", line=line, head=head, study=pseudonym)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise invalid("a number is needed")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise invalid("the window is two numbers from 0 to 1") from None
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise invalid("the window is two numbers from 0 to 1")
    return value


ROUTES: Final = [
    route("/studies", work_list, WHO),
    route("/studies/{study:str}", study, WHO),
    route("/studies/{study:str}/review", review, WHO, methods=["POST"]),
    route("/studies/{study:str}/proof", proof, WHO),
    route("/studies/{study:str}/complete", complete, WHO, methods=["POST"]),
    route("/studies/{study:str}/requeue", requeue, frozenset({OPERATOR}), methods=["POST"]),
    route("/studies/{study:str}/images/{place:str}.png", image, WHO),
    route("/studies/{study:str}/images/{place:str}/{structure:str}.png", mask, WHO),
]
