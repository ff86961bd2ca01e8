"""`stepwedge witness`: cosign the log's checkpoints on a machine of the compliance office."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import typer

from shared import logs
from shared.errors import ErrorCode, StepwedgeError


def witness(config: Path | None, name: str, *, init: bool, **given: object) -> None:
    """Make a witness with `init`, else run one until SIGTERM or Ctrl-C; `given` are settings that were named."""
    from services.witness import __main__ as process
    from services.witness.settings import load

    os.umask(0o077)
    settings = load(config, **given)
    if init:
        if not name:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "--init needs --name")
        typer.echo(process.create(settings, name))
        return
    logging.disable(logging.NOTSET)  # this command is a service: its lines are JSON, as a service's are
    logs.configure("witness")
    process.run_until_stopped(settings)
