"""Text is written into objects of every layout: what the detector finds becomes black, all other pixels stay."""

from __future__ import annotations

import hashlib
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from services.redaction import clean_pixels, devices
from services.redaction.clean_pixels import Cleaned, Policy, clean, text_left
from services.redaction.markers import kept
from services.redaction.receipt import Counts
from shared.dicom_encoding import EXPLICIT_LITTLE, Encoded, parse
from shared.errors import ErrorCode, StepwedgeError
from shared.model_signatures import ROLES, SIGNATURES, public, sign
from shared.text_detector import RELEASED, Detector, Found, find_text
from tests.shared_material import SHARED, needs_shared

ROWS, COLUMNS = 240, 320
LINE = "DOE^JANE 1960-12-31"


def _picture(top: int = 40, light: int = 235) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A smooth dark picture with one line of text, and where its ink is."""
    rows, columns = np.mgrid[0:ROWS, 0:COLUMNS]
    grey = (60 + 30 * np.sin(rows / 60) + 20 * np.cos(columns / 80)).astype(np.uint8)
    ink = np.zeros_like(grey)
    cv2.putText(ink, LINE, (20, top + 20), cv2.FONT_HERSHEY_DUPLEX, 0.7, 255, 1, cv2.LINE_AA)
    grey = np.where(ink > 64, light, grey).astype(np.uint8)
    return grey, ink > 128


def _object(pixels: NDArray[Any], syntax: str = ExplicitVRLittleEndian, **attributes: Any) -> bytes:
    """An object with these stored values, of shape [frames, rows, columns(, samples)] or with planes first."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = (
        syntax if syntax != RLELossless and syntax != JPEG2000Lossless else ExplicitVRLittleEndian
    )
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.Modality = "OT"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = ROWS, COLUMNS, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if len(pixels) > 1:
        ds.NumberOfFrames = len(pixels)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    little = syntax != ExplicitVRBigEndian
    data = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    data = np.packbits(pixels.reshape(-1), bitorder="little").tobytes() if ds.BitsAllocated == 1 else data
    if pixels.dtype.kind == "f":
        setattr(ds, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", data)
        del ds.PixelRepresentation, ds.BitsStored, ds.HighBit
    else:
        ds.PixelData = data + b"\0" * (len(data) % 2)
        ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    if syntax in (RLELossless, JPEG2000Lossless):
        ds.compress(syntax, generate_instance_uid=False)
    file = BytesIO()
    dcmwrite(file, ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=little, enforce_file_format=True)
    return file.getvalue()


def _clean(data: bytes, policy: Policy | None = None) -> tuple[Cleaned, Encoded]:
    original = parse(data)
    return clean(list(original.data_set), original, Counts(), policy or Policy()), original


def _value(done: Cleaned, tag: int) -> bytes:
    return next((bytes(element.value) for element in done.elements if element.tag == tag), b"")


def _encoded(done: Cleaned, original: Encoded) -> Encoded:
    again = Encoded.__new__(Encoded)
    again.preamble, again.meta, again.data_set = False, [], done.elements
    again.transfer_syntax, again.implicit, again.little = done.transfer_syntax, original.implicit, original.little
    return again


def _mask(done: Cleaned, frame: int = 1) -> NDArray[np.bool_]:
    mask = np.zeros((ROWS, COLUMNS), bool)
    for box in done.boxes:
        if box.frame == frame:
            mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return mask


GREY, INK = _picture()
WIDE = GREY.astype(np.uint16) * 16 + 100
RGB = np.stack([GREY, (GREY * 0.9).astype(np.uint8), GREY], 2)
YBR = np.asarray(convert_color_space(RGB, "RGB", "YBR_FULL"))
COLOUR = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
PLANES = {"SamplesPerPixel": 3, "PlanarConfiguration": 1}
HALVED = np.concatenate([YBR[..., 0].reshape(ROWS, -1, 2), YBR[:, ::2, 1:]], 2)

LAYOUTS: dict[str, tuple[NDArray[Any], dict[str, Any], Any]] = {
    "8 bits": (GREY, {}, GREY.min()),
    "8 bits inverted": (255 - GREY, {"PhotometricInterpretation": "MONOCHROME1"}, 255 - GREY.min()),
    "12 of 16 bits": (WIDE, {"BitsStored": 12, "HighBit": 11}, WIDE.min()),
    "16 bits signed": ((WIDE.astype(np.int16) - 1024), {}, WIDE.astype(np.int16).min() - 1024),
    "32 bits": (WIDE.astype(np.uint32) * 1000, {}, int(WIDE.min()) * 1000),
    "float": (WIDE.astype(np.float32) / 7, {}, np.float32(WIDE.min()) / np.float32(7)),
    "double": (WIDE.astype(np.float64) / 7, {}, WIDE.min() / 7),
    "RGB": (RGB, COLOUR | {"PhotometricInterpretation": "RGB"}, (0, 0, 0)),
    "RGB by plane": (np.moveaxis(RGB, 2, 0), PLANES | {"PhotometricInterpretation": "RGB"}, (0, 0, 0)),
    "YBR": (YBR, COLOUR | {"PhotometricInterpretation": "YBR_FULL"}, (0, 128, 128)),
    "YBR by plane": (np.moveaxis(YBR, 2, 0), PLANES | {"PhotometricInterpretation": "YBR_FULL"}, (0, 128, 128)),
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("name", LAYOUTS)
def test_text_becomes_black_in_every_native_layout_and_no_other_pixel_changes(name: str, syntax: str) -> None:
    pixels, attributes, dark = LAYOUTS[name]
    done, original = _clean(_object(pixels[None], syntax, **attributes))
    mask = _mask(done)
    assert mask[INK].mean() >= 0.95
    assert mask.mean() < 0.5
    tag = {"float": 0x7FE00008, "double": 0x7FE00009}.get(name, 0x7FE00010)
    kind = pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")
    left = np.frombuffer(_value(done, tag), kind).reshape(pixels.shape)
    if "plane" in name:
        left, pixels = np.moveaxis(left, 0, 2), np.moveaxis(pixels, 0, 2)
    assert (left[mask] == dark).all()
    assert (left[~mask] == pixels[~mask]).all()
    assert done.transfer_syntax == original.transfer_syntax
    assert _value(done, 0x00280301).strip() == b"NO"


def test_subsampled_colours_are_blanked_in_pairs() -> None:
    attributes = COLOUR | {"PhotometricInterpretation": "YBR_FULL_422"}
    done, _ = _clean(_object(HALVED[None].astype(np.uint8), **attributes))
    left = np.frombuffer(_value(done, 0x7FE00010), np.uint8).reshape(ROWS, COLUMNS // 2, 4)
    light, mask = left[..., :2].reshape(ROWS, COLUMNS), _mask(done)
    assert mask[INK].mean() >= 0.95
    assert (light[mask] == 0).all()
    either = mask.reshape(ROWS, -1, 2).any(2)
    assert (left[~either] == HALVED[~either]).all()
    assert (left[either][:, 2:] == 128).all()


def test_one_bit_a_pixel_is_blanked_too() -> None:
    bits = (INK | (np.indices(INK.shape)[0] > 200)).astype(np.uint8)
    done, _ = _clean(_object(bits[None], BitsAllocated=1, BitsStored=1, HighBit=0))
    left = np.unpackbits(np.frombuffer(_value(done, 0x7FE00010), np.uint8), bitorder="little").reshape(ROWS, COLUMNS)
    mask = _mask(done)
    assert mask[INK].mean() >= 0.95
    assert not left[mask].any()
    assert (left[~mask] == bits[~mask]).all()


def test_a_palette_is_looked_through_and_its_darkest_entry_is_black() -> None:
    # Index 0 is white and 255 black; between them all is turned round.
    table = np.arange(255, -1, -1, dtype=np.uint16) * 257
    palette = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    palette |= {f"{c}PaletteColorLookupTableData": table.tobytes() for c in ("Red", "Green", "Blue")}
    done, _ = _clean(_object(GREY[None], PhotometricInterpretation="PALETTE COLOR", **palette))
    left = np.frombuffer(_value(done, 0x7FE00010), np.uint8).reshape(ROWS, COLUMNS)
    mask = _mask(done)
    assert mask[INK].mean() >= 0.95
    assert (left[mask] == 255).all()
    assert (left[~mask] == GREY[~mask]).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("name", ["8 bits", "12 of 16 bits", "RGB"])
def test_compressed_pixels_are_kept_as_native_without_a_loss(name: str, syntax: str) -> None:
    pixels, attributes, dark = LAYOUTS[name]
    if name == "RGB" and syntax == JPEG2000Lossless:
        attributes = attributes | {"PhotometricInterpretation": "RGB"}
    done, original = _clean(_object(pixels[None], syntax, **attributes))
    left = np.frombuffer(_value(done, 0x7FE00010), pixels.dtype.newbyteorder("<")).reshape(pixels.shape)
    mask = _mask(done)
    assert mask[INK].mean() >= 0.95
    assert (left[mask] == dark).all()
    assert (left[~mask] == pixels[~mask]).all()
    assert done.transfer_syntax == EXPLICIT_LITTLE != original.transfer_syntax
    assert not _value(done, 0x00282110)


def test_compressed_pixels_without_text_stay_as_they_are() -> None:
    rows, columns = np.mgrid[0:ROWS, 0:COLUMNS]
    plain = (100 + 30 * np.sin(rows / 60) + 20 * np.cos(columns / 80)).astype(np.uint8)
    done, original = _clean(_object(plain[None], RLELossless))
    assert not done.boxes
    assert done.transfer_syntax == original.transfer_syntax
    was = next(element for element in original.data_set if element.tag == 0x7FE00010)
    now = next(element for element in done.elements if element.tag == 0x7FE00010)
    assert [bytes(one) for one in now.fragments or []] == [bytes(one) for one in was.fragments or []]
    assert _value(done, 0x00280301).strip() == b"NO"


def test_a_lossy_object_is_said_to_be_lossy_once_it_is_native() -> None:
    data = Path(str(get_testdata_file("examples_ybr_color.dcm"))).read_bytes()
    done, _ = _clean(data)
    assert done.transfer_syntax == EXPLICIT_LITTLE
    assert _value(done, 0x00282110).strip() == b"01"
    assert _value(done, 0x00280004).strip() == b"RGB"  # an ultrasound may not be YBR_FULL where it is native
    assert {box.reason for box in done.boxes} >= {"region"}
    assert len(_value(done, 0x7FE00010)) == 30 * 240 * 320 * 3


def test_every_frame_is_looked_at() -> None:
    frames = np.stack([_picture(40)[0], _picture(160)[0]])
    done, _ = _clean(_object(frames))
    assert _mask(done, 1)[_picture(40)[1]].mean() >= 0.95
    assert _mask(done, 2)[_picture(160)[1]].mean() >= 0.95
    assert not _mask(done, 2)[_picture(40)[1]].any()


def test_cleaning_twice_changes_nothing_more_and_no_text_is_left() -> None:
    done, original = _clean(_object(GREY[None]))
    again = _encoded(done, original)
    assert text_left(original, Policy()) > 0
    assert text_left(again, Policy()) == 0
    twice = clean(list(again.data_set), again, Counts(), Policy())
    assert _value(twice, 0x7FE00010) == _value(done, 0x7FE00010)


def test_what_lies_outside_the_regions_of_an_ultrasound_is_black() -> None:
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 40, 80
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 299, 219
    plain = np.full((1, ROWS, COLUMNS), 77, np.uint8)
    plain[0, 0, 0] = 3
    data = _object(plain, Modality="US", SequenceOfUltrasoundRegions=[region])
    done, _ = _clean(data)
    left = np.frombuffer(_value(done, 0x7FE00010), np.uint8).reshape(ROWS, COLUMNS)
    assert (left[80:220, 40:300] == 77).all()
    left = left.copy()
    left[80:220, 40:300] = 3
    assert (left == 3).all()
    kept, _ = _clean(data, Policy(outside_regions=False))
    assert not kept.boxes


def test_a_site_names_the_regions_of_its_own_equipment(tmp_path: Path) -> None:
    library = tmp_path / "site.toml"
    library.write_text(
        '[[device]]\nmanufacturer = "Example"\nrows = 240\ncolumns = 320\nregions = [[300, 230, 50, 50]]\n'
        'provenance = "the console of room 3"\n'
    )
    plain = np.full((1, ROWS, COLUMNS), 77, np.uint8)
    plain[0, 0, 0] = 3
    done, _ = _clean(_object(plain, Manufacturer="EXAMPLE Works"), Policy(devices=(library,)))
    assert [(b.left, b.top, b.width, b.height, b.reason) for b in done.boxes] == [(300, 230, 20, 10, "device")]
    other, _ = _clean(_object(plain, Manufacturer="Another"), Policy(devices=(library,)))
    assert not other.boxes
    library.write_text("[[device]]\nrows = 240\ncolumns = 320\nregions = [[0, 0, 9, 9]]\n")
    devices.load.cache_clear()
    with pytest.raises(StepwedgeError) as raised:
        _clean(_object(plain), Policy(devices=(library,)))
    assert raised.value.code == ErrorCode.ERROR_CODE_CONFIGURATION


def _refused(data: bytes, policy: Policy | None = None) -> Any:
    with pytest.raises(StepwedgeError) as raised:
        _clean(data, policy)
    assert "DOE" not in raised.value.message
    return raised.value.code


def test_what_cannot_be_looked_at_is_refused() -> None:
    ds = dcmread(BytesIO(_object(GREY[None], RLELossless)))
    ds.PixelData = ds.PixelData[:200] + b"\xff" * (len(ds.PixelData) - 208) + ds.PixelData[-8:]
    file = BytesIO()
    ds.save_as(file)
    assert _refused(file.getvalue()) == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE
    ds.file_meta.TransferSyntaxUID = MPEG2MPML
    file = BytesIO()
    ds.save_as(file)
    assert _refused(file.getvalue()) == ErrorCode.ERROR_CODE_NOT_REDACTABLE
    short = _object(GREY[None], Rows=ROWS + 40)
    assert _refused(short) == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE
    assert _refused(_object(GREY[None], PhotometricInterpretation="CMYK")) == ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE


def test_a_policy_may_refuse_text_and_too_much_of_it() -> None:
    data = _object(GREY[None])
    assert _refused(data, Policy(text="refuse")) == ErrorCode.ERROR_CODE_NOT_REDACTABLE
    assert _refused(data, Policy(largest_share=0.01)) == ErrorCode.ERROR_CODE_NOT_REDACTABLE
    for table in ({"text": "keep"}, {"most_boxes": 0}, {"nothing": 1}, {"largest_share": 2}):
        with pytest.raises(StepwedgeError):
            Policy.load(table)


def _released(folder: Path, change: str = "") -> Path:
    """A copy of the release, in which one thing is otherwise, signed by the keys that are returned with it."""
    shutil.copytree(RELEASED, folder)
    if change == "golden":
        with np.load(folder / "golden.npz") as content:
            values = dict(content)
        values["scores"][10, 10] += 0.05
        with (folder / "golden.npz").open("wb") as file:
            np.savez_compressed(file, **values)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for name, said in manifest["files"].items():
        said["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if change == "threshold":
        manifest["threshold"] = 0.9
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _signed(folder: Path) -> dict[str, tuple[str, ...]]:
    keys = {role: Ed25519PrivateKey.generate() for role in ROLES}
    (folder / SIGNATURES).write_bytes(sign((folder / "manifest.json").read_bytes(), keys))
    return {role: (public(key),) for role, key in keys.items()}


@pytest.mark.parametrize("change", ["", "threshold", "golden"])
def test_a_release_that_nobody_trusted_signed_is_not_served(tmp_path: Path, change: str) -> None:
    folder = _released(tmp_path / "one", change)
    with pytest.raises(StepwedgeError) as caught:
        Detector.load(folder)
    assert caught.value.code == ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH
    _signed(folder)
    with pytest.raises(StepwedgeError) as caught:
        Detector.load(folder)
    assert caught.value.code == ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH


def test_a_release_of_the_site_is_served_by_the_keys_that_its_profile_names(tmp_path: Path) -> None:
    folder = _released(tmp_path / "one")
    signers = _signed(folder)
    policy = Policy.load({"model": str(folder), "signers": {role: list(keys) for role, keys in signers.items()}})
    assert policy.detector().find(GREY)


def test_a_detector_that_sees_otherwise_than_when_it_was_released_is_not_served(tmp_path: Path) -> None:
    folder = _released(tmp_path / "one", "golden")
    signers = _signed(folder)
    with pytest.raises(StepwedgeError) as caught:
        Detector.load(folder, signers)
    assert caught.value.code == ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED


def test_looking_again_at_what_was_changed_sees_what_a_whole_look_sees() -> None:
    detector = Detector.load()
    for scale in (1, 16):
        picture = np.tile(GREY, (4, 3)).astype(np.uint16 if scale > 1 else np.uint8) * scale
        picture[0, 0], picture[0, 1] = 0, 255 * scale
        first = detector.look(picture)
        changed = [one for one in first.found if one.top < 300]
        for one in changed:
            picture[one.top : one.top + one.height, one.left : one.left + one.width] = 60 * scale
        again, whole = detector.look(picture, first, changed), detector.look(picture)
        assert again.found == whole.found
        assert 0 < len(whole.found) < len(first.found)


def test_without_its_detector_nothing_is_cleaned(tmp_path: Path) -> None:
    data = _object(GREY[None])
    assert _refused(data, Policy(model=tmp_path)) == ErrorCode.ERROR_CODE_MODEL_NOT_FOUND
    for path in RELEASED.iterdir():
        shutil.copy(path, tmp_path)
    served = tmp_path / "detector.onnx"
    content = bytearray(served.read_bytes())
    content[-1] ^= 1
    served.write_bytes(bytes(content))
    clean_pixels._detector.cache_clear()
    assert _refused(data, Policy(model=tmp_path)) == ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH


def test_an_object_without_pixels_passes() -> None:
    original = parse(Path(str(get_testdata_file("rtplan.dcm"))).read_bytes())
    done = clean(list(original.data_set), original, Counts(), Policy())
    assert not done.boxes
    assert not _value(done, 0x00280301)


def test_the_overlay_in_the_high_bits_is_gone_before_anything_is_looked_at() -> None:
    # The text lies in bit 12 alone, beside 12 stored bits.
    values = np.where(INK, WIDE[5, 5] | 0x1000, WIDE[5, 5]).astype(np.uint16)
    done, _ = _clean(_object(values[None], BitsStored=12, HighBit=11))
    assert not done.boxes
    left = np.frombuffer(_value(done, 0x7FE00010), "<u2")
    assert (left == WIDE[5, 5]).all()


def _marked(text: str, modality: str) -> Cleaned:
    grey = _picture()[0].copy()
    grey[:] = 60
    grey[0, 0] = 20
    cv2.putText(grey, text, (140, 140), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 230, 4, cv2.LINE_AA)
    return _clean(_object(grey[None], Modality=modality))[0]


@pytest.mark.parametrize("text", ["L", "R"])
def test_a_side_marker_of_a_radiograph_stays(text: str) -> None:
    assert not _marked(text, "CR").boxes


@pytest.mark.parametrize(("text", "modality"), [("RM", "CR"), ("JD", "DX"), ("L1", "CR"), ("R", "OT"), ("Doe R", "CR")])
def test_other_letters_and_letters_elsewhere_do_not_stay(text: str, modality: str) -> None:
    assert _marked(text, modality).boxes


def _lettered(parts: list[tuple[str, int]], box: tuple[int, int], *, ramp: int = 0) -> list[Found]:
    """What stays of one box, from column to column, over letters at their columns, on a ground that grows brighter."""
    image = np.tile(60 + np.linspace(0, ramp, 300), (200, 1)).astype(np.uint8)
    for text, left in parts:
        cv2.putText(image, text, (left, 120), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 170, 4, cv2.LINE_AA)
    return kept(image, [Found(box[0], 80, box[1] - box[0], 48)])


@pytest.mark.parametrize(
    ("parts", "box", "ramp"),
    [
        ([("A", 90), ("R", 126)], (120, 172), 0),
        ([("L", 110), ("I", 138)], (100, 160), 0),
        ([("R", 110), ("L", 146)], (100, 190), 105),
        ([("P", 90), ("A", 170)], (80, 215), 0),
    ],
    ids=["another letter beside the box", "a letter of one stroke", "a letter that drowns in the ground", "a gap"],
)
def test_letters_beside_others_do_not_stay(parts: list[tuple[str, int]], box: tuple[int, int], ramp: int) -> None:
    assert not _lettered(parts, box, ramp=ramp)
    assert _lettered([("R", 126)], (120, 166)), "one that stands alone does"


def test_a_marker_may_have_other_text_far_beside_it_and_below_it() -> None:
    image = np.full((400, 400), 60, np.uint8)
    cv2.putText(image, "R", (126, 120), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 170, 4, cv2.LINE_AA)
    marker = Found(120, 80, 46, 48)
    assert kept(image, [marker, Found(280, 80, 90, 48), Found(100, 180, 90, 48)]) == [marker]
    assert not kept(image, [marker, Found(240, 80, 90, 48)])
    assert not kept(image, [marker, Found(100, 140, 90, 48)])


def test_only_the_allowed_letters_are_read_as_markers() -> None:
    wrong = []
    for letter in "ABCDEFGHIJKMNOPQSTUVWXYZ0123456789abdefghijklmnqtyr":
        for face in (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_PLAIN):
            for size in (1.2, 2.0, 3.1):
                image = np.full((160, 160), 60, np.uint8)
                cv2.putText(image, letter, (40, 110), face, size, 220, 3, cv2.LINE_AA)
                rows, columns = np.nonzero((image > 140).any(1))[0], np.nonzero((image > 140).any(0))[0]
                left, top = int(columns[0]) - 3, int(rows[0]) - 3
                one = Found(left, top, int(columns[-1]) + 4 - left, int(rows[-1]) + 4 - top)
                wrong += [letter] * len(kept(image, [one]))
    assert not wrong


# What names somebody in the real objects at hand: left, top, right, bottom.
NAMED: dict[str, list[tuple[int, int, int, int]]] = {
    "US1_UNCI.dcm": [(25, 15, 160, 60), (500, 15, 620, 60), (265, 30, 350, 45)],
    "OBXXXX1A_2frame.dcm": [(90, 5, 240, 55), (320, 30, 520, 55), (660, 5, 790, 55)],
    "gdcm-US-ALOKA-16.dcm": [(40, 0, 130, 24), (540, 0, 640, 24)],
}


@needs_shared
@pytest.mark.parametrize("name", NAMED)
def test_what_names_somebody_in_real_ultrasounds_is_covered(name: str) -> None:
    assert SHARED is not None
    done, _original = _clean((SHARED / "data" / "dicom" / name).read_bytes())
    for left, top, right, bottom in NAMED[name]:
        inside = np.zeros((2000, 2000), bool)
        for box in done.boxes:
            if box.frame == 1:
                inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
        assert inside[top:bottom, left:right].all()


def test_the_detector_finds_text_in_arrays_of_any_kind_and_refuses_what_is_no_picture() -> None:
    for frame in (GREY, WIDE, RGB, WIDE.astype(np.float64), GREY[:, :200], INK):
        (found,) = find_text([frame])
        mask = np.zeros(frame.shape[:2], bool)
        for one in found:
            mask[one.top : one.top + one.height, one.left : one.left + one.width] = True
        assert mask[INK[:, : mask.shape[1]]].mean() >= 0.95
    assert Detector.load().find(np.zeros((3, 1), np.uint8)) == []
    assert Detector.load().find(np.full((50, 50), np.nan, np.float32)) == []
    for wrong in (np.zeros((0, 5)), np.zeros(5), np.zeros((5, 5), complex)):
        with pytest.raises(ValueError, match="array"):
            Detector.load().find(wrong)


def test_the_answer_does_not_depend_on_where_the_tiles_lie() -> None:
    detector = Detector.load()
    grey = np.tile(GREY, (3, 3)).astype(np.float32)
    whole = detector.scores(grey)
    part = detector.scores(np.ascontiguousarray(grey[64:640, 128:896]))
    inner = whole[16:160, 32:224][24:-24, 24:-24]
    assert np.abs(inner - part[24:-24, 24:-24]).max() < 0.05


def test_the_release_is_small_and_says_what_it_is() -> None:
    manifest = json.loads((RELEASED / "manifest.json").read_text())
    assert (RELEASED / manifest["served"]).stat().st_size <= 2 << 20
    assert "MODEL_CARD.md" in manifest["files"]


def test_deflated_objects_are_cleaned_too() -> None:
    ds = dcmread(BytesIO(_object(GREY[None])))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = BytesIO()
    ds.save_as(file)
    done, _ = _clean(file.getvalue())
    assert _mask(done)[INK].mean() >= 0.95
    assert done.transfer_syntax == DeflatedExplicitVRLittleEndian
