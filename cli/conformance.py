"""`stepwedge conformance`: the DICOM Conformance Statement of the cluster as its settings are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cli import configuration
from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError
from shared.paths import ROOT
from shared.settings import FILE_VARIABLE

SUFFIXES = {".md": "markdown", ".html": "html", ".htm": "html"}


def conformance(output: Path | None, form: str, config: Path | None) -> Exit:
    """Write the statement to a file, whose name may say in which form, or to stdout.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where the settings are wrong, INVALID_REQUEST for a form that there is not.
    """
    if form and form not in SUFFIXES.values():
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the form is markdown or html")
    chosen = form or SUFFIXES.get(output.suffix.lower() if output else "", "markdown")
    configuration.load(config)  # says what is wrong with them as every command does
    environment = dict(os.environ)
    here = Path("stepwedge.toml")
    if file := config or (here if FILE_VARIABLE not in environment and here.is_file() else None):
        environment[FILE_VARIABLE] = str(file.resolve())
    # A process of its own, as for the services: the command knows ingest by its contract alone.
    made = subprocess.run(
        [sys.executable, "-m", "services.ingest.conformance", chosen],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        words = made.stderr.strip().splitlines()[-1:] or ["the statement could not be made"]
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words[0].partition(": ")[2] or words[0])
    if output is None:
        sys.stdout.write(made.stdout)
    else:
        output.write_text(made.stdout, encoding="utf-8")
    return Exit.OK
