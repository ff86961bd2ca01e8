"""The files that a user names: folders are searched, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shared.errors import ErrorCode, StepwedgeError

Skipped = Callable[[Path, str], None]
"""Told of each folder that cannot be read, and why."""


def named(paths: Iterable[Path], skipped: Skipped | None = None) -> list[Path]:
    """Every file of `paths`, those of folders included (hidden ones, and symbolic links to folders, not).

    Parameters
    ----------
    skipped
        Told of folders that cannot be read, and of paths that do not exist; the rest is found all the same. Without
        it the first of them is an error.

    Raises
    ------
    StepwedgeError
        FILE where a path does not exist or a folder cannot be read, or no file was found at all.
    """
    found: list[Path] = []
    passed_over = 0

    def skip(path: Path, why: str) -> None:
        nonlocal passed_over
        if skipped is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{path}: {why}")
        passed_over += 1
        skipped(path, why)

    for path in paths:
        try:
            if path.is_dir():
                found += below(path, skip)
            elif path.exists():
                found.append(path)
            else:
                skip(path, "no such file or folder")
        except OSError as error:  # a folder above it may not be searched
            skip(path, (error.strerror or "cannot be read").lower())
    if not found and not passed_over:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, "no file found")
    return list(dict.fromkeys(found))


def below(folder: Path, skip: Skipped) -> Iterator[Path]:
    """Every regular file below a folder, sorted by path; names that begin with a full stop are passed over."""

    def unreadable(error: OSError) -> None:
        skip(Path(error.filename or folder), (error.strerror or "cannot be read").lower())

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            try:
                regular = not name.startswith(".") and path.is_file()
            except OSError as error:
                skip(path, (error.strerror or "cannot be read").lower())
                continue
            if regular:
                yield path


def shown(path: Path) -> str:
    r"""The path as text that any JSON reader takes: bytes that are no UTF-8 become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
