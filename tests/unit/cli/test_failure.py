"""A failure is one line with a code, and never a value from inside an object."""

import errno
import os
import sys
from pathlib import Path

import grpc
import pytest

from cli import exit_codes, failure
from cli.exit_codes import Exit
from shared.errors import ErrorCode, StepwedgeError
from verifier import verify


def test_an_error_of_ours_is_told_by_its_code_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    status = failure.report(StepwedgeError(ErrorCode.ERROR_CODE_STUDY_NOT_FOUND, "no such study"))
    assert status is Exit.NOT_FOUND
    assert capsys.readouterr().err == "error STUDY_NOT_FOUND: no such study\n"


def test_every_error_code_of_the_contracts_has_an_exit_status() -> None:
    names = {name.removeprefix("ERROR_CODE_") for name, number in ErrorCode.items() if number}
    assert names == set(exit_codes.EXIT_OF_ERROR)


def test_every_exit_status_has_its_meaning() -> None:
    assert set(exit_codes.MEANING) == set(Exit)


def test_statuses_of_the_verifier_are_not_used_for_anything_else() -> None:
    assert not set(Exit) & (set(verify.WORDS) - {verify.PROVED, verify.USAGE})


def test_of_an_unexpected_exception_only_type_and_place_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("CANARY^PATIENT")
    except ValueError as error:
        status = failure.report(error)
    told = capsys.readouterr().err
    assert status is Exit.INTERNAL
    assert "CANARY" not in told
    assert told.startswith("error INTERNAL: a defect of ours: ValueError at tests/unit/cli/test_failure.py:")
    assert told.count("\n") == 1


def test_a_missing_file_is_told_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure.report(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "scan.dcm")) is Exit.FILE
    assert capsys.readouterr().err == "error FILE: scan.dcm: no such file or directory\n"


def test_a_file_name_cannot_forge_a_second_line_or_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\nerror OK: all is well\x1b[2J.dcm"
    failure.report(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "\x1b" not in told


def test_a_file_name_that_is_not_text_is_still_told(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    name = os.fsdecode(b"caf\xe9.dcm")
    failure.report(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name))
    assert rb"caf\udce9.dcm" in capfdbinary.readouterr().err


def test_a_call_that_nobody_answered_is_unreachable() -> None:
    class Unanswered(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def trailing_metadata(self) -> tuple[()]:
            return ()

    assert failure.of(Unanswered()).exit is Exit.UNREACHABLE


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (BrokenPipeError(), Exit.BROKEN_PIPE),
        (ConnectionRefusedError(), Exit.UNREACHABLE),
        (TimeoutError(), Exit.UNREACHABLE),
        (PermissionError(errno.EACCES, "Permission denied", "x"), Exit.FILE),
        (MemoryError(), Exit.INTERNAL),
    ],
)
def test_each_kind_of_failure_has_its_status(error: BaseException, status: Exit) -> None:
    assert failure.of(error).exit is status


def test_the_help_loads_none_of_the_heavy_libraries() -> None:
    import subprocess

    script = (
        "import sys; from cli.__main__ import run; run(['--help']);"
        "heavy = ('grpc', 'pydicom', 'numpy', 'onnxruntime', 'sqlalchemy', 'pydantic', 'cv2', 'google.protobuf');"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
