"""The policy: a table that turns findings into verdicts, read from one TOML file and known by its digest."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.canonical import sha256_hex
from shared.errors import ErrorCode, StepwedgeError
from shared.reasons import WORDS, name
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Reason, Verdict

VerdictName = Literal["ACCEPT", "REVIEW", "REJECT", "NOT_ASSESSABLE"]

_SEVERITY: Mapping[Verdict.ValueType, int] = {
    Verdict.VERDICT_ACCEPT: 0,
    Verdict.VERDICT_REVIEW: 1,
    Verdict.VERDICT_NOT_ASSESSABLE: 2,
    Verdict.VERDICT_REJECT: 3,
}
"""Order of verdicts; a clear reason to repeat goes before a doubt."""

_OUTCOMES: Mapping[Outcome.ValueType, str] = {
    Outcome.OUTCOME_FAIL: "FAIL",
    Outcome.OUTCOME_WARN: "WARN",
    Outcome.OUTCOME_NOT_ASSESSABLE: "NOT_ASSESSABLE",
}
"""Outcomes that a policy speaks about; PASS is always ACCEPT."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Outcomes(_Table):
    """What each outcome of a finding means."""

    FAIL: VerdictName = "REVIEW"
    WARN: VerdictName = "ACCEPT"
    NOT_ASSESSABLE: VerdictName = "ACCEPT"


class Rule(_Table):
    """What the outcomes of one finding mean; an outcome that the rule leaves out follows the default."""

    finding: str
    """Code of the finding, without the prefix of the enum."""
    why: str = Field(min_length=1)
    """The ground for the rule, one sentence."""
    modalities: frozenset[str] = frozenset()
    """Modalities (0008,0060) that it is bound to; empty for all."""
    mention: bool = False
    """List the reason even where the verdict stays ACCEPT; NOT_ASSESSABLE only where the rule names it."""
    FAIL: VerdictName | None = None
    WARN: VerdictName | None = None
    NOT_ASSESSABLE: VerdictName | None = None

    def mentions(self, outcome: str) -> bool:
        """Whether an outcome is listed although the verdict stays ACCEPT."""
        return self.mention and (outcome != "NOT_ASSESSABLE" or self.NOT_ASSESSABLE is not None)

    @field_validator("finding")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in {name(reason) for reason in WORDS}:
            raise ValueError("no such finding")
        return value


class StudyRules(_Table):
    """What holds for a study as a whole."""

    nothing_assessed: VerdictName = "REVIEW"
    """Verdict on a study in which no image could be measured."""


class _File(_Table):
    version: Literal[1]
    default: Outcomes = Outcomes()
    study: StudyRules = StudyRules()
    rule: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _no_two_rules_claim_one_finding(self) -> Self:
        seen: set[tuple[str, str]] = set()
        for rule in self.rule:
            for modality in rule.modalities or {""}:
                if (rule.finding, modality) in seen:
                    raise ValueError(f"two rules for {rule.finding}")
                seen.add((rule.finding, modality))
        return self


@dataclass(frozen=True)
class Policy:
    """A policy, as it was read."""

    digest: str
    """SHA-256 of the file's bytes, in hexadecimal."""
    _file: _File

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read the policy in `path`; CONFIGURATION, in one line, where it is absent or wrong."""
        try:
            data = path.read_bytes()
            return cls(sha256_hex(data), _File.model_validate(tomllib.loads(data.decode("utf-8"))))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _wrong(path, f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
        except (OSError, ValueError):
            raise _wrong(path, "it is absent or not TOML") from None

    def instance_verdict(
        self, findings: Iterable[Finding], *, modality: str = ""
    ) -> tuple[Verdict.ValueType, list[Reason.ValueType]]:
        """Judge one image.

        Parameters
        ----------
        findings
            Every finding of the image.
        modality
            Its Modality (0008,0060); empty where unknown.

        Returns
        -------
        tuple
            The worst verdict of all findings, and the reasons, worst first.
        """
        judged: list[tuple[Verdict.ValueType, Reason.ValueType]] = []
        for finding in findings:
            outcome = _OUTCOMES.get(finding.outcome)
            if outcome is None:
                continue
            rule = self._rule(name(finding.code), modality)
            meaning = getattr(rule, outcome, None) or getattr(self._file.default, outcome)
            verdict = Verdict.Value(f"VERDICT_{meaning}")
            if verdict != Verdict.VERDICT_ACCEPT or (rule is not None and rule.mentions(outcome)):
                judged.append((verdict, finding.code))
        return _worst(judged)

    def study_verdict(
        self, instances: Sequence[tuple[Verdict.ValueType, Sequence[Reason.ValueType]]]
    ) -> tuple[Verdict.ValueType, list[Reason.ValueType]]:
        """Judge a study by the verdicts and reasons of its images.

        Returns
        -------
        tuple
            ACCEPT, REVIEW or REJECT, and the reasons, worst first, each once.
        """
        verdict, reasons = _worst([(verdict, reason) for verdict, given in instances for reason in given])
        verdict = max([verdict, *(given for given, _ in instances)], key=_SEVERITY.__getitem__)
        unmeasured = {Reason.REASON_NO_PIXELS}
        if all(unmeasured & set(given) or one == Verdict.VERDICT_NOT_ASSESSABLE for one, given in instances):
            nothing = Verdict.Value(f"VERDICT_{self._file.study.nothing_assessed}")
            verdict = max(verdict, nothing, key=_SEVERITY.__getitem__)
        if verdict == Verdict.VERDICT_NOT_ASSESSABLE:
            verdict = Verdict.VERDICT_REVIEW
        return verdict, reasons

    def _rule(self, finding: str, modality: str) -> Rule | None:
        rules = [rule for rule in self._file.rule if rule.finding == finding]
        bound = [rule for rule in rules if modality in rule.modalities]
        free = [rule for rule in rules if not rule.modalities]
        return next(iter(bound + free), None)


def _worst(
    judged: Sequence[tuple[Verdict.ValueType, Reason.ValueType]],
) -> tuple[Verdict.ValueType, list[Reason.ValueType]]:
    """Return the worst verdict and the reasons, worst first, each once; ACCEPT where there is nothing."""
    ordered = sorted(judged, key=lambda one: -_SEVERITY[one[0]])
    return (
        ordered[0][0] if ordered else Verdict.VERDICT_ACCEPT,
        list(dict.fromkeys(reason for _, reason in ordered)),
    )


def _wrong(path: Path, what: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, f"the policy {path.name} cannot be used: {what}")
