"""The policy: a table that turns findings into verdicts, read from one TOML file and known by its digest.

A rule may be bound to sites, views and modalities, and may hold a measurement against limits of its own in place of
those that inference has. Of the rules for one finding that fit an image, the one counts that names its site; else the
one that names its view; else the one that names its modality; else the one that names none.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.canonical import sha256_hex
from shared.errors import ErrorCode, StepwedgeError
from shared.reasons import WORDS, name
from stepwedge.common.v1.common_pb2 import Finding, Measurement, Outcome, Reason, Verdict

Site = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
"""Name of a site, as the log takes it."""

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


class Limits(_Table):
    """Limits of a site's own, which a measurement is held against in place of those of inference.

    FAIL where the whole interval lies beyond a limit for it, WARN where the interval straddles that, or the value lies
    beyond a limit for WARN; else PASS. A value in another unit keeps the outcome that inference gave.
    """

    unit: str
    """UCUM, as the measurement has it; a distance is in mm where spacing is known, else a share of the field ("1")."""
    fail_below: float | None = None
    warn_below: float | None = None
    fail_above: float | None = None
    warn_above: float | None = None

    @model_validator(mode="after")
    def _say_something_that_can_be(self) -> Self:
        given = [one for one in (self.fail_below, self.warn_below, self.fail_above, self.warn_above) if one is not None]
        if not given:
            raise ValueError("limits without a limit")
        if not all(math.isfinite(one) for one in given):
            raise ValueError("a limit is no number")
        if _or(self.fail_below, -math.inf) > _or(self.warn_below, math.inf):
            raise ValueError("warn_below must not be less than fail_below")
        if _or(self.warn_above, -math.inf) > _or(self.fail_above, math.inf):
            raise ValueError("warn_above must not be more than fail_above")
        below = max(_or(self.fail_below, -math.inf), _or(self.warn_below, -math.inf))
        above = min(_or(self.fail_above, math.inf), _or(self.warn_above, math.inf))
        if below >= above:
            raise ValueError("no value lies between the limits below and those above")
        return self

    def judge(self, measured: Measurement) -> tuple[Outcome.ValueType, float]:
        """Outcome, and the limit that it was held against (of a PASS, the nearest)."""
        value = measured.value
        low, high = (measured.low, measured.high) if measured.HasField("low") else (value, value)
        beyond = (
            (Outcome.OUTCOME_FAIL, self.fail_below, high, -1),
            (Outcome.OUTCOME_FAIL, self.fail_above, low, 1),
            (Outcome.OUTCOME_WARN, self.fail_below, low, -1),
            (Outcome.OUTCOME_WARN, self.fail_above, high, 1),
            (Outcome.OUTCOME_WARN, self.warn_below, value, -1),
            (Outcome.OUTCOME_WARN, self.warn_above, value, 1),
        )
        for outcome, limit, seen, side in beyond:
            if limit is not None and side * (seen - limit) >= 0:
                return outcome, limit
        limits = [limit for _, limit, _, _ in beyond if limit is not None]
        return Outcome.OUTCOME_PASS, min(limits, key=lambda limit: abs(limit - value))


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


class Rule(_Table):
    """What the outcomes of one finding mean; an outcome that the rule leaves out follows the default."""

    finding: str
    """Code of the finding, without the prefix of the enum."""
    why: str = Field(min_length=1)
    """The ground for the rule, one sentence."""
    modalities: frozenset[str] = frozenset()
    """Modalities (0008,0060) that it is bound to; empty for all."""
    views: frozenset[Literal["AP", "PA", "LATERAL"]] = frozenset()
    """Views by the header that it is bound to; empty for all, and for images whose header names none."""
    sites: frozenset[Site] = frozenset()
    """Sites (`ingest.sites`) that it is bound to; empty for all."""
    limits: Limits | None = None
    """Limits of its own; without them the outcome is that of inference."""
    mention: bool = False
    """List the reason even where the verdict stays ACCEPT; NOT_ASSESSABLE only where the rule names it."""
    FAIL: VerdictName | None = None
    WARN: VerdictName | None = None
    NOT_ASSESSABLE: VerdictName | None = None

    def fits(self, about: "About") -> bool:
        """Whether it holds for an image."""
        bound = ((self.sites, about.site), (self.views, about.view), (self.modalities, about.modality))
        return all(not named or value in named for named, value in bound)

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """The greater, the closer it is bound."""
        return bool(self.sites), bool(self.views), bool(self.modalities)

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
        seen: set[tuple[str, str, str, str]] = set()
        for rule in self.rule:
            for bound in product(rule.sites or {""}, rule.views or {""}, rule.modalities or {""}):
                if (rule.finding, *bound) in seen:
                    raise ValueError(f"two rules for {rule.finding}")
                seen.add((rule.finding, *bound))
        return self


class About(NamedTuple):
    """What of an image a rule can be bound to."""

    modality: str = ""
    """Modality (0008,0060)."""
    view: str = ""
    """"AP", "PA" or "LATERAL" by its header; empty where unsaid."""
    site: str = ""
    """Where it came from; empty for nowhere in particular."""


ANYTHING = About()


@dataclass(frozen=True)
class Policy:
    """A policy, as it was read."""

    digest: str
    """SHA-256 of the file's bytes, in hexadecimal."""
    toml: str
    """The file."""
    _file: _File

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read the policy in `path`; CONFIGURATION, in one line, where it is absent or wrong."""
        try:
            data = path.read_bytes()
        except OSError:
            raise _wrong(path.name, "it is absent or cannot be read") from None
        return cls.read(data, path.name)

    @classmethod
    def read(cls, data: bytes, name: str = "") -> "Policy":
        """Of the bytes of a file, called `name` in messages; CONFIGURATION, in one line, where they are wrong."""
        try:
            text = data.decode("utf-8")
            return cls(sha256_hex(data), text, _File.model_validate(tomllib.loads(text)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _wrong(name, f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
        except ValueError as error:
            where = f": {error}" if isinstance(error, tomllib.TOMLDecodeError) else ""
            raise _wrong(name, f"it is not TOML{where}") from None

    @property
    def sites(self) -> frozenset[str]:
        """Every site that a rule names."""
        return frozenset(site for rule in self._file.rule for site in rule.sites)

    def instance_verdict(
        self, findings: Iterable[Finding], *, modality: str = "", view: str = "", site: str = ""
    ) -> tuple[Verdict.ValueType, list[Reason.ValueType]]:
        """Judge one image.

        Parameters
        ----------
        findings
            Every finding of the image.
        modality, view, site
            See `About`; empty where unknown.

        Returns
        -------
        tuple
            The worst verdict of all findings, and the reasons, worst first.
        """
        judged: list[tuple[Verdict.ValueType, Reason.ValueType]] = []
        about = About(modality, view, site)
        for finding in findings:
            rule = self._rule(name(finding.code), about)
            outcome = _OUTCOMES.get(_outcome(rule, finding)[0])
            if outcome is None:
                continue
            meaning = getattr(rule, outcome, None) or getattr(self._file.default, outcome)
            verdict = Verdict.Value(f"VERDICT_{meaning}")
            if verdict != Verdict.VERDICT_ACCEPT or (rule is not None and rule.mentions(outcome)):
                judged.append((verdict, finding.code))
        return _worst(judged)

    def rejudged(self, finding: Finding, about: About = ANYTHING) -> Finding:
        """The finding as this policy sees it: outcome, threshold and words are others where its own limits say so."""
        outcome, limit = _outcome(self._rule(name(finding.code), about), finding)
        if limit is None or outcome == finding.outcome:
            return finding
        seen = Finding()
        seen.CopyFrom(finding)
        seen.outcome, seen.threshold = outcome, limit
        unit = "" if finding.measurement.unit == "1" else f" {finding.measurement.unit.strip('{}')}"
        beyond = {Outcome.OUTCOME_PASS: "within", Outcome.OUTCOME_WARN: "near or beyond"}.get(outcome, "beyond")
        seen.detail = f"{finding.measurement.value:.4g}{unit}, {beyond} the policy's own limit of {limit:.4g}{unit}"
        return seen

    def study_verdict(
        self,
        instances: Sequence[tuple[Verdict.ValueType, Sequence[Reason.ValueType]]],
        beside: Sequence[tuple[Verdict.ValueType, Sequence[Reason.ValueType]]] = (),
    ) -> tuple[Verdict.ValueType, list[Reason.ValueType]]:
        """Judge a study by the verdicts and reasons of its images, and of what needed more than one image (`beside`).

        Returns
        -------
        tuple
            ACCEPT, REVIEW or REJECT, and the reasons, worst first, each once.
        """
        everything = [*instances, *beside]
        verdict, reasons = _worst([(verdict, reason) for verdict, given in everything for reason in given])
        verdict = max([verdict, *(given for given, _ in everything)], key=_SEVERITY.__getitem__)
        unmeasured = {Reason.REASON_NO_PIXELS}
        if all(unmeasured & set(given) or one == Verdict.VERDICT_NOT_ASSESSABLE for one, given in instances):
            nothing = Verdict.Value(f"VERDICT_{self._file.study.nothing_assessed}")
            verdict = max(verdict, nothing, key=_SEVERITY.__getitem__)
        if verdict == Verdict.VERDICT_NOT_ASSESSABLE:
            verdict = Verdict.VERDICT_REVIEW
        return verdict, reasons

    def _rule(self, finding: str, about: About) -> Rule | None:
        fitting = [rule for rule in self._file.rule if rule.finding == finding and rule.fits(about)]
        return max(fitting, key=lambda rule: rule.rank, default=None)


def _outcome(rule: Rule | None, finding: Finding) -> tuple[Outcome.ValueType, float | None]:
    """Outcome of a finding under a rule, and the rule's own limit where it decided."""
    limits = None if rule is None else rule.limits
    if limits is None or finding.outcome not in _MEASURED or not finding.HasField("measurement"):
        return finding.outcome, None
    if finding.measurement.unit != limits.unit:
        return finding.outcome, None
    return limits.judge(finding.measurement)


_MEASURED = frozenset({Outcome.OUTCOME_PASS, Outcome.OUTCOME_WARN, Outcome.OUTCOME_FAIL})


def _worst(
    judged: Sequence[tuple[Verdict.ValueType, Reason.ValueType]],
) -> tuple[Verdict.ValueType, list[Reason.ValueType]]:
    """Return the worst verdict and the reasons, worst first, each once; ACCEPT where there is nothing."""
    ordered = sorted(judged, key=lambda one: -_SEVERITY[one[0]])
    return (
        ordered[0][0] if ordered else Verdict.VERDICT_ACCEPT,
        list(dict.fromkeys(reason for _, reason in ordered)),
    )


def _wrong(file: str, what: str) -> StepwedgeError:
    words = " ".join(f"the policy {file} cannot be used: {what}".split())
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words)
