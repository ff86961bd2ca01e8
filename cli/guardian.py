"""`stepwedge log ...`: what those who guard the log do: find, identify, hold, erase, prune, check.

A patient or accession number stays on this machine: the token that the log is searched by is computed here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import configuration, connect, terminal
from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from shared.settings import Settings
    from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc

SECONDS = 120.0
CHECK_SECONDS = 3600.0


@contextmanager
def _log(config: Path | None, identity: str) -> Iterator[tuple[Settings, audit_pb2_grpc.AuditServiceStub]]:
    from shared.identity import Identity
    from stepwedge.audit.v1 import audit_pb2_grpc

    settings = configuration.load(config)
    with connect.channel(settings, "audit", Identity(identity)) as link:
        yield settings, audit_pb2_grpc.AuditServiceStub(link)


def _cause(purpose: str, reference: str) -> audit_pb2.Cause:
    from stepwedge.audit.v1 import audit_pb2

    return audit_pb2.Cause(purpose=_number(audit_pb2.PurposeOfUse, "PURPOSE_OF_USE", purpose), reference=reference)


def _number(enum: Any, prefix: str, name: str) -> Any:
    """The number of an enum's name; 0 for none."""
    if not name:
        return 0
    try:
        return enum.Value(f"{prefix}_{name.upper()}")
    except ValueError:
        known = ", ".join(one.removeprefix(f"{prefix}_") for one in enum.keys()[1:])
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, f"{prefix.lower()} is one of {known}") from None


def token(
    settings: Settings, *, accession: str = "", patient: str = "", issuer: str = "", study_uid: str = ""
) -> bytes:
    """The token of the one number that is given, "-" for a line of stdin; empty where none is.

    Raises
    ------
    StepwedgeError
        INVALID_REQUEST for more than one; CONFIGURATION where this machine has no key of the blind index.
    """
    from shared.identification import BlindIndex, Number

    given = [
        (Number.ACCESSION, accession, ""),
        (Number.PATIENT, patient, issuer),
        (Number.STUDY, study_uid, ""),
    ]
    chosen = [one for one in given if one[1]]
    if not chosen:
        return b""
    if len(chosen) > 1:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "one number at a time")
    kind, value, of = chosen[0]
    if value == "-":
        value = sys.stdin.readline().rstrip("\n")
    return BlindIndex.load(settings.cluster.keys).token(kind, value, of)


def moment(text: str) -> datetime:
    """A date or time (ISO 8601; UTC where it says no zone). Raises INVALID_REQUEST."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        message = "a time has the form 2026-11-22 or 2026-11-22T05:00:00+00:00"
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message) from None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def query(
    config: Path | None,
    identity: str,
    *,
    limit: int,
    json: bool,
    numbers: dict[str, str],
    since: str,
    before: str,
    **filters: str,
) -> None:
    """Print the entries that match, in the order of the log."""
    from stepwedge.audit.v1 import audit_pb2
    from stepwedge.common.v1 import common_pb2

    with _log(config, identity) as (settings, log):
        wanted = audit_pb2.QueryEntriesRequest(
            token=token(settings, **numbers),
            kind=_number(audit_pb2.RecordKind, "RECORD_KIND", filters.pop("kind")),
            outcome=_number(audit_pb2.EventOutcome, "EVENT_OUTCOME", filters.pop("outcome")),
            verdict=_number(common_pb2.Verdict, "VERDICT", filters.pop("verdict")),
            page_size=min(limit, 1000),
            **filters,  # type: ignore[arg-type]
        )
        for name, text in (("recorded_from", since), ("recorded_before", before)):
            if text:
                getattr(wanted, name).FromDatetime(moment(text).replace(tzinfo=None))
        shown = 0
        for part in log.StreamEntries(audit_pb2.StreamEntriesRequest(query=wanted), timeout=SECONDS):
            for entry in part.entries:
                if shown == limit:
                    return
                shown += 1
                _show(entry, json=json)


def _show(entry: audit_pb2.Entry, *, json: bool) -> None:
    if json:
        import json as encoder

        terminal.emit(encoder.loads(entry.leaf))
        return
    record = entry.record
    about = record.instance or record.study or record.subject
    kind = (record.WhichOneof("event") or "").upper()
    outcome = _word(record, "outcome").removeprefix("EVENT_OUTCOME_")
    when = entry.recorded_at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
    terminal.out().print(
        f"{entry.index:>10} {when} {kind:<18} {outcome:<15} {entry.producer:<10} {about}", markup=False, soft_wrap=True
    )


def _word(message: Any, name: str) -> str:
    field = message.DESCRIPTOR.fields_by_name[name]
    return str(field.enum_type.values_by_number[getattr(message, name)].name)


def erase(
    config: Path | None,
    identity: str,
    *,
    subject: str,
    patient: str,
    issuer: str,
    purpose: str,
    reference: str,
    json: bool,
) -> None:
    """Destroy what ties a subject's records to a person."""
    from stepwedge.audit.v1 import audit_pb2

    with _log(config, identity) as (settings, log):
        asked = audit_pb2.EraseSubjectRequest(
            subject=subject, token=token(settings, patient=patient, issuer=issuer), cause=_cause(purpose, reference)
        )
        done = log.EraseSubject(asked, timeout=SECONDS)
    if json:
        figures = {name: getattr(done.erased, name) for name in ("keys", "identities", "tokens")}
        terminal.emit({"subject": done.subject, "index": done.index, **figures})
        return
    terminal.note(
        f"{done.subject}: {done.erased.keys} key, {done.erased.identities} sealed identities and {done.erased.tokens} "
        f"entries of the blind index destroyed; recorded as entry {done.index}"
    )


def identify(config: Path | None, identity: str, *, index: int, purpose: str, reference: str, json: bool) -> int:
    """Open the sealed identity of an entry; 1 where there is none."""
    from shared.identification import Identities
    from stepwedge.audit.v1 import audit_pb2

    with _log(config, identity) as (settings, log):
        opener = Identities.load(settings.cluster.keys)  # before it is asked for: the look-up is a record
        asked = audit_pb2.OpenIdentityRequest(index=index, cause=_cause(purpose, reference))
        answer = log.OpenIdentity(asked, timeout=SECONDS)
    if not answer.sealed:
        if json:
            terminal.emit({"index": index, "identity": None, "lookup_index": answer.lookup_index})
        else:
            terminal.note(f"entry {index} has no identity: it was erased, or none was handed in")
        return Exit.NEGATIVE
    who = opener.open(answer.sealed, answer.subject, answer.idempotency_key)
    if not who:
        terminal.note("this cluster keeps no identity in the log (ingest.seal_identities)")
    if json:
        terminal.emit({"index": index, "identity": who or None, "lookup_index": answer.lookup_index})
    else:
        for name, value in who.items():
            terminal.out().print(f"{name:<20} {terminal.printable(value)}", markup=False, soft_wrap=True)
        terminal.note(f"this look-up is entry {answer.lookup_index} of the log")
    return Exit.OK if who else Exit.NEGATIVE


def hold(
    config: Path | None,
    identity: str,
    *,
    study: str = "",
    subject: str = "",
    release: str = "",
    purpose: str,
    reference: str,
    json: bool,
) -> None:
    """Set a legal hold, or release one."""
    from stepwedge.audit.v1 import audit_pb2

    with _log(config, identity) as (_, log):
        asked = audit_pb2.SetHoldRequest(
            study=study, subject=subject, release=release, cause=_cause(purpose, reference)
        )
        done = log.SetHold(asked, timeout=SECONDS)
    if json:
        terminal.emit({"hold": done.hold, "index": done.index})
    else:
        terminal.note(f"hold {done.hold} {'released' if release else 'set'}; recorded as entry {done.index}")


def holds(config: Path | None, identity: str, *, json: bool) -> None:
    """Print the holds that stand."""
    from stepwedge.audit.v1 import audit_pb2

    with _log(config, identity) as (_, log):
        standing = log.ListHolds(audit_pb2.ListHoldsRequest(), timeout=SECONDS).holds
    for one in standing:
        if json:
            terminal.emit({"hold": one.hold, "study": one.study, "subject": one.subject, "index": one.index})
        else:
            terminal.out().print(f"{one.hold}  {one.study or one.subject}  entry {one.index}", markup=False)
    if not standing and not json:
        terminal.note("no legal hold stands")


def prune(
    config: Path | None, identity: str, *, before: str, classes: list[str], dry_run: bool, reference: str, json: bool
) -> None:
    """Remove entries whose retention is over."""
    from stepwedge.audit.v1 import audit_pb2

    asked = audit_pb2.PruneRequest(
        classes=[_number(audit_pb2.RetentionClass, "RETENTION_CLASS", one) for one in classes],
        dry_run=dry_run,
        cause=_cause("", reference),
    )
    if before:
        asked.before.FromDatetime(moment(before).replace(tzinfo=None))
    removed, more, held, indexes = 0, True, 0, []
    with _log(config, identity) as (_, log):
        while more:
            done = log.Prune(asked, timeout=SECONDS)
            removed, more, held = removed + done.removed, done.more, done.held
            indexes += [done.index] if done.HasField("index") else []
    if json:
        terminal.emit({"removed": removed, "held": held, "dry_run": dry_run, "indexes": indexes})
        return
    word = "would be removed" if dry_run else "removed"
    terminal.note(f"{removed} entries {word}; {held} whose retention is over are under a legal hold")


def check(config: Path | None, identity: str, *, first: int, reindex: bool, json: bool) -> int:
    """Hold every entry against the tree; 1 where something differs."""
    from stepwedge.audit.v1 import audit_pb2

    found = audit_pb2.CheckLogResponse()
    with _log(config, identity) as (_, log), terminal.counter("checking", "entries") as show:
        for found in log.CheckLog(audit_pb2.CheckLogRequest(first=first, reindex=reindex), timeout=CHECK_SECONDS):
            show(found.checked)
    figures = {
        name: getattr(found, name)
        for name in ("checked", "size", "columns_altered", "entries_altered", "entries_missing", "pruned")
    }
    wrong = figures["entries_altered"] + figures["entries_missing"] + (0 if reindex else figures["columns_altered"])
    if json:
        first_index = found.first_index if found.HasField("first_index") else None
        terminal.emit({**figures, "first_index": first_index, "reindexed": reindex})
    elif found.HasField("first_index"):
        terminal.note(
            f"of {found.checked} entries {found.columns_altered} had columns that do not say what the entry says"
            f"{' (written anew)' if reindex else ''}, {found.entries_altered} are not those in the tree, "
            f"{found.entries_missing} are gone; the first is {found.first_index}"
        )
    else:
        terminal.note(f"{found.checked} entries are those in the tree and are found by what they say")
    return Exit.NEGATIVE if wrong else Exit.OK
