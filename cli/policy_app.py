"""The commands of `stepwedge policy`; what they do lies in `cli.policy`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(name="policy", no_args_is_help=True, help="What decides: look at it, and try another one first.")


class Reader(enum.StrEnum):
    """Who may ask ingest for policies."""

    OPERATOR = "operator"
    CONSOLE = "console"


Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Settings (TOML). Default: as for every command."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
As = Annotated[Reader, typer.Option("--as", help="Whose certificate to show to the cluster.")]


@commands.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="NEW.toml", help="The policy that shall be switched on.")],
    limit: Annotated[int, typer.Option("--limit", min=0, help="The newest so many studies; 0 for all.")] = 1000,
    everything: Annotated[bool, typer.Option("--all", help="Tell of studies that would not change, too.")] = False,
    config: Config = None,
    identity: As = Reader.OPERATOR,
    json: Json = False,
) -> None:
    """Say what a policy would have decided about past studies, before it is switched on.

    Ends with 0 where no verdict would change, 1 where one would, 78 where the file is no policy. Studies are named as
    in the log. Nothing is decided anew.
    """
    from cli.policy import check

    raise typer.Exit(check(file, config, identity.value, limit=limit, everything=everything, json=json))


@commands.command()
def show(
    sha256: Annotated[str, typer.Argument(metavar="[SHA256]", help="Digest. Default: the one that decides now.")] = "",
    config: Config = None,
    identity: As = Reader.OPERATOR,
    json: Json = False,
) -> None:
    """Print the policy that decides now, or one that did, as its file was."""
    from cli.policy import show

    show(sha256, config, identity.value, json=json)
