"""`stepwedge policy`: what a policy would have decided about the studies that were seen, before it is switched on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import configuration, connect, studies, terminal
from cli.exit_codes import Exit
from shared.identity import Identity
from shared.policy import About, Policy
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Reason, Verdict
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

if TYPE_CHECKING:
    from shared.settings import Settings
    from stepwedge.ingest.v1.ingest_pb2_grpc import IngestServiceStub

SHOWN = 12
"""Digits of a digest that are shown in a line."""
CALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Judged:
    """A study under two policies. It is named as in the log; nothing of it names a person."""

    study: str
    decided_at: str
    policy: str
    """Digest of the policy that decided."""
    old: Verdict.ValueType
    new: Verdict.ValueType
    old_reasons: tuple[Reason.ValueType, ...]
    new_reasons: tuple[Reason.ValueType, ...]
    reviewed: Verdict.ValueType
    """What the last person who looked held to be right; 0 where nobody looked."""

    @property
    def changes(self) -> bool:
        """Whether the verdict would be another."""
        return self.old != self.new


@dataclass
class Sums:
    """What is counted while studies go by."""

    studies: int = 0
    undecided: int = 0
    moved: Counter[tuple[Verdict.ValueType, Verdict.ValueType]] = field(default_factory=Counter)
    reasons: Counter[tuple[Reason.ValueType, bool]] = field(default_factory=Counter)
    """(reason, whether it would be gained) -> studies."""
    policies: Counter[str] = field(default_factory=Counter)
    reviewed: int = 0
    agreed_old: int = 0
    agreed_new: int = 0

    @property
    def changed(self) -> int:
        """Studies that would be decided otherwise."""
        return sum(count for (old, new), count in self.moved.items() if old != new)

    def add(self, one: Judged) -> None:
        """Count a study."""
        self.studies += 1
        self.moved[one.old, one.new] += 1
        self.policies[one.policy] += 1
        for reason in set(one.old_reasons) ^ set(one.new_reasons):
            self.reasons[reason, reason in one.new_reasons] += 1
        if one.reviewed:
            self.reviewed += 1
            self.agreed_old += one.old == one.reviewed
            self.agreed_new += one.new == one.reviewed


def check(file: Path, config: Path | None, identity: str, *, limit: int, everything: bool, json: bool) -> Exit:
    """Judge past studies by a policy; NEGATIVE where one would get another verdict."""
    settings = configuration.load(config)
    policy = Policy.load(file)
    _note_unknown_sites(policy, settings)
    sums = Sums()
    with connect.channel(settings, "ingest", Identity(identity)) as link:
        stub = ingest_pb2_grpc.IngestServiceStub(link)
        used = stub.GetPolicy(ingest_pb2.GetPolicyRequest(), timeout=CALL_SECONDS)
        if not json:
            since = studies.iso(used.first_used_at)
            said = "the policy in use" if used.sha256 == policy.digest else f"{policy.digest[:SHOWN]}, {file.name}"
            terminal.out().print(f"{said}, beside {used.sha256[:SHOWN]} in use since {since}", markup=False)
        with terminal.counter("judging", "studies") as counted:
            for study in _studies(stub, limit):
                one = judged(study, policy)
                if one is None:
                    sums.undecided += 1
                    continue
                sums.add(one)
                counted(sums.studies)
                if one.changes or everything:
                    _tell(one, json=json)
    if json:
        terminal.emit(_sums_as_json(sums, policy.digest, used.sha256))
    else:
        _print_sums(sums)
    return Exit.NEGATIVE if sums.changed else Exit.OK


def show(sha256: str, config: Path | None, identity: str, *, json: bool) -> None:
    """Print the policy that decides now, or one that did, as its file was."""
    with connect.channel(configuration.load(config), "ingest", Identity(identity)) as link:
        stub = ingest_pb2_grpc.IngestServiceStub(link)
        found = stub.GetPolicy(ingest_pb2.GetPolicyRequest(sha256=sha256), timeout=CALL_SECONDS)
    if json:
        since = studies.iso(found.first_used_at)
        terminal.emit({"sha256": found.sha256, "first_used_at": since, "toml": found.toml})
    else:
        terminal.note(f"sha256 {found.sha256}, first used {studies.iso(found.first_used_at)}")
        terminal.out().print(found.toml, markup=False, soft_wrap=True, end="")


# --- judging -----------------------------------------------------------------------------------------------------


def judged(study: ingest_pb2.Study, policy: Policy) -> Judged | None:
    """A study under the policy that decided and under another; None where it is not decided, or has no patient."""
    if not study.decisions or study.constancy:
        return None
    newest = study.decisions[-1]
    images = [_image(instance, policy) for instance in study.instances]
    main = next(iter(study.instances), ingest_pb2.Instance())
    beside = [policy.instance_verdict([one], modality=main.modality, site=main.site) for one in study.findings]
    verdict, reasons = policy.study_verdict(images, beside)
    return Judged(
        study=study.pseudonym,
        decided_at=studies.iso(newest.decided_at),
        policy=newest.policy_sha256,
        old=newest.verdict,
        new=verdict,
        old_reasons=tuple(newest.reasons),
        new_reasons=tuple(reasons),
        reviewed=study.reviews[-1].verdict if study.reviews else Verdict.VERDICT_UNSPECIFIED,
    )


def _image(instance: ingest_pb2.Instance, policy: Policy) -> tuple[Verdict.ValueType, list[Reason.ValueType]]:
    """As ingest judges it: what was refused before it was measured stays not assessable under every policy, and an
    instance in conflict is for a person."""
    if _is_refused(instance.findings):
        verdict, reasons = Verdict.VERDICT_NOT_ASSESSABLE, [instance.findings[0].code]
    else:
        about = About(instance.modality, instance.view, instance.site)
        verdict, reasons = policy.instance_verdict(instance.findings, **about._asdict())
    if instance.conflict:
        reasons = [*reasons, Reason.REASON_INSTANCE_CONFLICT]
        verdict = Verdict.VERDICT_REVIEW if verdict == Verdict.VERDICT_ACCEPT else verdict
    return verdict, reasons


def _is_refused(findings: Sequence[Finding]) -> bool:
    """Whether the only finding is that nothing could be found: inference gives such a one for reports alone."""
    alone = findings[0] if len(findings) == 1 else None
    return (
        alone is not None and alone.outcome == Outcome.OUTCOME_NOT_ASSESSABLE and alone.code != Reason.REASON_NO_PIXELS
    )


def _studies(stub: IngestServiceStub, limit: int) -> Iterator[ingest_pb2.Study]:
    """Whole studies, newest first; `limit` 0 for all."""
    token, left = "", limit or 10**9
    while left > 0:
        request = ingest_pb2.ListStudiesRequest(page_size=min(left, studies.PAGE), page_token=token)
        page = stub.ListStudies(request, timeout=CALL_SECONDS)
        for study in page.studies:
            key = ingest_pb2.StudyKey(study_instance_uid=study.study_instance_uid)
            yield stub.GetStudy(ingest_pb2.GetStudyRequest(study=key), timeout=CALL_SECONDS).study
        left -= len(page.studies)
        token = page.next_page_token
        if not token:
            return


def _note_unknown_sites(policy: Policy, settings: Settings) -> None:
    unknown = sorted(policy.sites - set(settings.ingest.sites.values()))
    if unknown:
        terminal.note(f"no setting of ingest.sites names: {', '.join(unknown)}; rules for these fit no image")


# --- words -------------------------------------------------------------------------------------------------------


def _tell(one: Judged, *, json: bool) -> None:
    if json:
        terminal.emit(_as_json(one))
        return
    out = terminal.out()
    old, new = studies.verdict_name(one.old), studies.verdict_name(one.new)
    arrow = f"{terminal.verdict(old)} -> {terminal.verdict(new)}" if one.changes else terminal.verdict(old)
    out.print(f"{one.decided_at}  {one.study}  {arrow}", soft_wrap=True)
    for sign, reasons in (
        ("+", _beyond(one.new_reasons, one.old_reasons)),
        ("-", _beyond(one.old_reasons, one.new_reasons)),
    ):
        for reason in reasons:
            out.print(f"    {sign} {studies.reason_name(reason)}", markup=False, soft_wrap=True)


def _beyond(these: Sequence[Reason.ValueType], those: Sequence[Reason.ValueType]) -> list[Reason.ValueType]:
    return [one for one in these if one not in those]


def _as_json(one: Judged) -> dict[str, Any]:
    return {
        "study": one.study,
        "decided_at": one.decided_at,
        "policy_sha256": one.policy,
        "verdict": {"old": studies.verdict_name(one.old), "new": studies.verdict_name(one.new)},
        "reasons": {
            "old": [studies.reason_name(reason) for reason in one.old_reasons],
            "new": [studies.reason_name(reason) for reason in one.new_reasons],
        },
        "reviewed": studies.verdict_name(one.reviewed),
        "changes": one.changes,
    }


def _sums_as_json(sums: Sums, new: str, used: str) -> dict[str, Any]:
    return {
        "policy_sha256": {"new": new, "in_use": used},
        "studies": sums.studies,
        "changed": sums.changed,
        "not_decided": sums.undecided,
        "verdicts": [
            {"old": studies.verdict_name(old), "new": studies.verdict_name(then), "studies": count}
            for (old, then), count in sorted(sums.moved.items())
        ],
        "reasons": [
            {"reason": studies.reason_name(reason), "change": "gained" if gained else "lost", "studies": count}
            for (reason, gained), count in sorted(sums.reasons.items())
        ],
        "decided_by": dict(sums.policies),
        "reviewed": {"studies": sums.reviewed, "old_agreed": sums.agreed_old, "new_agrees": sums.agreed_new},
    }


def _print_sums(sums: Sums) -> None:
    from rich.table import Table

    out = terminal.out()
    words = "all would be decided as they were" if not sums.changed else f"{sums.changed} would be decided otherwise"
    out.print(f"{sums.studies} studies; {words}" if sums.studies else "no study was decided yet")
    if not sums.studies:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("decided", "would be", "studies"):
        table.add_column(title, no_wrap=True, justify="right" if title == "studies" else "left")
    for (old, new), count in sorted(sums.moved.items()):
        names = (terminal.verdict(studies.verdict_name(one)) for one in (old, new))
        table.add_row(*names, str(count))
    out.print(table)
    for (reason, gained), count in sorted(sums.reasons.items()):
        out.print(f"  {'+' if gained else '-'} {studies.reason_name(reason)}: {count} studies", soft_wrap=True)
    if sums.reviewed:
        out.print(
            f"of {sums.reviewed} that people looked at, what was decided agrees with {sums.agreed_old}, "
            f"what would be decided with {sums.agreed_new}",
            soft_wrap=True,
        )
