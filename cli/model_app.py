"""The commands of `stepwedge model`, with their options; what they do lies in `cli.model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.guardian_app import Config, Json

commands = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Which models are served, and their releases in the log."
)


@commands.command()
def release(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a release that two people signed.")],
    file: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the proof goes; default in DIR.")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Record in the log that a model was released, and write the proof of it.

    The running inference holds both signatures to the keys of its settings, and vouches for them. The same release
    again is the same record; after a change of the log's key, run it again for a new proof.
    """
    from cli.model import release

    release(folder, file, config, json=json)


@commands.command(name="list")
def listed(config: Config = None, json: Json = False) -> None:
    """List the models that are loaded: the one that is served, those beside it, and the candidate in its shadow."""
    from cli.model import listed

    listed(config, json=json)
