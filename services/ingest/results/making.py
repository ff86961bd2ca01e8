"""From a decision to its results in the object store: make, check, keep. Runs beside the event loop; blocks."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image as Picture
from pydicom.dataset import Dataset

from services.ingest.results import checking, codes, identity, page, report, segmentation
from services.ingest.results.material import Decided, Image, Kind, Made, Named, Outlines
from services.ingest.results.segmentation import Masks
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone
from stepwedge.inference.v1 import inference_pb2

_READ_AT_ONCE: Final = 256 << 20
"""An object up to this length is read to see whose it is; of a study with larger ones alone, the smallest is."""
_LARGEST_MASK: Final = 1 << 28


def make(decided: Decided, kinds: Iterable[Kind], objects: ObjectStore, dciodvfy: str) -> list[Made]:
    """Make the results of these kinds; a kind that the study has nothing for is left out.

    dciodvfy: path of the checker; empty for none.

    Raises
    ------
    StepwedgeError
        RESULT_INVALID where a result fails a check (nothing of the decision is kept then); OBJECT_NOT_FOUND and
        OBJECT_CORRUPT where an image or an outline is not in the store as it was; what else the store raises.
    """
    wanted = set(kinds)
    header = _header(decided, objects)
    outlines = dict(_outlines(decided, objects)) if Kind.SEG in wanted else {}
    drawn: list[tuple[Kind, Dataset, Masks, int, int | None]] = []
    outlined = dict(decided.outlined) if Kind.SEG in wanted else {}
    for row, (image, of_image, masks, assessment) in outlines.items():
        made = segmentation.segmentation(decided, image, of_image, masks, assessment)
        if made is not None:
            drawn.append((Kind.SEG, made, masks, 0, row))
            named = Named(made.SOPClassUID, made.SOPInstanceUID, made.SeriesInstanceUID)
            outlined[row] = Outlines(named, tuple(structure for structure in masks if masks[structure].any()))
    if Kind.SR in wanted:
        drawn.append((Kind.SR, report.report(decided, header, outlined), {}, report.groups(decided, outlined), None))
    if Kind.PDF in wanted:
        drawn.append((Kind.PDF, page.page(decided, header), {}, 0, None))
    checked = [
        (kind, made, _checked(kind, identity.part10(made), masks, groups, objects, dciodvfy), row)
        for kind, made, masks, groups, row in drawn
    ]
    return [
        _kept(kind, made, data, row, outlined[row].segments if row is not None else (), objects)
        for kind, made, data, row in checked
    ]


def _checked(kind: Kind, data: bytes, masks: Masks, groups: int, objects: ObjectStore, dciodvfy: str) -> bytes:
    checking.read_back(kind, data, masks, groups)
    if dciodvfy:
        file = objects.new_temporary(Zone.ORIGINAL)  # where objects that name people lie anyway
        try:
            file.write_bytes(data)
            found = checking.complaints(file, dciodvfy)
        finally:
            with suppress(FileNotFoundError):
                file.unlink()
        if found:
            raise checking.invalid(f"dciodvfy finds a {kind} wrong at {', '.join(found[:5])}")
    return data


def _kept(
    kind: Kind, made: Dataset, data: bytes, row: int | None, segments: tuple[int, ...], objects: ObjectStore
) -> Made:
    stored = objects.put(Zone.ORIGINAL, data)
    return Made(
        kind=kind,
        sop_class_uid=str(made.SOPClassUID),
        sop_instance_uid=str(made.SOPInstanceUID),
        series_instance_uid=str(made.SeriesInstanceUID),
        transfer_syntax_uid=identity.TRANSFER_SYNTAX,
        sha256=stored.sha256,
        content_sha256=_content_sha256(made, data, stored.sha256),
        size_bytes=stored.size,
        image=row,
        segments=segments,
    )


def _content_sha256(made: Dataset, data: bytes, sha256: str) -> str:
    from services.ingest import wrapping  # not loaded where results are merely read

    preface = wrapping.file_meta(str(made.SOPClassUID), str(made.SOPInstanceUID), identity.TRANSFER_SYNTAX)
    return wrapping.content_sha256(data, sha256, preface)


def _header(decided: Decided, objects: ObjectStore) -> Dataset:
    """Of whom the study is, as its first image says that is not too large to look at."""
    of_size = [image for image in decided.images if image.size_bytes <= _READ_AT_ONCE]
    image = of_size[0] if of_size else min(decided.images, key=lambda one: one.size_bytes)
    return dicom.read_header(objects.get(Zone.ORIGINAL, image.sha256))


def _outlines(
    decided: Decided, objects: ObjectStore
) -> Iterator[tuple[int, tuple[Image, Dataset, Masks, inference_pb2.Assessment]]]:
    for image in decided.images:
        assessment = inference_pb2.Assessment.FromString(image.assessment)
        if not assessment.masks or image.row in decided.outlined:
            continue
        header = dicom.read_header(objects.get(Zone.ORIGINAL, image.sha256))
        if segmentation.fits(header, assessment):
            yield image.row, (image, header, _masks(assessment, objects), assessment)


def _masks(assessment: inference_pb2.Assessment, objects: ObjectStore) -> Masks:
    """The outlines at the image's own size, in the order of the table of structures."""
    size = assessment.columns, assessment.rows
    if not 0 < size[0] * size[1] <= _LARGEST_MASK:
        raise StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE, "an outline is too large to be laid on its image")
    found = {}
    for mask in assessment.masks:
        if mask.structure not in codes.STRUCTURES:
            continue
        with Picture.open(BytesIO(objects.get(Zone.DEIDENTIFIED, mask.png.sha256)), formats=["PNG"]) as picture:
            if picture.size != size:
                raise checking.invalid("an outline is not of the size of its image")
            found[int(mask.structure)] = np.asarray(picture.convert("L")) > 127
    return {structure: found[structure] for structure in codes.STRUCTURES if structure in found}
