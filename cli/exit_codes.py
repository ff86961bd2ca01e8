"""What the `stepwedge` command's exit status means: one table, shown at the end of `stepwedge --help`.

Numbers from 64 on are those of sysexits.h (4.3BSD) where it has one for the case. Numbers from 3 to 9 are those of the
stand-alone verifier, whose status `stepwedge verify` passes on unchanged.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit status of the command."""

    OK = 0
    NEGATIVE = 1
    USAGE = 2
    NOT_FOUND = 67
    FILE = 66
    UNREACHABLE = 69
    INTERNAL = 70
    TRY_AGAIN = 75
    REFUSED = 77
    CONFIGURATION = 78
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANING: dict[Exit, str] = {
    Exit.OK: "done, and the answer is yes",
    Exit.NEGATIVE: "done, and the answer is no: a file was refused, a check failed, a study is in the dead letter",
    Exit.USAGE: "the command line is wrong",
    Exit.FILE: "a file or folder cannot be read or written, or is not what the command takes",
    Exit.NOT_FOUND: "no such study or entry",
    Exit.UNREACHABLE: "the cluster, or a part of it that is needed, does not answer",
    Exit.INTERNAL: "a defect of ours",
    Exit.TRY_AGAIN: "refused for the moment: overloaded, or the store is full",
    Exit.REFUSED: "refused: this identity may not do that",
    Exit.CONFIGURATION: "a setting, key, certificate or model is missing, wrong or not allowed",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.BROKEN_PIPE: "nobody reads the output any more",
}

VERIFIER = (
    "from verify: 3 altered, 4 truncated, 5 forked, 6 bad signature, 7 missing witness, 8 malformed, 9 unreadable"
)
"""The statuses of verifier/verify.py."""

# Names of shared.errors.ErrorCode; kept as words so that `--help` need not load the contracts.
EXIT_OF_ERROR: dict[str, Exit] = {
    "INTERNAL": Exit.INTERNAL,
    "INVALID_REQUEST": Exit.USAGE,
    "UNAUTHENTICATED": Exit.REFUSED,
    "PERMISSION_DENIED": Exit.REFUSED,
    "DEADLINE_REQUIRED": Exit.INTERNAL,
    "OVERLOADED": Exit.TRY_AGAIN,
    "DEPENDENCY_UNAVAILABLE": Exit.UNREACHABLE,
    "AUDIT_UNAVAILABLE": Exit.UNREACHABLE,
    "OBJECT_NOT_FOUND": Exit.NOT_FOUND,
    "LEGAL_HOLD": Exit.NEGATIVE,
    "RETAINED": Exit.NEGATIVE,
    "RESULT_INVALID": Exit.NEGATIVE,
    "OBJECT_CORRUPT": Exit.NEGATIVE,
    "STORAGE_FULL": Exit.TRY_AGAIN,
    "NOT_DICOM": Exit.NEGATIVE,
    "MALFORMED_DICOM": Exit.NEGATIVE,
    "INVALID_UID": Exit.NEGATIVE,
    "SOP_CLASS_MISMATCH": Exit.NEGATIVE,
    "OBJECT_TOO_LARGE": Exit.NEGATIVE,
    "INSTANCE_CONFLICT": Exit.NEGATIVE,
    "NOT_REDACTABLE": Exit.NEGATIVE,
    "RESIDUAL_IDENTITY": Exit.NEGATIVE,
    "PIXELS_UNDECODABLE": Exit.NEGATIVE,
    "MODEL_NOT_FOUND": Exit.CONFIGURATION,
    "MODEL_DIGEST_MISMATCH": Exit.CONFIGURATION,
    "MODEL_SELF_TEST_FAILED": Exit.CONFIGURATION,
    "PROVIDER_UNAVAILABLE": Exit.CONFIGURATION,
    "STUDY_NOT_FOUND": Exit.NOT_FOUND,
    "WRONG_STATE": Exit.NEGATIVE,
    "IDEMPOTENCY_CONFLICT": Exit.NEGATIVE,
    "ENTRY_NOT_FOUND": Exit.NOT_FOUND,
    "LOG_INCONSISTENT": Exit.NEGATIVE,
    "CONFIGURATION": Exit.CONFIGURATION,
    "FILE": Exit.FILE,
}


def of_error(name: str) -> Exit:
    """Exit status for an error code by its name; INTERNAL for a name that the table does not have."""
    return EXIT_OF_ERROR.get(name, Exit.INTERNAL)


def print_table() -> None:
    """Print the table on stdout, as the end of `stepwedge --help`."""
    from rich import box
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="bold cyan", no_wrap=True)
    table.add_column()
    for code in sorted(MEANING):
        table.add_row(str(int(code)), MEANING[code])
        if code is Exit.USAGE:
            table.add_row("3-9", VERIFIER)
    Console().print(Panel(table, title="Exit status", title_align="left", border_style="dim", box=box.ROUNDED))
