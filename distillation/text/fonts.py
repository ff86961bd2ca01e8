"""Which fonts the detector learns from, and which only judge it."""

from __future__ import annotations

from pathlib import Path

FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
JUDGING = ("DejaVuSansMono", "LiberationSans-", "FreeSerif", "RobotoCondensed", "7x13", "Inconsolata", "9x15")
"""Beginnings of the names of files that training never sees."""


def _found() -> list[str]:
    paths = [path for folder in FOLDERS for kind in ("*.ttf", "*ISO8859-1.pcf.gz") for path in folder.rglob(kind)]
    return sorted(str(path) for path in paths if "Math" not in path.name and "Thin" not in path.name)


def training_fonts() -> list[str]:
    """Paths of outline and bitmap fonts of this machine less the judging ones."""
    return [path for path in _found() if not Path(path).name.startswith(JUDGING)]


def judging_fonts() -> list[str]:
    """Paths of the fonts that only judge."""
    return [path for path in _found() if Path(path).name.startswith(JUDGING)]
