"""The DICOM Conformance Statement (PS3.2) of ingest as it is set up: made of its settings and of the tables that serve.

`python -m services.ingest.conformance [markdown|html]` prints it for the settings that STEPWEDGE_CONFIG names.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import DEFAULT_TRANSFER_SYNTAXES, build_context
from pynetdicom.presentation import negotiate_unrestricted

from services.ingest import (
    admission,
    availability,
    commitments,
    delivery,
    dicom_tls,
    dimse,
    dimse_transport,
    storage_commitment,
    wrapping,
)
from services.ingest.conformance_text import Block, Heading, Paragraph, Table, markdown, to_html
from services.ingest.dicomweb import app as dicomweb
from shared import settings
from shared.build import software_build
from shared.dicom import STORAGE_SOP_CLASSES
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import ANY_TITLE, Destination, Settings

TITLE: Final = "DICOM Conformance Statement: Stepwedge"

_YES, _NO = "Yes", "No"
ANY_SYNTAX: Final = "Any that is proposed; the first of each context is accepted"
PRIVATE_CLASSES: Final = "Private storage SOP classes, and those of later editions"

ECHO_STATUS: Final[Mapping[int, str]] = {
    dimse.SUCCESS: "Success: an object would be stored now",
    dimse.PROCESSING_FAILURE: "Failure: an object would be refused now; Error Comment (0000,0902) says why",
}
_STATUS_WORDS: Final[Mapping[int, str]] = {
    0xA700: "Refused: Out of Resources",
    0xA900: "Error: Data Set does not match SOP Class",
    0xC000: "Error: Cannot understand",
    0xC010: "Error: Cannot understand",
    0xC020: "Error: Cannot understand",
    0x0117: "Invalid SOP Instance",
    dimse.PROCESSING_FAILURE: "Processing failure",
}
_CAUSES: Final[Mapping[ErrorCode.ValueType, str]] = {
    ErrorCode.ERROR_CODE_STORAGE_FULL: "the store is below its low-water mark; send again later",
    ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE: "the audit log does not answer; send again later",
    ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE: "the database or the store does not answer; send again later",
    ErrorCode.ERROR_CODE_OVERLOADED: "as much is under way as may be; send again later",
    ErrorCode.ERROR_CODE_SOP_CLASS_MISMATCH: "not what was announced, or it contradicts its class",
    ErrorCode.ERROR_CODE_MALFORMED_DICOM: "the data set breaks off, or is not encoded as the transfer syntax says",
    ErrorCode.ERROR_CODE_NOT_DICOM: "it is no data set",
    ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE: "it is larger than is taken",
    ErrorCode.ERROR_CODE_INVALID_UID: "a UID that names it is absent or no UID",
}
NOTIFICATION_STATUS: Final[Mapping[int, str]] = {
    dimse.SUCCESS: "Success: what it says is durable",
    availability.INVALID_VALUE: "Invalid attribute value: a UID is none",
    availability.PROCESSING_FAILURE: "Processing failure: it does not read, or cannot be kept now",
    availability.MISSING_ATTRIBUTE: "Missing attribute",
    availability.MISSING_VALUE: "Missing attribute value",
    availability.RESOURCE_LIMITATION: f"Resource limitation: over {availability.MOST_INSTANCES} instances",
}
COMMITMENT_STATUS: Final[Mapping[int, str]] = {
    dimse.SUCCESS: "Success: the request is durable, and its outcome will be reported",
    storage_commitment.PROCESSING_FAILURE: "Processing failure: it cannot be kept now",
    storage_commitment.NO_SUCH_INSTANCE: "No such SOP Instance: not the well-known instance",
    storage_commitment.INVALID_ARGUMENT: "Invalid argument value: it does not read, or names no or too many objects",
    storage_commitment.NO_SUCH_ACTION: "No such action type",
}
SERVED: Final[Sequence[tuple[UID, str]]] = (
    (UID("1.2.840.10008.1.1"), "Verification"),
    (storage_commitment.PUSH_MODEL, "Storage Commitment"),
    (availability.INSTANCE_AVAILABILITY, "Instance Availability Notification"),
)
"""What is served beside storage; `dimse.Associations` adds the same contexts."""


def statement(live: Settings) -> list[Block]:
    """The statement, section by section (PS3.2 Annex A)."""
    return [
        *_overview(live),
        *_introduction(),
        *_model(live),
        *_specification(live),
        *_acceptance(live),
        *_initiation(live),
        *_web(live),
        *_interfaces(live),
        *_security(live),
        *_annexes(),
    ]


def stored_classes() -> list[str]:
    """The storage SOP classes of the standard that an association accepts, in the order of their numbers.

    Those of objects that belong to no study (hanging protocols, palettes, templates) are none of them.
    """
    dimse.know_other_services()
    contexts = [build_context(uid, ImplicitVRLittleEndian) for uid in sorted(STORAGE_SOP_CLASSES, key=_by_number)]
    for number, context in enumerate(contexts):
        context.context_id = 2 * (number % 128) + 1
    results, _ = negotiate_unrestricted(contexts, [])
    accepted = {str(one.abstract_syntax) for one in results if one.result == 0}
    return [str(one.abstract_syntax) for one in contexts if one.abstract_syntax in accepted]


def store_status() -> list[tuple[int, str, str]]:
    """Status of C-STORE responses, its meaning, and what is behind it (the Error Comment)."""
    rows = [(dimse.SUCCESS, "Success", "The object is durable and recorded in the audit log.")]
    for code, status in dimse.STATUS.items():
        name = ErrorCode.Name(code).removeprefix("ERROR_CODE_")
        rows.append((status, _STATUS_WORDS[status], f"{name}: {_CAUSES[code]}"))
    rows.append((dimse.PROCESSING_FAILURE, _STATUS_WORDS[dimse.PROCESSING_FAILURE], "a defect of ours; see the log"))
    return rows


def _overview(live: Settings) -> Iterator[Block]:
    yield Heading("1", "Conformance Statement Overview")
    yield Paragraph(
        "Stepwedge receives images, hides who the patient is, measures whether each image is good enough, and sends "
        "on what was decided. It stores every object byte for byte as it was received, and says success when the "
        "object is durable and recorded, not before."
    )
    web = bool(live.ingest.dicomweb.listen)
    rows = [
        ["Verification", _NO, _YES],
        ["Storage of every storage SOP class, private ones too", _YES if _dimse_destinations(live) else _NO, _YES],
        ["Storage Commitment Push Model", _NO, _YES],
        ["Instance Availability Notification", _NO, _YES],
        ["DICOMweb Studies Service: Store (STOW-RS)", _YES if _web_destinations(live) else _NO, _YES if web else _NO],
        ["DICOMweb Studies Service: Search (QIDO-RS)", _NO, _YES if web else _NO],
        ["DICOMweb Studies Service: Retrieve (WADO-RS)", _NO, _YES if web else _NO],
    ]
    yield Table(["Network service", "User (SCU)", "Provider (SCP)"], rows)
    yield Paragraph("Media Storage Application Profiles are not supported.")


def _introduction() -> Iterator[Block]:
    yield Heading("2", "Introduction")
    yield Paragraph(f"Generated from the settings and the code of {software_build()}.")
    yield Paragraph(
        "For whoever connects a modality, an archive or a viewer. Conformance alone does not make two systems work "
        "together: try it, with stepwedge simulate among others. Terms are those of DICOM PS3; SCU and SCP are the "
        "user and the provider of a service, AE is an application entity."
    )


def _model(live: Settings) -> Iterator[Block]:
    titles = [live.ingest.ae_title, *live.ingest.other_ae_titles]
    yield Heading("3", "Networking")
    yield Heading("3.1", "Implementation model")
    yield Paragraph(
        "One application entity receives: each association is served by one of several worker processes. An object "
        "goes to disk while it is received; its row and its record in the audit log follow, then the answer. When a "
        f"study is complete (nothing came for {live.ingest.quiet_seconds:g} s, and all that was announced or is "
        f"required has come, or {live.ingest.completion.wait_seconds:g} s have passed) it is decided, and sent on "
        "where the settings say so. An object that comes later opens the next revision of the decision."
    )
    yield Table(
        ["Application entity", "AE titles", "Does"],
        [
            ["Receiver", ", ".join(titles), "Accepts associations"],
            ["Sender", live.ingest.ae_title, "Opens associations to destinations, and to report storage commitments"],
        ],
    )


def _specification(live: Settings) -> Iterator[Block]:
    yield Heading("3.2", "Application entities")
    yield Heading("3.2.1", "Association policies")
    section = live.ingest
    yield Table(
        ["Policy", "Value"],
        [
            ["Application context name", "1.2.840.10008.3.1.1.1"],
            ["Implementation Class UID", wrapping.IMPLEMENTATION_CLASS_UID],
            ["Implementation Version Name", wrapping.IMPLEMENTATION_VERSION_NAME],
            ["Maximum PDU length received", f"{section.max_pdu_bytes} bytes"],
            ["Associations open at once", str(section.max_associations)],
            ["Asynchronous operations window", "1 (not negotiated)"],
            ["SOP class extended negotiation", "not supported"],
            ["User identity negotiation", "not supported; mutual TLS says who is there"],
            ["Time to ask for an association", f"{dimse_transport.NEGOTIATION_SECONDS:g} s"],
            ["Silence after which an association is aborted", f"{dimse_transport.NETWORK_SECONDS:g} s"],
            ["Largest object", f"{section.max_object_bytes} bytes"],
        ],
    )


def _acceptance(live: Settings) -> Iterator[Block]:
    yield Heading("3.2.2", "Receiver: presentation contexts accepted")
    defaults = ", ".join(UID(syntax).name for syntax in DEFAULT_TRANSFER_SYNTAXES)
    rows = [[uid.name, str(uid), defaults, "SCP"] for uid, _ in SERVED]
    rows.append([PRIVATE_CLASSES, "any", ANY_SYNTAX, "SCP"])
    rows += [[UID(uid).name, uid, ANY_SYNTAX, "SCP"] for uid in stored_classes()]
    yield Table(["SOP class", "UID", "Transfer syntaxes", "Role"], rows)
    yield Paragraph(
        "Storage is level 2 (full): every element is kept, nothing is coerced. Whether an object can be measured "
        "depends on its class and transfer syntax; what cannot be is decided as REVIEW, and says why."
    )
    yield Heading("3.2.3", "Receiver: who is let in")
    yield Table(["Rejection", "Source", "Reason", "When"], list(_rejections(live)))
    yield Heading("3.2.4", "Receiver: status of responses")
    yield Heading("3.2.4.1", "C-ECHO")
    yield _statuses(ECHO_STATUS)
    yield Heading("3.2.4.2", "C-STORE")
    yield Paragraph("Error Comment (0000,0902) holds the code that stands before the colon; no value of the object.")
    rows = [[_hex(status), meaning, behind] for status, meaning, behind in store_status()]
    yield Table(["Status", "Meaning", "Behind it"], rows)
    yield Paragraph(
        "The same object again (same SOP Instance UID and data set) is the same success. The same SOP Instance UID "
        "with another data set is stored beside the first, and a person is asked."
    )
    yield Heading("3.2.4.3", "N-ACTION of storage commitment")
    yield _statuses(COMMITMENT_STATUS)
    yield Paragraph(
        "The outcome (N-EVENT-REPORT) is sent on the association that asked while it stands, else on one of our own, "
        f"in the role of SCP (SCU/SCP role selection), for up to {commitments.MOST_ATTEMPTS} attempts, to: "
        f"{_peers(live)}. Committed means: durable, and recorded. Failure Reasons: "
        f"{_hex(storage_commitment.NO_SUCH_INSTANCE)}, {_hex(storage_commitment.CLASS_INSTANCE_CONFLICT)}."
    )
    yield Heading("3.2.4.4", "N-CREATE of instance availability notification")
    yield _statuses(NOTIFICATION_STATUS)
    yield Paragraph(
        "A study is held until the instances that a notification names have come, but for those with the Instance "
        "Availability UNAVAILABLE. A notification may come before the first object or after the last one."
    )


def _rejections(live: Settings) -> Iterator[list[str]]:
    section = live.ingest
    permanent, user = "permanent", "DICOM UL service-user"
    called = ", ".join([section.ae_title, *section.other_ae_titles])
    if section.check_called_ae_title:
        reason = f"{admission.CALLED_NOT_RECOGNIZED}: called AE title not recognized"
        yield [permanent, user, reason, f"the called AE title is none of {called}"]
    calling = f"{admission.CALLING_NOT_RECOGNIZED}: calling AE title not recognized"
    if section.calling_ae_titles:
        yield [permanent, user, calling, f"the calling AE title is none of {', '.join(section.calling_ae_titles)}"]
    for title, networks in section.calling_networks.items():
        who = "any other AE title" if title == ANY_TITLE else title
        yield [permanent, user, calling, f"{who} calls from outside {', '.join(map(str, networks))}"]
    limit = f"{admission.LOCAL_LIMIT_EXCEEDED[2]}: local limit exceeded"
    yield ["transient", "DICOM UL service-provider (presentation)", limit, f"{section.max_associations} are open"]


def _initiation(live: Settings) -> Iterator[Block]:
    yield Heading("3.2.5", "Sender: destinations")
    found = _dimse_destinations(live)
    if not found:
        yield Paragraph("These settings name no DICOM peer that anything is sent to.")
        return
    yield Table(
        ["Destination", "Called AE title", "Address", "Transport", "Gets"],
        [
            [
                one.name,
                one.ae_title,
                f"{one.host}:{one.port}",
                "TLS, mutual" if one.tls else "TCP",
                ", ".join(one.send),
            ]
            for one in found
        ],
    )
    yield Paragraph(
        "Proposed are the SOP class of each object in its own transfer syntax, and no other, at most "
        f"{delivery.MAX_CONTEXTS} contexts in one association; objects go out byte for byte as they came in. Success "
        "and warnings count as stored. A transient failure is tried again with growing pauses; a permanent one puts "
        "the study into the dead letter, for a person."
    )


def _web(live: Settings) -> Iterator[Block]:
    yield Heading("3.3", "DICOMweb")
    section = live.ingest.dicomweb
    if not section.listen:
        yield Paragraph("No DICOMweb origin server is enabled in these settings.")
    else:
        yield Paragraph(
            f"Service root {section.url}. Every request bears a bearer token (RFC 6750)"
            f"{', and a client certificate' if section.client_ca != type(section.client_ca)() else ''}. At most "
            f"{section.max_results} matches in one answer; bodies of at most {section.max_request_bytes} bytes."
        )
        yield Table(["Method", "Resource", "Transaction"], web_transactions())
    if found := _web_destinations(live):
        yield Paragraph("As user agent, objects are stored (STOW-RS) at:")
        yield Table(
            ["Destination", "Service root", "Gets"], [[one.name, one.url, ", ".join(one.send)] for one in found]
        )


def web_transactions() -> list[list[str]]:
    """Method, resource and transaction of everything that the DICOMweb door answers."""
    found = []
    for one in dicomweb.routes():
        methods = sorted(getattr(one, "methods", None) or set())
        method = next(iter(name for name in methods if name != "HEAD"), "")
        found.append([method, str(getattr(one, "path", "")), str(getattr(one, "name", ""))])
    return found


def _interfaces(live: Settings) -> Iterator[Block]:
    section = live.ingest
    yield Heading("3.4", "Network interfaces and configuration")
    rows = []
    if section.dimse:
        rows.append(["DICOM upper layer over TCP", section.dimse])
    if section.dimse_tls:
        rows.append(["DICOM upper layer over TLS, mutual", section.dimse_tls])
    if section.dicomweb.listen:
        rows.append(["DICOMweb over HTTPS" if section.dicomweb.tls else "DICOMweb over HTTP", section.dicomweb.listen])
    yield Table(["Service", "Address"], rows)
    yield Paragraph("IPv4 and IPv6. Every AE title, address and limit of this statement is a setting.")
    if section.completion.required:
        yield Heading("3.4.1", "Rules for complete studies")
        yield Table(
            ["Rule", "Holds for", "Needs"],
            [
                [
                    rule.name,
                    "; ".join(
                        filter(None, (", ".join(some) for some in (rule.modalities, rule.body_parts, rule.procedures)))
                    )
                    or "every study",
                    "; ".join(
                        f"{need.at_least} of {', '.join([*need.modalities, *need.views]) or 'anything'}"
                        for need in rule.needs
                    ),
                ]
                for rule in section.completion.required
            ],
        )


def _security(live: Settings) -> Iterator[Block]:
    yield Heading("4", "Media interchange")
    yield Paragraph("Not supported.")
    yield Heading("5", "Support of character sets")
    yield Paragraph(
        "Objects are stored whatever Specific Character Set (0008,0005) they have. Those of PS3.3 C.12.1.1.2 are read."
    )
    yield Heading("6", "Security")
    enabled = "is enabled" if live.ingest.dimse_tls else "is not enabled in these settings"
    yield Table(
        ["Profile", "How"],
        [
            [
                "BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 B.12)",
                f"The secure entrance {enabled}. TLS 1.2 and 1.3, mutual; cipher suites {dicom_tls.SUITES}.",
            ],
            [
                "Basic Application Level Confidentiality (PS3.15 Annex E)",
                "Everything that is measured is de-identified.",
            ],
            ["Audit Trail Message Format (PS3.15 A.5)", "Written by the audit service; see its document."],
        ],
    )
    yield Paragraph(
        "Attribute confidentiality profiles and their options are told by python -m services.redaction.conformance."
    )


def _annexes() -> Iterator[Block]:
    yield Heading("7", "Annexes")
    yield Heading("7.1", "IOD contents")
    yield Paragraph(
        "Created are Segmentation, Comprehensive 3D SR (TID 1500) and Encapsulated PDF instances of what was decided, "
        "where the settings ask for them; other objects are never changed."
    )
    yield Heading("7.2", "Private attributes, coded terminology, extensions")
    yield Paragraph("No private attributes. Private SOP classes and transfer syntaxes of others are stored.")


def _statuses(table: Mapping[int, str]) -> Table:
    return Table(["Status", "Meaning"], [[_hex(status), words] for status, words in table.items()])


def _hex(status: int) -> str:
    return f"0x{status:04X}"


def _by_number(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def _peers(live: Settings) -> str:
    found = [f"{one.ae_title} at {one.host}:{one.port}" for one in live.ingest.commitment_peers]
    return ", ".join(found) or "nobody, as these settings name no peer"


def _dimse_destinations(live: Settings) -> list[Destination]:
    return [one for one in live.ingest.destinations if not one.url]


def _web_destinations(live: Settings) -> list[Destination]:
    return [one for one in live.ingest.destinations if one.url]


WRITERS: Final = {"markdown": markdown, "html": to_html}


def main(arguments: Sequence[str]) -> int:
    """Print the statement of the live settings."""
    write = WRITERS.get(arguments[0] if arguments else "markdown")
    if write is None:
        sys.stderr.write("usage: python -m services.ingest.conformance [markdown|html]\n")
        return 2
    try:
        live = settings.load()
    except StepwedgeError as error:
        sys.stderr.write(f"error {error.name}: {error.message}\n")
        return 78
    sys.stdout.write(write(TITLE, statement(live)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
