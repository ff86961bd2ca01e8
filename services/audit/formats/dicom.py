"""Records as DICOM audit messages (PS3.15 A.5), one XML document each, on one line."""

import base64
import re
from collections.abc import Iterable, Iterator
from xml.sax.saxutils import quoteattr

from services.audit.formats.facts import SCHEME, Code, Event, Participant

MAX_OCTETS = 32_768
"""What every receiver must be able to take (PS3.15 A.6)."""

_PLAIN = re.compile(r"[ !#-%'-;=?-~]*")  # printable ASCII without quotation mark, ampersand and angle brackets
# What XML 1.0 (2.2) has no place for, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_PATIENT = Code("2", "Patient Number", "RFC-3881")
_STUDY = Code("110180", "Study Instance UID")
_RECORD = Code("RECORD", "Record in the log", SCHEME)
_ACCEPTABLE_UID = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]*))+")


def line(event: Event) -> bytes:
    """A record's message on one line."""
    return message(event) + b"\n"


def message(event: Event, most: int | None = None) -> bytes:
    """A record's audit message, UTF-8, without a line break.

    Where it would be longer than `most` octets, facts out of lists are left out, and the detail "omitted" says how
    many; the record's index and leaf hash, which stay, lead to them in the log.
    """
    facts = list(event.facts())
    whole = _message(event, facts)
    if most is None or len(whole) <= most:
        return whole
    kept = [(path, text) for path, text in facts if not _in_a_list(path)]
    return _message(event, [*kept, ("omitted", str(len(facts) - len(kept)))])


def _in_a_list(path: str) -> bool:
    return any(part.isdecimal() for part in path.split("."))


def _message(event: Event, facts: Iterable[tuple[str, str]]) -> bytes:
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?><AuditMessage>',
        *_event_identification(event),
        *(_active_participant(one) for one in event.participants),
        _empty("AuditSourceIdentification", {"AuditSourceID": event.origin}, _empty("AuditSourceTypeCode", _AS_SERVER)),
        *_patient(event),
        *_study(event),
        *_record(event, facts),
        "</AuditMessage>",
    ]
    return "".join(parts).encode()


_AS_SERVER = {"csd-code": "4"}


def _empty(name: str, attributes: dict[str, str], *inside: str) -> str:
    """An element; without content where nothing is inside."""
    words = "".join(f" {key}={_quoted(value)}" for key, value in attributes.items())
    return f"<{name}{words}>{''.join(inside)}</{name}>" if inside else f"<{name}{words}/>"


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return f'"{value}"'
    # Line breaks are escaped, so that a message stays on its line and attribute normalisation does not change it.
    return quoteattr(_FORBIDDEN.sub("\ufffd", value), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;", "\x85": "&#133;"})


def _coded(name: str, code: Code) -> str:
    return _empty(name, {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning})


def _text(name: str, value: str) -> str:
    return f"<{name}>{_quoted(value)[1:-1]}</{name}>"


def _event_identification(event: Event) -> Iterator[str]:
    attributes = {
        "EventActionCode": event.words.action,
        "EventDateTime": event.members["occurred_at"],
        "EventOutcomeIndicator": event.outcome,
    }
    kind = Code(event.members["kind"], event.words.meaning, SCHEME)
    inside = [_coded("EventID", event.words.event), _coded("EventTypeCode", kind)]
    if event.reason:
        inside.append(_text("EventOutcomeDescription", event.reason))
    yield _empty("EventIdentification", attributes, *inside)


def _active_participant(one: Participant) -> str:
    attributes = {"UserID": one.uri}
    if one.process:
        attributes["AlternativeUserID"] = one.process
    attributes["UserIsRequestor"] = "true" if one.requestor else "false"
    return _empty("ActiveParticipant", attributes, _coded("RoleIDCode", one.role))


def _object(identifier: str, kind: str, role: str, code: Code, name: str, *inside: str, life_cycle: str = "") -> str:
    attributes = {
        "ParticipantObjectID": identifier,
        "ParticipantObjectTypeCode": kind,
        "ParticipantObjectTypeCodeRole": role,
    }
    if life_cycle:
        attributes["ParticipantObjectDataLifeCycle"] = life_cycle
    words = _coded("ParticipantObjectIDTypeCode", code), _text("ParticipantObjectName", name)
    return _empty("ParticipantObjectIdentification", attributes, *words, *inside)


def _patient(event: Event) -> Iterator[str]:
    if subject := event.get("subject"):
        # The schema wants a name or a query; the name is the pseudonym again.
        yield _object(subject, "1", "1", _PATIENT, subject)


def _study(event: Event) -> Iterator[str]:
    if study := event.get("study"):
        described = _empty("ParticipantObjectDescription", {}, *_description(event))
        yield _object(study, "2", "3", _STUDY, study, described, life_cycle=event.words.life_cycle)


def _description(event: Event) -> Iterator[str]:
    if instance := event.get("instance"):
        attributes = {}
        sop_class = str(event.members["event"].get("sop_class_uid", ""))
        if _ACCEPTABLE_UID.fullmatch(sop_class):
            attributes["UID"] = sop_class
        yield _empty("SOPClass", {**attributes, "NumberOfInstances": "1"}, _empty("Instance", {"UID": instance}))
    if event.anonymized is not None:
        yield f"<Anonymized>{'true' if event.anonymized else 'false'}</Anonymized>"


def _record(event: Event, facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    details = (
        _empty("ParticipantObjectDetail", {"type": path, "value": base64.b64encode(text.encode()).decode()})
        for path, text in facts
    )
    yield _object(event.members["id"], "2", "13", _RECORD, event.get("schema"), *details)
