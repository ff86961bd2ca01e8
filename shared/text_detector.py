"""Finds text in pictures: boxes around whatever is written, without reading it and without knowing why it is asked."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from shared.errors import ErrorCode, StepwedgeError
from shared.model_signatures import SIGNATURES, lacking

RELEASED: Final = Path(__file__).resolve().parent.parent / "models" / "text-detector" / "0.2.0"
"""The release that is served unless another is named."""
SIGNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "trained_by": ("dTFSafQyy7KX3t202XYe1RmExaSgVhlcFPM5u8OHjjg=",),
    "approved_by": ("6yF3DL2TCtNFhnGBqe7tPVKX5iFNRuzsDTDVq32t+SE=",),
}
"""Public keys (Ed25519, base64) of that release: development keys, made for it and thrown away (as those of
`shared.model_signatures`). A site that trains its own signs with its own."""
CELL: Final = 4
"""Side, in pixels, of the cells for which the network answers."""
MULTIPLE: Final = 32
"""Height and width of what the network is shown are multiples of this."""
TILE: Final = 384
"""Side of a tile; small enough for a processor's cache, which halves the time."""
HALO: Final = 32
"""What a tile sees on every side beyond the cells that are taken from it, pixels."""
SHRINK: Final = 4
"""A second look is taken at the picture this much smaller, for large letters."""
DOUBTFUL: Final = 0.3
"""Cells beside text count as text from this part of the threshold on."""
GAP: Final = 1.2
"""Words further apart than so many heights are not joined to a line."""
LARGE: Final = 4
"""Cells that large letters are high, at least, in the picture made smaller."""
ENDS: Final = 0.35
"""What is added at the ends of a line, in its heights: a last letter in a bright place is a letter all the same."""
MAX_WORDS: Final = 2000
"""In a picture with more of them no lines are looked for."""
MAX_PIXELS: Final = 1 << 28
"""Most pixels of one frame."""

_SCHEMA: Final = 1
_REACH: Final = 16 + HALO  # how far a changed pixel is felt: half the wider neighbourhood of `tensor`, a tile's halo
_FLAT: Final = 0.2  # of the second channel of `tensor`, reached by an edge of 3 grey levels: below it there is no text
_SLACK: Final = 0.05  # of a window
_GOLDEN_SLACK: Final = 0.01  # of a score; processors add up in other orders
_MAX_MODEL_BYTES: Final = 8 << 20
_GREY: Final = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """A rectangle that holds text, in pixels from the upper left corner; score: of its surest cell, 0 to 1."""

    left: int
    top: int
    width: int
    height: int
    score: float = 1.0


Window = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at a frame gave. windows: the ranges of values that were shown; scores: of each view's cells.
    exact: whether another look at the same frame, with nothing seen before, shows it just so."""

    found: list[Found]
    windows: list[Window | None]
    scores: list[NDArray[np.float32]]
    exact: bool = True


class Detector:
    """One detector in memory; `find` may be called from several threads.

    name, version: of the release. sha256: of the served file. threshold: score above which a cell is text.
    """

    def __init__(self, name: str, version: str, model: bytes, threshold: float) -> None:
        self.name, self.version, self.threshold = name, version, threshold
        self.sha256 = hashlib.sha256(model).hexdigest()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001 - the runtime raises types of its own that share no base
            raise _mismatch("the text detector does not load") from None

    @classmethod
    def load(cls, folder: Path | None = None, signers: Mapping[str, Collection[str]] = SIGNERS) -> Detector:
        """The release in `folder`, or the one that comes with the product, after it has found what it found when it
        was released.

        signers: the public keys trusted in each role (`shared.model_signatures`). Raises MODEL_NOT_FOUND where there is
        none, MODEL_DIGEST_MISMATCH where its files are not those of its manifest or nobody trusted signed that, and
        MODEL_SELF_TEST_FAILED.
        """
        folder = folder or RELEASED
        try:
            signed = (folder / "manifest.json").read_bytes()
            manifest: Mapping[str, Any] = json.loads(signed)
        except (OSError, ValueError):
            raise StepwedgeError(ErrorCode.ERROR_CODE_MODEL_NOT_FOUND, "there is no text detector") from None
        try:
            served, golden = str(manifest["served"]), str(manifest["golden"])
            if manifest["schema"] != _SCHEMA or any(Path(name).name != name for name in (served, golden)):
                raise ValueError
            threshold = float(manifest["threshold"])
            name, version = str(manifest["name"]), str(manifest["version"])
            signatures = (folder / SIGNATURES).read_bytes()
            data, expected = (_verified(folder / one, manifest["files"][one]["sha256"]) for one in (served, golden))
        except (OSError, ValueError, KeyError, TypeError):
            raise _mismatch("the text detector's manifest is not one that can be served here") from None
        why = lacking(signed, signatures, signers)
        if why or not 0 < threshold < 1:
            raise _mismatch(f"the text detector: {why or 'its threshold is none'}")
        detector = cls(name, version, data, threshold)
        detector.test(expected)
        return detector

    def test(self, golden: bytes) -> None:
        """Look at the golden picture; MODEL_SELF_TEST_FAILED where it is seen otherwise than at the release."""
        try:
            with np.load(io.BytesIO(golden), allow_pickle=False) as content:
                image, scores, boxes = content["image"], content["scores"], content["boxes"]
            seen = self.look(image)
            same = (
                seen.scores[0].shape == scores.shape and float(np.abs(seen.scores[0] - scores).max()) <= _GOLDEN_SLACK
            )
            found = [[one.left, one.top, one.width, one.height] for one in seen.found]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            same, found, boxes = False, [], np.empty((0, 4))
        if not same or found != boxes.tolist() or not found:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_MODEL_SELF_TEST_FAILED,
                "the text detector sees otherwise than when it was released",
            )

    def find(self, frame: NDArray[Any]) -> list[Found]:
        """Text of one frame [rows, columns] or [rows, columns, samples] of any real type, in any range.

        Raises ValueError where the frame is no picture.
        """
        return self.look(frame).found

    def look(self, frame: NDArray[Any], before: Seen | None = None, changed: Iterable[Found] = ()) -> Seen:
        """As `find`, with what is needed to look at the frame once more after places of it were `changed`.

        before: what was seen of the frame until then; only what the changed places reach is looked at anew, unless the
        whole has to be shown otherwise (darker, wider) than before. Raises ValueError where the frame is no picture.
        """
        if frame.ndim not in (2, 3) or frame.size == 0 or frame.dtype.kind not in "buif" or frame.size > MAX_PIXELS:
            raise ValueError("an array of real numbers of two dimensions, or three for colour, is needed")
        grey = _grey(frame)
        windows = _windows(grey, wide=frame.dtype.itemsize > 1)
        places = list(changed)
        if before is not None and not _alike(windows, before.windows):
            before = None
        exact = before is None or windows == before.windows
        windows = windows if before is None else before.windows
        found: list[Found] = []
        scores: list[NDArray[np.float32]] = []
        for window in windows:
            view = grey if window is None else _stretched(grey, *window)
            for scale in (1, SHRINK) if min(view.shape) >= 2 * SHRINK * MULTIPLE else (1,):
                known = None if before is None else before.scores[len(scores)]
                scores.append(self._view(view, scale, known, places))
                found += _boxes(scores[-1], self.threshold, scale, view.shape)
        return Seen(_distinct(found), windows, scores, exact)

    def _view(
        self, view: NDArray[np.float32], scale: int, known: NDArray[np.float32] | None, places: list[Found]
    ) -> NDArray[np.float32]:
        if scale > 1:
            size = (view.shape[1] // scale, view.shape[0] // scale)
            view = np.asarray(cv2.resize(view, size, interpolation=cv2.INTER_AREA), np.float32)
        if known is None:
            return self.scores(view)
        dirty = np.zeros(view.shape, bool)
        for one in places:
            rows = slice(max(0, one.top // scale - _REACH), (one.top + one.height) // scale + _REACH)
            dirty[rows, max(0, one.left // scale - _REACH) : (one.left + one.width) // scale + _REACH] = True
        return self.scores(view, known, dirty)

    def scores(
        self,
        grey: NDArray[np.float32],
        known: NDArray[np.float32] | None = None,
        dirty: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """How likely text is, 0 to 1, for every cell of grey values [h, w] from 0 to 255: [ceil(h/4), ceil(w/4)].

        known: the answer for other values, of which those that are not `dirty` [h, w] stand.
        """
        height, width = grey.shape
        cells = (-(-height // CELL), -(-width // CELL))
        answer = np.empty(cells, np.float32) if known is None else known.copy()
        inner, edge = TILE - 2 * HALO, HALO // CELL
        for top in range(0, height, inner):
            wanted = [
                left
                for left in range(0, width, inner)
                if dirty is None or dirty[top : top + inner, left : left + inner].any()
            ]
            if not wanted:
                continue
            strip = tensor(_reflected(grey, top - HALO, min(TILE, _up(height - top + 2 * HALO))))
            strip = _padded(strip, HALO, _up(width + 2 * HALO) - width - HALO)
            for left in wanted:
                taken = answer[top // CELL : (top + inner) // CELL, left // CELL : (left + inner) // CELL]
                seen = np.ascontiguousarray(strip[..., left : left + TILE])
                if float(np.abs(seen[0, 1]).max()) < _FLAT:
                    taken[:] = 0
                    continue
                logits = self._session.run(None, {"image": seen})[0][0, 0]
                part = logits[edge : edge + taken.shape[0], edge : edge + taken.shape[1]]
                taken[:] = 1 / (1 + np.exp(-part))
        return answer


@lru_cache(maxsize=1)
def _released() -> Detector:
    return Detector.load()


def find_text(frames: Iterable[NDArray[Any]]) -> Iterator[list[Found]]:
    """The text of each frame, by the detector that comes with the product; see `Detector.find` and `Detector.load`."""
    detector = _released()
    for frame in frames:
        yield detector.find(frame)


def tensor(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network sees of grey values [h, w] from 0 to 255: float32 [1, 2, h, w].

    First the distance from the mean of the neighbourhood (31 pixels wide) in its standard deviations, which makes all
    contrasts alike; then the distance from a narrower mean in grey levels, bent, which one strong edge nearby does not
    drown.
    """
    mean = cv2.boxFilter(grey, -1, (31, 31), borderType=cv2.BORDER_REFLECT_101)
    square = cv2.sqrBoxFilter(grey, -1, (31, 31), borderType=cv2.BORDER_REFLECT_101)
    spread = cv2.sqrt(np.maximum(square - mean * mean, 0.0)) + 3.0
    near = grey - cv2.boxFilter(grey, -1, (11, 11), borderType=cv2.BORDER_REFLECT_101)
    seen = np.empty((1, 2, *grey.shape), np.float32)
    np.divide(grey - mean, spread, out=seen[0, 0])
    np.clip(seen[0, 0], -4.0, 4.0, out=seen[0, 0])
    np.divide(near, np.abs(near) + 12.0, out=seen[0, 1])
    return seen


def _grey(frame: NDArray[Any]) -> NDArray[np.float32]:
    """Finite grey values of any range; of colours the luminance."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(frame, np.float32)
    if values.ndim == 3:
        values = values[..., 0] if values.shape[2] < 3 else values[..., :3] @ _GREY
    if frame.dtype.kind == "f" and not np.isfinite(values).all():
        values = np.nan_to_num(values, nan=0.0, posinf=3e38, neginf=-3e38)
    return np.ascontiguousarray(values)


def _windows(grey: NDArray[np.float32], *, wide: bool) -> list[Window | None]:
    """The ranges of values that are shown as 0 to 255; None for a picture that is shown as it is.

    A picture of many grey levels, whose bulk takes a small part of them (CT beside air and metal), is shown once more
    with that part stretched, as a person would window it.
    """
    step = max(1, int(np.sqrt(grey.size / 200_000)))
    sample = grey[::step, ::step]
    low, high = float(sample.min()), float(sample.max())
    if not wide and high - low >= 100:
        return [None]
    if wide:
        low, high = (float(value) for value in np.percentile(sample, (0.1, 99.9)))
    if not high > low:
        low, high = float(grey.min()), float(grey.max())
    if not wide:
        return [(low, high)]
    inside = sample[(sample > low) & (sample < high)]
    if inside.size > 1000:
        near, far = (float(value) for value in np.percentile(inside, (2, 98)))
        if 0 < far - near < 0.3 * (high - low):
            return [(low, high), (near, far)]
    return [(low, high)]


def _alike(windows: list[Window | None], others: list[Window | None]) -> bool:
    """Whether a picture is shown as before, but for what nobody would see."""
    if len(windows) != len(others):
        return False
    for one, other in zip(windows, others, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
            continue
        most = _SLACK * (other[1] - other[0])
        if abs(one[0] - other[0]) > most or abs(one[1] - other[1]) > most:
            return False
    return True


def _stretched(grey: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    if not high > low:
        return np.zeros_like(grey)
    scaled = (np.clip(grey, low, high) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.asarray(scaled, np.float32)


def _up(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE


def _mirror(indices: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Indices beyond either end, reflected back in."""
    period = max(1, 2 * size - 2)
    turned = np.abs(indices) % period
    return np.where(turned < size, turned, period - turned)


def _reflected(grey: NDArray[np.float32], top: int, count: int) -> NDArray[np.float32]:
    rows = np.arange(top, top + count)
    if top >= 0 and top + count <= len(grey):
        return grey[top : top + count]
    return np.ascontiguousarray(grey[_mirror(rows, len(grey))])


def _padded(strip: NDArray[np.float32], before: int, after: int) -> NDArray[np.float32]:
    width = strip.shape[3]
    columns = _mirror(np.arange(-before, width + after), width)
    inner = np.empty((*strip.shape[:3], before + width + after), np.float32)
    inner[..., before : before + width] = strip
    inner[..., :before] = strip[..., columns[:before]]
    inner[..., before + width :] = strip[..., columns[before + width :]]
    return inner


def _boxes(scores: NDArray[np.float32], threshold: float, scale: int, shape: tuple[int, ...]) -> list[Found]:
    """Rectangles around the groups of cells above the threshold, grown into doubtful cells beside them, as lines."""
    likely = (scores > threshold * DOUBTFUL).astype(np.uint8)
    # A word is wider than its letters: cells one apart in a row belong together.
    joined = cv2.morphologyEx(likely, cv2.MORPH_CLOSE, np.ones((1, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    found: list[Found] = []
    for label in range(1, count):
        left, top, width, height, size = (int(value) for value in stats[label])
        window = slice(top, top + height), slice(left, left + width)
        part = labels[window] == label
        score = float(scores[window][part].max())
        if score <= threshold or (size < 2 and score < 0.9):
            continue  # nothing sure, or one doubtful cell, which is no letter
        for y, x, tall, broad in _filled(part):
            found.append(Found(left + x, top + y, broad, tall, round(score, 4)))
    lines = _lines(found)
    if scale > 1:  # small letters, shrunk to dots, are the first look's
        lines = [one for one in lines if min(one.height, one.width) >= LARGE]
    return [_box(one, scale, shape) for one in lines]


def _lines(words: list[Found]) -> list[Found]:
    """Words of one line as one rectangle, with what stands between them: writing that crosses a bright place does not
    end there. Turned writing likewise, upwards."""
    if len(words) > MAX_WORDS:
        return words
    upright = [one for one in words if one.height > 1.5 * one.width]
    level = [one for one in words if one.height <= 1.5 * one.width]
    return _joined(level) + [_turned(one) for one in _joined([_turned(one) for one in upright])]


def _turned(one: Found) -> Found:
    return Found(one.top, one.left, one.height, one.width, one.score)


def _joined(words: list[Found]) -> list[Found]:
    lines: list[Found] = []
    for word in sorted(words, key=lambda one: one.left):
        for number, line in enumerate(lines):
            low, high = sorted((line.height, word.height))
            shared = min(line.top + line.height, word.top + word.height) - max(line.top, word.top)
            gap = word.left - line.left - line.width
            if shared >= 0.6 * low and high <= 1.8 * low + 1 and gap <= GAP * high:
                top, right = min(line.top, word.top), max(line.left + line.width, word.left + word.width)
                bottom = max(line.top + line.height, word.top + word.height)
                score = max(line.score, word.score)
                lines[number] = Found(line.left, top, right - line.left, bottom - top, score)
                break
        else:
            lines.append(word)
    return lines


def _filled(part: NDArray[np.bool_], depth: int = 6) -> Iterator[tuple[int, int, int, int]]:
    """The part as rectangles (top, left, height, width) that are filled for the most part: slanting text is cut up."""
    rows, columns = np.nonzero(part.any(1))[0], np.nonzero(part.any(0))[0]
    if not len(rows):
        return
    top, left = int(rows[0]), int(columns[0])
    part = part[top : rows[-1] + 1, left : columns[-1] + 1]
    height, width = part.shape
    if depth == 0 or part.mean() > 0.55 or max(height, width) < 4:
        yield top, left, height, width
        return
    half = max(height, width) // 2
    pieces = (
        ((0, 0, part[:half]), (half, 0, part[half:]))
        if height > width
        else ((0, 0, part[:, :half]), (0, half, part[:, half:]))
    )
    for y, x, piece in pieces:
        for found in _filled(piece, depth - 1):
            yield top + y + found[0], left + x + found[1], found[2], found[3]


def _box(cells: Found, scale: int, shape: tuple[int, ...]) -> Found:
    """Cells as pixels of the whole picture, with half a cell around, and a part of the height at the ends."""
    side, margin = CELL * scale, CELL // 2
    end = margin + round(ENDS * side * min(cells.height, cells.width))
    across, down = (end, margin) if cells.width >= cells.height else (margin, end)
    left, top = max(0, cells.left * side - across), max(0, cells.top * side - down)
    right = min(shape[1], (cells.left + cells.width) * side + across)
    bottom = min(shape[0], (cells.top + cells.height) * side + down)
    return Found(left, top, max(1, right - left), max(1, bottom - top), cells.score)


def _distinct(found: list[Found]) -> list[Found]:
    """Without those that lie inside another."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda box: -box.width * box.height):
        if not any(_inside(one, other) for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda box: (box.top, box.left))


def _inside(one: Found, other: Found) -> bool:
    return (
        other.left <= one.left
        and other.top <= one.top
        and one.left + one.width <= other.left + other.width
        and one.top + one.height <= other.top + other.height
    )


def _verified(path: Path, digest: str) -> bytes:
    data = path.read_bytes()
    if len(data) > _MAX_MODEL_BYTES or hashlib.sha256(data).hexdigest() != digest:
        raise ValueError
    return data


def _mismatch(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH, words)
