"""What is held and may be seen from outside: received objects whose record is in the log (law 1), and the results of
decisions that are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, Select, and_, select
from sqlalchemy.orm import sessionmaker

from services.ingest.results.material import Kind
from services.ingest.states import InstanceState
from services.ingest.tables import Decision, Instance, Result, Study
from shared import database
from shared.objects import Zone

RESULT_MODALITIES: Final[Mapping[str, str]] = {Kind.SEG: "SEG", Kind.SR: "SR", Kind.PDF: "DOC"}
"""Modality (0008,0060) of each kind of result."""


@dataclass(frozen=True, slots=True)
class Held:
    """One object, as the doors of reading need it."""

    id: int
    """Of its row, among instances or among results."""
    result: bool
    study: str
    """These three as received."""
    series: str
    sop_instance: str
    sop_class: str
    transfer_syntax: str
    modality: str
    zone: Zone
    sha256: str
    size: int
    study_pseudonym: str
    subject: str
    conflict: bool


class Holdings:
    """Reads the rows of ingest; every method is one transaction and blocks."""

    def __init__(self, engine: Engine) -> None:
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)

    def find(self, study: str, series: str = "", instance: str = "") -> Sequence[Held]:
        """The objects of a study, of one series of it, or one of them, in order of receipt.

        Where a SOP Instance UID is known with several contents, it is the one that came first, flagged.
        """
        query = (
            select(Instance, Study)
            .join(Study, Study.id == Instance.study_id)
            .where(Study.study_instance_uid == study, Instance.state != InstanceState.STORED)
            .order_by(Instance.id)
        )
        if series:
            query = query.where(Instance.series_instance_uid == series)
        if instance:
            query = query.where(Instance.sop_instance_uid == instance)
        found: dict[str, Held] = {}
        with self._reading.begin() as session:
            for row, of in session.execute(query):
                found.setdefault(row.sop_instance_uid, held(row, of))
            made = visible_results().where(Study.study_instance_uid == study)
            if series:
                made = made.where(Result.series_instance_uid == series)
            if instance:
                made = made.where(Result.sop_instance_uid == instance)
            for result, of in session.execute(made):
                found.setdefault(result.sop_instance_uid, held_result(result, of))
        return list(found.values())


def visible_results() -> Select[Result, Study]:
    """Results, each with its study, of decisions that may be seen."""
    decided = and_(Decision.study_id == Result.study_id, Decision.revision == Result.revision)
    return (
        select(Result, Study)
        .join(Study, Study.id == Result.study_id)
        .join(Decision, decided)
        .where(Decision.cursor.is_not(None))
        .order_by(Result.id)
    )


def held_result(row: Result, study: Study) -> Held:
    """A result as it is seen from outside."""
    return Held(
        id=row.id,
        result=True,
        study=study.study_instance_uid,
        series=row.series_instance_uid,
        sop_instance=row.sop_instance_uid,
        sop_class=row.sop_class_uid,
        transfer_syntax=row.transfer_syntax_uid,
        modality=RESULT_MODALITIES.get(row.kind, "OT"),
        zone=Zone.ORIGINAL,
        sha256=row.sha256,
        size=row.size_bytes,
        study_pseudonym=study.pseudonym,
        subject="",
        conflict=False,
    )


def held(row: Instance, study: Study) -> Held:
    """A row as it is seen from outside."""
    return Held(
        id=row.id,
        result=False,
        study=study.study_instance_uid,
        series=row.series_instance_uid,
        sop_instance=row.sop_instance_uid,
        sop_class=row.sop_class_uid,
        transfer_syntax=row.transfer_syntax_uid,
        modality=row.modality,
        zone=Zone.ORIGINAL,
        sha256=row.sha256,
        size=row.size_bytes,
        study_pseudonym=study.pseudonym,
        subject=row.subject,
        conflict=row.conflict,
    )
