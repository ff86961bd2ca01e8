"""What pages say, in the language of the reader: English in the code, every other language in a file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

_FIELD: Final = re.compile(r"\{(\w+)\}")
_NAMES: Final = frozenset({"person", "service", "destination", "channel", "step", "name", "names", "kinds", "reasons"})
"""Fields whose values are what something is called, in every language alike."""
FOLDER: Final = Path(__file__).with_name("locales")
ENGLISH: Final = "en"


class Wording:
    """One language."""

    def __init__(self, language: str, words: Mapping[str, str], sentences: Mapping[str, str] = MappingProxyType({})):
        self.language = language
        self._words = words
        self._sentences = [(_pattern(english), own) for english, own in sentences.items()]
        self.said = lru_cache(4096)(self._said)
        """What a service said, in this language; English where there is no such sentence."""

    def __call__(self, text: str, **values: object) -> str:
        """The text in this language, English where it has none; `values` fill its {fields}."""
        found = self._words.get(text) or text
        return found.format(**values) if values else found

    def _said(self, text: str) -> str:
        return self._translated(text, 0) or text

    def _translated(self, text: str, depth: int) -> str | None:
        """By the first sentence whose fixed part fits; what stands in its fields is looked up in its turn."""
        if text in self._words:
            return self._words[text]
        if depth > 3:
            return None
        for pattern, own in self._sentences:
            if found := pattern.fullmatch(text):
                fields = {
                    name: value if name in _NAMES else self._translated(value, depth + 1) or value
                    for name, value in found.groupdict().items()
                }
                return own.format(**fields)
        parts = [self._words.get(part) or self._translated(part, depth + 1) for part in text.split(", ")]
        return ", ".join(filter(None, parts)) if len(parts) > 1 and all(parts) else None


def _pattern(english: str) -> re.Pattern[str]:
    pieces = _FIELD.split(english)
    return re.compile("".join(f"(?P<{one}>.+?)" if place % 2 else re.escape(one) for place, one in enumerate(pieces)))


@cache
def languages() -> dict[str, Wording]:
    """Language code -> its words, one for each file of the folder; of English the file holds what codes are called."""
    found = {file.stem: tomllib.loads(file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.toml"))}
    return {name: Wording(name, one["words"], _sentences(name)) for name, one in found.items()}


def _sentences(language: str) -> Mapping[str, str]:
    """What services say in sentences of their own, from a folder beside: with fields, in the order of trying."""
    file = FOLDER / "sentences" / f"{language}.toml"
    found: Mapping[str, str] = tomllib.loads(file.read_text("utf-8"))["sentences"] if file.exists() else {}
    return found


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
