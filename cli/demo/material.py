"""What the demo sends: objects that pydicom's wheel carries, and radiographs of our digital chest phantom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One study of the demo, and what must come of it."""

    label: str
    file: str
    """Name of a file of pydicom's wheel, or of the one that is written."""
    verdicts: frozenset[str]
    """The verdicts that are right."""
    reason: str = ""
    """A reason that must be among those of the decision; empty for none in particular."""
    phantom: Mapping[str, Any] | None = None
    """How the phantom is exposed; None for an object of pydicom's wheel."""
    seed: int = 0


ACCEPTED = frozenset({"ACCEPT"})
HELD = frozenset({"REVIEW", "REJECT"})

CASES: Sequence[Case] = (
    Case("CT slice", "CT_small.dcm", frozenset({"REVIEW"}), "NO_MODEL"),
    Case("MR slice, JPEG 2000", "MR_small_jp2klossless.dcm", frozenset({"REVIEW"}), "NO_MODEL"),
    Case(
        "ultrasound, name in the picture?", "examples_rgb_color.dcm", frozenset({"REVIEW"}), "BURNED_IN_TEXT_POSSIBLE"
    ),
    Case("chest phantom", "chest-1.dcm", ACCEPTED, phantom={}, seed=11),
    Case("chest phantom, another person", "chest-2.dcm", ACCEPTED, phantom={}, seed=23),
    Case("chest phantom, cut off at the top", "chest-cut-off.dcm", HELD, "LUNG_MARGIN_TOP", {"cut": "top"}, 37),
    Case("chest phantom, inverted", "chest-inverted.dcm", HELD, "INVERTED_POLARITY", {"inverted": True}, 41),
    Case("chest phantom, nothing exposed", "chest-blank.dcm", HELD, "BLANK_IMAGE", {"blank": True}, 53),
)


@dataclass
class Material:
    """The files to send and what is known of them."""

    files: list[Path] = field(default_factory=list)
    cases: dict[Path, Case] = field(default_factory=dict)


def built_in(folder: Path) -> Material:
    """The cases, the phantom's written below `folder`; an object that this pydicom does not carry is left out."""
    material = Material()
    folder.mkdir(parents=True, exist_ok=True)
    for case, path in _paths(folder):
        if path is not None:
            material.files.append(path)
            material.cases[path] = case
    return material


def _paths(folder: Path) -> Iterator[tuple[Case, Path | None]]:
    from pydicom.data import get_testdata_file

    for case in CASES:
        if case.phantom is None:
            found = get_testdata_file(case.file, download=False)
            yield case, Path(found) if found else None
        else:
            yield case, _expose(case, folder / case.file)


def _expose(case: Case, path: Path) -> Path:
    raise NotImplementedError
