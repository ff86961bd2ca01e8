"""What the demo sends: objects that pydicom's wheel carries, and radiographs of our digital chest phantom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.phantom import Phantom


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
    picture: str = ""
    """How the phantom is exposed (`PICTURES`); empty for an object of pydicom's wheel."""
    seed: int = 0


ACCEPTED = frozenset({"ACCEPT"})
REVIEWED = frozenset({"REVIEW"})
REJECTED = frozenset({"REJECT"})

CASES: Sequence[Case] = (
    Case("CT slice", "CT_small.dcm", ACCEPTED, "NO_MODEL"),
    Case("MR slice, JPEG 2000", "MR_small_jp2klossless.dcm", ACCEPTED, "NO_MODEL"),
    Case("ultrasound, text blanked", "examples_rgb_color.dcm", ACCEPTED, "NO_MODEL"),
    Case("chest phantom", "chest-1.dcm", ACCEPTED, picture="whole", seed=12),
    Case("chest phantom, other build", "chest-2.dcm", ACCEPTED, picture="whole", seed=23),
    Case("chest phantom, cut off at the side", "chest-cut-off.dcm", REJECTED, "LUNG_MARGIN_RIGHT", "cut off", 37),
    Case("chest phantom, inverted", "chest-inverted.dcm", REVIEWED, "INVERTED_POLARITY", "inverted", 42),
    Case("chest phantom, not exposed", "chest-blank.dcm", REJECTED, "BLANK_IMAGE", "blank", 53),
)


def _whole(seed: int) -> Phantom:
    from shared.phantom import chest

    return chest(seed)


def _cut_off(seed: int) -> Phantom:
    from shared.phantom import chest

    return chest(seed, margins_mm={"right": -15.0})


def _inverted(seed: int) -> Phantom:
    from shared.phantom import inverted

    return inverted(_whole(seed))


def _blank(seed: int) -> Phantom:
    from shared.phantom import blank

    return blank(_whole(seed))


PICTURES: Mapping[str, Callable[[int], Phantom]] = {
    "whole": _whole,
    "cut off": _cut_off,
    "inverted": _inverted,
    "blank": _blank,
}
"""How the phantom can be exposed."""


@dataclass(frozen=True)
class Material:
    """What is sent: batches of files, each over an association of its own, made when its turn comes."""

    count: int
    """Files in all."""
    batches: Iterator[list[Path]]
    cases: dict[Path, Case]
    """What is known of the files so far; of the user's own nothing."""


def built_in(folder: Path) -> Material:
    """The cases, the phantom's written below `folder`; an object that this pydicom does not carry is left out."""
    from pydicom.data import get_testdata_file

    carried = {case: get_testdata_file(case.file, download=False) for case in CASES if not case.picture}
    there = [case for case in CASES if case.picture or carried[case]]
    cases: dict[Path, Case] = {}

    def batches() -> Iterator[list[Path]]:
        folder.mkdir(parents=True, exist_ok=True)
        for case in there:
            path = _expose(case, folder / case.file) if case.picture else Path(str(carried[case]))
            cases[path] = case
            yield [path]

    return Material(len(there), batches(), cases)


def of_user(files: list[Path]) -> Material:
    """The user's own files, in one batch."""
    return Material(len(files), iter([files]), {})


def _expose(case: Case, path: Path) -> Path:
    """Write the phantom of a case as a DX object."""
    from pydicom.uid import generate_uid

    from shared.phantom import to_dicom

    ds = to_dicom(
        PICTURES[case.picture](case.seed),
        patient_name=f"PHANTOM^{case.picture.upper()}",
        patient_id=f"DEMO-{case.seed:04}",
        study_uid=str(generate_uid()),
        series_uid=str(generate_uid()),
        sop_instance_uid=str(generate_uid()),
    )
    ds.save_as(path, enforce_file_format=True)
    return path
