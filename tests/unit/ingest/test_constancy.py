"""Values of phantoms beside those of the baseline."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from services.ingest import constancy
from services.ingest.constancy import Baselines, Compared, Value
from services.ingest.store import MIGRATIONS, Snapshot
from services.ingest.tables import Decision, Instance, Study
from shared import database, phantom
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def a_study(*, constant: bool = True, decided: bool = True, margin: float = 21.5) -> Snapshot:
    """A study of one phantom, decided."""
    assessment = inference_pb2.Assessment(
        findings=[common_pb2.Finding(code=common_pb2.REASON_LUNG_MARGIN_TOP, outcome=common_pb2.OUTCOME_PASS)],
        measurements=[
            common_pb2.Measurement(name="lung_margin_top", value=margin, unit="mm"),
            common_pb2.Measurement(name="structure", value=math.inf, unit="1"),
        ],
        facts=inference_pb2.ImageFacts(instance_number=3),
    )
    one = Instance(id=5, assessment=assessment.SerializeToString())
    decision = Decision(instances=[{"id": 5, "verdict": 1}], generation=1, cursor=1 if decided else None)
    return Snapshot(Study(id=1, constancy=constant, generation=1), [one], [decision], [])


def test_every_value_of_a_study_is_told_by_the_name_of_its_phantom() -> None:
    assert constancy.values_of(a_study()) == [
        Value("inverted", "lung_margin_top", "21.5", "mm"),
        Value("inverted", "lung_margin_top", "PASS", ""),
        Value("inverted", "verdict", "ACCEPT", ""),
    ]


@pytest.mark.parametrize(
    ("study", "code"),
    [
        (a_study(constant=False), ErrorCode.ERROR_CODE_INVALID_REQUEST),
        (a_study(decided=False), ErrorCode.ERROR_CODE_WRONG_STATE),
    ],
)
def test_only_a_decided_study_of_phantoms_is_compared(study: Snapshot, code: ErrorCode.ValueType) -> None:
    with pytest.raises(StepwedgeError) as refused:
        constancy.values_of(study)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("value", "expected", "unit", "drifted"),
    [
        ("20", "20", "mm", False),
        ("20.9", "20", "mm", False),
        ("21.1", "20", "mm", True),
        ("0.454", "0.45", "1", False),
        ("0.46", "0.45", "1", True),
        ("100.5", "100", "1", False),
        ("3", "4", "{pixels}", True),
        ("4", "4", "{pixels}", False),
        ("PASS", "PASS", "", False),
        ("WARN", "PASS", "", True),
        ("", "20", "mm", True),
        ("20", "", "mm", False),
        ("", "PASS", "", True),
    ],
)
def test_a_value_drifts_when_it_leaves_its_tolerance_or_is_gone(
    value: str, expected: str, unit: str, drifted: bool
) -> None:
    assert Compared("plain", "x", value, expected, unit).drifted is drifted


def test_values_are_compared_by_phantom_name_and_unit() -> None:
    baseline = [Value("plain", "a", "1", "mm"), Value("plain", "a", "PASS", ""), Value("turned", "a", "2", "mm")]
    found = [Value("plain", "a", "1", "mm"), Value("plain", "b", "7", "mm")]
    compared = constancy.compare(found, baseline)
    assert [(one.phantom, one.name, one.unit, one.drifted) for one in compared] == [
        ("plain", "a", "", True),
        ("plain", "a", "mm", False),
        ("plain", "b", "mm", False),
        ("turned", "a", "mm", True),
    ]


def test_a_baseline_counts_once_the_log_has_it_and_has_the_next_number() -> None:
    engine = database.create_engine("sqlite://")
    database.upgrade(engine, MIGRATIONS)
    baselines = Baselines(engine)
    with pytest.raises(StepwedgeError) as refused:
        baselines.newest()
    assert refused.value.code == ErrorCode.ERROR_CODE_WRONG_STATE
    values = constancy.values_of(a_study())
    first = baselines.write(1, values, "operator")
    assert baselines.write(1, values, "operator").version == first.version == 1
    with pytest.raises(StepwedgeError):
        baselines.newest()
    baselines.confirm(1, 40)
    second = baselines.write(2, constancy.values_of(a_study(margin=25)), "operator")
    assert (second.version, baselines.newest().version) == (2, 1)
    baselines.confirm(2, 50)
    assert baselines.newest().sha256 == constancy.digest(constancy.values_of(a_study(margin=25)))
    assert constancy.content_of(baselines.newest()) == constancy.values_of(a_study(margin=25))


def test_the_last_test_is_told_and_a_record_counts_once() -> None:
    engine = database.create_engine("sqlite://")
    database.upgrade(engine, MIGRATIONS)
    baselines = Baselines(engine)
    assert baselines.last_test() is None
    baseline = baselines.write(1, constancy.values_of(a_study()), "operator")
    compared = constancy.compare(constancy.values_of(a_study(margin=30)), constancy.content_of(baseline))
    for _ in range(2):
        baselines.tested(1, baseline, compared, 60)
    found = baselines.last_test()
    assert found is not None
    assert found[1] == 1
    told = constancy.event(baseline, compared, 7, "operator", set_now=False)
    assert (told.compared, told.drifted, told.decided_index) == (3, 1, 7)
    assert [(one.phantom, one.value, one.expected) for one in told.values] == [("inverted", "30", "21.5")]


def test_the_phantoms_are_the_same_each_day_and_differ_from_each_other() -> None:
    drawn = [phantom.constancy(number).image for number in (1, 3)]
    assert (drawn[0] == phantom.constancy(1).image).all()
    assert drawn[0].shape != drawn[1].shape or (drawn[0] != drawn[1]).any()
