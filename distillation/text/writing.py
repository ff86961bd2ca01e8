"""Writes text into pictures and knows where every drop of ink is: what the text detector learns from."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PcfFontFile

NAMES = [
    "DOE",
    "SMITH",
    "MUELLER",
    "GARCIA",
    "NGUYEN",
    "OKAFOR",
    "Kowalski",
    "Rossi",
    "Yilmaz",
    "Tanaka",
    "Jensen",
    "ANNA",
    "JOHN",
    "Maria",
    "PAUL",
    "Ines",
    "Bo",
    "MÜLLER",
    "Núñez",
    "D'Angelo",
    "St. James",
    "van den Berg",
    "WIECZOREK",
    "Qvist",
]
WORDS = (
    *("ID", "DOB", "Name", "Hospital", "CLINIC", "General", "Pat", "Sex", "M", "F", "Acc", "No", "Dr", "Tech", "Room"),
    *("Study", "Series", "Date", "Time", "kV", "mAs", "TIS", "MI", "Gain", "Depth", "Zoom", "WL", "WW", "Probe", "cm"),
    *("Abdomen", "CHEST", "Left", "Right", "SUPINE", "PORTABLE", "Hz", "dB", "Se", "Im", "mm", "Age", "Y", "St.", "TR"),
    *("Mary's", "Institute", "of", "Radiology", "Department", "Phone", "Page", "SCAN", "head", "FOV", "TE", "Axial"),
    *("ECHO", "Fr", "bpm", "Copyright", "Print", "preview"),
)
HERSHEY = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)


@dataclass(frozen=True)
class Mark:
    """Coverage 0 to 1 of ink [h, w], and where it counts as text: bool [h, w] (words as blocks)."""

    ink: NDArray[np.float32]
    block: NDArray[np.bool_]


def content(rng: Generator) -> str:
    """Something that a modality may write."""
    kind = rng.integers(0, 8)
    digits = "".join(rng.choice(list("0123456789"), rng.integers(1, 11)))
    if kind == 0:
        return f"{rng.choice(NAMES)}{rng.choice(['^', ', ', ' '])}{rng.choice(NAMES)}"
    if kind == 1:
        year, month, day = rng.integers(1920, 2030), rng.integers(1, 13), rng.integers(1, 29)
        forms = (
            f"{day:02}.{month:02}.{year}",
            f"{year}-{month:02}-{day:02}",
            f"{month}/{day}/{year}",
            f"{year}{month:02}{day:02}",
        )
        return str(rng.choice(forms))
    if kind == 2:
        return f"{rng.integers(0, 24):02}:{rng.integers(0, 60):02}" + (
            f":{rng.integers(0, 60):02}" if rng.random() < 0.6 else ""
        )
    if kind == 3:
        return digits
    if kind == 4:
        return f"{rng.choice(WORDS)}{rng.choice([': ', ' ', '=', ':'])}{digits}{rng.choice(['', ' cm', '%', '.5'])}"
    if kind == 5:
        return " ".join(rng.choice(WORDS, rng.integers(1, 5)))
    if kind == 6:
        letters = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/.:()+#^")
        return "".join(rng.choice(letters, rng.integers(1, 14)))
    return str(rng.choice([rng.choice(WORDS), rng.choice(list("LRABCDEFPHV0123456789")), rng.choice(NAMES)]))


@lru_cache(maxsize=4096)
def _outline(path: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except OSError:
        return None


@lru_cache(maxsize=64)
def _bitmap(path: str) -> ImageFont.ImageFont | None:
    """An X11 bitmap font."""
    try:
        data = gzip.decompress(Path(path).read_bytes())
        font = PcfFontFile.PcfFontFile(io.BytesIO(data), "iso8859-1")
        font.compile()
        loaded = ImageFont.ImageFont()
        buffer = io.BytesIO(b"PILfont\n;;;;;;%d;\nDATA\n" % font.ysize + b"".join(_metrics(font)))
        loaded._load_pilfont_data(buffer, cast(Image.Image, font.bitmap))
    except Exception:  # noqa: BLE001 - a font that does not load is not written with
        return None
    return loaded


def _metrics(font: PcfFontFile.PcfFontFile) -> list[bytes]:
    packed = []
    for metric in font.metrics:
        numbers = (
            [0] * 10
            if metric is None
            else [n for group in metric for n in (group if isinstance(group, tuple) else (group,))]
        )
        packed.append(np.array(numbers, ">i2").tobytes())
    return packed


def mark(
    rng: Generator, fonts: list[str], size: int, text: str, *, crisp: bool, hershey: tuple[int, ...] = HERSHEY
) -> Mark | None:
    """The text written once, `size` pixels high; with one of the `fonts`, or in strokes."""
    if rng.random() < 0.3 and hershey:
        ink = _strokes(
            text, int(rng.choice(hershey)), size, thick=1 + int(size > 16 and rng.random() < 0.5), crisp=crisp
        )
    else:
        ink = _printed(text, str(rng.choice(fonts)), size, crisp=crisp)
    if ink is None or min(ink.shape) < 3 or ink.max() < 0.3:
        return None
    rows, columns = np.nonzero(ink.max(1) > 0.25)[0], np.nonzero(ink.max(0) > 0.25)[0]
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Mark(ink, _block(ink, size))


def _printed(text: str, path: str, size: int, *, crisp: bool) -> NDArray[np.float32] | None:
    if path.endswith(".pcf.gz"):
        font: Any = _bitmap(path)
        scale = 0 if font is None else max(1, round(size / max(6, font.getbbox("Hg")[3])))
    else:
        font, scale = _outline(path, size), 1
    if font is None:
        return None
    text = text.encode("latin-1", "ignore").decode("latin-1")
    left, top, right, bottom = font.getbbox(text)
    if right - left < 2 or bottom - top < 2:
        return None
    image = Image.new("L", (int(right) + 4, int(bottom) + 4))
    drawing = ImageDraw.Draw(image)
    drawing.fontmode = "1" if crisp else "L"
    drawing.text((2, 2), text, 255, font=font)
    ink = np.asarray(image, np.float32) / 255
    return np.asarray(np.kron(ink, np.ones((scale, scale), np.float32)) if scale > 1 else ink, np.float32)


def _strokes(text: str, face: int, size: int, *, thick: int, crisp: bool) -> NDArray[np.float32] | None:
    text = text.encode("ascii", "ignore").decode()
    scale = cv2.getFontScaleFromHeight(face, max(5, round(size * 0.72)), thick)
    (width, height), base = cv2.getTextSize(text, face, scale, thick)
    if width < 2:
        return None
    image = np.zeros((height + base + 6, width + 6), np.uint8)
    cv2.putText(image, text, (3, height + 2), face, scale, 255, thick, cv2.LINE_8 if crisp else cv2.LINE_AA)
    return np.asarray(image.astype(np.float32) / 255, np.float32)


def _block(ink: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    """Words as solid blocks: gaps between letters closed, gaps between columns not."""
    gap = max(3, round(size * 0.6)) | 1
    padded = cv2.copyMakeBorder((ink > 0.25).astype(np.uint8), gap, gap, gap, gap, cv2.BORDER_CONSTANT)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))[gap:-gap, gap:-gap]
    return np.asarray(closed > 0)


def turned(one: Mark, rng: Generator) -> Mark:
    """Now and then on its side, on its head, or slanting."""
    chance = rng.random()
    if chance < 0.08:
        turns = int(rng.integers(1, 4))
        return Mark(np.ascontiguousarray(np.rot90(one.ink, turns)), np.ascontiguousarray(np.rot90(one.block, turns)))
    if chance < 0.13:
        height, width = one.ink.shape
        angle = float(rng.uniform(-20, 20))
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
        cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
        size = (int(height * sine + width * cosine) + 2, int(height * cosine + width * sine) + 2)
        matrix[:, 2] += (size[0] / 2 - width / 2, size[1] / 2 - height / 2)
        return Mark(
            np.asarray(cv2.warpAffine(one.ink, matrix, size), np.float32),
            np.asarray(cv2.warpAffine(one.block.astype(np.uint8), matrix, size) > 0),
        )
    return one
