"""The commands of `stepwedge log` that are about proofs and keys; what they do lies in `cli.proof`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.guardian_app import As, Config, Guardian, Json, guardian

commands = guardian
"""Those of `cli.guardian_app`, and the ones below."""

Folder = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the proof of the change.")]


@guardian.command()
def proof(
    index: Annotated[int, typer.Option("--index", min=0, help="Position of the record in the log.")],
    file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write it (.tlog-proof).")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
    config: Config = None,
    identity: As = Guardian.AUDITOR,
    json: Json = False,
) -> None:
    """Write the proof of one record that stands alone: verifier/verify.py proof FILE --key KEY."""
    from cli.proof import proof

    proof(index, file, config, identity.value, force=force, json=json)


@guardian.command(name="rotate-key")
def rotate_key(folder: Folder = Path(), config: Config = None, json: Json = False) -> None:
    """Let a new key sign the log. The old one signs the record of that, and is destroyed."""
    from cli.proof import rotate_key

    rotate_key(folder, config, Guardian.OPERATOR.value, json=json)


@guardian.command(name="verify-stamp")
def verify_stamp(
    token: Annotated[Path, typer.Argument(metavar="STAMP.tsr", help="The authority's answer.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", metavar="FILE", help="The checkpoint that was stamped.")],
    certificates: Annotated[Path, typer.Option("--certificates", metavar="PEM", help="Those of the authority.")],
    json: Json = False,
) -> None:
    """Verify a time stamp on a checkpoint (RFC 3161) with its authority's certificates."""
    from cli.proof import verify_stamp

    raise typer.Exit(verify_stamp(token, checkpoint, certificates, json=json))
