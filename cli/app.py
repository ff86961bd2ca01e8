"""Every command and option of `stepwedge`; what a command does lies in the module of its name, loaded when it runs."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli import exit_codes, model_app, policy_app, proof_app, token_app


class Group(TyperGroup):
    """The command, whose help ends with the table of exit codes."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, then the table."""
        super().format_help(ctx, formatter)
        exit_codes.print_table()


app = typer.Typer(
    name="stepwedge",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quality assurance for medical images whose every decision is recorded or refused.\n\n"
    "A failure is one line on stderr: `error CODE: sentence`. With --json, stdout holds one JSON object a line.",
)


def _given(text: str) -> Path:
    """A path as it stands on the command line; an empty one is no path (it would be the current folder)."""
    if not text:
        raise ValueError("an empty path")
    return Path(text)


class LogFormat(enum.StrEnum):
    """What an export of the log can be."""

    BUNDLE = "bundle"
    CSV = "csv"
    FHIR = "fhir"
    DICOM = "dicom"


class Person(enum.StrEnum):
    """In whose name a command speaks to the cluster."""

    OPERATOR = "operator"
    AUDITOR = "auditor"
    PACS = "pacs"
    CONSOLE = "console"


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Settings (TOML). Default: what STEPWEDGE_CONFIG names, else ./stepwedge.toml, else built in.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
As = Annotated[Person, typer.Option("--as", help="Whose certificate to show to the cluster.")]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="Study Instance UID as sent, or as it stands in the log.")
]

CLUSTER = "The cluster"
STUDIES = "Studies"
LOG = "The log"
FILES = "Files, without a cluster"

app.add_typer(proof_app.commands, name="log", rich_help_panel=LOG)
app.add_typer(token_app.commands, name="token", rich_help_panel=CLUSTER)
app.add_typer(policy_app.commands, name="policy", rich_help_panel=STUDIES)
app.add_typer(model_app.commands, name="model", rich_help_panel=CLUSTER)


@app.command(rich_help_panel=CLUSTER)
def up(config: Config = None) -> None:
    """Start the four services here, watch over them, and drain them in order at Ctrl-C.

    On the first run the certificates and keys of a development cluster are made.
    """
    from cli.up import up

    up(config)


@app.command(rich_help_panel=CLUSTER)
def demo(
    input: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="FOLDER", help="Send the DICOM files of this folder instead of the built-in ones."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", help="Where the demo keeps its files (a new folder). Default: a temporary one."
        ),
    ] = None,
) -> None:
    """Start a cluster, send it images, watch each get its verdict, prove the log, and catch a forger."""
    from cli.demo import demo

    raise typer.Exit(demo(input, data))


@app.command(rich_help_panel=CLUSTER)
def doctor(config: Config = None, json: Json = False) -> None:
    """Check settings, keys, certificates, ports, services, disk, clock, model: one line each, and what to do."""
    from cli.doctor import doctor

    raise typer.Exit(doctor(config, json=json))


@app.command(rich_help_panel=CLUSTER)
def backup(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to make it; must not be there yet.")],
    objects: Annotated[
        bool, typer.Option("--objects/--no-objects", help="Copy the objects too, or only list them by digest.")
    ] = False,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="Include the keys, sealed under the passphrase in this file."),
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Copy databases, log and the list of objects into a folder, while the cluster goes on."""
    from cli.backup import backup

    backup(folder, config, with_objects=objects, with_keys=keys, json_lines=json)


@app.command(rich_help_panel=CLUSTER)
def restore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A backup.")],
    drill: Annotated[
        bool, typer.Option("--drill", help="Only check it, in a scratch place; the cluster is not touched.")
    ] = False,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="A checkpoint, an export or the state of a witness that the log must continue; may be repeated.",
        ),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="FILE", help="Open the sealed keys with this file's passphrase.")
    ] = None,
    accept_missing: Annotated[
        bool,
        typer.Option("--accept-missing", help="Go on though objects are missing; never with a log that is not whole."),
    ] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Check a backup against its log, and put it where the settings say.

    Ends with 0 where every check held, 1 where something is missing, else with the status of the verifier: 4 where the
    backup is older than what the log is known to have held.
    """
    from cli.restore import restore

    given = {"drill": drill, "accept_missing": accept_missing, "json_lines": json}
    raise typer.Exit(restore(folder, config, checkpoint or [], keys, **given))


@app.command(rich_help_panel=CLUSTER)
def conformance(
    output: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write it: .md or .html; else stdout.")
    ] = None,
    form: Annotated[str, typer.Option("--form", metavar="FORM", help="markdown or html.")] = "",
    config: Config = None,
) -> None:
    """Write the DICOM Conformance Statement (PS3.2) of the cluster as its settings are."""
    from cli.conformance import conformance

    raise typer.Exit(conformance(output, form, config))


@app.command(rich_help_panel=STUDIES)
def send(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="DICOM files, or folders of them.")],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where the storage SCP listens.")],
    aet: Annotated[str, typer.Option("--aet", metavar="CALLED", help="Its AE title.")],
    calling: Annotated[str, typer.Option("--calling", metavar="AET", help="Our AE title.")] = "STEPWEDGE_SCU",
    json: Json = False,
) -> None:
    """Send files by DICOM C-STORE, byte for byte, in their own transfer syntaxes."""
    from cli.storing import store

    raise typer.Exit(store(paths, to, aet, calling, json=json))


@app.command(rich_help_panel=STUDIES)
def submit(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="DICOM files, or folders of them.")],
    config: Config = None,
    identity: As = Person.OPERATOR,
    json: Json = False,
) -> None:
    """Hand files to the cluster over gRPC, as an integrator's client does."""
    from cli.storing import submit

    raise typer.Exit(submit(paths, config, identity.value, json=json))


@app.command(rich_help_panel=STUDIES)
def simulate(
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where the cluster accepts associations.")],
    aet: Annotated[str, typer.Option("--aet", metavar="CALLED", help="Its AE title.")] = "STEPWEDGE",
    calling: Annotated[str, typer.Option("--calling", metavar="AET", help="Our AE title.")] = "SIMULATED",
    source: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="PATH", help="Files or folders to send, under other names; else the phantom."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of what is left to chance.")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="Only this behaviour.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Ask the cluster over gRPC where every study ended.")
    ] = True,
    wait: Annotated[float, typer.Option("--wait", min=1, help="Seconds that a study may take to be decided.")] = 120.0,
    huge: Annotated[int, typer.Option("--huge", min=2, metavar="MIB", help="Size of the very large object.")] = 64,
    config: Config = None,
    identity: As = Person.OPERATOR,
    json: Json = False,
) -> None:
    """Behave like a bad PACS, and hold the cluster's answers against what they must be: an acceptance test.

    Sends late, twice, half, slowly, at once, under false names, out of order, too much, and noise. Needs no more than
    the DICOM address; with --check, also the operator's certificate. Its studies are of a patient SIMULATED^PATIENT.
    """
    from cli.simulate import Ask, simulate

    ask = Ask(config, identity.value, check, wait)
    raise typer.Exit(
        simulate(to, aet, calling, source or [], ask, seed=seed, only=only or [], huge_mib=huge, json=json)
    )


@app.command("dead-letter", rich_help_panel=STUDIES)
def dead_letter(
    error: Annotated[str, typer.Option("--error", metavar="CODE", help="Only studies that this error put there.")] = "",
    requeue: Annotated[bool, typer.Option("--requeue", help="Put them back in the queue, each on the record.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, newest first.")] = 1000,
    config: Config = None,
    identity: As = Person.OPERATOR,
    json: Json = False,
) -> None:
    """List the studies that were given up, why, and what to do; or put them back. Ends with 1 while any are left."""
    from cli.dead_letter import dead_letter

    raise typer.Exit(dead_letter(config, identity.value, error, limit, requeue=requeue, json=json))


@app.command(rich_help_panel=STUDIES)
def complete(study: StudyName, config: Config = None, identity: As = Person.OPERATOR, json: Json = False) -> None:
    """Have a study decided now, with what came of it; the record of the decision says who asked."""
    from cli.studies import complete

    complete(study, config, identity.value, json=json)


@app.command(rich_help_panel=STUDIES)
def studies(
    config: Config = None,
    state: Annotated[
        str,
        typer.Option(
            "--state", metavar="STATE", help="Only those: receiving, processing, delivering, done, dead-letter."
        ),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, newest first.")] = 50,
    identity: As = Person.OPERATOR,
    json: Json = False,
) -> None:
    """List studies, newest first."""
    from cli.studies import studies

    studies(config, state, limit, identity.value, json=json)


@app.command(rich_help_panel=STUDIES)
def explain(study: StudyName, config: Config = None, identity: As = Person.OPERATOR, json: Json = False) -> None:
    """Say where a study is, why, what happens next, and what happened so far."""
    from cli.studies import explain

    raise typer.Exit(explain(study, config, identity.value, json=json))


@app.command(rich_help_panel=STUDIES)
def watch(
    config: Config = None,
    since: Annotated[str, typer.Option("--since", metavar="CURSOR", help="Only decisions after this cursor.")] = "",
    count: Annotated[int, typer.Option("--count", min=0, help="End after so many decisions; 0 for never.")] = 0,
    identity: As = Person.OPERATOR,
    json: Json = False,
) -> None:
    """Print decisions as they are made, the past ones first."""
    from cli.studies import watch

    watch(config, since, count, identity.value, json=json)


@app.command(rich_help_panel=CLUSTER)
def constancy(
    to: Annotated[
        str,
        typer.Option("--to", metavar="HOST:PORT", help="Send by C-STORE, as a modality does. Default: over gRPC."),
    ] = "",
    aet: Annotated[str, typer.Option("--aet", metavar="CALLED", help="AE title, for --to.")] = "STEPWEDGE",
    set_baseline: Annotated[
        bool, typer.Option("--set-baseline", help="Make the values of this test the baseline from now on.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds until the verdict must be there.")] = 120,
    everything: Annotated[bool, typer.Option("--all", help="List every value, not only those that drifted.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Test the whole cluster with phantoms: send them, wait for the verdict, compare with the baseline, record it.

    Ends with 0 where nothing drifted, 1 where a value left its tolerance, 69 where no verdict came. Run it daily.
    """
    from cli.constancy import constancy

    shown = {"everything": everything, "json": json}
    raise typer.Exit(constancy(config, to, aet, set_baseline=set_baseline, seconds=timeout, **shown))


@app.command(rich_help_panel=STUDIES)
def requeue(study: StudyName, config: Config = None, identity: As = Person.OPERATOR, json: Json = False) -> None:
    """Put a study of the dead letter back in the queue."""
    from cli.studies import requeue

    requeue(study, config, identity.value, json=json)


@app.command(rich_help_panel=LOG)
def verify(
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Verify this export, offline. Default: fetch one from the cluster."
        ),
    ] = None,
    key: Annotated[
        str,
        typer.Option(
            "--key", metavar="KEY", help="The log's public key, or a file of it. Default: that of the settings."
        ),
    ] = "",
    older: Annotated[
        Path | None,
        typer.Option("--older", metavar="FILE", help="An earlier checkpoint or export: nothing of it may be gone."),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option("--witness", metavar="KEY", help="A witness's key, or a file of it; may be repeated."),
    ] = None,
    quorum: Annotated[
        int | None, typer.Option("--quorum", min=0, help="How many of them must have cosigned. Default: all.")
    ] = None,
    config: Config = None,
    identity: As = Person.OPERATOR,
    json: Json = False,
) -> None:
    """Prove that nothing in the log was changed, removed, inserted or reordered.

    Ends with the status of the stand-alone verifier: 0 proved, 3 altered, 4 truncated, 5 forked, 6 bad signature,
    7 missing witness, 8 malformed, 9 unreadable.
    """
    from cli.log import verify

    raise typer.Exit(verify(export, key, older, config, identity.value, witness or [], quorum, json=json))


@app.command(rich_help_panel=LOG)
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    form: Annotated[
        LogFormat,
        typer.Option(
            "--format",
            help="bundle: zip archive, the one that proves; csv: a table; fhir: FHIR R4 AuditEvent, an object a line; "
            "dicom: DICOM audit messages (PS3.15 A.5), a document a line.",
        ),
    ] = LogFormat.BUNDLE,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
    config: Config = None,
    identity: As = Person.OPERATOR,
    json: Json = False,
) -> None:
    """Write the whole log as one archive that anybody can verify offline, or its records for auditors' tools."""
    from cli.log import export

    export(file, form.value, config, identity.value, force=force, json=json)


@app.command(rich_help_panel=LOG)
def witness(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Settings of the witness (TOML), not of the cluster."),
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where to serve. Default: 127.0.0.1:7201.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="What it remembers. Default: witness.state.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Its private key. Default: witness.key.")
    ] = None,
    log: Annotated[
        list[str] | None, typer.Option("--log", metavar="VKEY", help="Verification key of a log; may be repeated.")
    ] = None,
    rotation: Annotated[
        list[Path] | None,
        typer.Option("--rotation", metavar="FILE", help="The proof that a log changed its key; may be repeated."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="PEM certificate; without it, plain HTTP.")
    ] = None,
    certificate_key: Annotated[
        Path | None, typer.Option("--certificate-key", metavar="FILE", help="PEM private key of the certificate.")
    ] = None,
    init: Annotated[
        bool, typer.Option("--init", help="Make the key and the empty state, print the verification key, and end.")
    ] = False,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="With --init: its name, hospital.example/compliance.")
    ] = "",
) -> None:
    """Run a witness of the log, on a machine that the operators of the log do not rule.

    It speaks C2SP tlog-witness: it cosigns a checkpoint only if it extends the newest one that it cosigned before.
    """
    from cli.witness import witness

    given = {"listen": listen, "state": state, "key": key, "logs": log, "rotations": rotation}
    tls = {"certificate": certificate, "certificate_key": certificate_key}
    witness(config, name, init=init, **given, **tls)


@app.command(rich_help_panel=FILES)
def redact(
    source: Annotated[Path, typer.Argument(metavar="IN", parser=_given, help="A DICOM file, or a folder of them.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", parser=_given, help="The file, or the folder, to write.")],
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="Pseudonym key. Default: that of the settings, else a random one for this run.",
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", metavar="NAME", help="One of ours, or a file (TOML). Default: basic-pixels.")
    ] = "",
    project: Annotated[
        str, typer.Option("--project", metavar="NAME", help="Pseudonyms of this project alone, under the same key.")
    ] = "",
    key_id: Annotated[
        str, typer.Option("--key-id", metavar="ID", help="A key that was rotated out, to go on with an old study.")
    ] = "",
    paths: Annotated[
        bool,
        typer.Option("--paths/--no-paths", help="Name files by their paths, or by number: a path may name a patient."),
    ] = True,
    config: Config = None,
    json: Json = False,
) -> None:
    """Take identity out of DICOM files (PS3.15 Annex E); one receipt a file."""
    from cli.redact import redact

    chosen = {"profile": profile, "project": project, "key_id": key_id}
    raise typer.Exit(redact(source, target, key, config, json=json, paths=paths, **chosen))


keys_app = typer.Typer(no_args_is_help=True, help="The keys of pseudonyms: list, rotate, destroy.")
app.add_typer(keys_app, name="keys", rich_help_panel=FILES)
KeyFile = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="The key file. Default: that of the settings.")
]


@keys_app.command("list")
def keys_list(
    key: KeyFile = None,
    project: Annotated[str, typer.Option("--project", metavar="NAME", help="Show the ids that they have there.")] = "",
    config: Config = None,
    json: Json = False,
) -> None:
    """Show the keys by their ids: in use, retired, destroyed."""
    from cli.pseudonym_keys import show

    show(key, project, config, json=json)


@keys_app.command("rotate")
def keys_rotate(key: KeyFile = None, config: Config = None, json: Json = False) -> None:
    """Put a new key into use; what the old ones issued is still known. Then restart ingest and redaction together."""
    from cli.pseudonym_keys import rotate

    rotate(key, config, json=json)


@keys_app.command("destroy")
def keys_destroy(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="A retired key, by its id.")],
    yes: Annotated[bool, typer.Option("--yes", help="It cannot be undone, and this is meant.")] = False,
    key: KeyFile = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Forget a retired key for good: nothing that it made can be made again or led back."""
    from cli.pseudonym_keys import destroy

    destroy(key_id, key, config, sure=yes, json=json)


@app.command(rich_help_panel=FILES)
def assess(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", parser=_given, help="DICOM, PNG, JPEG or TIFF files, or folders of them."),
    ],
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks",
            metavar="DIR",
            help="Write each mask as <file stem>.<channel>.png, 0 and 255, of the image's size.",
        ),
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Measure images and say whether they are good enough."""
    from cli.assess import assess

    raise typer.Exit(assess(paths, masks, config, json=json))


def _say_version(wanted: bool) -> None:
    if wanted:
        from shared.build import software_build

        typer.echo(f"stepwedge {software_build()}")
        raise typer.Exit


@app.callback()
def stepwedge(
    version: Annotated[
        bool, typer.Option("--version", help="Say which build this is, and end.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before a command."""
