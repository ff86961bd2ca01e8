"""How a failure ends the command: one line `error CODE: sentence` on stderr and a status, never a traceback."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import NamedTuple

from cli import terminal
from cli.exit_codes import Exit, of_error

_ROOT = Path(__file__).resolve().parent.parent


class Failure(NamedTuple):
    """What is said and the status that the process ends with."""

    code: str
    sentence: str
    exit: Exit


def of(error: BaseException) -> Failure:
    """Put an exception into words.

    Only sentences that are known to hold no value from inside an object are printed: our own errors, those of the
    operating system (a file name comes from the user) and of the command line. Of anything else only type and place.
    """
    grpc = sys.modules.get("grpc")  # not imported: not the cause
    errors = sys.modules.get("shared.errors")
    if grpc is not None and errors is not None and isinstance(error, grpc.RpcError):
        error = errors.from_rpc(error)
    if errors is not None and isinstance(error, errors.StepwedgeError):
        return Failure(error.name, error.message, of_error(error.name))
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return Failure("INTERRUPTED", "interrupted", Exit.INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        return Failure("BROKEN_PIPE", "nobody reads the output any more", Exit.BROKEN_PIPE)
    if isinstance(error, ConnectionError | TimeoutError):
        return Failure("DEPENDENCY_UNAVAILABLE", f"no connection ({type(error).__name__})", Exit.UNREACHABLE)
    if isinstance(error, OSError):
        return Failure("FILE", _of_file(error), Exit.FILE)
    if getattr(error, "exit_code", None) == Exit.USAGE and hasattr(error, "format_message"):
        return Failure("USAGE", " ".join(error.format_message().split()), Exit.USAGE)
    return Failure("INTERNAL", f"a defect of ours: {type(error).__name__} at {_place(error)}", Exit.INTERNAL)


def report(error: BaseException) -> Exit:
    """Print the line and return the exit status."""
    failure = of(error)
    if failure.exit is not Exit.BROKEN_PIPE and failure.sentence:  # without a command the help was printed instead
        line(failure.code, failure.sentence)
    return failure.exit


def line(code: str, sentence: str) -> None:
    """Print `error CODE: sentence` on stderr, on one line whatever the sentence holds."""
    text = terminal.printable(" ".join(f"error {code}: {sentence}".split()))
    # A file name may hold bytes that are not text in this terminal's encoding; it is still printed.
    encoded = text.encode(sys.stderr.encoding or "utf-8", "backslashreplace")
    try:
        sys.stderr.flush()
        sys.stderr.buffer.write(encoded + b"\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):  # nobody reads stderr: the status still says it
        pass


def _of_file(error: OSError) -> str:
    reason = (error.strerror or type(error).__name__).lower()
    return f"{error.filename}: {reason}" if error.filename else reason


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "no known place"
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)]
    frame = (ours or frames)[-1]
    path = Path(frame.filename)
    name = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path.name
    return f"{name}:{frame.lineno}"
