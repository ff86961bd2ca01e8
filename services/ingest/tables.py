"""The tables of ingest's database: what the hallway must remember, and of a person nothing but UIDs.

Times are UTC. UIDs are kept as received, because the work needs them; names, numbers and dates of people are not kept
here at all (law 4): they stay inside the objects of the zone `original`.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RowId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of type INTEGER."""


class Utc(TypeDecorator[datetime]):
    """A time with zone UTC; SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone: it would mean another moment on another machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The tables of ingest."""


_WITH_EXPOSURE: Any = {
    f"{dialect}_where": text("exposure IS NOT NULL") for dialect in ("sqlite", "postgresql")
}  # the slices of a CT have none


class Study(Base):
    """One study: a state, a lease and an attempt count. Whoever holds the lease may work on it."""

    __tablename__ = "studies"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    pseudonym: Mapped[str] = mapped_column(String(64), index=True)
    """Not unique: a study that comes back de-identified by us is its own pseudonym."""
    state: Mapped[str] = mapped_column(String(16))
    generation: Mapped[int] = mapped_column(Integer, default=0)
    """Counts what changed under a decision: every new instance and every new conflict."""
    revision: Mapped[int] = mapped_column(Integer, default=0)
    """Revision of the newest decision that is in the log; 0 before the first."""
    first_received_at: Mapped[datetime] = mapped_column(Utc)
    last_received_at: Mapped[datetime] = mapped_column(Utc)
    next_action_at: Mapped[datetime | None] = mapped_column(Utc)
    """When a worker shall look at it; null when nothing is to be done."""
    waiting_for: Mapped[str] = mapped_column(String(32), default="")
    """The dependency whose return it waits for; empty for none."""
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None] = mapped_column(Utc)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    last_error: Mapped[int] = mapped_column(Integer, default=0)
    """`ErrorCode`; 0 for none."""
    verdict: Mapped[int] = mapped_column(Integer, default=0)
    """`Verdict` of the newest decision that is in the log; 0 before the first."""
    reasons: Mapped[list[int]] = mapped_column(JSON, default=list)
    """`Reason` numbers of that decision, worst first."""
    decided_at: Mapped[datetime | None] = mapped_column(Utc)
    """Of that decision."""
    modalities: Mapped[str] = mapped_column(String(200), default="")
    """Modalities of its instances in the order of the alphabet, joined by "+"."""
    instances: Mapped[int] = mapped_column(Integer, default=0)
    """How many instances it has."""
    device_id: Mapped[int | None] = mapped_column(RowId)
    """`Device` of the first instance of which one is known."""
    waits_from: Mapped[datetime | None] = mapped_column(Utc)
    """Since when it may wait for what it lacks; null: since its last instance."""
    missing: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What it lacks, see `services.ingest.completion.Missing`; null where that was not looked at, or is nothing."""
    forced_by: Mapped[str] = mapped_column(String(64), default="")
    """Who asked to decide it at once."""
    forced_generation: Mapped[int] = mapped_column(Integer, default=0)
    """`generation` that the asking is about."""
    constancy: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether all of its instances are phantoms of the constancy test."""

    __table_args__ = (
        Index("ix_studies_device", "device_id", "id"),
        Index("ix_studies_verdict", "verdict", "id"),
        Index("ix_studies_decided", "decided_at"),
        Index("ix_studies_due", "next_action_at"),
        Index("ix_studies_state", "state", "id"),
        Index("ix_studies_waiting", "waiting_for"),
    )


class Instance(Base):
    """One object as received: the pair (SOP Instance UID, digest of its data set) is unique (law 3)."""

    __tablename__ = "instances"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    pseudonym: Mapped[str] = mapped_column(String(64))
    series_pseudonym: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(80))
    """Pseudonym of the person."""
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    modality: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64))
    """Digest of the object in the zone `original`."""
    content_sha256: Mapped[str] = mapped_column(String(64))
    """Digest that it has with our preamble and file meta information, whatever came around its data set: each vendor
    writes those in its own way. See `services.ingest.wrapping`."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    commitment: Mapped[str] = mapped_column(String(64))
    """Salted commitment to `sha256`, as it stands in the log."""
    channel: Mapped[str] = mapped_column(String(8))
    called_ae_title: Mapped[str] = mapped_column(String(16), default="")
    """AE title of ours to which it was sent; empty where it came by another way."""
    conflict: Mapped[bool] = mapped_column(Boolean, default=False)
    conflict_at_receipt: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether the conflict was known when it came, which is what its `received` record says."""
    state: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime] = mapped_column(Utc)
    record_index: Mapped[int | None] = mapped_column(BigInteger)
    redacted_at: Mapped[datetime | None] = mapped_column(Utc)
    redacted_index: Mapped[int | None] = mapped_column(BigInteger)
    deidentified_sha256: Mapped[str] = mapped_column(String(64), default="")
    deidentified_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    assessed_at: Mapped[datetime | None] = mapped_column(Utc)
    assessed_index: Mapped[int | None] = mapped_column(BigInteger)
    assessment: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    """`stepwedge.inference.v1.Assessment`, serialized."""
    verdict: Mapped[int] = mapped_column(Integer, default=0)
    """`Verdict`; 0 before it is settled."""
    reasons: Mapped[list[int]] = mapped_column(JSON, default=list)
    """`Reason` numbers, worst first."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(Utc)
    last_error: Mapped[int] = mapped_column(Integer, default=0)
    device_id: Mapped[int | None] = mapped_column(RowId)
    """`Device` that made it; null where nothing is said of one."""
    view_position: Mapped[str] = mapped_column(String(16), default="")
    body_part: Mapped[str] = mapped_column(String(16), default="")
    procedure_code: Mapped[str] = mapped_column(String(16), default="")
    study_series: Mapped[int] = mapped_column(Integer, default=0)
    study_instances: Mapped[int] = mapped_column(Integer, default=0)
    series_instances: Mapped[int] = mapped_column(Integer, default=0)
    laterality: Mapped[str] = mapped_column(String(16), default="")
    """These seven: see `shared.dicom.Belonging`."""
    exposure: Mapped[str | None] = mapped_column(String(32))
    """What was to be taken of whom, see `services.ingest.repeats`; null where that is not said."""
    repeated: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether it was rejected and then taken again."""
    site: Mapped[str] = mapped_column(String(64), default="")
    """Where it came from, as the settings and the policy call it."""
    person: Mapped[str] = mapped_column(String(32), default="")
    """Keyed pseudonyms of patient number, birth date and sex, valid in this study alone, 8 characters each with "/"
    between them; empty parts for what is not said."""

    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "content_sha256", name="uq_instances_identity"),
        Index("ix_instances_state", "state"),
        Index("ix_instances_exposure", "exposure", "received_at", **_WITH_EXPOSURE),
    )


class Device(Base):
    """A device as the objects that it makes describe it, and as it calls itself on an association."""

    __tablename__ = "devices"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    station: Mapped[str] = mapped_column(String(64))
    department: Mapped[str] = mapped_column(String(64))
    location: Mapped[str] = mapped_column(String(64))
    manufacturer: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(64))
    serial: Mapped[str] = mapped_column(String(64))
    calling_ae_title: Mapped[str] = mapped_column(String(64))
    """Empty where it came by another way than an association."""

    __table_args__ = (
        UniqueConstraint(
            "station",
            "department",
            "location",
            "manufacturer",
            "model",
            "serial",
            "calling_ae_title",
            name="uq_devices_said",
        ),
    )


class MeasuredDay(Base):
    """What the images of one device measured on one day: how many, their sum, the sum of their squares."""

    __tablename__ = "measured_days"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    """UTC, "2026-11-22"."""
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    unit: Mapped[str] = mapped_column(String(16), primary_key=True)
    """UCUM."""
    device_id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=False)
    """`Device`; 0 where nothing is said of one."""
    count: Mapped[int] = mapped_column(BigInteger)
    total: Mapped[float] = mapped_column(Double)
    squares: Mapped[float] = mapped_column(Double)

    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012


class RepeatDay(Base):
    """Images of one device on one day: how many there were, were rejected, and were repeated, see `repeats`."""

    __tablename__ = "repeat_days"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    """UTC, "2026-11-22"; of the receipt."""
    device_id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=False)
    """`Device`; 0 where nothing is said of one."""
    reason: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """`Reason`; 0 for all images, with and without one."""
    images: Mapped[int] = mapped_column(BigInteger)
    rejected: Mapped[int] = mapped_column(BigInteger)
    repeated: Mapped[int] = mapped_column(BigInteger)
    unsaid: Mapped[int] = mapped_column(BigInteger)
    """Rejected ones of which nobody can tell whether they were repeated."""


class DecidedDay(Base):
    """Decided studies by the day of their newest decision; of what each row of `studies` says now, phantoms left out.

    Nobody writes here: triggers on `studies` keep it, see migration 0011.
    """

    __tablename__ = "decided_days"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    """UTC, "2026-11-22"."""
    reason: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """`Reason`; 0 for all studies, with and without one."""
    verdict: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    modalities: Mapped[str] = mapped_column(String(200), primary_key=True)
    """Joined by "+"."""
    device_id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=False)
    """`Device`; 0 where nothing is said of one."""
    count: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012


class Decision(Base):
    """One decision on a study. Written before its record is handed in, visible when the log has taken it (law 1)."""

    __tablename__ = "decisions"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    revision: Mapped[int] = mapped_column(Integer)
    generation: Mapped[int] = mapped_column(Integer)
    """`Study.generation` that it covers."""
    verdict: Mapped[int] = mapped_column(Integer)
    reasons: Mapped[list[int]] = mapped_column(JSON)
    details: Mapped[list[str]] = mapped_column(JSON)
    policy_sha256: Mapped[str] = mapped_column(String(64))
    software_build: Mapped[str] = mapped_column(String(128))
    previous_index: Mapped[int | None] = mapped_column(BigInteger)
    instances: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """For each instance `id`, `instance` (pseudonym), `verdict`, `reasons`, `assessed_index`, in order of receipt."""
    findings: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    """Findings of more than one image: `stepwedge.inference.v1.Assessment`, serialized."""
    missing: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What the study lacked when it was decided all the same; null for nothing."""
    forced_by: Mapped[str] = mapped_column(String(64), default="")
    """Who asked to decide at once; empty for nobody."""
    decided_at: Mapped[datetime] = mapped_column(Utc)
    record_index: Mapped[int | None] = mapped_column(BigInteger)
    cursor: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    """Place in the order in which decisions became visible; null while it is not."""

    __table_args__ = (UniqueConstraint("study_id", "revision", name="uq_decisions_revision"),)


class Baseline(Base):
    """What the phantoms of the constancy test measured when somebody said that all was well."""

    __tablename__ = "baselines"

    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    study_id: Mapped[int] = mapped_column(RowId)
    sha256: Mapped[str] = mapped_column(String(64))
    content: Mapped[list[list[str]]] = mapped_column(JSON)
    """Phantom, name, value and unit of each value, in their order."""
    set_by: Mapped[str] = mapped_column(String(32))
    set_at: Mapped[datetime] = mapped_column(Utc)
    record_index: Mapped[int | None] = mapped_column(BigInteger)
    """Null until the log has it; nothing is compared with it before."""


class ConstancyTest(Base):
    """A comparison of phantoms with a baseline that is in the log."""

    __tablename__ = "constancy_tests"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(RowId)
    baseline_version: Mapped[int] = mapped_column(Integer)
    compared: Mapped[int] = mapped_column(Integer)
    drifted: Mapped[int] = mapped_column(Integer)
    tested_at: Mapped[datetime] = mapped_column(Utc)
    record_index: Mapped[int] = mapped_column(BigInteger)


class PolicyFile(Base):
    """A policy by which this cluster decided."""

    __tablename__ = "policies"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    content: Mapped[str] = mapped_column(Text)
    first_used_at: Mapped[datetime] = mapped_column(Utc)


class Delivery(Base):
    """What one destination shall get of one decision."""

    __tablename__ = "deliveries"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    revision: Mapped[int] = mapped_column(Integer)
    destination: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    """PENDING, SENT (every object acknowledged, its record not yet confirmed), DELIVERED, SUPERSEDED, FAILED."""
    contents: Mapped[list[str]] = mapped_column(JSON, default=lambda: ["ORIGINAL"])
    """What it gets, of `routing.CONTENTS`."""
    routes: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Rules that sent it there; empty where the destination's own settings did."""
    shadow: Mapped[bool] = mapped_column(Boolean, default=False)
    """Nothing is sent: it was decided in shadow mode."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(Utc)
    objects: Mapped[int] = mapped_column(Integer, default=0)
    sent_at: Mapped[datetime | None] = mapped_column(Utc)
    last_error: Mapped[int] = mapped_column(Integer, default=0)
    record_index: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (UniqueConstraint("study_id", "revision", "destination", name="uq_deliveries_route"),)


class DeliveredInstance(Base):
    """One object that one destination has acknowledged; it is never sent there again."""

    __tablename__ = "delivered_instances"

    destination: Mapped[str] = mapped_column(String(64), primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), primary_key=True)
    delivered_at: Mapped[datetime] = mapped_column(Utc)


class Making(Base):
    """Results that are to be made of one decision."""

    __tablename__ = "makings"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(RowId, index=True)
    revision: Mapped[int] = mapped_column(Integer)
    kinds: Mapped[list[str]] = mapped_column(JSON)
    """Of `results.material.Kind`."""
    state: Mapped[str] = mapped_column(String(16))
    """PENDING, MADE, SUPERSEDED, FAILED."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(Utc)
    made_at: Mapped[datetime | None] = mapped_column(Utc)
    last_error: Mapped[int] = mapped_column(Integer, default=0)

    __table_args__ = (UniqueConstraint("study_id", "revision", name="uq_makings_revision"),)


class Result(Base):
    """A result that was made of a decision and lies in the zone `original`."""

    __tablename__ = "results"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(RowId, index=True)
    revision: Mapped[int] = mapped_column(Integer)
    """Of the decision that it was made of; a later one goes on using the outlines of an image."""
    kind: Mapped[str] = mapped_column(String(8))
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    content_sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    instance_id: Mapped[int | None] = mapped_column(RowId)
    """The image that it is of; null where it is of the whole study."""
    segments: Mapped[list[int]] = mapped_column(JSON, default=list)
    """`Structure` of each segment, in their order."""
    made_at: Mapped[datetime] = mapped_column(Utc)


class DeliveredResult(Base):
    """One result that one destination has acknowledged; it is never sent there again."""

    __tablename__ = "delivered_results"

    destination: Mapped[str] = mapped_column(String(64), primary_key=True)
    result_id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=False)
    delivered_at: Mapped[datetime] = mapped_column(Utc)


class Failure(Base):
    """A step that failed, as its record says it; written before the record is handed in, so that it is only one."""

    __tablename__ = "failures"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    instance_id: Mapped[int | None] = mapped_column(ForeignKey("instances.id"))
    key: Mapped[str] = mapped_column(String(200), unique=True)
    """Idempotency key of the record."""
    step: Mapped[str] = mapped_column(String(16))
    error: Mapped[int] = mapped_column(Integer)
    permanent: Mapped[bool] = mapped_column(Boolean)
    attempts: Mapped[int] = mapped_column(Integer)
    revision: Mapped[int] = mapped_column(Integer)
    failed_at: Mapped[datetime] = mapped_column(Utc)
    record_index: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_failures_time", "failed_at"),)


class Requeue(Base):
    """A person put a study back in the queue."""

    __tablename__ = "requeues"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    requested_by: Mapped[str] = mapped_column(String(32))
    person: Mapped[str] = mapped_column(String(64), default="")
    """Account of the person behind it; empty where the caller has none."""
    requested_at: Mapped[datetime] = mapped_column(Utc)
    record_index: Mapped[int | None] = mapped_column(BigInteger)


class Review(Base):
    """What a person said of a decision. Written before its record is handed in, visible when the log has taken it."""

    __tablename__ = "reviews"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    revision: Mapped[int] = mapped_column(Integer)
    decided: Mapped[int] = mapped_column(Integer)
    """`Verdict` of the decision."""
    verdict: Mapped[int] = mapped_column(Integer)
    """`Verdict` that the person holds to be right."""
    reason: Mapped[str] = mapped_column(String(64))
    note: Mapped[str] = mapped_column(String(500))
    """Stays here; the log holds a salted commitment to it."""
    reviewer: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(32))
    reviewed_at: Mapped[datetime] = mapped_column(Utc)
    record_index: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_reviews_time", "reviewed_at"),)


class Counter(Base):
    """A number that grows by one in the order of commits; its row is locked until its user commits."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class Announcement(Base):
    """How much a peer said that a study will have."""

    __tablename__ = "announcements"

    study_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    instances: Mapped[int] = mapped_column(Integer)
    """0 where it was not said."""
    series: Mapped[int] = mapped_column(Integer)
    announced_at: Mapped[datetime] = mapped_column(Utc)

    __table_args__ = (Index("ix_announcements_time", "announced_at"),)


class AnnouncedInstance(Base):
    """One object that a peer said will come."""

    __tablename__ = "announced_instances"

    study_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)


class Commitment(Base):
    """A storage commitment that a peer asked for (PS3.4 Annex J)."""

    __tablename__ = "commitments"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    transaction_uid: Mapped[str] = mapped_column(String(64))
    ae_title: Mapped[str] = mapped_column(String(16))
    """Who asked, as it calls itself."""
    references: Mapped[list[list[str]]] = mapped_column(JSON)
    """SOP Class UID and SOP Instance UID of each object, in the order in which they were asked for."""
    requested_at: Mapped[datetime] = mapped_column(Utc)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(Utc)
    """When the outcome shall be reported next; null when it was, or was given up."""
    reported_at: Mapped[datetime | None] = mapped_column(Utc)

    __table_args__ = (UniqueConstraint("transaction_uid", "ae_title"), Index("ix_commitments_due", "next_attempt_at"))


class Token(Base):
    """A bearer token of a DICOMweb client. The token itself is told once and kept nowhere."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Its public part."""
    client: Mapped[str] = mapped_column(String(64))
    """Whom it was made for; stands in the records."""
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of its private part, which is 256 random bits: no slower digest would be safer."""
    scopes: Mapped[str] = mapped_column(String(64))
    """What it is good for, in the order of the alphabet, joined by "+"."""
    created_at: Mapped[datetime] = mapped_column(Utc)
    expires_at: Mapped[datetime] = mapped_column(Utc)
    revoked_at: Mapped[datetime | None] = mapped_column(Utc)


class Catalogued(Base):
    """What a search by DICOMweb (QIDO-RS) reads of an instance: its attributes, sealed; made from the object anew where
    it is absent."""

    __tablename__ = "catalogue"

    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), primary_key=True, autoincrement=False)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    """The attributes as DICOM JSON, AES-256-GCM under a key that is not in the database (law 4)."""
    patient: Mapped[bytes] = mapped_column(LargeBinary)
    """Keyed token of the patient's number (`shared.identification.BlindIndex`); empty where there is none."""
    accession: Mapped[bytes] = mapped_column(LargeBinary)
    """The same of the accession number."""

    __table_args__ = (Index("ix_catalogue_patient", "patient"), Index("ix_catalogue_accession", "accession"))
