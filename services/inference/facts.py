"""What of an image is needed to judge it beside others: where it lies, what its pixels are; nothing that names a
person."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset

from services.inference.coverage import modality_of, view_named
from services.inference.header import number
from services.inference.pixels import Frame
from services.inference.places import are_axes, numbers
from shared.canonical import canonical_json
from stepwedge.inference.v1 import inference_pb2

_SAID_APART: Final = """
    EchoNumbers EchoTime InversionTime FlipAngle TemporalPositionIdentifier TriggerTime NominalCardiacTriggerDelayTime
    DiffusionBValue ConvolutionKernel FilterType ReconstructionDiameter EnergyWindowName
"""
_APART: Final = tuple(_SAID_APART.split())
"""Attributes that set stacks of one series apart on purpose. Acquisition Number is none: some scanners count every
slice as an acquisition."""
_NO_SLICES: Final = frozenset({"LOCALIZER", "SCOUT", "MPR", "PROJECTION IMAGE", "MIP", "MIN_IP", "VOLUME"})
"""Values of Image Type (0008,0008): overviews, and what was computed in planes of its own."""


def facts_of(dataset: Dataset, frame: Frame | None) -> inference_pb2.ImageFacts:
    """The facts of an image; `frame` is the one that is assessed, None where nothing decoded."""
    facts = inference_pb2.ImageFacts(
        pixels_sha256="" if frame is None else pixels_sha256(dataset, frame),
        frames=1 if frame is None else frame.count,
        view=_view(dataset),
        frame_of_reference=_uid(dataset.get("FrameOfReferenceUID")),
        modality=modality_of(dataset)[:16],
    )
    position, orientation = numbers(dataset, "ImagePositionPatient", 3), numbers(dataset, "ImageOrientationPatient", 6)
    if position and are_axes(orientation):
        facts.position.extend(position)
        facts.orientation.extend(orientation)
        facts.stack = _stack(dataset)
    facts.spacing.extend(numbers(dataset, "PixelSpacing", 2))
    instance_number = number(dataset, "InstanceNumber")
    if instance_number is not None and abs(instance_number) < 2**31:  # NaN compares false
        facts.instance_number = int(instance_number)
    return facts


def pixels_sha256(dataset: Dataset, frame: Frame) -> str:
    """Digest of size and values of the pixels; empty for pixels of one value, which say nothing.

    Of a single frame, its decoded values, so that it is the same in every transfer syntax that loses nothing; of
    several, the stored bytes too.
    """
    values = np.ascontiguousarray(frame.values)
    low, high = values.min(), values.max()
    if low == high:
        return ""
    if values.dtype.kind in "iu":  # what is signed elsewhere may be unsigned here
        small = low >= -(2**15) and high < 2**15
        alike = small and values.dtype == np.dtype("<u2")  # the same bits: no copy of a whole image
        values = values.view("<i2") if alike else values.astype("<i2" if small else "<i4", copy=False)
    digest = hashlib.sha256(f"{values.shape[0]}x{values.shape[1]}x{frame.count}\n".encode())
    digest.update(np.ascontiguousarray(values).data)
    if frame.count > 1 and isinstance(dataset.get("PixelData"), bytes):
        digest.update(hashlib.sha256(dataset.PixelData).digest())
    return digest.hexdigest()


def _stack(dataset: Dataset) -> str:
    """Digest of what sets stacks apart; empty for an image of none."""
    kinds = [str(one).strip().upper() for one in dataset.get("ImageType") or ()]
    if _NO_SLICES & set(kinds):
        return ""
    said = {keyword: str(dataset.get(keyword, "")) for keyword in _APART}
    return hashlib.sha256(canonical_json({**said, "ImageType": kinds})).hexdigest()[:32]


def _view(dataset: Dataset) -> str:
    named = view_named(dataset)
    return next(iter(named)) if len(named) == 1 else ""


def _uid(value: Any) -> str:
    text = str(value or "")
    return text if len(text) <= 64 and all(one.isdigit() or one == "." for one in text) else ""
