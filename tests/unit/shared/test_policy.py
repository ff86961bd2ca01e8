"""The policy: findings in, verdicts with reasons out."""

from pathlib import Path

import pytest

from shared import paths
from shared.errors import ErrorCode, StepwedgeError
from shared.policy import Policy
from shared.reasons import WORDS
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Reason, Verdict

FAIL, WARN, PASS = Outcome.OUTCOME_FAIL, Outcome.OUTCOME_WARN, Outcome.OUTCOME_PASS
ACCEPT, REVIEW, REJECT = Verdict.VERDICT_ACCEPT, Verdict.VERDICT_REVIEW, Verdict.VERDICT_REJECT
NOT_ASSESSABLE = Verdict.VERDICT_NOT_ASSESSABLE


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(paths.POLICY)


def findings(*pairs: tuple[Reason.ValueType, Outcome.ValueType]) -> list[Finding]:
    return [Finding(code=code, outcome=outcome) for code, outcome in pairs]


def test_an_image_without_faults_is_accepted_without_reasons(policy: Policy) -> None:
    assert policy.instance_verdict(findings((Reason.REASON_BLANK_IMAGE, PASS))) == (ACCEPT, [])


def test_the_worst_finding_decides_and_reasons_come_worst_first(policy: Policy) -> None:
    found = findings((Reason.REASON_LOW_CONFIDENCE, FAIL), (Reason.REASON_LUNG_MARGIN_TOP, FAIL))
    assert policy.instance_verdict(found) == (
        REJECT,
        [Reason.REASON_LUNG_MARGIN_TOP, Reason.REASON_LOW_CONFIDENCE],
    )


def test_a_warning_is_mentioned_and_accepted(policy: Policy) -> None:
    found = findings((Reason.REASON_LUNG_MARGIN_TOP, WARN))
    assert policy.instance_verdict(found) == (ACCEPT, [Reason.REASON_LUNG_MARGIN_TOP])


def test_an_image_that_may_name_a_person_is_not_assessable_and_its_study_needs_a_person(policy: Policy) -> None:
    found = findings((Reason.REASON_BURNED_IN_TEXT_POSSIBLE, Outcome.OUTCOME_NOT_ASSESSABLE))
    verdict, reasons = policy.instance_verdict(found, modality="US")
    assert (verdict, reasons) == (NOT_ASSESSABLE, [Reason.REASON_BURNED_IN_TEXT_POSSIBLE])
    assert policy.study_verdict([(ACCEPT, []), (verdict, reasons)]) == (REVIEW, reasons)


def test_a_study_of_reports_alone_is_not_waved_through(policy: Policy) -> None:
    report = policy.instance_verdict(findings((Reason.REASON_NO_PIXELS, Outcome.OUTCOME_NOT_ASSESSABLE)))
    assert report[0] == ACCEPT
    assert policy.study_verdict([report])[0] == REVIEW
    assert policy.study_verdict([report, (ACCEPT, [])])[0] == ACCEPT


def test_one_rejected_image_rejects_the_study(policy: Policy) -> None:
    blank = (REJECT, [Reason.REASON_BLANK_IMAGE])
    assert policy.study_verdict([(REVIEW, [Reason.REASON_NOT_A_CHEST]), blank]) == (
        REJECT,
        [Reason.REASON_BLANK_IMAGE, Reason.REASON_NOT_A_CHEST],
    )


def test_a_rule_for_a_modality_goes_before_the_general_one(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        'version = 1\n[[rule]]\nfinding = "SATURATED"\nFAIL = "REJECT"\nwhy = "clipped"\n'
        '[[rule]]\nfinding = "SATURATED"\nmodalities = ["MR"]\nFAIL = "REVIEW"\nwhy = "bright vessels"\n'
    )
    policy = Policy.load(file)
    found = findings((Reason.REASON_SATURATED, FAIL))
    assert policy.instance_verdict(found, modality="CR")[0] == REJECT
    assert policy.instance_verdict(found, modality="MR")[0] == REVIEW


def test_the_digest_is_that_of_the_file(policy: Policy, tmp_path: Path) -> None:
    copy = tmp_path / "policy.toml"
    copy.write_bytes(paths.POLICY.read_bytes() + b"\n")
    assert Policy.load(paths.POLICY).digest == policy.digest
    assert Policy.load(copy).digest != policy.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 2",
        "version = 1\nsurprise = true",
        'version = 1\n[[rule]]\nfinding = "NO_SUCH_THING"\nwhy = "x"',
        'version = 1\n[[rule]]\nfinding = "SATURATED"\nFAIL = "MAYBE"\nwhy = "x"',
        'version = 1\n[[rule]]\nfinding = "SATURATED"\nFAIL = "REJECT"',
        'version = 1\n[[rule]]\nfinding = "SATURATED"\nwhy = "x"\n[[rule]]\nfinding = "SATURATED"\nwhy = "y"',
        "\x00",
    ],
)
def test_a_policy_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(StepwedgeError) as refused:
        Policy.load(file)
    assert refused.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    assert "\n" not in refused.value.message


def test_every_reason_has_words_and_a_rule_or_the_default() -> None:
    assert set(WORDS) == {value for value in Reason.values() if value}
