"""The policy: findings in, verdicts with reasons out."""

from pathlib import Path

import pytest

from shared import paths
from shared.errors import ErrorCode, StepwedgeError
from shared.policy import About, Policy
from shared.reasons import WORDS
from stepwedge.common.v1.common_pb2 import Finding, Measurement, Outcome, Reason, Verdict

FAIL, WARN, PASS = Outcome.OUTCOME_FAIL, Outcome.OUTCOME_WARN, Outcome.OUTCOME_PASS
ACCEPT, REVIEW, REJECT = Verdict.VERDICT_ACCEPT, Verdict.VERDICT_REVIEW, Verdict.VERDICT_REJECT
NOT_ASSESSABLE = Verdict.VERDICT_NOT_ASSESSABLE


LIMITED = 'version = 1\n[[rule]]\nfinding = "SATURATED"\nwhy = "x"\n[rule.limits]\nunit = "1"'


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
        'version = 1\n[[rule]]\nfinding = "SATURATED"\nviews = ["UPSIDE"]\nwhy = "x"',
        'version = 1\n[[rule]]\nfinding = "SATURATED"\nsites = ["Not a name"]\nwhy = "x"',
        LIMITED,
        LIMITED + "\nfail_above = nan",
        LIMITED + "\nfail_below = 3\nwarn_below = 2",
        LIMITED + "\nfail_above = 3\nwarn_above = 4",
        LIMITED + "\nfail_above = 3\nwarn_below = 3",
        'version = 1\n[[rule]]\nfinding = "SATURATED"\nviews = ["AP"]\nwhy = "x"\n'
        '[[rule]]\nfinding = "SATURATED"\nviews = ["PA", "AP"]\nwhy = "y"',
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


def written(folder: Path, *rules: str) -> Policy:
    """A policy of these rules for the margin above the lungs."""
    head = '[[rule]]\nfinding = "LUNG_MARGIN_TOP"\nwhy = "x"\n'
    file = folder / "policy.toml"
    file.write_text("version = 1\n" + "".join(head + rule + "\n" for rule in rules))
    return Policy.load(file)


@pytest.mark.parametrize(
    ("about", "verdict"),
    [
        (About(), "REVIEW"),
        (About(modality="CR"), "NOT_ASSESSABLE"),
        (About(modality="CR", view="AP"), "ACCEPT"),
        (About(modality="DX", view="AP", site="north"), "REJECT"),
        (About(modality="DX", view="PA", site="north"), "REVIEW"),
        (About(modality="DX", view="AP", site="south"), "ACCEPT"),
    ],
)
def test_the_rule_that_is_bound_closest_counts(tmp_path: Path, about: About, verdict: str) -> None:
    policy = written(
        tmp_path,
        'FAIL = "REVIEW"',
        'modalities = ["CR"]\nFAIL = "NOT_ASSESSABLE"',
        'views = ["AP"]\nFAIL = "ACCEPT"',
        'sites = ["north"]\nviews = ["AP"]\nFAIL = "REJECT"',
    )
    found = findings((Reason.REASON_LUNG_MARGIN_TOP, FAIL))
    assert policy.instance_verdict(found, **about._asdict())[0] == Verdict.Value(f"VERDICT_{verdict}")
    assert policy.sites == {"north"}


def margin(value: float, low: float, high: float, unit: str = "mm") -> Finding:
    measured = Measurement(name="lung_margin_top", value=value, low=low, high=high, unit=unit)
    return Finding(code=Reason.REASON_LUNG_MARGIN_TOP, outcome=PASS, measurement=measured, detail="as inference says")


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (margin(20, 18, 22), PASS),
        (margin(9.9, 9.5, 10.5), WARN),
        (margin(6, 4, 8), WARN),
        (margin(4, 3, 4.9), FAIL),
        (margin(4, 3, 4.9, unit="1"), PASS),
        (Finding(code=Reason.REASON_LUNG_MARGIN_TOP, outcome=Outcome.OUTCOME_NOT_ASSESSABLE), None),
    ],
)
def test_a_policy_holds_a_value_with_its_interval_against_limits_of_its_own(
    tmp_path: Path, found: Finding, outcome: int | None
) -> None:
    limits = '[rule.limits]\nunit = "mm"\nfail_below = 5\nwarn_below = 10'
    policy = written(tmp_path, f'FAIL = "REJECT"\nWARN = "REVIEW"\nsites = ["north"]\n{limits}')
    north = About(site="north")
    seen = policy.rejudged(found, north)
    assert seen.outcome == (found.outcome if outcome is None else outcome)
    assert policy.rejudged(found, About(site="south")) == found
    expected = {WARN: REVIEW, FAIL: REJECT}.get(seen.outcome, ACCEPT)
    assert policy.instance_verdict([found], site="north")[0] == expected
    if seen.outcome != found.outcome:
        assert "limit of" in seen.detail


def test_limits_above_work_as_those_below(tmp_path: Path) -> None:
    policy = written(tmp_path, '[rule.limits]\nunit = "mm"\nfail_above = 30\nwarn_above = 20')
    outcomes = [policy.rejudged(margin(one, one - 1, one + 1)).outcome for one in (10, 20, 29.5, 31)]
    assert outcomes == [PASS, WARN, WARN, FAIL]


def test_what_needs_more_than_one_image_counts_for_the_study_alone(policy: Policy) -> None:
    mixed = policy.instance_verdict(findings((Reason.REASON_MIXED_PATIENTS, FAIL)))
    assert policy.study_verdict([(ACCEPT, []), (ACCEPT, [])], [mixed]) == (REVIEW, [Reason.REASON_MIXED_PATIENTS])
    report = policy.instance_verdict(findings((Reason.REASON_NO_PIXELS, Outcome.OUTCOME_NOT_ASSESSABLE)))
    assert policy.study_verdict([report], [(ACCEPT, [])])[0] == REVIEW
