"""Records as FHIR R4 AuditEvent, shaped as IHE BALP shapes them, an object a line (NDJSON).

BALP's profiles for RESTful acts demand the type `rest`, which these acts are not, so no profile is claimed in
`meta.profile`. What is BALP's: the slices for patient, data and transaction, and agents with source and destination
roles.
"""

import json
from collections.abc import Iterator
from typing import Any

from services.audit.formats.facts import SCHEME, Code, Event, Participant, microseconds

_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
_SYSTEMS = {"DCM": "http://dicom.nema.org/resources/ontology/DCM", SCHEME: "urn:x-stepwedge:code"}
_TRANSACTION = {"system": "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType", "code": "XrequestId"}
_URI = "urn:ietf:rfc:3986"

Json = dict[str, Any]


def line(event: Event) -> bytes:
    """A record's AuditEvent on one line."""
    return json.dumps(audit_event(event), separators=(",", ":")).encode() + b"\n"


def audit_event(event: Event) -> Json:
    """A record's AuditEvent."""
    moment = microseconds(event.members["occurred_at"])
    made: Json = {
        "resourceType": "AuditEvent",
        "id": event.members["id"],
        "type": _coding(event.words.event),
        "subtype": [_coding(Code(event.members["kind"], event.words.meaning, SCHEME))],
        "action": event.words.action,
        "period": {"start": moment, "end": moment},
        "recorded": microseconds(event.members["recorded_at"]),
        "outcome": event.outcome,
        "agent": [_agent(one) for one in event.participants],
        "source": {
            "observer": {"identifier": {"system": "urn:x-stepwedge:log", "value": event.origin}},
            "type": [{"system": f"{_TERMINOLOGY}security-source-type", "code": "4", "display": "Application Server"}],
        },
        "entity": list(_entities(event)),
    }
    if event.reason:
        made["outcomeDesc"] = event.reason
    return made


def _coding(code: Code) -> Json:
    return {"system": _SYSTEMS[code.scheme], "code": code.value, "display": code.meaning}


def _agent(one: Participant) -> Json:
    made: Json = {
        "type": {"coding": [_coding(one.role)]},
        "who": {"identifier": {"system": _URI, "value": one.uri}},
        "name": one.name,
        "requestor": one.requestor,
    }
    if one.process:
        made["altId"] = one.process
    return made


def _entity(identifier: Json, kind: str, role: str, resource: str = "", **more: Any) -> Json:
    what: Json = {"type": resource} if resource else {}
    return {
        "what": {**what, "identifier": identifier},
        "type": {"system": f"{_TERMINOLOGY}audit-entity-type", "code": kind},
        "role": {"system": f"{_TERMINOLOGY}object-role", "code": role},
        **more,
    }


def _entities(event: Event) -> Iterator[Json]:
    if subject := event.get("subject"):
        yield _entity({"system": "urn:x-stepwedge:subject", "value": subject}, "1", "1", "Patient")
    if study := event.get("study"):
        yield _entity(
            {"system": "urn:dicom:uid", "value": f"urn:oid:{study}"}, "2", "4", "ImagingStudy", **_life_cycle(event)
        )
    facts = [{"type": path, "valueString": text} for path, text in event.facts() if text]
    yield _entity({"system": _URI, "value": f"urn:uuid:{event.get('id')}"}, "2", "13", detail=facts)
    if trace := event.get("trace_id"):
        yield {"what": {"identifier": {"value": trace}}, "type": _TRANSACTION}


def _life_cycle(event: Event) -> Json:
    if not event.words.life_cycle:
        return {}
    return {"lifecycle": {"system": f"{_TERMINOLOGY}dicom-audit-lifecycle", "code": event.words.life_cycle}}
