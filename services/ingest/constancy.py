"""The constancy test: what the phantoms of a study measured, held against the baseline that somebody set.

The phantoms have the same pixels each day, so the same build of the same cluster measures the same values; a tolerance
leaves room for another processor, and none for another model, policy or preprocessing. A baseline has a number and a
digest; setting one, and every comparison, is a record in the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from services.ingest.store import Snapshot
from services.ingest.tables import Baseline, ConstancyTest, Decision
from shared import database
from shared.canonical import canonical_json, decimal
from shared.constancy import NAMES
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2

MOST_RECORDED: Final = 64
"""Drifted values that a record lists."""


class Tolerance(NamedTuple):
    """How far a value may be from its baseline: the larger of a distance and a share."""

    distance: float
    share: float

    def of(self, expected: float) -> float:
        """In the value's unit."""
        return max(self.distance, self.share * abs(expected))


TOLERANCES: Final[Mapping[str, Tolerance]] = {
    "mm": Tolerance(1.0, 0.0),
    "mm2": Tolerance(0.0, 0.02),
    "1": Tolerance(0.005, 0.01),
    "dB": Tolerance(0.05, 0.0),
    "{levels}": Tolerance(0.0, 0.01),
}
"""By unit; what is not here is a count, and exact."""
_EXACT: Final = Tolerance(0.0, 0.0)


class Value(NamedTuple):
    """One value of a test: a measurement as a decimal with its unit, or an outcome or verdict without one."""

    phantom: str
    name: str
    value: str
    unit: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A value beside that of the baseline; either may be absent."""

    phantom: str
    name: str
    value: str
    expected: str
    unit: str

    @property
    def tolerance(self) -> str:
        """As a decimal; empty for what is no number or has no baseline."""
        if not self.unit or not self.expected:
            return ""
        return decimal(TOLERANCES.get(self.unit, _EXACT).of(float(self.expected)))

    @property
    def drifted(self) -> bool:
        """Whether it left its tolerance, or is not measured any more; what the baseline does not know cannot drift."""
        if not self.expected or not self.value:
            return bool(self.expected)
        if not self.unit:
            return self.value != self.expected
        distance = abs(float(self.value) - float(self.expected))
        return not distance <= float(self.tolerance) + 1e-9  # NaN drifts


def values_of(snapshot: Snapshot) -> list[Value]:
    """Every value of a decided study of phantoms, in the order of phantoms and names."""
    decided = {one["id"]: one for one in _decision(snapshot).instances}
    found: list[Value] = []
    for instance in snapshot.instances:
        assessment = inference_pb2.Assessment.FromString(instance.assessment)
        number = assessment.facts.instance_number if assessment.facts.HasField("instance_number") else 0
        name = NAMES.get(number, f"phantom-{number}")
        verdict = common_pb2.Verdict.Name(decided[instance.id]["verdict"]).removeprefix("VERDICT_")
        found.append(Value(name, "verdict", verdict, ""))
        for finding in assessment.findings:
            code = common_pb2.Reason.Name(finding.code).removeprefix("REASON_").lower()
            outcome = common_pb2.Outcome.Name(finding.outcome).removeprefix("OUTCOME_")
            found.append(Value(name, code, outcome, ""))
        for measured in assessment.measurements:
            if math.isfinite(measured.value):
                found.append(Value(name, measured.name, decimal(measured.value), measured.unit))
    return sorted(set(found))


def compare(found: Sequence[Value], baseline: Sequence[Value]) -> list[Compared]:
    """Every value of either, side by side."""
    ours = {(one.phantom, one.name, one.unit): one.value for one in found}
    theirs = {(one.phantom, one.name, one.unit): one.value for one in baseline}
    return [
        Compared(name, what, ours.get((name, what, unit), ""), theirs.get((name, what, unit), ""), unit)
        for name, what, unit in sorted({*ours, *theirs})
    ]


def digest(values: Sequence[Value]) -> str:
    """SHA-256 of the values of a baseline, in hexadecimal."""
    return sha256(canonical_json([list(one) for one in values])).hexdigest()


def event(
    baseline: Baseline, compared: Sequence[Compared], decided_index: int | None, asked: str, *, set_now: bool
) -> audit_pb2.ConstancyEvent:
    """What the log is told of a test."""
    drifted = [one for one in compared if one.drifted]
    told = audit_pb2.ConstancyEvent(
        baseline_sha256=baseline.sha256,
        baseline_version=baseline.version,
        baseline_set=set_now,
        compared=len(compared),
        drifted=len(drifted),
        values=[
            audit_pb2.DriftedValue(phantom=one.phantom, name=one.name, value=one.value, expected=one.expected)
            for one in drifted[:MOST_RECORDED]
        ],
        requested_by=asked,
    )
    if decided_index is not None:
        told.decided_index = decided_index
    return told


def _decision(snapshot: Snapshot) -> Decision:
    """The newest decision. Raises WRONG_STATE where it does not cover the study as it stands, INVALID_REQUEST where
    the study is none of phantoms."""
    if not snapshot.study.constancy:
        words = "the study holds images that are no phantoms of the constancy test"
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
    visible = [one for one in snapshot.decisions if one.cursor is not None]
    if not visible or visible[-1].generation != snapshot.study.generation:
        raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "the study is not decided yet")
    return visible[-1]


class Baselines:
    """The baselines and tests of ingest's database. All methods block."""

    def __init__(self, engine: sa.Engine) -> None:
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)

    def newest(self) -> Baseline:
        """The one that counts. Raises WRONG_STATE where none was set."""
        with self._reading.begin() as session:
            wanted = sa.select(Baseline).where(Baseline.record_index.is_not(None)).order_by(Baseline.version.desc())
            found = session.scalars(wanted.limit(1)).one_or_none()
        if found is None:
            words = "no baseline was set yet: `stepwedge constancy --set-baseline` sets one"
            raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, words)
        return found

    def write(self, study_id: int, values: Sequence[Value], set_by: str) -> Baseline:
        """Write down a baseline before its record is handed in; the same study again is the same baseline."""
        content = [list(one) for one in values]
        with self._sessions.begin() as session:
            last = session.scalars(sa.select(Baseline).order_by(Baseline.version.desc()).limit(1)).one_or_none()
            if last is not None and (last.study_id, last.content) == (study_id, content):
                return last
            made = Baseline(
                version=1 if last is None else last.version + 1,
                study_id=study_id,
                sha256=digest(values),
                content=content,
                set_by=set_by,
                set_at=datetime.now(UTC),
            )
            session.add(made)
            return made

    def confirm(self, version: int, record_index: int) -> None:
        """The log has the record: from now on, phantoms are compared with it."""
        with self._sessions.begin() as session:
            session.get_one(Baseline, version).record_index = record_index

    def tested(self, study_id: int, baseline: Baseline, compared: Sequence[Compared], record_index: int) -> None:
        """The log has the record of a test."""
        with self._sessions.begin() as session:
            known = sa.select(ConstancyTest.id).where(ConstancyTest.record_index == record_index)
            if session.scalars(known).first() is None:
                session.add(
                    ConstancyTest(
                        study_id=study_id,
                        baseline_version=baseline.version,
                        compared=len(compared),
                        drifted=sum(one.drifted for one in compared),
                        tested_at=datetime.now(UTC),
                        record_index=record_index,
                    )
                )

    def last_test(self) -> tuple[float, int] | None:
        """When the last test was, seconds since 1970, and how many values had drifted; None before the first."""
        with self._reading.begin() as session:
            row = session.scalars(sa.select(ConstancyTest).order_by(ConstancyTest.id.desc()).limit(1)).one_or_none()
            return None if row is None else (row.tested_at.timestamp(), row.drifted)


def content_of(baseline: Baseline) -> list[Value]:
    """The values of a baseline."""
    return list(_values(baseline.content))


def _values(content: Sequence[Sequence[str]]) -> Iterator[Value]:
    for name, what, value, unit in content:
        yield Value(name, what, value, unit)
