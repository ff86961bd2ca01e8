"""For the auditor: erasure and legal hold, which one person asks for and a second agrees to."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from starlette.datastructures import FormData
from starlette.responses import RedirectResponse, Response

from services.console.gateway import call as ask
from services.console.requests import DONE, PENDING, Asked, Request
from services.console.web import AUDITOR, Call, form, invalid, route, text_of
from shared.errors import StepwedgeError
from stepwedge.audit.v1 import audit_pb2

WHO: Final = frozenset({AUDITOR})
ACTS: Final = {"erase": "Erase a person", "hold": "Set a legal hold", "release": "Release a legal hold"}
PURPOSES: Final = {
    "PATRQT": "The patient asked",
    "HLEGAL": "Legal",
    "HCOMPL": "Compliance",
    "RECORDMGT": "Records management",
}
_SUBJECT: Final = re.compile(r"SW-[A-Z2-7]{24}")
_STUDY: Final = re.compile(r"2\.25\.[1-9][0-9]{22,38}")
_HOLD: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
REFERENCE: Final = re.compile(r"(?:[A-Za-z]{1,16}(?:-[0-9]{1,6}){1,4})?")


async def page(call: Call) -> Response:
    """What is held, what was asked for, and the form."""
    return await _page(call)


async def _page(call: Call, *, words: str = "", status: int = 200) -> Response:
    found = await ask(call.house.gateway.audit.ListHolds, audit_pb2.ListHoldsRequest())
    requests = await asyncio.to_thread(call.house.requests.newest)
    named = (*(one.study for one in found.holds), *(one.target for one in requests))
    await call.listed("holds", (one for one in named if _STUDY.fullmatch(one)))
    return call.page(
        "guarding.html",
        holds=found.holds,
        requests=requests,
        acts=ACTS,
        purposes=PURPOSES,
        target=call.query("target", 80),
        words=words,
        pending=PENDING,
        status=status,
    )


async def act(call: Call) -> Response:
    """Ask, agree, or say no."""
    fields = await form(call)
    try:
        match text_of(fields, "action", 16):
            case "ask":
                await _ask(call, fields)
            case "agree":
                await _agree(call, _number(fields))
            case "withdraw":
                number = _number(fields)
                await call.house.gateway.viewed(call.signed_in, "request_withdrawn")
                await asyncio.to_thread(call.house.requests.withdraw, number, call.signed_in.name)
            case _:
                raise invalid("there is no such action")
    except StepwedgeError as error:
        return await _page(call, words=error.message, status=409)
    return RedirectResponse("/audit/guarding", 303)


async def _ask(call: Call, fields: FormData) -> None:
    asked = Asked(*(text_of(fields, name, 80) for name in ("act", "target", "purpose", "reference")))
    shapes = {"erase": (_SUBJECT,), "hold": (_SUBJECT, _STUDY), "release": (_HOLD,)}.get(asked.act)
    if shapes is None or asked.purpose not in PURPOSES or not REFERENCE.fullmatch(asked.reference):
        raise invalid("choose an act and a purpose; a reference looks like ERA-2026-17")
    if not any(shape.fullmatch(asked.target) for shape in shapes):
        raise invalid("name a person or a study by its pseudonym, or a hold by its identifier")
    study = asked.target if _STUDY.fullmatch(asked.target) else ""
    await call.house.gateway.viewed(call.signed_in, f"{asked.act}_asked", study=study)
    await asyncio.to_thread(call.house.requests.ask, asked, call.signed_in.name)


async def _agree(call: Call, number: int) -> None:
    request = await asyncio.to_thread(call.house.requests.claim, number, call.signed_in.name)
    try:
        await _carry_out(call, request)
    except BaseException:
        # Each of these calls is idempotent, so that a second attempt after a doubtful answer does no harm.
        await asyncio.shield(asyncio.to_thread(call.house.requests.settle, number, PENDING))
        raise
    await asyncio.to_thread(call.house.requests.settle, number, DONE)


async def _carry_out(call: Call, request: Request) -> None:
    audit = call.house.gateway.audit
    cause = audit_pb2.Cause(
        purpose=audit_pb2.PurposeOfUse.Value(f"PURPOSE_OF_USE_{request.purpose}"),
        reference=request.reference,
        person=call.signed_in.name,
    )
    if request.act == "erase":
        await ask(audit.EraseSubject, audit_pb2.EraseSubjectRequest(subject=request.target, cause=cause), seconds=60)
        return
    of_study = bool(_STUDY.fullmatch(request.target))
    wanted = audit_pb2.SetHoldRequest(cause=cause)
    if request.act == "release":
        wanted.release = request.target
    elif of_study:
        wanted.study = request.target
    else:
        wanted.subject = request.target
    await ask(audit.SetHold, wanted)


def _number(fields: FormData) -> int:
    text = text_of(fields, "number", 9)
    if not (text.isascii() and text.isdigit()):
        raise invalid("there is no such request")
    return int(text)


ROUTES: Final = [
    route("/audit/guarding", page, WHO),
    route("/audit/guarding", act, WHO, methods=["POST"]),
]
