"""Average precision of everything that is detected, by the rules of COCO: side markers, text, objects over the lungs.

    python -m benchmarks.detection [markers|read|text|objects ...] [--images N] [--final] [--data FOLDER]

`markers`: letters R, L, AP and PA, light, in fonts of which no shape was taken, written into radiographs beside other
lone letters, initials and words; each of the four is a class. `text`: lines of text, one class. `objects`: things drawn
over lungs (`benchmarks.planted_objects`), one class; a box of truth is what lies over the lungs. mAP is the mean over
classes and overlaps (IoU) of 0.5 to 0.95; AP10, AP30 and AP50 are at one overlap. A marker is read or not, without a
score, so that its AP is about its recall times its precision. Boxes of text are grown to cover its ink, and those of
objects hold the parts that stand out: neither is made for a large overlap.

`read`: no drawing. Of the radiographs as they came and in a mirror: how many carry a marker that is read, and what it
says of the sides; all of them stand as they should. `--final`: the splits that are kept for the final report, and no
others. Needs the project's radiographs and pycocotools (extra `train`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import planted_objects, text_detection
from benchmarks.planted_objects import CONTRASTS, KINDS, SIZES
from benchmarks.quality import SEED, chosen, pictures
from benchmarks.text_detection import OTHERS, backgrounds
from services.inference import chest, side_markers
from services.inference.assess import Assessor
from services.inference.in_the_way import objects, over_the_lungs, pieces, working_picture
from services.inference.preprocessing import preprocess
from services.inference.registry import Model
from shared import paths
from shared.text_detector import Detector
from tests.shared_material import SHARED

PARTS: Final = ("markers", "read", "text", "objects")
OVERLAPS: Final = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
Rectangle = tuple[float, float, float, float]
"""Left, top, width, height."""
Truth = list[tuple[str, Rectangle]]
Boxes = list[tuple[str, Rectangle, float]]


def average_precision(images: Iterator[tuple[Truth, Boxes]]) -> dict[str, float]:
    """Of what was found, by COCO: mAP, AP and recall at single overlaps."""
    from pycocotools.cocoeval import COCOeval

    names: dict[str, int] = {}
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    count = 0
    for there, boxes in images:
        count += 1
        for entries, name, box, score in (
            *((truth, name, box, 1.0) for name, box in there),
            *((found, name, box, score) for name, box, score in boxes),
        ):
            category = names.setdefault(name, len(names) + 1)
            one = {"id": len(entries) + 1, "image_id": count, "category_id": category, "score": score, "iscrowd": 0}
            entries.append({**one, "bbox": [float(end) for end in box], "area": float(box[2] * box[3])})
    with contextlib.redirect_stdout(io.StringIO()):
        judged = COCOeval(*(_annotated(entries, count, names) for entries in (truth, found)), "bbox")
        judged.params.iouThrs = np.array([0.1, 0.3, *OVERLAPS])
        judged.evaluate()
        judged.accumulate()
    classes = sorted({one["category_id"] - 1 for one in truth})
    precision, recall = (np.moveaxis(judged.eval[what], -3, 0)[classes, ..., 0, -1] for what in ("precision", "recall"))
    return {
        "boxes": len(truth),
        "mAP": float(precision[:, 2:].mean()),
        "AP50": float(precision[:, 2].mean()),
        "AP30": float(precision[:, 1].mean()),
        "AP10": float(precision[:, 0].mean()),
        "recall at 50": float(recall[:, 2].mean()),
        "at 10": float(recall[:, 0].mean()),
    }


def _annotated(entries: list[dict[str, Any]], count: int, names: Mapping[str, int]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, count + 1)],
        "annotations": entries,
        "categories": [{"id": number, "name": name} for name, number in names.items()],
    }
    coco.createIndex()
    return coco


def markers(count: int) -> Iterator[tuple[Truth, Boxes]]:
    """One marker and one other thing in each radiograph."""
    random = np.random.default_rng(SEED)
    pool = [image for kind, image in backgrounds(_shared()) if kind.startswith(("CR", "DX"))]
    for index in range(count):
        image = pool[index % len(pool)]
        grey = cv2.resize(image, None, fx=900 / max(image.shape), fy=900 / max(image.shape)).astype(np.float32)
        carried = {one.text: one.box for one in _read(_eight(grey))}
        taken = np.zeros(grey.shape, bool)
        truth: Truth = []
        for text in (str(random.choice(["R", "L", "AP", "PA"])), str(random.choice(OTHERS))):
            size, contrast = int(random.integers(16, 80)), int(random.choice((50, 80, 120, 180)))
            place = _write(random, grey, taken, text, size, contrast)
            if place is not None and text in side_markers.SIDES | side_markers.VIEWS:
                truth.append((text, place))
        boxes: Boxes = [(one.text, _rectangle(one.box), 1.0) for one in _read(_eight(grey))]
        own = [_rectangle(box) for box in carried.values()]  # what the radiograph carried before
        yield truth, [one for one in boxes if one[1] not in own]


def _write(
    random: np.random.Generator,
    grey: NDArray[np.float32],
    taken: NDArray[np.bool_],
    text: str,
    size: int,
    contrast: int,
) -> Rectangle | None:
    """Light ink in a place where nothing was written; None where there is none."""
    ink = text_detection._ink(random, text, size)
    if ink.shape[0] >= grey.shape[0] or ink.shape[1] >= grey.shape[1]:
        return None
    for _ in range(30):
        top, left = (int(random.integers(0, n - m)) for n, m in zip(grey.shape, ink.shape, strict=True))
        window = (slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1]))
        around = taken[max(0, top - 2 * size) : window[0].stop + 2 * size, max(0, left - 2 * size) :]
        level = float(np.median(grey[window]))
        if level + contrast <= 255 and not around[:, : ink.shape[1] + 4 * size].any():
            break
    else:
        return None
    grey[window] = grey[window] * (1 - ink) + (level + contrast) * ink
    taken[window] = True
    rows, columns = np.nonzero((ink > 0.5).any(1))[0], np.nonzero((ink > 0.5).any(0))[0]
    return left + columns[0], top + rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]


def _eight(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _read(image: NDArray[np.uint8]) -> list[side_markers.Marker]:
    return side_markers.find(image, preprocess(image), inverted=False)


def _rectangle(box: Any) -> Rectangle:
    return float(box.left), float(box.top), float(box.width), float(box.height)


def text(count: int) -> Iterator[tuple[Truth, Boxes]]:
    """One to six lines in each picture."""
    random, detector, pool = np.random.default_rng(SEED), Detector.load(), backgrounds(_shared())
    for index in range(count):
        picture, items = text_detection.planted(random, pool[index % len(pool)][1])
        truth: Truth = [
            ("text", (left, top, right - left, low - top)) for left, top, right, low in (one.box for one in items)
        ]
        yield truth, [("text", _rectangle(one), one.score) for one in detector.find(picture)]


def drawn_objects(count: int, data: Path, *, final: bool) -> Iterator[tuple[Truth, Boxes]]:
    """One object in each radiograph."""
    model, random = Assessor(paths.MODEL, threads=1).model, np.random.default_rng(SEED)
    each = -(-count // len(chosen(data, 1, final=final)))
    images = (image for rows in chosen(data, each, final=final).values() for image in pictures(data, rows))
    for index, image in enumerate(images):
        if index == count:
            return
        lungs = _lungs(model, image)
        if not lungs.any():
            continue
        kind, size, contrast = list(KINDS)[index % len(KINDS)], index % 3, CONTRASTS[index // 3 % len(CONTRASTS)]
        spoiled, place = planted_objects.plant(image, lungs, kind, SIZES[kind][size], contrast, random)
        seen = _lungs(model, spoiled)
        rows, columns = (np.nonzero((place & lungs).any(axis))[0] for axis in (1, 0))
        if not len(rows) or not seen.any():
            continue
        prepared = preprocess(spoiled)
        picture = working_picture(spoiled, inverted=False, low=prepared.low, high=prepared.high)
        down, across = image.shape[0] / picture.shape[0], image.shape[1] / picture.shape[1]
        found = objects(pieces(picture, over_the_lungs(seen, picture.shape)), -10.0)
        boxes: Boxes = [
            ("object", (left * across, top * down, width * across, height * down), one.score)
            for one in found
            for top, left, height, width in (one.place,)
        ]
        box = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
        yield [("object", box)], boxes


def _lungs(model: Model, image: NDArray[Any]) -> NDArray[np.bool_]:
    """The lungs on the image's own pixels."""
    prepared = preprocess(image)
    seen = chest.look(model, prepared.grid, prepared.geometry, None, 0)
    lungs = seen.nested["lungs_full"].middle.astype(np.uint8)
    return cv2.resize(lungs, image.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


def read(data: Path, most: int, *, final: bool) -> None:
    """Print what the markers that radiographs carry say."""
    total: dict[str, Counter[str]] = {}
    for group, rows in chosen(data, most, final=final).items():
        count = total.setdefault(group.split()[0], Counter())
        for image in pictures(data, rows):
            count["images"] += 1
            for how, shown in (("as it came", image), ("in a mirror", np.ascontiguousarray(image[:, ::-1]))):
                places = [
                    (one.text, (one.box.left + one.box.width / 2) / shown.shape[1] - 0.5)
                    for one in _read(shown)
                    if one.text in side_markers.SIDES
                ]
                said = {(text == "L") != (aside > 0) for text, aside in places if abs(aside) > side_markers.MIDDLE}
                count[how] += bool(said)
                count[how + ", wrong"] += said not in (set(), {how == "in a mirror"})
    for source, count in total.items():
        print(f"{source}: {count['images']} images")
        for how in ("as it came", "in a mirror"):
            share = 100 * count[how] / count["images"]
            print(f"    {how}: a side is read on {count[how]} ({share:.1f} %), {count[how + ', wrong']} of them wrong")


def _shared() -> Path | None:
    return None if SHARED is None else SHARED / "data"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="of " + ", ".join(PARTS))
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--final", action="store_true")
    parser.add_argument("--data", type=Path, default=None if SHARED is None else SHARED / "data" / "cxr")
    asked = parser.parse_args()
    if asked.data is None:
        sys.exit("needs the project's radiographs: --data FOLDER")
    if wrong := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(wrong))}")
    cv2.setNumThreads(1)
    for part in asked.parts or PARTS:
        if part == "read":
            read(asked.data, asked.images, final=asked.final)
            continue
        made = {
            "markers": lambda: markers(asked.images),
            "text": lambda: text(asked.images),
            "objects": lambda: drawn_objects(asked.images, asked.data, final=asked.final),
        }[part]
        print(f"{part}: " + ", ".join(f"{key} {value:.3g}" for key, value in average_precision(made()).items()))


if __name__ == "__main__":
    main()
