"""The commands of `stepwedge log`, with their options; what they do lies in `cli.guardian`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

guardian = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Find, hold, erase, prune and check records."
)


class Guardian(enum.StrEnum):
    """In whose name a command speaks to the log."""

    AUDITOR = "auditor"
    OPERATOR = "operator"
    CONSOLE = "console"


Config = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings (TOML).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
As = Annotated[Guardian, typer.Option("--as", help="Whose certificate to show to the log.")]
Purpose = Annotated[
    str,
    typer.Option(
        "--purpose", metavar="CODE", help="Why, in HL7 PurposeOfUse: TREAT, HOPERAT, HCOMPL, HLEGAL, PATRQT, ..."
    ),
]
Reference = Annotated[str, typer.Option("--reference", metavar="CASE", help="Number of the case, ERA-2026-17.")]
Study = Annotated[str, typer.Option("--study", metavar="UID", help="De-identified Study Instance UID.")]
Subject = Annotated[str, typer.Option("--subject", metavar="SW-...", help="Pseudonym of the person.")]
Patient = Annotated[
    str, typer.Option("--patient-id", metavar="NUMBER", help="Patient ID; - reads it from stdin. It stays here.")
]
Issuer = Annotated[str, typer.Option("--issuer", metavar="NAME", help="Issuer of the Patient ID.")]


@guardian.command()
def query(
    study: Study = "",
    subject: Subject = "",
    instance: Annotated[str, typer.Option("--instance", metavar="UID", help="De-identified SOP Instance UID.")] = "",
    accession: Annotated[
        str, typer.Option("--accession", metavar="NUMBER", help="Accession Number; - reads it from stdin.")
    ] = "",
    patient: Patient = "",
    issuer: Issuer = "",
    study_uid: Annotated[str, typer.Option("--study-uid", metavar="UID", help="Study UID as it was received.")] = "",
    kind: Annotated[str, typer.Option("--kind", help="Kind of record: received, decided, erased, ...")] = "",
    outcome: Annotated[str, typer.Option("--outcome", help="success, minor_failure, serious_failure, ...")] = "",
    verdict: Annotated[str, typer.Option("--verdict", help="accept, review, reject, not_assessable.")] = "",
    producer: Annotated[str, typer.Option("--producer", help="Service that recorded it.")] = "",
    actor: Annotated[str, typer.Option("--actor", help="Who asked or acted: an identity or an account.")] = "",
    model: Annotated[str, typer.Option("--model", metavar="SHA256", help="Digest of the model.")] = "",
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Recorded then or later (ISO 8601).")] = "",
    before: Annotated[str, typer.Option("--before", metavar="TIME", help="Recorded before (ISO 8601).")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    config: Config = None,
    identity: As = Guardian.AUDITOR,
    json: Json = False,
) -> None:
    """Print the records that match, oldest first. The query itself is a record."""
    from cli.guardian import query

    numbers = {"accession": accession, "patient": patient, "issuer": issuer, "study_uid": study_uid}
    named = {"study": study, "subject": subject, "instance": instance, "producer": producer, "actor": actor}
    of_enums = {"kind": kind, "outcome": outcome, "verdict": verdict, "model_sha256": model}
    query(
        config,
        identity.value,
        limit=limit,
        json=json,
        numbers=numbers,
        since=since,
        before=before,
        **named,
        **of_enums,
    )


@guardian.command()
def identify(
    index: Annotated[int, typer.Option("--index", min=0, help="Index of the record.")],
    purpose: Purpose,
    reference: Reference = "",
    config: Config = None,
    identity: As = Guardian.AUDITOR,
    json: Json = False,
) -> None:
    """Say who a record is about. Needs the identity key, and is itself a record."""
    from cli.guardian import identify

    raise typer.Exit(identify(config, identity.value, index=index, purpose=purpose, reference=reference, json=json))


@guardian.command()
def erase(
    purpose: Purpose,
    subject: Subject = "",
    patient: Patient = "",
    issuer: Issuer = "",
    reference: Reference = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: it cannot be undone.")] = False,
    config: Config = None,
    identity: As = Guardian.AUDITOR,
    json: Json = False,
) -> None:
    """Destroy for good what ties a person to the records; the records stay, and every proof."""
    from cli.guardian import erase

    if not yes:
        typer.confirm("Nobody will be able to tell whose records these are. Erase?", abort=True, err=True)
    asked = {"purpose": purpose, "reference": reference}
    erase(config, identity.value, subject=subject, patient=patient, issuer=issuer, json=json, **asked)


@guardian.command()
def hold(
    purpose: Purpose,
    study: Study = "",
    subject: Subject = "",
    reference: Reference = "",
    config: Config = None,
    identity: As = Guardian.AUDITOR,
    json: Json = False,
) -> None:
    """Set a legal hold: nothing of the study or subject is erased or pruned until it is released."""
    from cli.guardian import hold

    hold(config, identity.value, study=study, subject=subject, purpose=purpose, reference=reference, json=json)


@guardian.command()
def release(
    held: Annotated[str, typer.Argument(metavar="HOLD", help="Identifier of the hold.")],
    purpose: Purpose,
    reference: Reference = "",
    config: Config = None,
    identity: As = Guardian.AUDITOR,
    json: Json = False,
) -> None:
    """Release a legal hold."""
    from cli.guardian import hold

    hold(config, identity.value, release=held, purpose=purpose, reference=reference, json=json)


@guardian.command()
def holds(config: Config = None, identity: As = Guardian.AUDITOR, json: Json = False) -> None:
    """List the legal holds that stand."""
    from cli.guardian import holds

    holds(config, identity.value, json=json)


@guardian.command()
def prune(
    before: Annotated[str, typer.Option("--before", metavar="TIME", help="Only what was recorded before.")] = "",
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="CLASS", help="M6, Y6, Y10 or Y15; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    reference: Reference = "",
    config: Config = None,
    identity: As = Guardian.OPERATOR,
    json: Json = False,
) -> None:
    """Remove records whose retention is over; their hashes stay, and every proof of what is kept."""
    from cli.guardian import prune

    prune(config, identity.value, before=before, classes=classes or [], dry_run=dry_run, reference=reference, json=json)


@guardian.command()
def check(
    first: Annotated[int, typer.Option("--first", min=0, help="From this index on.")] = 0,
    config: Config = None,
    identity: As = Guardian.OPERATOR,
    json: Json = False,
) -> None:
    """Hold every record against the tree, and what queries search against the records; 1 where something differs."""
    from cli.guardian import check

    raise typer.Exit(check(config, identity.value, first=first, reindex=False, json=json))


@guardian.command()
def reindex(config: Config = None, identity: As = Guardian.OPERATOR, json: Json = False) -> None:
    """Check, and write anew what queries search, out of the records that are in the tree."""
    from cli.guardian import check

    raise typer.Exit(check(config, identity.value, first=0, reindex=True, json=json))
