"""The files that a user names: folders are searched, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from shared.errors import ErrorCode, StepwedgeError


def named(paths: Iterable[Path]) -> list[Path]:
    """Every file of `paths`, those of folders included (hidden ones, and symbolic links to folders, not).

    Raises
    ------
    StepwedgeError
        FILE where a path does not exist or a folder cannot be read, or no file was found at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += below(path)
        elif path.exists():
            found.append(path)
        else:
            raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{path}: no such file or folder")
    if not found:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, "no file found")
    return list(dict.fromkeys(found))


def below(folder: Path) -> Iterator[Path]:
    """Every regular file below a folder, sorted by path; names that begin with a full stop are passed over."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path
