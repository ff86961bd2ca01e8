"""Patches to train the text detector on: a background, what resembles text and is none, and text."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from distillation.text import writing

SIDE = 256
CELL = 4


def background(rng: Generator, pool: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Grey values [256, 256], 0 to 255: a piece of a real image, or a made one."""
    chance = rng.random()
    if chance < 0.3:
        return _made(rng)
    image = pool[int(rng.integers(len(pool)))]
    if chance < 0.5:
        return _toned(rng, _whole(rng, image))
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(4.0 if max(image.shape) < 700 else 1.6))))
    side = max(24, round(SIDE / scale))
    side = min(side, *image.shape)
    top, left = (int(rng.integers(0, n - side + 1)) for n in image.shape)
    patch = cv2.resize(
        image[top : top + side, left : left + side],
        (SIDE, SIDE),
        interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])),
    )
    return _toned(rng, patch)


def _whole(rng: Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image as the second, smaller look sees it: all of it in a few hundred pixels, mirrored beyond its edges."""
    longest = float(np.exp(rng.uniform(np.log(110), np.log(620))))
    scale = min(1.0, longest / max(image.shape))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    beyond = cv2.BORDER_REFLECT_101 if rng.random() < 0.8 else cv2.BORDER_CONSTANT
    while min(small.shape) < SIDE:
        more = [min(SIDE, max(0, SIDE - size), size - 1) for size in small.shape]
        before = [int(rng.integers(0, size + 1)) for size in more]
        small = np.asarray(cv2.copyMakeBorder(
            small, before[0], more[0] - before[0], before[1], more[1] - before[1], beyond
        ), np.uint8)  # fmt: skip
    top, left = (int(rng.integers(0, size - SIDE + 1)) for size in small.shape)
    return np.asarray(small[top : top + SIDE, left : left + SIDE], np.uint8)


def _toned(rng: Generator, patch: NDArray[Any]) -> NDArray[np.float32]:
    """Turned by quarters, and now and then negative, of another gamma, or of fewer levels."""
    grey = np.ascontiguousarray(np.rot90(patch, int(rng.integers(4))), np.float32)
    if rng.random() < 0.5:
        grey = 255 - grey
    if rng.random() < 0.5:
        grey = np.asarray(255 * (grey / 255) ** float(np.exp(rng.uniform(-0.7, 0.7))), np.float32)
    if rng.random() < 0.5:
        grey = grey * rng.uniform(0.4, 1.0) + rng.uniform(0, 60)
    return grey


def _made(rng: Generator) -> NDArray[np.float32]:
    kind = int(rng.integers(0, 6))
    if kind == 4:
        return _pattern(rng)
    kind = min(kind, 3)
    grey: Any = np.full((SIDE, SIDE), rng.choice([0.0, 0.0, 255.0, rng.uniform(0, 255)]), np.float32)
    if kind >= 1:
        small = rng.uniform(0, 255, (int(rng.integers(2, 9)), int(rng.integers(2, 9)))).astype(np.float32)
        grey = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    if kind >= 2:
        speckle: Any = rng.rayleigh(1.0, (SIDE, SIDE)).astype(np.float32)
        speckle = cv2.GaussianBlur(speckle, (0, 0), float(rng.uniform(0.6, 4.0)), sigmaY=float(rng.uniform(0.6, 2.4)))
        speckle = 1.25 + (speckle - float(speckle.mean())) * (0.65 / (float(speckle.std()) + 1e-3))
        grey = grey * (0.35 + float(rng.uniform(0.2, 0.5)) * np.maximum(speckle, 0))
    if kind == 3:
        sector = np.zeros((SIDE, SIDE), np.uint8)
        centre = (int(rng.integers(-80, 340)), int(rng.integers(-120, 60)))
        cv2.ellipse(sector, centre, (300, 300), 90, -40, 40, 255, -1)
        grey = np.where(sector > 0, grey, 0)
    return np.asarray(np.clip(grey, 0, 255), np.float32)


def _pattern(rng: Generator) -> NDArray[np.float32]:
    """Spots and winding bands of two levels, as of vessels, maps and trabeculae: the size of letters, and none."""
    noise: Any = rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    wide = float(np.exp(rng.uniform(np.log(1.2), np.log(9))))
    noise = cv2.GaussianBlur(noise, (0, 0), wide, sigmaY=wide * float(rng.uniform(0.5, 2)))
    noise /= float(noise.std())
    spots = np.abs(noise) < rng.uniform(0.1, 0.5) if rng.random() < 0.4 else noise > rng.uniform(0.6, 2.2)
    low, high = rng.uniform(0, 255, 2)
    soft: Any = cv2.GaussianBlur(spots.astype(np.float32), (0, 0), float(rng.uniform(0.3, 1.2)))
    return np.asarray(low + (high - low) * soft, np.float32)


def _clutter(rng: Generator, grey: NDArray[np.float32]) -> None:
    """Lines, frames, rulers, wedges, curves, arrows, dots."""

    def somewhere() -> tuple[int, int]:
        return int(rng.integers(-20, SIDE + 20)), int(rng.integers(-20, SIDE + 20))

    for _ in range(int(rng.integers(0, 5))):
        value = float(rng.choice([255, 255, rng.uniform(0, 255), 0]))
        thick = int(rng.integers(1, 3))
        kind = rng.integers(0, 9)
        if kind == 0:
            cv2.line(grey, somewhere(), somewhere(), value, thick, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(grey, somewhere(), somewhere(), value, thick if rng.random() < 0.7 else -1)
        elif kind == 2:
            _ruler(rng, grey, value, thick)
        elif kind == 3:
            x, y = somewhere()
            width, height = int(rng.integers(8, 24)), int(rng.integers(60, 200))
            wedge = np.linspace(255, 0, height, dtype=np.float32)[:, None].repeat(width, 1)
            place = grey[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
            place[:] = wedge[: place.shape[0], : place.shape[1]]
        elif kind == 4:
            cv2.circle(
                grey, somewhere(), int(rng.integers(2, 80)), value, thick if rng.random() < 0.7 else -1, cv2.LINE_AA
            )
        elif kind == 5:
            xs = np.arange(0, SIDE, 2)
            ys = rng.uniform(20, 236) + np.cumsum(rng.normal(0, 2.5, len(xs))) + 12 * (rng.random(len(xs)) < 0.06)
            cv2.polylines(grey, [np.stack([xs, ys], 1).astype(np.int32)], False, value, 1, cv2.LINE_AA)
        elif kind == 6:
            cv2.arrowedLine(grey, somewhere(), somewhere(), value, thick, cv2.LINE_AA, 0, 0.15)
        elif kind == 7:
            (x, y), step = somewhere(), int(rng.integers(4, 30))
            for n in range(int(rng.integers(3, 20))):
                cv2.circle(grey, (x + n * step, y), thick, value, -1)
        else:
            (x, y), arm = somewhere(), int(rng.integers(2, 12))
            cv2.line(grey, (x - arm, y), (x + arm, y), value, thick)
            cv2.line(grey, (x, y - arm), (x, y + arm), value, thick)


def _ruler(rng: Generator, grey: NDArray[np.float32], value: float, thick: int) -> None:
    x, step, tick = int(rng.integers(5, SIDE - 5)), int(rng.integers(4, 30)), int(rng.integers(2, 12))
    upright = rng.random() < 0.5
    for n, at in enumerate(range(int(rng.integers(0, 40)), SIDE, step)):
        length = tick * (2 if n % 5 == 0 else 1)
        start, end = ((x, at), (x + length, at)) if upright else ((at, x), (at, x + length))
        cv2.line(grey, start, end, value, thick)


def scene(
    rng: Generator, pool: list[NDArray[np.uint8]], fonts: list[str]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Grey values uint8 [256, 256], and for each cell [64, 64]: 0 no text, 1 text, 2 not to be judged."""
    grey = background(rng, pool)
    _clutter(rng, grey)
    if rng.random() < 0.5:
        grey = grey + rng.normal(0, float(np.exp(rng.uniform(np.log(0.5), np.log(10)))), grey.shape).astype(np.float32)
    grey = np.clip(grey, 0, 255).astype(np.float32)
    ink_map, block_map = np.zeros(grey.shape, np.float32), np.zeros(grey.shape, bool)
    vague = np.zeros(grey.shape, bool)
    for _ in range(int(rng.choice([0, 1, 2, 3, 4, 6, 9], p=[0.18, 0.14, 0.16, 0.18, 0.14, 0.12, 0.08]))):
        _write(rng, grey, fonts, ink_map, block_map, vague)
    if rng.random() < 0.15:
        done, data = cv2.imencode(
            ".jpg", np.clip(grey, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 96))]
        )
        grey = np.asarray(cv2.imdecode(data, 0), np.float32) if done else grey
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), _cells(ink_map, block_map, vague)


def _write(
    rng: Generator, grey: NDArray[np.float32], fonts: list[str], ink_map: NDArray[np.float32],
    block_map: NDArray[np.bool_], vague: NDArray[np.bool_],
) -> None:  # fmt: skip
    size = round(float(np.exp(rng.uniform(np.log(8), np.log(46 if rng.random() < 0.55 else 16)))))
    one = writing.mark(rng, fonts, size, writing.content(rng), crisp=bool(rng.random() < 0.35))
    if one is None:
        return
    one = writing.turned(one, rng)
    height, width = one.ink.shape
    y, x = (
        int(rng.integers(-height // 3, SIDE - height // 2)),
        int(rng.integers(-width // 2, SIDE - min(width, SIDE) // 2)),
    )
    top, left, bottom, right = max(0, y), max(0, x), min(SIDE, y + height), min(SIDE, x + width)
    if bottom - top < 4 or right - left < 4:
        return
    cut = slice(top - y, bottom - y), slice(left - x, right - x)
    ink, block = one.ink[cut], one.block[cut]
    around = slice(max(0, top - 3), bottom + 3), slice(max(0, left - 3), right + 3)
    if block_map[around].any():
        return
    place = grey[top:bottom, left:right]
    contrast = float(np.exp(rng.uniform(np.log(16), np.log(220 if rng.random() < 0.55 else 60))))
    level = float(place.mean())
    boxed = rng.random() < 0.08
    if boxed:  # on a plate of its own
        plate = grey[around]
        level = float(rng.uniform(0, 255))
        plate[:] = level
    sign = 1.0 if rng.random() < (0.75 if level < 128 else 0.25) else -1.0
    value = level + sign * contrast
    if not 0 <= value <= 255:
        value = level - sign * contrast if 0 <= level - sign * contrast <= 255 else float(np.clip(value, 0, 255))
    soft: Any = cv2.GaussianBlur(ink, (0, 0), float(rng.uniform(0.3, 0.8))) if rng.random() < 0.12 else ink
    if rng.random() < 0.12:  # a rim of the other colour
        rim = cv2.dilate(soft, np.ones((3, 3), np.uint8))
        place[:] = place * (1 - rim) + (0 if value > level else 255) * rim
        level = float(place.mean())
    mixed = value if rng.random() < 0.6 or boxed else place + (value - level)  # opaque, or added to what is beneath
    place[:] = np.clip(place * (1 - soft) + mixed * soft, 0, 255)
    ink_map[top:bottom, left:right] = np.maximum(ink_map[top:bottom, left:right], ink)
    block_map[top:bottom, left:right] |= block
    if abs(value - level) < 14:
        vague[top:bottom, left:right] = True


def _cells(ink: NDArray[np.float32], block: NDArray[np.bool_], vague: NDArray[np.bool_]) -> NDArray[np.uint8]:
    def cells(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return (
            values.reshape(SIDE // CELL, CELL, SIDE // CELL, CELL)
            .transpose(0, 2, 1, 3)
            .reshape(SIDE // CELL, SIDE // CELL, -1)
        )

    covered = cells(block.astype(np.float32)).mean(2)
    inked = cells(ink).max(2) > 0.35
    found = np.where(covered > 0, 2, 0).astype(np.uint8)
    found[inked | (covered >= 0.5)] = 1
    found[(cells(vague.astype(np.float32)).max(2) > 0) & (found == 1)] = 2
    return found
