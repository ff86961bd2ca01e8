"""One decision from beginning to end, each step with its proof: collected, checked here, printed."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pydicom.datadict import dictionary_description, dictionary_has_tag

from services.console.gateway import Gateway, not_found
from services.console.gateway import call as ask
from services.console.wording import Wording
from shared.transparency import merkle
from shared.transparency.cosignature import cosigners
from shared.transparency.note import (
    BadSignatureError,
    Checkpoint,
    MalformedNoteError,
    Note,
    VerificationKey,
    open_checkpoint,
)
from shared.transparency.rotation import Rotation, signers, terms
from shared.transparency.tlog_proof import TlogProof
from stepwedge.audit.v1 import audit_pb2

MOST: Final = 500
"""Entries on the study as a whole in one dossier; a study has a handful."""
PART: Final = 200
"""Entries on single images, and looks and reads of people, in one part of a dossier: a CT has a thousand of them."""
_MANY: Final = frozenset({"received", "redacted", "assessed", "shadowed", "viewed", "read"})
_PAGE: Final = 100
_LONGEST: Final = 100_000
_TOGETHER: Final = 16


@dataclass(frozen=True)
class Cosigned:
    """The newest checkpoint that enough witnesses cosigned, as far as it could be checked here."""

    text: str
    size: int
    witnesses: tuple[tuple[str, datetime], ...]
    """Name, and when it cosigned (UTC), of each witness that the site named and whose cosignature holds."""
    known: int
    """How many witnesses the site named; 0: nothing could be checked."""
    enough: int
    """How many of them must have cosigned."""
    holds: bool
    """Whether enough of them did, the log signed it, and the head of the log is its continuation."""


@dataclass(frozen=True)
class Head:
    """The checkpoint that everything is proved against."""

    text: str
    size: int
    root: bytes
    origin: str
    key: str
    trusted: bool
    """Whether the key is the one that the site gave to the console; else it is what the log itself says."""
    signed: bool
    """Whether the signature holds under the key."""
    cosigned: Cosigned | None
    """None where no checkpoint was cosigned."""

    @property
    def sound(self) -> bool:
        """Whether the log signed it, and no witness that the site named has seen another log."""
        return self.signed and (self.cosigned is None or not self.cosigned.known or self.cosigned.holds)


@dataclass(frozen=True)
class Line:
    """One entry of the log."""

    index: int
    kind: str
    outcome: str
    producer: str
    recorded_at: str
    facts: tuple[tuple[str, str], ...]
    """(path, text) of everything that the record holds."""
    leaf_hash: str
    path: tuple[str, ...]
    """Hashes of the inclusion proof, base64."""
    proved: bool
    """Whether the proof leads from the leaf to the root of the checkpoint."""

    @property
    def redaction(self) -> list[tuple[str, str, str]]:
        """Tag by tag what redaction did: (action, tag, name of the attribute); empty of other records."""
        known: dict[str, list[tuple[str, str]]] = {}
        actions: dict[str, str] = {}
        for path, text in self.facts:
            if (found := _ATTRIBUTE.fullmatch(path)) is None:
                continue
            if found["tag"] is None:
                actions[found["place"]] = text
            else:
                known.setdefault(found["place"], []).append((f"({text[:4]},{text[4:]})", _attribute(text)))
        return [(actions.get(place, ""), *named) for place, tags in known.items() for named in tags]

    @property
    def others(self) -> list[tuple[str, str]]:
        """The facts that `redaction` does not tell."""
        return [fact for fact in self.facts if not _ATTRIBUTE.fullmatch(fact[0])]

    @property
    def blanked(self) -> list[dict[str, str]]:
        """Box by box what redaction blanked in the pixels: frames, edges, reason."""
        boxes: dict[str, dict[str, str]] = {}
        for path, text in self.facts:
            if found := _BLANKED.fullmatch(path):
                boxes.setdefault(found["place"], {})[found["name"]] = text
        return list(boxes.values())

    @property
    def summary(self) -> str:
        """The two or three facts that a reader looks for first."""
        wanted = _FIRST.get(self.kind, ())
        known = dict(self.facts)
        named = {name: name.removesuffix(".0").rpartition(".")[2] for name in wanted}
        return ", ".join(f"{named[name]} {known[name]}" for name in wanted if known.get(name))


_ATTRIBUTE: Final = re.compile(r"event\.attributes\.(?P<place>[0-9]+)\.(?:action|tags\.(?P<tag>[0-9]+))")
_BLANKED: Final = re.compile(r"event\.blanked\.(?P<place>[0-9]+)\.(?P<name>[a-z_]+)")


def _attribute(tag: str) -> str:
    """The name of an attribute (PS3.6); empty for a private one."""
    number = int(tag, 16)
    return dictionary_description(number) if dictionary_has_tag(number) else ""


_FIRST: Final[Mapping[str, Sequence[str]]] = {
    "RECEIVED": ("event.channel", "event.size_bytes"),
    "REDACTED": ("pins.profile_edition", "event.residual_hits", "event.refusal"),
    "ASSESSED": ("pins.model", "event.confidence"),
    "SHADOWED": ("pins.model", "event.changed", "event.agreement"),
    "DECIDED": ("event.verdict", "event.reasons.0", "event.revision"),
    "REVIEWED": ("event.verdict", "event.reason", "event.reviewer"),
    "DELIVERED": ("event.destination", "event.objects"),
    "FAILED": ("event.step", "event.error"),
    "VIEWED": ("event.person", "event.what"),
    "AUTHENTICATED": ("event.person", "event.act"),
    "CONSTANCY": ("event.compared", "event.drifted"),
    "COMMITTED": ("event.held", "event.missing"),
    "ALERT": ("event.code",),
}


ACTIONS: Final[Mapping[str, str]] = {
    "K": "kept",
    "X": "removed",
    "Z": "emptied",
    "D": "replaced by a value that means nothing",
    "U": "replaced by another UID",
    "C": "cleaned of what names somebody",
    "PRIVATE": "removed: private",
    "UNKNOWN": "removed: in no data dictionary",
    "CURVE": "removed: a curve",
    "OVERLAY": "removed: an overlay",
}
"""Code of an action (PS3.15 Table E.1-1, and our own) -> what became of the attribute."""


FIELDS: Final[Mapping[str, str]] = {
    "name": "Name",
    "patient_id": "Patient number",
    "issuer": "Issuer of the patient number",
    "birth_date": "Birth date",
    "sex": "Sex",
    "accession_number": "Accession number",
    "study_instance_uid": "Study Instance UID as received",
    "series_instance_uid": "Series Instance UID as received",
    "sop_instance_uid": "SOP Instance UID as received",
}
"""Field of a sealed identity -> what a person calls it."""
_PATIENTS: Final = 5  # of one study; more than one is a fault that the dossier shows


@dataclass(frozen=True)
class Dossier:
    """What the log holds on one study."""

    study: str
    head: Head
    lines: tuple[Line, ...]
    made_at: datetime
    made_for: str
    part: int = 1
    parts: int = 1
    """In each part: what concerns the study as a whole, and some of what concerns its images."""
    identity: tuple[tuple[str, str], ...] = ()
    """Name and value of what identifies the study; empty where it was not asked for."""

    @property
    def subjects(self) -> list[str]:
        """Pseudonyms of the persons whose images the study holds; more than one is a fault that the dossier shows."""
        told = (dict(line.facts).get("subject", "") for line in self.lines if line.kind == "RECEIVED")
        return list(dict.fromkeys(filter(None, told)))

    @property
    def proved(self) -> bool:
        """Whether every line is, under a checkpoint whose signature holds."""
        return self.head.sound and all(line.proved for line in self.lines)


async def head_of(gateway: Gateway) -> Head:
    """The newest checkpoint, its signature checked here."""
    answer = await ask(gateway.audit.GetCheckpoint, audit_pb2.GetCheckpointRequest())
    ours = gateway.verification_key()
    key = ours or answer.verification_key
    trusted = [VerificationKey.parse(one) for one in key.split()]
    try:
        checkpoint, signed = await _opened(gateway, answer.checkpoint.encode(), trusted), True
    except (MalformedNoteError, BadSignatureError):
        checkpoint, signed = Checkpoint("", answer.size, answer.root_hash), False
    text = answer.cosigned_checkpoint
    cosigned = await _cosigned(gateway, text, trusted, checkpoint) if text else None
    return Head(
        answer.checkpoint, checkpoint.size, checkpoint.root, checkpoint.origin, key, bool(ours), signed, cosigned
    )


async def _cosigned(gateway: Gateway, text: str, trusted: list[VerificationKey], head: Checkpoint) -> Cosigned:
    """What witnesses cosigned, checked with the keys that the site named, and held against the head of the log."""
    enough = max(1, gateway.quorum)
    try:
        older = await _opened(gateway, text.encode(), trusted)
        found = cosigners(Note.parse(text.encode()), gateway.witnesses)
    except (MalformedNoteError, BadSignatureError):
        return Cosigned(text, 0, (), len(gateway.witnesses), enough, holds=False)
    names = {one.public: one.name for one in gateway.witnesses}
    witnesses = tuple((names[public], datetime.fromtimestamp(at, UTC)) for public, at in found.items())
    holds = len(witnesses) >= enough and await _continues(gateway, older, head)
    return Cosigned(text, older.size, witnesses, len(gateway.witnesses), enough, holds)


async def _continues(gateway: Gateway, older: Checkpoint, head: Checkpoint) -> bool:
    """Whether the tree of the head begins with that of the older checkpoint (RFC 6962 2.1.4)."""
    if older.origin != head.origin or not 0 < older.size <= head.size:
        return False
    request = audit_pb2.GetConsistencyProofRequest(from_size=older.size, to_size=head.size)
    proof = await ask(gateway.audit.GetConsistencyProof, request)
    return merkle.verify_consistency(older.size, head.size, older.root, head.root, list(proof.path))


async def _opened(gateway: Gateway, note: bytes, trusted: list[VerificationKey]) -> Checkpoint:
    """The checkpoint, signed by a key that is trusted or that one which is leads to (a rotation, with its proof).

    Raises MalformedNoteError or BadSignatureError.
    """
    try:
        return open_checkpoint(note, trusted)
    except BadSignatureError:
        rotated = audit_pb2.QueryEntriesRequest(kind=audit_pb2.RECORD_KIND_KEY_ROTATED, page_size=MOST)
        changes: list[Rotation] = []
        for entry in (await ask(gateway.audit.QueryEntries, rotated)).entries:
            request = audit_pb2.GetProofRequest(index=entry.index, size=entry.index + 1)
            proof = await ask(gateway.audit.GetProof, request)
            change = Rotation.of(TlogProof.parse(proof.proof.encode()))
            if change.old in trusted or any(change.old == one.new for one in changes):
                changes.append(change)
        checkpoint = open_checkpoint(note, [*trusted, *(one.new for one in changes)])
        signers(Note.parse(note), terms(trusted, changes), checkpoint.size)
        return checkpoint


async def line_of(gateway: Gateway, entry: audit_pb2.Entry, head: Head) -> Line:
    """An entry with its proof, checked here: leaf bytes, leaf hash, path, root."""
    request = audit_pb2.GetInclusionProofRequest(index=entry.index, size=head.size)
    proof = await ask(gateway.audit.GetInclusionProof, request)
    leaf_hash = merkle.leaf_hash(entry.leaf)
    members = json.loads(entry.leaf)
    return Line(
        entry.index,
        str(members.get("kind", "")),
        str(members.get("outcome", "")),
        str(members.get("producer", "")),
        str(members.get("recorded_at", ""))[:19].replace("T", " "),
        tuple(flatten(members)),
        leaf_hash.hex(),
        tuple(base64.b64encode(one).decode() for one in proof.path),
        merkle.verify_inclusion(leaf_hash, entry.index, head.size, list(proof.path), head.root),
    )


async def _entries(gateway: Gateway, study: str, size: int, part: int) -> tuple[list[audit_pb2.Entry], int]:
    """What a part of a dossier shows, in the order of the log, and the number of parts."""
    request = audit_pb2.QueryEntriesRequest(study=study, page_size=_PAGE)
    whole: list[audit_pb2.Entry] = []
    some: list[audit_pb2.Entry] = []
    seen = many = 0
    while seen < _LONGEST:
        found = await ask(gateway.audit.QueryEntries, request)
        for entry in found.entries:
            if entry.index >= size:
                continue
            if entry.record.WhichOneof("event") not in _MANY and len(whole) < MOST:
                whole.append(entry)
                continue
            if (part - 1) * PART <= many < part * PART:
                some.append(entry)
            many += 1
        seen += len(found.entries)
        request.page_token = found.next_page_token
        if not found.next_page_token:
            break
    return sorted([*whole, *some], key=lambda entry: entry.index), max(1, -(-many // PART))


async def dossier(gateway: Gateway, study: str, *, made_for: str, part: int = 1) -> Dossier:
    """What the log holds on a study. Raises ENTRY_NOT_FOUND where that is nothing, or there is no such part."""
    head = await head_of(gateway)
    entries, parts = await _entries(gateway, study, head.size, part)
    if not entries or not 0 < part <= parts:
        raise not_found("the log holds nothing on this study")
    places = asyncio.Semaphore(_TOGETHER)

    async def one(entry: audit_pb2.Entry) -> Line:
        async with places:
            return await line_of(gateway, entry, head)

    lines = await asyncio.gather(*(one(entry) for entry in entries))
    return Dossier(study, head, tuple(lines), datetime.now(UTC), made_for, part, parts)


async def identity(gateway: Gateway, of: Dossier, cause: audit_pb2.Cause) -> list[tuple[str, str]]:
    """Who the patient of a study is, by name of the field; each opening is a record of the log.

    What the site did not give the console a key for, and what was erased, is said in words.
    """
    opener = gateway.identities()
    if opener is None:
        return [("The console has no key for identities here: use stepwedge log identify", "")]
    found: list[tuple[str, str]] = []
    subjects: dict[str, int] = {}
    for line in of.lines:
        if line.kind == "RECEIVED":
            subjects.setdefault(dict(line.facts).get("subject", ""), line.index)
    for index in list(subjects.values())[:_PATIENTS]:
        answer = await ask(gateway.audit.OpenIdentity, audit_pb2.OpenIdentityRequest(index=index, cause=cause))
        if answer.sealed:
            who = opener.open(answer.sealed, answer.subject, answer.idempotency_key)
            found.extend((FIELDS.get(name, name), value) for name, value in who.items())
        else:
            found.append(("The identity was erased, or never sealed", ""))
        found.append(("The look-up is entry", str(answer.lookup_index)))
    return found


def batched(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The items, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """What a JSON value holds, as (path, text)."""
    if isinstance(value, dict):
        for name in sorted(value):
            yield from flatten(value[name], f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from flatten(item, f"{path}.{place}")
    else:
        yield path, json.dumps(value) if isinstance(value, bool) else str(value)


HOW_TO_CHECK: Final = (
    "To check this without our servers: export the log, and run verifier/verify.py on it with the key above and those "
    "of the witnesses (--key, --witness, --quorum), which you have from another source than this paper."
)


def witnessed(of: Cosigned | None, wording: Wording) -> list[str]:
    """What is to be said of the witnesses, a sentence each."""
    if of is None:
        return [wording("No witness has cosigned.")]
    if not of.known:
        return [wording("The log shows a cosigned checkpoint; this site named no witness to check it with.")]
    told = [
        wording("{name} cosigned {size} entries at {at} UTC.", name=name, size=of.size, at=f"{at:%Y-%m-%d %H:%M:%S}")
        for name, at in of.witnesses
    ]
    if of.holds:
        return [*told, wording("These cosignatures hold, and the checkpoint above continues what was cosigned.")]
    return [
        *told,
        wording("THE WITNESSES DO NOT BEAR THIS LOG OUT. Do not rely on it; tell whoever guards the log.")
        if len(of.witnesses) >= of.enough
        else wording("TOO FEW COSIGNATURES HOLD: {count} of {enough}.", count=len(of.witnesses), enough=of.enough),
    ]


def _legible(text: str) -> str:
    """What the fonts of every PDF reader can show; any other character by its number, and not as an empty box."""
    return text.encode("cp1252", "backslashreplace").decode("cp1252")


def as_pdf(of: Dossier, wording: Wording, *, site: str) -> bytes:
    """The dossier on paper (A4): what happened, in order, then the proofs, then how to check them."""
    from xml.sax.saxutils import escape

    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
    from reportlab.lib.units import mm
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

    styles = getSampleStyleSheet()
    small = ParagraphStyle("small", parent=styles["BodyText"], fontSize=7, leading=9, fontName="Courier")
    body = ParagraphStyle("body", parent=styles["BodyText"])
    title, heading = styles["Title"], styles["Heading2"]
    grid = TableStyle(
        [
            ("GRID", (0, 0), (-1, -1), 0.25, "#999999"),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("FONTSIZE", (0, 0), (-1, -1), 8),
        ]
    )

    def cell(text: str, style: ParagraphStyle = small) -> Paragraph:
        return Paragraph(escape(_legible(text)), style)

    flow: list[Any] = [
        Paragraph(escape(wording("Dossier of a decision")), title),
        cell(site, body),
        cell(f"{wording('Study (pseudonym)')}: {of.study}", body),
        *(cell(f"{wording(name)}: {value}", body) for name, value in of.identity),
        *([cell(wording("Part {part} of {parts}", part=of.part, parts=of.parts), body)] if of.parts > 1 else []),
        cell(f"{wording('Made at')} {of.made_at:%Y-%m-%d %H:%M:%S} UTC {wording('for')} {of.made_for}", body),
        cell(
            wording("Every line below is proved against the signed checkpoint.")
            if of.proved
            else wording("AT LEAST ONE LINE IS NOT PROVED. Do not rely on this dossier; tell whoever guards the log."),
            body,
        ),
        Spacer(1, 4 * mm),
        Paragraph(escape(wording("What happened")), heading),
    ]
    rows = [[cell(wording(name)) for name in ("Entry", "Recorded at (UTC)", "What", "By", "Proved")]]
    rows += [
        [
            cell(str(line.index)),
            cell(line.recorded_at),
            cell(f"{wording(line.kind)} {line.outcome} {line.summary}"),
            cell(line.producer),
            cell(wording("yes") if line.proved else wording("NO")),
        ]
        for line in of.lines
    ]
    flow += [Table(rows, colWidths=[14 * mm, 34 * mm, 82 * mm, 24 * mm, 16 * mm], style=grid, repeatRows=1)]
    flow += [PageBreak(), Paragraph(escape(wording("What each record holds, and its proof")), heading)]
    for line in of.lines:
        facts = [[cell(name), cell(value)] for name, value in line.others]
        touched: dict[str, list[str]] = {}
        for action, tag, name in line.redaction:
            touched.setdefault(action, []).append(f"{tag} {name}".rstrip())
        for action, tags in touched.items():  # a row of a table must fit a page
            what = f"{wording(ACTIONS.get(action, ''))} {action}".strip()
            facts += [[cell(what), cell("; ".join(some))] for some in batched(tags, 100)]
        facts += [[cell("leaf hash (RFC 6962)"), cell(line.leaf_hash)]]
        facts += [[cell(f"proof {place}"), cell(one)] for place, one in enumerate(line.path)]
        flow += [
            Paragraph(escape(f"{line.index}  {wording(line.kind)}"), styles["Heading3"]),
            Table(facts, colWidths=[52 * mm, 118 * mm], style=grid),
        ]
    flow += [
        Paragraph(escape(wording("The checkpoint")), heading),
        *(cell(text) for text in of.head.text.splitlines()),
        *(cell(text, body) for text in witnessed(of.head.cosigned, wording)),
        *(cell(text) for text in (of.head.cosigned.text if of.head.cosigned else "").splitlines()),
        cell(f"{wording('Key of the log')}: {of.head.key}"),
        cell(
            wording(HOW_TO_CHECK),
            body,
        ),
    ]
    out = io.BytesIO()
    SimpleDocTemplate(out, pagesize=A4, title="Stepwedge dossier", author="Stepwedge", lang=wording.language).build(
        flow
    )
    return out.getvalue()
