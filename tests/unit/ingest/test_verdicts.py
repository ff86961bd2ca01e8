"""From instances to decisions, and from errors to what follows."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.ingest import verdicts
from services.ingest.collation import Collated
from services.ingest.explain import explain
from services.ingest.outcomes import Outcome, outcome
from services.ingest.store import Snapshot
from services.ingest.tables import Decision, Instance, Study
from shared import paths
from shared.errors import ErrorCode, StepwedgeError
from shared.policy import Policy
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2
from stepwedge.redaction.v1 import redaction_pb2

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = Policy.load(paths.POLICY)
ACCEPT, REVIEW, REJECT, NOT_ASSESSABLE = 1, 2, 3, 4


def instance(verdict: int, *reasons: int, conflict: bool = False, assessment: bytes = b"") -> Instance:
    return Instance(
        id=1, pseudonym="2.25.3", verdict=verdict, reasons=list(reasons), conflict=conflict, assessment=assessment,
        state="ASSESSED", assessed_index=None,
    )  # fmt: skip


def snapshot(*instances: Instance, decisions: tuple[Decision, ...] = (), **study: object) -> Snapshot:
    row = {"state": "PROCESSING", "generation": 4, "last_error": 0, "attempts": 0, "waiting_for": "", **study}
    return Snapshot(Study(id=7, **row), instances, decisions, ())


def test_the_worst_instance_decides_and_reasons_come_worst_first():
    decision = verdicts.decide(POLICY, snapshot(instance(ACCEPT), instance(REJECT, 3), instance(REVIEW, 5)), NOW)
    assert (decision.verdict, decision.reasons, decision.generation) == (REJECT, [3, 5], 4)
    assert len(decision.details) == 2
    assert decision.policy_sha256 == POLICY.digest


def test_a_conflict_makes_an_accepted_study_one_for_review():
    decision = verdicts.decide(POLICY, snapshot(instance(ACCEPT, conflict=True), instance(ACCEPT)), NOW)
    assert (decision.verdict, decision.reasons) == (REVIEW, [common_pb2.REASON_INSTANCE_CONFLICT])


def test_what_could_not_be_assessed_is_for_review():
    settled = verdicts.burned_in(redaction_pb2.Receipt(burned_in_text_detail="Text in every frame."))
    one = instance(settled.verdict, *settled.reasons, assessment=settled.assessment)
    decision = verdicts.decide(POLICY, snapshot(one), NOW)
    assert decision.verdict == REVIEW
    assert decision.details == ["Text in every frame."]


def test_the_words_of_a_reason_are_those_of_the_gravest_finding():
    def finding(outcome: int, detail: str) -> bytes:
        found = common_pb2.Finding(code=common_pb2.REASON_SATURATED, outcome=outcome, detail=detail)
        return inference_pb2.Assessment(findings=[found]).SerializeToString()

    decision = verdicts.decide(
        POLICY,
        snapshot(
            instance(ACCEPT, 4, assessment=finding(common_pb2.OUTCOME_WARN, "A little.")),
            instance(REJECT, 4, assessment=finding(common_pb2.OUTCOME_FAIL, "Much.")),
        ),
        NOW,
    )
    assert decision.details == ["Much."]


def test_a_second_decision_names_the_first():
    first = Decision(revision=1, record_index=41, verdict=1, reasons=[])
    decision = verdicts.decide(POLICY, snapshot(instance(ACCEPT), decisions=(first,)), NOW)
    decision.revision = 2
    event = verdicts.decided_event(decision)
    assert (event.previous_index, event.revision, event.instances[0].verdict) == (41, 2, ACCEPT)


@pytest.mark.parametrize(
    ("step", "code", "follows"),
    [
        ("redact", "DEPENDENCY_UNAVAILABLE", Outcome.WAIT),
        ("redact", "AUDIT_UNAVAILABLE", Outcome.WAIT),
        ("redact", "PERMISSION_DENIED", Outcome.WAIT),
        ("redact", "NOT_REDACTABLE", Outcome.NOT_ASSESSABLE),
        ("redact", "OBJECT_CORRUPT", Outcome.GIVE_UP),
        ("redact", "INTERNAL", Outcome.TRY_AGAIN),
        ("assess", "OVERLOADED", Outcome.WAIT),
        ("assess", "PIXELS_UNDECODABLE", Outcome.NOT_ASSESSABLE),
        ("assess", "NOT_REDACTABLE", Outcome.GIVE_UP),
        ("assess", "MODEL_DIGEST_MISMATCH", Outcome.WAIT),
    ],
)
def test_what_follows_from_an_error(step: str, code: str, follows: Outcome):
    assert outcome(step, StepwedgeError(ErrorCode.Value(f"ERROR_CODE_{code}"), "words")) is follows


def test_every_error_of_the_contracts_has_something_that_follows():
    for number in ErrorCode.values():
        for step in ("redact", "assess", "decide", "deliver"):
            assert outcome(step, StepwedgeError(number, "words")) in Outcome


def test_a_study_that_waits_says_for_what():
    one = snapshot(instance(0), last_error=ErrorCode.ERROR_CODE_OVERLOADED, waiting_for="inference", next_action_at=NOW)
    _, why, then = explain(one, NOW)
    assert why == (
        "The last step failed with OVERLOADED while it waits for inference: "
        "the service has as much work as it takes at once."
    )
    assert then == "A worker takes it on now."


def test_what_needs_more_than_one_image_goes_into_decision_and_record():
    missing = common_pb2.Finding(
        code=common_pb2.REASON_SLICES,
        outcome=common_pb2.OUTCOME_FAIL,
        measurement=common_pb2.Measurement(name="missing_slices", value=2, unit="{slices}"),
        detail="2 slices are missing",
    )
    one = instance(ACCEPT)
    one.site = "north"
    decision = verdicts.decide(POLICY, snapshot(one), NOW, [Collated(missing, "CT", "north")])
    assert (decision.verdict, decision.reasons) == (REVIEW, [common_pb2.REASON_SLICES])
    assert decision.details == ["2 slices are missing"]
    decision.revision = 1
    event = verdicts.decided_event(decision)
    assert [(found.code, found.outcome) for found in event.findings] == [(missing.code, missing.outcome)]
    assert [(value.name, value.value, value.unit) for value in event.measurements] == [
        ("missing_slices", "2", "{slices}")
    ]
    assert list(event.sites) == ["north"]


def test_limits_of_the_policy_change_verdict_and_words(tmp_path: Path):
    file = tmp_path / "policy.toml"
    file.write_text(
        'version = 1\n[[rule]]\nfinding = "LUNG_MARGIN_TOP"\nsites = ["north"]\nFAIL = "REJECT"\nwhy = "x"\n'
        '[rule.limits]\nunit = "mm"\nfail_below = 10\n'
    )
    policy = Policy.load(file)
    found = common_pb2.Finding(
        code=common_pb2.REASON_LUNG_MARGIN_TOP,
        outcome=common_pb2.OUTCOME_PASS,
        measurement=common_pb2.Measurement(name="lung_margin_top", value=8, unit="mm"),
        detail="the lungs end clear of this edge",
    )
    verdict, reasons = policy.instance_verdict([found], site="north")
    one = instance(verdict, *reasons, assessment=inference_pb2.Assessment(findings=[found]).SerializeToString())
    one.site = "north"
    decision = verdicts.decide(policy, snapshot(one), NOW)
    assert (decision.verdict, decision.details) == (REJECT, ["8 mm, beyond the policy's own limit of 10 mm"])


def test_an_image_is_judged_by_the_policy_that_decides_not_by_the_one_of_its_assessment(tmp_path: Path):
    file = tmp_path / "policy.toml"
    file.write_text('version = 1\n[[rule]]\nfinding = "SATURATED"\nFAIL = "REJECT"\nwhy = "x"\n')
    found = common_pb2.Finding(code=common_pb2.REASON_SATURATED, outcome=common_pb2.OUTCOME_FAIL)
    one = instance(ACCEPT, assessment=inference_pb2.Assessment(findings=[found]).SerializeToString())
    one.assessed_index = 40
    decision = verdicts.decide(Policy.load(file), snapshot(one), NOW)
    assert (decision.verdict, decision.reasons) == (REJECT, [common_pb2.REASON_SATURATED])
