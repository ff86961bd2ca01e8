"""The tables that redaction goes by, read from the folder `tables`."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

TABLES: Final = Path(__file__).parent / "tables"


def rows(name: str) -> Iterator[dict[str, str]]:
    """Rows of a table; lines that begin with # are notes."""
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(line for line in file if not line.startswith("#"))


@lru_cache(maxsize=1)
def objects() -> Mapping[str, Any]:
    """The table of objects that are refused or suspect."""
    return tomllib.loads((TABLES / "objects.toml").read_text(encoding="utf-8"))
