"""For the auditor: search the log, see one entry proved, print a decision's dossier, take the whole log away."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from starlette.responses import RedirectResponse, Response, StreamingResponse

from services.console import dossier
from services.console.gateway import call as ask
from services.console.gateway import stream
from services.console.pages.guarding import PURPOSES, REFERENCE
from services.console.web import AUDITOR, Call, form, invalid, route, text_of
from shared.identification import TOKEN_BYTES, Number
from shared.transparency.tlog_proof import TlogProof
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1.common_pb2 import Verdict

WHO: Final = frozenset({AUDITOR})
PAGE: Final = 50
KINDS: Final = tuple(
    name.removeprefix("RECORD_KIND_") for name, number in sorted(audit_pb2.RecordKind.items(), key=lambda it: it[1])
)[1:]
OUTCOMES: Final = ("SUCCESS", "MINOR_FAILURE", "SERIOUS_FAILURE", "MAJOR_FAILURE")
_NUMBERS: Final = {"accession": Number.ACCESSION, "patient": Number.PATIENT}
VERDICTS: Final = ("ACCEPT", "REVIEW", "REJECT")
FORMATS: Final = {
    "bundle": ("BUNDLE", "zip"),
    "csv": ("CSV", "csv"),
    "fhir": ("FHIR", "ndjson"),
    "dicom": ("DICOM", "xml"),
}
_FIELDS: Final = (
    *("study", "subject", "kind", "outcome", "verdict", "producer", "actor", "model"),
    *("from", "before", "page", "token"),
)
_UID: Final = re.compile(r"2\.25\.[0-9]{1,39}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TOKEN: Final = re.compile(rf"[0-9a-f]{{{2 * TOKEN_BYTES}}}")


async def search(call: Call) -> Response:
    """The form, and what it finds."""
    given = {name: call.query(name) for name in _FIELDS}
    found, head = None, await dossier.head_of(call.house.gateway)
    if any(given.values()):
        found = await ask(call.house.gateway.audit.QueryEntries, _request(given))
        await call.listed("search", (entry.record.study for entry in found.entries))
    following = {name: value for name, value in given.items() if value and name != "page"}
    return call.page(
        "audit.html",
        given=given,
        following=urlencode(following),
        head=head,
        entries=[] if found is None else found.entries,
        asked=found is not None,
        more="" if found is None else found.next_page_token,
        kinds=KINDS,
        outcomes=OUTCOMES,
        verdicts=VERDICTS,
        kind_name=lambda entry: (entry.record.WhichOneof("event") or "").upper(),
        outcome_name=lambda entry: audit_pb2.EventOutcome.Name(entry.record.outcome).removeprefix("EVENT_OUTCOME_"),
    )


async def by_number(call: Call) -> Response:
    """A number becomes its token and goes no further: an address stands in histories and in the logs of proxies."""
    fields = await form(call)
    given = {kind: text_of(fields, name, 64) for name, kind in _NUMBERS.items()}
    numbers = {kind: value for kind, value in given.items() if value}
    if len(numbers) != 1:
        raise invalid("search by accession number or by patient number, one of them")
    ((kind, value),) = numbers.items()
    return RedirectResponse(f"/audit?token={call.house.gateway.token(kind, value).hex()}", 303)


def _request(given: dict[str, str]) -> audit_pb2.QueryEntriesRequest:
    request = audit_pb2.QueryEntriesRequest(
        study=given["study"],
        subject=given["subject"],
        producer=given["producer"],
        actor=given["actor"],
        model_sha256=given["model"],
        page_size=PAGE,
        page_token=given["page"],
    )
    if given["study"] and not _UID.fullmatch(given["study"]):
        raise invalid("the study is named by its pseudonym, which begins with 2.25.")
    if given["model"] and not _SHA256.fullmatch(given["model"]):
        raise invalid("a model is named by its digest of 64 hexadecimal digits")
    if given["token"]:
        if not _TOKEN.fullmatch(given["token"]):
            raise invalid("the token is not one that was made here")
        request.token = bytes.fromhex(given["token"])
    for name, table, prefix in (
        ("kind", audit_pb2.RecordKind, "RECORD_KIND_"),
        ("outcome", audit_pb2.EventOutcome, "EVENT_OUTCOME_"),
        ("verdict", Verdict, "VERDICT_"),
    ):
        if given[name]:
            try:
                setattr(request, name, table.Value(prefix + given[name]))
            except ValueError:
                raise invalid(f"there is no such {name}") from None
    for name, field in (("from", request.recorded_from), ("before", request.recorded_before)):
        if given[name]:
            try:
                field.FromDatetime(datetime.fromisoformat(given[name]).replace(tzinfo=UTC))
            except ValueError:
                raise invalid("a time is a date, or a date and a time, in UTC") from None
    return request


async def entry(call: Call) -> Response:
    """One entry with its proof, step by step."""
    index = _index(call.path("index"))
    gateway = call.house.gateway
    found = await ask(gateway.audit.GetEntry, audit_pb2.GetEntryRequest(index=index))
    await gateway.viewed(call.signed_in, "entry", study=found.entry.record.study)
    head = await dossier.head_of(gateway)
    line = await dossier.line_of(gateway, found.entry, head)
    return call.page("entry.html", line=line, head=head, study=found.entry.record.study)


async def proof(call: Call) -> Response:
    """The stand-alone proof of one entry (C2SP tlog-proof), as a file."""
    index = _index(call.path("index"))
    found = await ask(call.house.gateway.audit.GetProof, audit_pb2.GetProofRequest(index=index))
    told = json.loads(TlogProof.parse(found.proof.encode()).extra or b"{}")  # the entry
    await call.house.gateway.viewed(call.signed_in, "entry", study=str(told.get("study", "")))
    return _file(found.proof.encode(), f"entry-{index}.tlog-proof", "text/plain; charset=utf-8")


async def of_study(call: Call) -> Response:
    """The dossier of a study, as a page."""
    return _shown(call, await _dossier(call, "dossier"))


async def of_study_pdf(call: Call) -> Response:
    """The dossier of a study, on paper."""
    return await _printed(call, await _dossier(call, "dossier"))


async def identified(call: Call) -> Response:
    """The dossier with who the patient is: asked for with a purpose, opened by the log, which records the look-up."""
    fields = await form(call)
    purpose, reference = text_of(fields, "purpose", 16), text_of(fields, "reference", 64)
    if purpose not in PURPOSES or not REFERENCE.fullmatch(reference):
        raise invalid("choose a purpose; a reference looks like REQ-2026-17")
    cause = audit_pb2.Cause(
        purpose=audit_pb2.PurposeOfUse.Value(f"PURPOSE_OF_USE_{purpose}"),
        reference=reference,
        person=call.signed_in.name,
    )
    made = await _dossier(call, "dossier_with_identity")
    made = replace(made, identity=tuple(await dossier.identity(call.house.gateway, made, cause)))
    return await _printed(call, made) if text_of(fields, "format", 8) == "pdf" else _shown(call, made)


def _shown(call: Call, made: dossier.Dossier) -> Response:
    return call.page("dossier.html", of=made, purposes=PURPOSES, actions=dossier.ACTIONS)


async def _printed(call: Call, made: dossier.Dossier) -> Response:
    site = call.house.settings.site_name
    data = await asyncio.to_thread(dossier.as_pdf, made, call.wording, site=site)
    return _file(data, f"dossier-{made.study}.pdf", "application/pdf")


async def _dossier(call: Call, what: str) -> dossier.Dossier:
    study = call.path("study")
    if not _UID.fullmatch(study):
        raise invalid("the study is named by its pseudonym, which begins with 2.25.")
    # The view itself belongs into the dossier of whoever looks next: recorded first, and every time.
    await call.house.gateway.viewed(call.signed_in, what, study=study)
    part = _index(call.query("part") or "1")
    return await dossier.dossier(call.house.gateway, study, made_for=call.signed_in.name, part=part)


async def export(call: Call) -> Response:
    """The whole log as a file: the bundle that proves itself, or a table."""
    wanted = FORMATS.get(call.query("format"))
    if wanted is None:
        raise invalid("there is no such format")
    name, ending = wanted
    await call.house.gateway.viewed(call.signed_in, "export")
    request = audit_pb2.ExportRequest(format=audit_pb2.ExportFormat.Value(f"EXPORT_FORMAT_{name}"))
    pieces = stream(call.house.gateway.audit.Export, request)
    first = await anext(pieces, None)  # an error before the first piece is still a page

    async def body() -> AsyncIterator[bytes]:
        if first is not None:
            yield first.chunk
        async for piece in pieces:
            yield piece.chunk

    headers = {"Content-Disposition": f'attachment; filename="stepwedge-log.{ending}"'}
    return StreamingResponse(body(), media_type="application/octet-stream", headers=headers)


def _file(data: bytes, name: str, kind: str) -> Response:
    return Response(data, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise invalid("an entry is named by its number")
    return int(text)


ROUTES: Final = [
    route("/audit", search, WHO),
    route("/audit", by_number, WHO, methods=["POST"]),
    route("/audit/export", export, WHO),
    route("/audit/entries/{index:str}", entry, WHO),
    route("/audit/entries/{index:str}/proof", proof, WHO),
    route("/audit/dossiers/{study:str}.pdf", of_study_pdf, WHO),
    route("/audit/dossiers/{study:str}", of_study, WHO),
    route("/audit/dossiers/{study:str}/identity", identified, WHO, methods=["POST"]),
]
