"""What the simulated PACS sends: the phantom's radiograph or a user's files, under names of the simulation's own."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.simulate_peer import Object
from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PATIENT: Final = ("SIMULATED^PATIENT", "SIMULATED")
SIDE: Final = 256
"""Rows and columns of the radiographs: the test is of the way, not of the picture."""


class Material:
    """Objects, as many as are asked for; the same seed and run give the same bytes under the same names.

    Parameters
    ----------
    seed
        Of everything that is left to chance.
    run
        Told apart from other runs of the same seed, whose studies may still be there.
    paths
        Files whose content is sent, under other names and for a patient that does not exist; none for the phantom.
    """

    def __init__(self, seed: int, run: str, paths: Sequence[Path] = ()) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a choice of places to misbehave at
        self._name = f"{seed}/{run}"
        self._numbers = count(1)
        self._bases = list(_of_user(paths)) if paths else [_phantom(seed)]

    def uid(self, of: str) -> str:
        """A UID (PS3.5 B.2, by a UUID of this run)."""
        digest = hashlib.sha256(f"{self._name}/{of}/{next(self._numbers)}".encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16], 'big')}"

    def study(self, images: int, *, series: int = 1) -> list[Object]:
        """The objects of a new study, dealt out to its series in turn."""
        study = self.uid("study")
        names = [self.uid("series") for _ in range(series)]
        return [self.object(study, names[number % series], number=number + 1) for number in range(images)]

    def object(self, study: str, series: str, *, instance: str = "", number: int = 1) -> Object:
        """An object of a study, with content of its own."""
        from pydicom import dcmread

        base = self._bases[(number - 1) % len(self._bases)]
        ds = dcmread(BytesIO(base))
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.SOPInstanceUID = instance or self.uid("instance")
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.PatientName, ds.PatientID = PATIENT
        ds.InstanceNumber = number
        ds.ImageComments = f"simulated {next(self._numbers)}"
        return encoded(ds)


def encoded(ds: Dataset) -> Object:
    """The object as it travels: its data set without file meta information."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    whole = buffer.getvalue()
    # PS3.10 7.1: File Meta Information Group Length stands first, and counts what comes behind it.
    (length,) = struct.unpack_from("<I", whole, 140)
    return Object(
        whole[144 + length :],
        str(ds.SOPClassUID),
        str(ds.SOPInstanceUID),
        str(ds.StudyInstanceUID),
        str(ds.file_meta.TransferSyntaxUID),
    )


def _phantom(seed: int) -> bytes:
    import cv2
    import numpy as np

    from shared.phantom import chest, to_dicom

    made = to_dicom(
        chest(seed), patient_name=PATIENT[0], patient_id=PATIENT[1], study_uid="2.25.1", series_uid="2.25.2",
        sop_instance_uid="2.25.3",
    )  # fmt: skip
    pixels = np.frombuffer(made.PixelData, np.uint16).reshape(made.Rows, made.Columns)
    scale = SIDE / max(pixels.shape)
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    made.Rows, made.Columns = small.shape
    made.PixelData = small.tobytes()
    for keyword in ("ImagerPixelSpacing", "PixelSpacing"):
        if keyword in made:
            setattr(made, keyword, [float(value) / scale for value in made[keyword].value])
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _of_user(paths: Sequence[Path]) -> Iterator[bytes]:
    from pydicom import dcmread

    from cli import files

    found = 0
    for path in files.named(list(paths)):
        try:
            ds = dcmread(path)
            buffer = BytesIO()
            ds.save_as(buffer, enforce_file_format=True)
        except Exception:  # noqa: BLE001, S112 - a folder holds other files too
            continue
        found += 1
        yield buffer.getvalue()
    if not found:
        raise StepwedgeError(ErrorCode.ERROR_CODE_NOT_DICOM, "there is no DICOM file among those that were named")
