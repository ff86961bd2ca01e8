"""Makes the shapes by which side markers are told: `python -m distillation.text.letters TABLE.npz`."""

from __future__ import annotations

import sys
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from distillation.text.fonts import training_fonts
from shared.letters import LETTERS, normal

_SIZE: Final = 96
_KEPT: Final = 10  # shapes of a letter
_FACES: Final = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)


def _inked(canvas: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    ink = canvas > 127
    rows, columns = np.nonzero(ink.any(1))[0], np.nonzero(ink.any(0))[0]
    if len(rows) < 8 or len(columns) < 4:
        return None
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)


def _shapes(letter: str) -> list[NDArray[np.float32]]:
    found = []
    for path in training_fonts():
        if not path.endswith((".ttf", ".otf")) or any(
            word in path for word in ("Emoji", "Symbol", "Oblique", "Italic")
        ):
            continue
        try:
            font = ImageFont.truetype(path, _SIZE)
        except OSError:
            continue
        image = Image.new("L", (2 * _SIZE, 2 * _SIZE))
        ImageDraw.Draw(image).text((30, 20), letter, 255, font=font)
        found.append(_inked(np.asarray(image)))
    for face in _FACES:
        for thick in (2, 5, 8):
            canvas = np.zeros((_SIZE, _SIZE), np.uint8)
            cv2.putText(canvas, letter, (16, 76), face, 2.2, 255, thick, cv2.LINE_AA)
            found.append(_inked(canvas))
    return [normal(one) for one in found if one is not None]


def _few(shapes: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The shapes of which every other is near one: the farthest from those taken, again and again."""
    kept = [shapes[0]]
    nearest = np.array([(shapes[0] * one).mean() for one in shapes])
    while len(kept) < _KEPT and nearest.min() < 0.97:
        kept.append(shapes[int(nearest.argmin())])
        nearest = np.maximum(nearest, [(kept[-1] * one).mean() for one in shapes])
    return kept


def main(target: str) -> None:
    """Write the table: which letter, and its shape, -1.27 to 1.27 for as many deviations times a hundred."""
    letters, shapes = [], []
    for letter in LETTERS:
        for shape in _few(_shapes(letter)):
            letters.append(letter)
            shapes.append(np.clip(np.rint(shape * 40), -127, 127).astype(np.int8))
    np.savez_compressed(target, letters=np.array(letters), shapes=np.stack(shapes))


if __name__ == "__main__":
    main(*sys.argv[1:])
