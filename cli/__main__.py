"""The `stepwedge` command: runs what `cli/app.py` declares and turns any failure into one line and a status."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from cli import failure
from cli.exit_codes import Exit


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    from cli.app import app

    try:
        answer = app(args=list(arguments), prog_name="stepwedge", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # which Typer turns into a status of its own
            return int(Exit.BROKEN_PIPE)
        return end.code if isinstance(end.code, int) else int(Exit.OK if end.code is None else Exit.INTERNAL)
    except BaseException as error:  # noqa: BLE001 - the boundary of the process: every failure ends in one line
        return int(failure.report(error))
    return answer if isinstance(answer, int) else int(Exit.OK)


def main() -> None:
    """Entry point of the installed command."""
    _silence_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal whose encoding lacks a character still gets the rest
            stream.reconfigure(errors="backslashreplace")
    # Terminals that close and supervisors that stop us send SIGTERM or SIGHUP: end as by Ctrl-C, cleaning up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        status = int(Exit.BROKEN_PIPE)
    if status == Exit.BROKEN_PIPE:
        # The interpreter flushes again at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _silence_libraries() -> None:
    """Nothing but our own words reaches the terminal: the libraries' logs and warnings quote values of objects."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    logging.getLogger().addHandler(logging.NullHandler())
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
