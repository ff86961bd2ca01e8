"""From what is known of the instances of a study to its decision; values in, values out."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from services.ingest import completion
from services.ingest.collation import Collated
from services.ingest.completion import Missing
from services.ingest.store import Settled, Snapshot
from services.ingest.tables import Decision, Instance, Study
from shared.build import software_build
from shared.canonical import decimal
from shared.policy import About, Policy
from shared.reasons import WORDS
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Reason, Verdict
from stepwedge.inference.v1 import inference_pb2
from stepwedge.redaction.v1 import redaction_pb2


def burned_in(receipt: redaction_pb2.Receipt) -> Settled:
    """The verdict on an instance whose pixels may name a person: it is not passed to inference."""
    return _not_assessable(Reason.REASON_BURNED_IN_TEXT_POSSIBLE, receipt.burned_in_text_detail)


def refused(reason: Reason.ValueType) -> Settled:
    """The verdict on an instance that a service refused for good."""
    return _not_assessable(reason, WORDS[reason])


def _not_assessable(reason: Reason.ValueType, detail: str) -> Settled:
    finding = Finding(code=reason, outcome=Outcome.OUTCOME_NOT_ASSESSABLE, detail=detail or WORDS[reason])
    return Settled(
        Verdict.VERDICT_NOT_ASSESSABLE, (reason,), inference_pb2.Assessment(findings=[finding]).SerializeToString()
    )


def decide(policy: Policy, snapshot: Snapshot, now: datetime, collated: Sequence[Collated] = ()) -> Decision:
    """The decision on a study all of whose instances are settled; its revision is given when it is written."""
    judged = [_judged(policy, instance) for instance in snapshot.instances]
    lacking = Missing.from_json(snapshot.study.missing)
    if lacking:
        collated = [Collated(completion.finding(lacking), "", ""), *collated]
    beside = [policy.instance_verdict([one.finding], modality=one.modality, site=one.site) for one in collated]
    verdict, reasons = policy.study_verdict(judged, beside)
    together = [policy.rejudged(one.finding, About(one.modality, "", one.site)) for one in collated]
    previous = [decision.record_index for decision in snapshot.decisions]
    return Decision(
        study_id=snapshot.study.id,
        generation=snapshot.study.generation,
        verdict=verdict,
        reasons=list(reasons),
        details=list(_details(reasons, [*together, *_findings(policy, snapshot.instances)])),
        findings=inference_pb2.Assessment(findings=[one.finding for one in collated]).SerializeToString(),
        policy_sha256=policy.digest,
        missing=lacking.as_json() if lacking else None,
        forced_by=snapshot.study.forced_by if _is_forced(snapshot.study) else "",
        software_build=software_build(),
        previous_index=previous[-1] if previous else None,
        instances=[
            {
                "id": instance.id,
                "instance": instance.pseudonym,
                "verdict": int(verdict),
                "reasons": [int(reason) for reason in reasons],
                "assessed_index": instance.assessed_index,
                "site": instance.site,
            }
            for instance, (verdict, reasons) in zip(snapshot.instances, judged, strict=True)
        ],
        decided_at=now,
    )


def _is_forced(study: Study) -> bool:
    return study.forced_generation == study.generation


def _judged(policy: Policy, instance: Instance) -> tuple[Verdict.ValueType, list[Reason.ValueType]]:
    """Verdict and reasons of an instance. One in conflict is for a person to look at, however good it is.

    What was assessed is judged anew: the policy that the decision names may have come after the assessment.
    """
    verdict: Verdict.ValueType = instance.verdict  # type: ignore[assignment]
    reasons: list[Reason.ValueType] = list(instance.reasons)  # type: ignore[arg-type]
    if instance.assessed_index is not None:
        assessment = inference_pb2.Assessment.FromString(instance.assessment)
        about = About(instance.modality, assessment.facts.view, instance.site)
        verdict, reasons = policy.instance_verdict(assessment.findings, **about._asdict())
    if instance.conflict:
        reasons.append(Reason.REASON_INSTANCE_CONFLICT)
        if verdict == Verdict.VERDICT_ACCEPT:
            verdict = Verdict.VERDICT_REVIEW
    return verdict, reasons


def _findings(policy: Policy, instances: Iterable[Instance]) -> Iterable[Finding]:
    """Every finding of every image, as the policy sees it."""
    for instance in instances:
        assessment = inference_pb2.Assessment.FromString(instance.assessment)
        about = About(instance.modality, assessment.facts.view, instance.site)
        for finding in assessment.findings:
            yield policy.rejudged(finding, about)


def _details(reasons: Iterable[Reason.ValueType], findings: Iterable[Finding]) -> Iterable[str]:
    """One sentence a reason: the worst finding's own, else the table's."""
    words: dict[int, tuple[int, str]] = {}
    for finding in findings:
        if finding.detail and finding.outcome > words.get(finding.code, (0, ""))[0]:
            words[finding.code] = (finding.outcome, finding.detail)
    for reason in reasons:
        yield words[reason][1] if reason in words else WORDS[reason]


def decided_event(decision: Decision) -> audit_pb2.DecidedEvent:
    """The decision as its record says it."""
    event = audit_pb2.DecidedEvent(
        verdict=decision.verdict,  # type: ignore[arg-type]
        reasons=decision.reasons,  # type: ignore[arg-type]
        revision=decision.revision,
        instances=[
            audit_pb2.DecidedInstance(
                instance=one["instance"],
                verdict=one["verdict"],
                reasons=one["reasons"],
                assessed_index=one["assessed_index"],
            )
            for one in decision.instances
        ],
    )
    for finding in inference_pb2.Assessment.FromString(decision.findings).findings:
        event.findings.add(code=finding.code, outcome=finding.outcome)
        if finding.HasField("measurement"):
            measured = finding.measurement
            event.measurements.add(name=measured.name, value=decimal(measured.value), unit=measured.unit)
    event.sites.extend(sorted({one["site"] for one in decision.instances if one.get("site")}))
    lacking = Missing.from_json(decision.missing)
    if lacking.instances:
        event.missing_instances = lacking.instances
    if lacking.series:
        event.missing_series = lacking.series
    event.unmet_rules.extend(lacking.rules)
    event.forced_by = decision.forced_by
    if decision.previous_index is not None:
        event.previous_index = decision.previous_index
    return event
