"""What redaction did to one object, in words that hold no identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

_MOST_TAGS: Final = 1000


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A rectangle of one frame that was blanked, in pixels from the upper left corner.

    frame: from 1. reason: a word of ours for why ("region", "device", "text").
    """

    frame: int
    left: int
    top: int
    width: int
    height: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in ("frame", "left", "top", "width", "height", "reason")}


@dataclass(frozen=True, slots=True)
class Receipt:
    """The receipt; the same fields as `stepwedge.redaction.v1.Receipt`.

    actions: attributes touched, by action; tags: which. input_commitment: HMAC-SHA-256 over the digest of the original;
    output_sha256: of the result. residual_hits: values that the second opinion found (nothing is released above 0);
    second_opinion: the same by where they were found. boxes: what was blanked in the pixels. key_id: of the pseudonym
    key.
    """

    profile: str
    profile_sha256: str
    edition: str
    actions: Mapping[str, int]
    method_codes: tuple[str, ...]
    input_commitment: str
    output_sha256: str = ""
    residual_hits: int = 0
    burned_in_text_possible: bool = False
    burned_in_text_detail: str = ""
    options: tuple[str, ...] = ()
    key_id: str = ""
    boxes: tuple[Box, ...] = ()
    second_opinion: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, Set[int]] = field(default_factory=dict)

    @property
    def attributes(self) -> dict[str, list[str]]:
        """Action -> the attributes that it touched, "00100010", in order; what touched none is left out."""
        return {action: [f"{tag:08X}" for tag in sorted(tags)] for action, tags in sorted(self.tags.items()) if tags}

    def as_json(self) -> dict[str, Any]:
        """As JSON values: strings, integers, booleans."""
        return {
            "profile": self.profile,
            "profile_sha256": self.profile_sha256,
            "options": list(self.options),
            "edition": self.edition,
            "key_id": self.key_id,
            "actions": dict(sorted(self.actions.items())),
            "attributes": self.attributes,
            "boxes": [box.as_json() for box in self.boxes],
            "method_codes": list(self.method_codes),
            "input_commitment": self.input_commitment,
            "output_sha256": self.output_sha256,
            "residual_hits": self.residual_hits,
            "second_opinion": dict(sorted(self.second_opinion.items())),
            "burned_in_text_possible": self.burned_in_text_possible,
            "burned_in_text_detail": self.burned_in_text_detail,
        }


def areas(boxes: Sequence[Box]) -> list[dict[str, Any]]:
    """Equal rectangles of consecutive frames as one, with `first_frame` and `last_frame`, in the order of the boxes."""
    frames: dict[tuple[Any, ...], list[int]] = {}
    for box in boxes:
        frames.setdefault((box.left, box.top, box.width, box.height, box.reason), []).append(box.frame)
    found = []
    for place, numbers in frames.items():
        named = dict(zip(("left", "top", "width", "height", "reason"), place, strict=True))
        numbers = sorted(set(numbers))
        starts = [n for n, number in enumerate(numbers) if not n or numbers[n - 1] != number - 1]
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            found.append({"first_frame": numbers[start], "last_frame": numbers[end - 1], **named})
    return sorted(found, key=lambda area: (area["first_frame"], area["top"], area["left"]))


@dataclass(slots=True)
class Counts:
    """Attributes touched so far, by action: how many, and which."""

    by_action: dict[str, int] = field(default_factory=dict)
    tags: dict[str, set[int]] = field(default_factory=dict)
    """Of each action the first 1000: what an object made of nothing but attributes must not grow."""
    tag: int = 0
    """The attribute that is looked at; 0 for what is none of the data set."""

    def add(self, action: str, number: int = 1) -> None:
        """Count `number` attributes more."""
        if number and action:
            self.by_action[action] = self.by_action.get(action, 0) + number
            touched = self.tags.setdefault(action, set())
            if self.tag and len(touched) < _MOST_TAGS:
                touched.add(self.tag)

    def also(self, later: Counts) -> None:
        """Add the attributes that a later pass touched and none before it."""
        known = set().union(*self.tags.values())
        for action, tags in later.tags.items():
            for self.tag in sorted(tags - known):
                self.add(action)
