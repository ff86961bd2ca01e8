"""The shape of a letter, made comparable: what the workshop draws its table with, and redaction tells markers by."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""What a shape may be taken for."""
_SIDE: Final = 24


def normal(glyph: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Ink [h, w] as [24, 24]: of one size, blurred a little, of mean 0 and deviation 1."""
    even = cv2.resize(glyph.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    even = cv2.GaussianBlur(even, (0, 0), 1.0)
    return np.asarray((even - even.mean()) / (even.std() + 1e-6), np.float32)
