"""What results are made of, and what comes of it; plain values that travel between processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Kind(StrEnum):
    """A kind of result."""

    SEG = "SEG"
    """Outlines of one image: DICOM Segmentation (PS3.3 A.51), binary."""
    SR = "SR"
    """What was found and decided: Comprehensive SR (PS3.3 A.35.3) after TID 1500 (PS3.16)."""
    PDF = "PDF"
    """The same on one page for a person: Encapsulated PDF (PS3.3 A.45.1)."""


@dataclass(frozen=True, slots=True)
class Image:
    """One instance of the study, as received and as it was judged."""

    row: int
    """Its row in ingest's database."""
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    modality: str
    sha256: str
    """Digest of the object in the zone `original`."""
    content_sha256: str
    size_bytes: int
    conflict: bool
    verdict: int
    """`Verdict`."""
    reasons: tuple[int, ...]
    """`Reason` numbers, worst first."""
    assessment: bytes
    """`stepwedge.inference.v1.Assessment`, serialized."""


@dataclass(frozen=True, slots=True)
class Named:
    """A result that was made before, as another names it."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class Outlines:
    """The segmentation of an image."""

    named: Named
    segments: tuple[int, ...]
    """`Structure` of each segment, in their order."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that is in the log, and what it was made on."""

    study_instance_uid: str
    pseudonym: str
    """De-identified Study Instance UID, by which the log knows the study."""
    revision: int
    verdict: int
    reasons: tuple[int, ...]
    details: tuple[str, ...]
    """One sentence a reason."""
    decided_at: datetime
    record_index: int
    """Index of the decision's record in the log."""
    log: str
    """Origin of the log."""
    policy_sha256: str
    software_build: str
    images: tuple[Image, ...]
    """In order of receipt; at least one."""
    findings: bytes = b""
    """Findings of more than one image: `stepwedge.inference.v1.Assessment`, serialized."""
    predecessor: Named | None = None
    """The report of the last revision of which one was made."""
    outlined: Mapping[int, Outlines] = field(default_factory=dict)
    """Row of an image to the segmentation that an earlier revision made of it."""


@dataclass(frozen=True, slots=True)
class Made:
    """A result that lies in the zone `original`."""

    kind: Kind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    content_sha256: str
    """Digest of transfer syntax and data set, as the door takes it of what arrives."""
    size_bytes: int
    image: int | None = None
    """Row of the instance that it is of; None where it is of the whole study."""
    segments: tuple[int, ...] = ()
    """`Structure` of each segment, in their order."""
