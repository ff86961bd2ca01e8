"""One record as plain facts, and as the event that audit vocabularies describe: what every format is made of.

The facts are the members of the leaf, each under its path ("pins.model_sha256", "event.instances.0.verdict"). The event
is the same record in the terms that DICOM PS3.15 A.5 and FHIR AuditEvent share: what happened (CID 400), who took part,
and on which objects.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.audit import record
from shared.identity import TRUST_DOMAIN

SCHEME = "99STEPWEDGE"
"""Our own coding scheme in DICOM (PS3.16 8.2: private designators begin with 99)."""


class Code(NamedTuple):
    """A coded word of DICOM (coding scheme DCM) or of ours (coding scheme SCHEME)."""

    value: str
    meaning: str
    scheme: str = "DCM"


# PS3.16 CID 400, of which these records need a few.
ACCESSED = Code("110103", "DICOM Instances Accessed")
TRANSFERRED = Code("110104", "DICOM Instances Transferred")
AUDIT_LOG_USED = Code("110101", "Audit Log Used")
PATIENT_RECORD = Code("110110", "Patient Record")
SECURITY_ALERT = Code("110113", "Security Alert")
AUTHENTICATION = Code("110114", "User Authentication")

# PS3.16 CID 402.
APPLICATION = Code("110150", "Application")
DESTINATION = Code("110152", "Destination Role ID")
SOURCE = Code("110153", "Source Role ID")

OUTCOMES: Mapping[str, str] = {"SUCCESS": "0", "MINOR_FAILURE": "4", "SERIOUS_FAILURE": "8", "MAJOR_FAILURE": "12"}
"""Outcome of a record -> EventOutcomeIndicator (PS3.15 A.5.1)."""


class Vocabulary(NamedTuple):
    """How a kind of record is said in the standard's words."""

    event: Code
    action: str
    """EventActionCode: C, R, U, D or E."""
    life_cycle: str
    """ParticipantObjectDataLifeCycle (PS3.15 A.5.1.2.3) of the study; empty where none fits."""
    meaning: str
    """For people."""
    role: Code = APPLICATION
    """Of the producer."""
    requestor: bool = True
    """Whether the producer acted on its own account."""
    anonymized: bool | None = None
    """Whether the objects that were handled bore no identity; None where the record does not say."""


VOCABULARY: Mapping[str, Vocabulary] = {
    "RECEIVED": Vocabulary(TRANSFERRED, "C", "2", "Object received", DESTINATION, False, False),
    "REDACTED": Vocabulary(ACCESSED, "C", "7", "Object de-identified", anonymized=True),
    "ASSESSED": Vocabulary(ACCESSED, "R", "6", "De-identified object assessed", anonymized=True),
    "SHADOWED": Vocabulary(ACCESSED, "R", "4", "Candidate model looked at an object", anonymized=True),
    "MODEL_RELEASED": Vocabulary(SECURITY_ALERT, "C", "", "Model released", requestor=False),
    "MODEL_SERVED": Vocabulary(SECURITY_ALERT, "E", "", "Model served"),
    "DECIDED": Vocabulary(ACCESSED, "R", "4", "Verdict on a study"),
    "DELIVERED": Vocabulary(TRANSFERRED, "R", "10", "Result delivered", SOURCE),
    "FAILED": Vocabulary(ACCESSED, "R", "", "Step failed"),
    "REQUEUED": Vocabulary(ACCESSED, "U", "", "Study put back in the queue", requestor=False),
    "ERASED": Vocabulary(PATIENT_RECORD, "D", "15", "Identity of a subject erased", requestor=False),
    "HOLD": Vocabulary(PATIENT_RECORD, "U", "", "Legal hold set or released", requestor=False),
    "PRUNED": Vocabulary(AUDIT_LOG_USED, "D", "15", "Entries removed at the end of their retention", requestor=False),
    "IDENTITY_LOOKED_UP": Vocabulary(PATIENT_RECORD, "R", "6", "Identity of a subject looked up", requestor=False),
    "ALERT": Vocabulary(SECURITY_ALERT, "E", "", "The log noticed something"),
    "READ": Vocabulary(AUDIT_LOG_USED, "R", "", "Entries of the log read", requestor=False),
    "REFUSED_CALL": Vocabulary(SECURITY_ALERT, "E", "", "Calls refused because of who called", requestor=False),
    "KEY_ROTATED": Vocabulary(SECURITY_ALERT, "U", "", "The log's signing key was replaced"),
    "REVIEWED": Vocabulary(ACCESSED, "U", "4", "Decision reviewed by a person", requestor=False),
    "VIEWED": Vocabulary(ACCESSED, "R", "6", "Looked at by a person", requestor=False),
    "AUTHENTICATED": Vocabulary(AUTHENTICATION, "E", "", "Sign-in or account", requestor=False),
    "CONSTANCY": Vocabulary(ACCESSED, "R", "4", "Cluster tested with phantoms", requestor=False),
    "COMMITTED": Vocabulary(ACCESSED, "R", "4", "Storage commitment answered"),
}
"""Kind of record -> its words. A kind that is not here cannot be exported; a test holds the table to the contract."""


class Participant(NamedTuple):
    """Who took part."""

    name: str
    system: str
    """What kind of name it is: "spiffe", or a member of the record ("channel", "destination", "requested_by")."""
    role: Code
    requestor: bool
    process: str = ""
    """The start of the program, for a service."""

    @property
    def uri(self) -> str:
        """The name, of one form for all."""
        return TRUST_DOMAIN + self.name if self.system == "spiffe" else f"urn:x-stepwedge:{self.system}:{self.name}"


@dataclass(frozen=True, slots=True)
class Event:
    """One record, ready to be written in any format."""

    leaf_hash: str
    """RFC 6962 hash of the leaf, hexadecimal: leads from the exported record to its proof."""
    origin: str
    """Name of the log."""
    members: Mapping[str, Any]
    """The leaf's."""
    words: Vocabulary
    participants: tuple[Participant, ...]

    def get(self, name: str) -> str:
        """A text member of the leaf, empty where it is absent."""
        return str(self.members.get(name, ""))

    @property
    def outcome(self) -> str:
        """EventOutcomeIndicator."""
        return OUTCOMES[self.members["outcome"]]

    @property
    def reason(self) -> str:
        """Code of the error or refusal; empty where there is none."""
        event = self.members["event"]
        return str(event.get("error") or event.get("refusal") or "")

    @property
    def anonymized(self) -> bool | None:
        """Whether the objects that were handled bore no identity; None where the record does not say."""
        if self.words.anonymized and self.members["outcome"] != "SUCCESS":
            return None
        return self.words.anonymized

    def facts(self) -> Iterator[tuple[str, str]]:
        """Every member of the leaf by its path, as text, and the hash of the leaf."""
        yield "leaf_hash", self.leaf_hash
        yield from flatten(self.members)


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """What a JSON value holds, as (path, text); a boolean is "true" or "false"."""
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from flatten(value[name], f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from flatten(item, f"{path}.{position}")
    elif isinstance(value, bool):
        yield path, "true" if value else "false"
    else:
        yield path, str(value)


def read(leaf: bytes, leaf_hash: bytes, origin: str) -> Event:
    """The event that a leaf records. Raises ValueError where the leaf is no record of a known kind."""
    members = record.parse(leaf)
    try:
        words = VOCABULARY[members["kind"]]
        for name in _NEEDED:
            if not isinstance(members[name], str):
                raise TypeError
        if not isinstance(members["event"], dict) or not isinstance(members.get("pins", {}), dict):
            raise TypeError
        OUTCOMES[members["outcome"]]
    except (KeyError, TypeError):
        raise ValueError("not a record that this build can export") from None
    return Event(leaf_hash.hex(), origin, members, words, tuple(_participants(members, words)))


_NEEDED = ("id", "producer", "incarnation", "recorded_at", "occurred_at", "kind", "outcome")


def _participants(members: Mapping[str, Any], words: Vocabulary) -> Iterator[Participant]:
    yield Participant(members["producer"], "spiffe", words.role, words.requestor, members["incarnation"])
    other = _OTHERS.get(members["kind"])
    if other is not None and (name := members["event"].get(other.member)):
        yield Participant(str(name), other.system or other.member, other.role, other.requestor)


class _Other(NamedTuple):
    """Who else takes part, by a member of the event."""

    member: str
    role: Code
    requestor: bool
    system: str = ""


_OTHERS: Mapping[str, _Other] = {
    # The log does not keep the sender's name, only the door that it came through.
    "RECEIVED": _Other("channel", SOURCE, True),
    "DELIVERED": _Other("destination", DESTINATION, False),
    "MODEL_RELEASED": _Other("requested_by", APPLICATION, True, "spiffe"),
    "REQUEUED": _Other("requested_by", APPLICATION, True, "spiffe"),
    "CONSTANCY": _Other("requested_by", APPLICATION, True, "spiffe"),
    "ERASED": _Other("requested_by", APPLICATION, True, "spiffe"),
    "HOLD": _Other("requested_by", APPLICATION, True, "spiffe"),
    "PRUNED": _Other("requested_by", APPLICATION, True, "spiffe"),
    "IDENTITY_LOOKED_UP": _Other("requested_by", APPLICATION, True, "spiffe"),
    "READ": _Other("reader", APPLICATION, True, "spiffe"),
    "REFUSED_CALL": _Other("caller", APPLICATION, True, "spiffe"),
    "ALERT": _Other("about", APPLICATION, False, "spiffe"),
    "REVIEWED": _Other("reviewer", APPLICATION, True),
    "VIEWED": _Other("person", APPLICATION, True),
    "AUTHENTICATED": _Other("person", APPLICATION, True),
}


def microseconds(moment: str) -> str:
    """A time of the record (RFC 3339, nine digits of a second) with six, which every format can hold."""
    whole, point, rest = moment.partition(".")
    return f"{whole}.{rest.removesuffix('Z')[:6]}Z" if point else moment
