"""From the model's logits to clean masks, on its own grid and at the image's own size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference import bilevel
from services.inference.preprocessing import GRID, Letterbox
from services.inference.registry import CHANNELS
from services.inference.thresholds import NESTED

Mask = NDArray[np.bool_]

_PIECES: Final[dict[str, int]] = {"right_lung_field": 1, "left_lung_field": 1, "heart": 1, "lungs_full": 2}
"""How many connected pieces a structure has at most."""
_SECOND_PIECE: Final = 0.15
"""Least area of a second piece, as a share of the first."""
GROUPS: Final[dict[str, tuple[int, ...]]] = {"lung_fields": (0, 1), "heart": (2,), "lungs_full": (3,)}
"""Channels that are taken as one map when confidence is measured."""


@dataclass(frozen=True)
class Nested:
    """One structure on the letterbox of the grid, bool [height, width], for the probabilities of `NESTED`: `loose`
    contains `middle`, which contains `tight`."""

    loose: Mask
    middle: Mask
    tight: Mask


def nested(logits: NDArray[np.float32], where: Letterbox) -> dict[str, Nested]:
    """The clean nested masks of every channel. logits: [4, h, w] over the whole grid."""
    found: dict[str, Nested] = {}
    for channel, plane in zip(CHANNELS, logits, strict=True):
        fine = cv2.resize(plane, (GRID, GRID), interpolation=cv2.INTER_LINEAR)
        inside = fine[where.top : where.top + where.height, where.left : where.left + where.width]
        loose, middle, tight = (inside > _logit(probability) for probability in NESTED)
        middle = largest(inside > 0, _PIECES[channel]) & middle
        found[channel] = Nested(_joined_to(loose, middle), middle, tight & middle)
    return found


def chances(logits: NDArray[np.float32], where: Letterbox, channel: str, one: Nested) -> NDArray[np.float64]:
    """Probability of a structure on the letterbox of the grid, [height, width]; specks outside its loose mask count no
    more than what lies just outside of it. one: its nested masks."""
    fine = cv2.resize(logits[list(CHANNELS).index(channel)], (GRID, GRID), interpolation=cv2.INTER_LINEAR)
    inside = fine[where.top : where.top + where.height, where.left : where.left + where.width].astype(np.float64)
    found: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * inside))
    return np.where(one.loose, found, np.minimum(found, NESTED[0]))


def full_size(
    logits: NDArray[np.float32], where: Letterbox, behind: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> dict[str, NDArray[np.uint8]]:
    """Clean masks of every channel at the image's own size, a bit for a pixel: see `bilevel.enlarged`. behind: rows and
    columns at the image's top, bottom, left and right that lie beyond `where`, in no mask."""
    found: dict[str, NDArray[np.uint8]] = {}
    for channel, plane in zip(CHANNELS, logits, strict=True):
        fine = cv2.resize(plane, (GRID, GRID), interpolation=cv2.INTER_LINEAR)
        specks = (fine > 0) & ~largest(fine > 0, _PIECES[channel])
        fine[specks] = -np.abs(fine[specks])
        bits = bilevel.enlarged(fine, where)
        found[channel] = bilevel.surrounded(bits, where.columns, behind) if any(behind) else bits
    return found


def calibrated(
    logits: NDArray[np.float32], temperature: NDArray[np.float64], bias: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Probabilities of logits [..., 4, h, w]: sigmoid(logit / temperature + bias), channel by channel (Platt)."""
    scaled = logits.astype(np.float64) / temperature[:, None, None] + bias[:, None, None]
    return np.asarray(0.5 * (1 + np.tanh(0.5 * scaled)))


def confidence(
    logits: NDArray[np.float32], temperature: NDArray[np.float64], bias: NDArray[np.float64]
) -> dict[str, float]:
    """Soft Dice Confidence of every group: 2 sum(p y) / (sum p + sum y) (arXiv 2402.10665), y being the mask (logits
    [4, h, w] over 0) and p calibrated probabilities, over the whole grid; 0 where nothing is found."""
    scores: dict[str, float] = {}
    probabilities, masks = calibrated(logits, temperature, bias), logits > 0
    for group, channels in GROUPS.items():
        p, mask = probabilities[list(channels)], masks[list(channels)]
        scores[group] = float(2 * p[mask].sum() / (p.sum() + mask.sum())) if mask.any() else 0.0
    return scores


def largest(mask: Mask, pieces: int) -> Mask:
    """The largest connected pieces of a mask, without specks; a second one counts if it is no speck beside the first.

    Holes are kept: a device in the lung is not lung.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = np.argsort(-areas, kind="stable")[:pieces]
    kept = np.zeros(count, np.bool_)
    kept[[1 + piece for piece in order if areas[piece] >= _SECOND_PIECE * areas[order[0]]]] = True
    found: Mask = kept[labels]
    return found


def _joined_to(loose: Mask, middle: Mask) -> Mask:
    """The pieces of the loose mask that hold something of the middle one."""
    count, labels = cv2.connectedComponents(loose.view(np.uint8), connectivity=8)
    kept = np.zeros(count, np.bool_)
    kept[np.unique(labels[middle])] = True
    kept[0] = False
    found: Mask = kept[labels]
    return found


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
