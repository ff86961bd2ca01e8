"""What other hospitals, detectors and hands do to a radiograph: on 8-bit grids, in a few milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from distillation.data import FLAGS, MAP
from services.inference.preprocessing import GRID, HIGH_PERCENTILE, LOW_PERCENTILE, Letterbox, letterbox
from services.inference.registry import EDGES, SHARES

Image = NDArray[Any]  # float32 [256, 256], about 0..1
Box = tuple[int, int, int, int]  # top, bottom, left, right
TURN_FLAG = {1: FLAGS.index("rotated_90"), 2: FLAGS.index("rotated_180"), 3: FLAGS.index("rotated_270")}


@dataclass
class View:
    """One augmented image: grid uint8 [256, 256], maps uint8 [128, 128, 4] moved with it, flags float32 [6]; edges,
    known: float32 [4, 7], whether the lungs end within each share of each edge, and 1 where that is known."""

    grid: NDArray[np.uint8]
    maps: list[NDArray[np.uint8]]
    flags: NDArray[np.float32]
    edges: NDArray[np.float32] = field(default_factory=lambda: np.zeros((len(EDGES), len(SHARES)), np.float32))
    known: NDArray[np.float32] = field(default_factory=lambda: np.zeros((len(EDGES), len(SHARES)), np.float32))


def view(
    grid: NDArray[np.uint8],
    box: Letterbox,
    maps: list[NDArray[np.uint8]],
    rng: Generator,
    labelled_turns: bool = True,
    gentle: bool = False,
) -> View:
    """A fresh look at one image. The first two maps are target and weight: what leaves the picture or goes behind a
    collimator is certainly no lung (target 0, weight 1). A gentle look is moved but little and otherwise untouched:
    the end of a training on harsh looks alone leaves whole images less sharply outlined than they could be."""
    if gentle:
        return _gentle(grid, box, maps, rng)
    flags = np.zeros(len(FLAGS), np.float32)
    turn = int(rng.choice(4, p=(0.79, 0.07, 0.07, 0.07))) if labelled_turns else 0
    mirror = labelled_turns and rng.random() < 0.15
    matrix = _motion(box, turn, mirror, rng)
    fill = float(rng.choice((0.0, 0.0, 0.0, float(rng.integers(256)))))
    pixels = cv2.warpAffine(
        grid, matrix, (GRID, GRID), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )
    moved = _moved(maps, matrix)
    if mirror:  # the channels name the side in the picture; the flag says that the picture is a mirror
        moved = [np.ascontiguousarray(m[..., (1, 0, 2, 3)]) for m in moved]
        flags[FLAGS.index("mirrored")] = 1
    if turn:
        flags[TURN_FLAG[turn]] = 1
    frame = _frame(rng)
    image = _expose(pixels.astype(np.float32) / 255, rng)
    if rng.random() < 0.13:
        image, flags[FLAGS.index("inverted")] = 1 - image, 1
    image, visible = _collimate(image, rng)
    final = finish(image, frame, rng)
    inside = np.zeros((GRID, GRID), bool)
    inside[frame[0] : frame[1], frame[2] : frame[3]] = True
    hidden = ~(visible & inside)[::2, ::2]
    if hidden.any():
        for m, value in zip(moved, (0, 255, 0), strict=False):
            m[hidden] = value
    return View(final, moved, flags)


def _gentle(grid: NDArray[np.uint8], box: Letterbox, maps: list[NDArray[np.uint8]], rng: Generator) -> View:
    matrix = _linear(box, np.deg2rad(rng.normal(0, 3)), rng.uniform(-0.1, 0.1), rng.uniform(-0.04, 0.04, 2), rng, 0.03)
    image = cv2.warpAffine(grid, matrix, (GRID, GRID), flags=cv2.INTER_LINEAR).astype(np.float32) / 255
    if rng.random() < 0.5:
        image = np.asarray(cv2.pow(image, float(np.exp(rng.uniform(-0.25, 0.25)))))
    grid = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return View(grid, _moved(maps, matrix), np.zeros(len(FLAGS), np.float32))


def part(
    grid: NDArray[np.uint8],
    box: Letterbox,
    margins: NDArray[np.float32],
    maps: list[NDArray[np.uint8]],
    rng: Generator,
) -> View:
    """A look at a part of one image, of which it is known where the lungs end beside each edge, also beyond it.

    margins: of `Pool`. Whole and cut images pass through the same resampling, so that its traces tell nothing.
    """
    cut = _cuts(margins, rng)
    height, width = (box.height * (1 - cut[0] - cut[1]), box.width * (1 - cut[2] - cut[3]))
    top, left = box.top + box.height * cut[0], box.left + box.width * cut[2]
    stretch = float(np.exp(rng.uniform(-0.12, 0.12))) if rng.random() < 0.35 else 1.0
    new = letterbox(max(1, round(1000 * height)), max(1, round(1000 * width * stretch)))
    across, down = new.width / width, new.height / height
    matrix = np.array(
        [[across, 0, new.left - 0.5 - across * (left - 0.5)], [0, down, new.top - 0.5 - down * (top - 0.5)]]
    )
    moved = _moved(maps, matrix)
    frame = (new.top, new.top + new.height, new.left, new.left + new.width)
    hidden = np.ones((MAP, MAP), bool)
    hidden[(frame[0] + 1) // 2 : frame[1] // 2, (frame[2] + 1) // 2 : frame[3] // 2] = False
    for m, value in zip(moved, (0, 255, 0), strict=False):
        m[hidden] = value
    image = _resampled(grid[box.top : box.top + box.height, box.left : box.left + box.width], box, matrix, rng)
    if rng.random() < 0.8:
        image = _expose(image, rng)
    seen = View(finish(image, frame, rng), moved, np.zeros(len(FLAGS), np.float32), *_ends(margins, cut))
    return _mirror_image(seen) if rng.random() < 0.15 else seen


def _cuts(margins: NDArray[np.float32], rng: Generator) -> NDArray[np.float64]:
    """What is taken away at each edge, as shares of height and width: about as much as brings the edge to the lungs."""
    while True:
        wished = np.where(margins > 0, margins - rng.uniform(-0.075, 0.07, 4), rng.uniform(0, 0.07, 4))
        cut = np.where(rng.random(4) < 0.45, 0.0, np.maximum(0.0, wished))
        if max(cut[0] + cut[1], cut[2] + cut[3]) < 0.4:
            return np.asarray(cut, np.float64)


def _ends(margins: NDArray[np.float32], cut: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What `View` calls edges and known. Of lungs that were cut off before, only the least that is missing is known."""
    left = 1 - np.repeat((cut[0] + cut[1], cut[2] + cut[3]), 2)
    ends = ((np.where(np.isnan(margins), 0.0, margins) - cut) / left)[:, None]
    shares = np.array(SHARES)
    known = np.where(margins[:, None] > 0, True, (margins[:, None] == 0) & (shares > ends))
    return (ends < shares).astype(np.float32), known.astype(np.float32)


def _resampled(inside: NDArray[np.uint8], box: Letterbox, matrix: NDArray[np.float64], rng: Generator) -> Image:
    """The image without its letterbox, made coarser by chance, moved by `matrix` (from grid to grid)."""
    share = float(rng.uniform(0.65, 1.0)) if rng.random() < 0.7 else 1.0
    size = (max(1, round(inside.shape[1] * share)), max(1, round(inside.shape[0] * share)))
    coarse = cv2.resize(np.ascontiguousarray(inside), size, interpolation=cv2.INTER_AREA)
    step = np.array([inside.shape[1] / size[0], inside.shape[0] / size[1]])
    own = matrix.copy()
    own[:, 2] += matrix[:, :2] @ (np.array([box.left, box.top]) - 0.5 + step / 2)
    own[:, :2] *= step
    moved = cv2.warpAffine(coarse, own, (GRID, GRID), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32) / 255


def _mirror_image(seen: View) -> View:
    flags, sides = seen.flags.copy(), [0, 1, 3, 2]
    flags[FLAGS.index("mirrored")] = 1
    maps = [np.ascontiguousarray(m[:, ::-1][..., (1, 0, 2, 3)]) for m in seen.maps]
    return View(np.ascontiguousarray(seen.grid[:, ::-1]), maps, flags, seen.edges[sides], seen.known[sides])


def _moved(maps: list[NDArray[np.uint8]], matrix: NDArray[np.float64]) -> list[NDArray[np.uint8]]:
    half = matrix * np.array([[1, 1, 0.5], [1, 1, 0.5]])
    half[:, 2] += 0.25 * (matrix[:, :2].sum(1) - 1)  # centres of cells twice as wide
    outside = ((0, 0, 0, 0), (255, 255, 255, 255), (0, 0, 0, 0))
    return [
        np.asarray(
            cv2.warpAffine(m, half, (MAP, MAP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=b)
        )
        for m, b in zip(maps, outside, strict=False)
    ]


def finish(image: Image, frame: Box, rng: Generator) -> NDArray[np.uint8]:
    """As serving would see it: stretched between the percentiles of what lies inside the letterbox, black outside."""
    top, bottom, left, right = frame
    inside = image[top:bottom, left:right]
    low, high = np.percentile(inside[::2, ::2], (LOW_PERCENTILE, HIGH_PERCENTILE))
    grid = np.zeros((GRID, GRID), np.uint8)
    if high > low:
        grid[top:bottom, left:right] = np.rint(np.clip((inside - low) / (high - low), 0, 1) * 255)
    if rng.random() < 0.12:
        _, stream = cv2.imencode(".jpg", grid, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 80))])
        grid = np.asarray(cv2.imdecode(stream, cv2.IMREAD_GRAYSCALE), np.uint8)
    return grid


def _motion(box: Letterbox, turn: int, mirror: bool, rng: Generator) -> NDArray[np.float64]:
    """The affine map from grid to grid: turned, mirrored, tilted, scaled, sheared, shifted about the image's centre."""
    angle = np.deg2rad(90 * turn + np.clip(rng.normal(0, 6), -20, 20))
    scale, shift = rng.uniform(-0.3, 0.28), rng.uniform(-0.1, 0.1, 2)
    return _linear(box, angle, scale, shift, rng, 0.13, mirror)


def _linear(
    box: Letterbox, angle: float, scale: float, shift: Any, rng: Generator, stretch: float, mirror: bool = False
) -> NDArray[np.float64]:
    """`scale` and `stretch` as logarithms, `shift` in widths of the grid. On the screen y points down: a positive
    angle turns clockwise."""
    ratio, shear = np.exp(rng.uniform(-stretch, stretch)), rng.uniform(-stretch, stretch) * 0.77
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    form = np.array([[ratio, shear], [0, 1 / ratio]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    linear = np.exp(scale) * (rotate @ form)
    centre = np.array([box.left + (box.width - 1) / 2, box.top + (box.height - 1) / 2])
    target = (GRID - 1) / 2 + shift * GRID
    return np.column_stack((linear, target - linear @ centre))


def _frame(rng: Generator) -> Box:
    """The letterbox of the new image: square, lying or standing."""
    bar = int(rng.integers(1, 40)) if rng.random() < 0.6 else 0
    return (bar, GRID - bar, 0, GRID) if rng.random() < 0.5 else (0, GRID, bar, GRID - bar)


def _expose(image: Image, rng: Generator) -> Image:
    for chance, change in _PHOTOMETRIC:
        if rng.random() < chance:
            image = change(image, rng)
    return image


def _gamma(image: Image, rng: Generator) -> Image:
    return np.asarray(cv2.pow(np.clip(image, 0, 1), float(np.exp(rng.uniform(-0.8, 0.8)))))


def _curve(image: Image, rng: Generator) -> Image:
    steep, middle = rng.uniform(2, 9), rng.uniform(0.3, 0.7)
    return np.asarray(1 / (1 + np.exp(-steep * (image - middle))), np.float32)


def _window(image: Image, rng: Generator) -> Image:
    low, high = rng.uniform(-0.1, 0.25), rng.uniform(0.7, 1.1)
    return np.asarray(np.clip((image - np.float32(low)) / np.float32(high - low), 0, 1))


def _equalise(image: Image, rng: Generator) -> Image:
    clahe = cv2.createCLAHE(float(rng.uniform(1, 4)), (int(rng.integers(2, 9)),) * 2)
    return np.asarray(clahe.apply(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)), np.float32) / 255


def _field(side: int, amplitude: float, rng: Generator) -> Image:
    coarse = rng.uniform(-amplitude, amplitude, (side, side)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (GRID, GRID), interpolation=cv2.INTER_CUBIC))


def _bias(image: Image, rng: Generator) -> Image:
    side = int(rng.integers(2, 5))
    return image * (1 + _field(side, 0.35, rng)) if rng.random() < 0.5 else image + _field(side, 0.25, rng)


def _opacity(image: Image, rng: Generator) -> Image:
    """Soft bright patches: effusion, consolidation, breast shadow."""
    for _ in range(int(rng.integers(1, 4))):
        patch = np.zeros((64, 64), np.float32)
        centre, axes = rng.integers(8, 56, 2), rng.integers(3, 16, 2)
        cv2.ellipse(patch, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        patch[:] = cv2.GaussianBlur(patch, (0, 0), float(rng.uniform(1.5, 6)))
        image = image + np.float32(rng.uniform(-0.15, 0.45)) * cv2.resize(patch, (GRID, GRID))
    return image


def _blur(image: Image, rng: Generator) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 2.2))))


def _sharpen(image: Image, rng: Generator) -> Image:
    soft = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(1, 12)))
    return np.asarray(image + np.float32(rng.uniform(0.3, 1.5)) * (image - soft))


def _coarse(image: Image, rng: Generator) -> Image:
    side = int(rng.integers(64, 180))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (GRID, GRID), interpolation=int(rng.integers(0, 2))))


def _noise(image: Image, rng: Generator) -> Image:
    """Quantum noise grows as the square root of the dose; the film's does not."""
    noise = rng.standard_normal((GRID, GRID), np.float32)
    if rng.random() < 0.4:
        noise[:] = cv2.GaussianBlur(noise, (0, 0), 0.8) * 2
    strength = np.float32(rng.uniform(0.005, 0.09))
    return image + strength * noise * (np.sqrt(np.clip(image, 0, 1)) + np.float32(0.1) if rng.random() < 0.5 else 1)


def _grid_lines(image: Image, rng: Generator) -> Image:
    wave = np.sin(np.arange(GRID) * rng.uniform(0.3, 3)).astype(np.float32) * np.float32(rng.uniform(0.01, 0.06))
    return np.asarray(image + (wave[:, None] if rng.random() < 0.5 else wave[None, :]))


def _devices(image: Image, rng: Generator) -> Image:
    """Cables, tubes, electrodes, generators: bright, sharp, anywhere."""
    image = np.ascontiguousarray(image)
    for _ in range(int(rng.integers(1, 5))):
        bright = float(rng.uniform(0.6, 1.3))
        points = np.cumsum(np.vstack((rng.integers(0, GRID, 2), rng.normal(0, 30, (6, 2)))), axis=0).astype(np.int32)
        match int(rng.integers(3)):
            case 0:
                cv2.polylines(image, [points], False, bright, int(rng.integers(1, 4)), cv2.LINE_AA)
            case 1:
                cv2.circle(image, points[0].tolist(), int(rng.integers(2, 9)), bright, -1, cv2.LINE_AA)
            case _:
                corner = points[0] + rng.integers(8, 34, 2)
                cv2.rectangle(image, points[0].tolist(), corner.tolist(), bright, -1 if rng.random() < 0.7 else 2)
    return image


def _writing(image: Image, rng: Generator) -> Image:
    """Burned-in lines and side markers, at times on a box."""
    drawn, ink = np.zeros((GRID, GRID), np.uint8), np.float32(rng.choice((0.0, 1.0, 1.1)))
    image = np.ascontiguousarray(image)
    for _ in range(int(rng.integers(1, 5))):
        letters = "".join(rng.choice(list("LRABDEPX0123456789:/-. "), int(rng.integers(1, 12))))
        place, size = rng.integers(0, GRID, 2), float(rng.uniform(0.3, 1.0))
        if rng.random() < 0.4:
            corner = place + np.array([int(18 * size * len(letters)), -int(24 * size)])
            cv2.rectangle(image, place.tolist(), corner.tolist(), float(1 - min(float(ink), 1.0)), -1)
        font, thick = int(rng.integers(0, 4)), int(rng.integers(1, 3))
        cv2.putText(drawn, letters, place.tolist(), font, size, 255, thick, cv2.LINE_AA)
    share = drawn.astype(np.float32) / 255
    return image * (1 - share) + ink * share


_PHOTOMETRIC: tuple[tuple[float, Callable[[Image, Generator], Image]], ...] = (
    (0.15, _coarse),
    (0.6, _gamma),
    (0.25, _curve),
    (0.3, _window),
    (0.12, _equalise),
    (0.35, _bias),
    (0.2, _opacity),
    (0.25, _blur),
    (0.2, _sharpen),
    (0.4, _noise),
    (0.06, _grid_lines),
    (0.25, _devices),
    (0.3, _writing),
)


def _collimate(image: Image, rng: Generator) -> tuple[Image, NDArray[np.bool_]]:
    """Lead shutters: a rotated rectangle stays, the rest is black, white or dark with scatter."""
    if rng.random() > 0.25:
        return image, np.ones((GRID, GRID), bool)
    opening = np.zeros((GRID, GRID), np.uint8)
    size = rng.uniform(0.78, 1.05, 2) * GRID
    centre = GRID / 2 + rng.uniform(-0.05, 0.05, 2) * GRID
    corners = cv2.boxPoints((centre.tolist(), size.tolist(), float(rng.normal(0, 4))))
    cv2.fillConvexPoly(opening, np.rint(corners).astype(np.int32), 1)
    shade = np.float32(rng.choice((0.0, 0.0, 1.0, rng.random())))
    return np.where(opening > 0, image, shade + np.float32(0.05) * image), opening > 0
