"""What pages say, in the language of the reader: English in the code, every other language in a file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("locales")
ENGLISH: Final = "en"


class Wording:
    """One language."""

    def __init__(self, language: str, words: Mapping[str, str]) -> None:
        self.language = language
        self._words = words

    def __call__(self, text: str, **values: object) -> str:
        """The text in this language, English where it has none; `values` fill its {fields}."""
        found = self._words.get(text) or text
        return found.format(**values) if values else found


@cache
def languages() -> dict[str, Wording]:
    """Language code -> its words, one for each file of the folder; of English the file holds what codes are called."""
    return {
        file.stem: Wording(file.stem, tomllib.loads(file.read_text("utf-8"))["words"])
        for file in sorted(FOLDER.glob("*.toml"))
    }


def chosen(cookie: str, accepted: str) -> Wording:
    """The language of a request: what the reader chose, else the first of Accept-Language (RFC 9110 12.5.4) we have."""
    known = languages()
    if cookie in known:
        return known[cookie]
    wishes = []
    for place, part in enumerate(accepted[:200].split(",")):
        tag, _, quality = part.partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            weight = 0.0
        wishes.append((-weight, place, tag.strip().split("-")[0].lower()))
    for weight, _, tag in sorted(wishes):
        if weight < 0 and tag in known:
            return known[tag]
    return known[ENGLISH]
