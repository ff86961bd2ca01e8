"""How much written text the detector finds, by contrast and size; what it blanks for nothing; what it costs.

    python benchmarks/text_detection.py [--data FOLDER] [--images N] [--seed S] [--json] [--markers]

`--markers`: side markers (L, R, AP, PA) on radiographs instead, and how many of them redaction leaves; and how many
other lone letters, numbers and short words it takes for one.

Items of text are written into pieces of real images (radiographs of DATA's splits that training never saw, and real
DICOM objects of which training saw none) in fonts that training never saw. An item is found where at least 95 % of its
ink lies in boxes. Wrongly blanked is what lies in boxes further than a letter's height from any item. Average precision
is of boxes (right where half of one lies in an item) over the recall of items. Without DATA, pydicom's bundled objects
are the only background.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from services.redaction.clean_pixels import Policy
from services.redaction.clean_pixels import _text as text_of
from services.redaction.markers import ALLOWED
from shared import dicom
from shared.text_detector import Detector, Found

SURNAMES = ("BRANDT", "O'Neill", "Petrov", "LINDQVIST", "de Souza", "HAYES")
CONTRASTS = (20, 30, 40, 60, 90, 130, 180, 220)
SIZES = ((9, 11), (12, 15), (16, 22), (23, 30), (31, 40))
FONTS = ("DejaVuSansMono.ttf", "LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf", "FreeSerif.ttf",
         "RobotoCondensed-Regular.ttf", "Inconsolata.otf", "DejaVuSansMono-Bold.ttf")  # fmt: skip
STROKES = (cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL, cv2.FONT_HERSHEY_SIMPLEX)
# Rows and columns that show no text of their own; nothing of these objects was trained on.
OBJECTS = {
    "RG3_J2KR.dcm": (0, 1760, 700, 1760 - 560), "MR-SIEMENS-DICOM-WithOverlays.dcm": None, "eCT_Supplemental.dcm": None,
    "examples_overlay.dcm": None, "examples_ybr_color.dcm": (30, 190, 40, 230), "color-pl.dcm": None,
    "nih_dx_chest.dcm": (120, 1000, 0, 1024), "gdcm-US-ALOKA-16.dcm": (140, 390, 60, 580),
    "JPGExtended.dcm": None, "J2K_pixelrep_mismatch.dcm": None, "MR_small.dcm": None, "liver_1frame.dcm": None,
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One line of text: where its ink is (bool, whole image), its box (left, top, right, bottom), contrast and size."""

    ink: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    contrast: int
    size: int


def backgrounds(data: Path | None) -> list[tuple[str, NDArray[np.uint8]]]:
    """Kind and grey values, 0 to 255, of every background."""
    from pydicom.data import get_testdata_files

    paths = {Path(path).name: Path(path) for path in get_testdata_files("*.dcm")}
    found: list[tuple[str, NDArray[np.uint8]]] = []
    if data is not None:
        paths |= {path.name: path for path in (data / "dicom").glob("*.dcm")}
        rng = np.random.default_rng(3)
        with (data / "cxr" / "index.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] in ("val", "test", "test_crossvendor")]
        for source in sorted({row["source"] for row in rows}):
            some = [row for row in rows if row["source"] == source]
            for index in rng.permutation(len(some))[:6]:
                image = cv2.imread(str(data / "cxr" / "images" / f"{some[int(index)]['id']}.jpg"), cv2.IMREAD_GRAYSCALE)
                found.append((f"CR {source}", np.asarray(image, np.uint8)))
    for name, part in OBJECTS.items():
        if name in paths:
            found += [(kind, grey) for kind, grey in _object(paths[name], part)]
    return found


def _object(path: Path, part: tuple[int, int, int, int] | None) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    dataset = dicom.read(path.read_bytes())
    photometric = str(dataset.PhotometricInterpretation)
    try:
        frame = next(dicom.frames(dataset, rgb=photometric.startswith("YBR")))
    except dicom.StepwedgeError:
        return
    grey = np.asarray(frame, np.float32)
    grey = grey[..., :3].mean(2) if grey.ndim == 3 else grey
    low, high = np.percentile(grey, (0.5, 99.5))
    if photometric == "MONOCHROME1":
        low, high = high, low
    eight = np.clip((grey - low) / ((high - low) or 1) * 255, 0, 255).astype(np.uint8)
    top, bottom, left, right = part or (0, *eight.shape[:1], 0, *eight.shape[1:])
    yield str(dataset.get("Modality", "?")), np.ascontiguousarray(eight[top:bottom, left:right])


def planted(rng: np.random.Generator, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[Item]]:
    """The background, enlarged to at least 512 pixels, with one to six lines of text."""
    scale = max(1.0, 512 / max(image.shape)) * float(rng.uniform(1.0, 1.5))
    scale = min(scale, 1400 / max(image.shape))
    grey = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    taken = np.zeros(grey.shape, bool)
    items: list[Item] = []
    for _ in range(int(rng.integers(1, 7))):
        low, high = SIZES[int(rng.integers(len(SIZES)))]
        item = _item(rng, grey, taken, int(rng.integers(low, high + 1)), int(rng.choice(CONTRASTS)))
        items += [item] if item else []
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), items


def _text(rng: np.random.Generator) -> str:
    surname = rng.choice(["BRANDT", "O'Neill", "Petrov", "LINDQVIST", "de Souza", "HAYES"])
    name = rng.choice(["Eva", "Tom", "IRIS", "Karl"])
    number = "".join(rng.choice(list("0123456789"), int(rng.integers(5, 11))))
    day = f"{rng.integers(1, 29):02}/{rng.integers(1, 13):02}/{rng.integers(1930, 2025)}"
    return str(rng.choice([f"{surname}^{name}", f"{surname}, {name} {day}", f"MRN {number}", number, day,
                           f"Acc# {number}",
                           f"{name} {surname}", f"City Hospital {number[:3]}", f"DOB:{day}"]))  # fmt: skip


def _ink(rng: np.random.Generator, text: str, size: int) -> NDArray[np.float32]:
    if rng.random() < 0.3:
        face = int(rng.choice(STROKES))
        scale = cv2.getFontScaleFromHeight(face, max(6, round(size * 0.72)), 1)
        (width, height), base = cv2.getTextSize(text, face, scale, 1)
        image = np.zeros((height + base + 8, width + 8), np.uint8)
        cv2.putText(image, text, (4, height + 3), face, scale, 255, 1, cv2.LINE_AA)
        return image.astype(np.float32) / 255
    try:
        font: Any = ImageFont.truetype(str(rng.choice(FONTS)), size)
    except OSError:
        font = ImageFont.load_default(size)
    _, _, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (int(right) + 6, int(bottom) + 6))
    ImageDraw.Draw(canvas).text((3, 3), text, 255, font=font)
    return np.asarray(canvas, np.float32) / 255


def _item(
    rng: np.random.Generator, grey: NDArray[np.float32], taken: NDArray[np.bool_], size: int, contrast: int,
    text: str = "",
) -> Item | None:  # fmt: skip
    ink = _ink(rng, text or _text(rng), size)
    height, width = ink.shape
    if height >= grey.shape[0] or width >= grey.shape[1]:
        return None
    for _ in range(20):
        top, left = (int(rng.integers(0, n - m)) for n, m in zip(grey.shape, ink.shape, strict=True))
        around = taken[max(0, top - size) : top + height + size, max(0, left - size) : left + width + size]
        if not around.any():
            break
    else:
        return None
    place = grey[top : top + height, left : left + width]
    level = float(np.median(place))
    sign = 1 if (rng.random() < 0.5 and level + contrast <= 255) or level - contrast < 0 else -1
    value = level + sign * contrast
    if not 0 <= value <= 255:
        return None
    place[:] = place * (1 - ink) + value * ink
    drawn = np.zeros(grey.shape, bool)
    drawn[top : top + height, left : left + width] = ink > 0.5
    rows, columns = np.nonzero(drawn.any(1))[0], np.nonzero(drawn.any(0))[0]
    if not len(rows):
        return None
    taken[top : top + height, left : left + width] = True
    return Item(drawn, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1), contrast, size)


def covered(shape: tuple[int, ...], boxes: list[Found]) -> NDArray[np.bool_]:
    """What the boxes blank."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return mask


def matches(boxes: list[Found], items: list[Item]) -> list[tuple[float, bool]]:
    """Score of each box, and whether it is right: half of it or more lies in an item's box with a quarter of the
    letter's height around it."""
    found = []
    for box in boxes:
        right = False
        for item in items:
            left, top, far, low = item.box
            margin = max(3, item.size // 4)
            across = min(box.left + box.width, far + margin) - max(box.left, left - margin)
            down = min(box.top + box.height, low + margin) - max(box.top, top - margin)
            right |= across > 0 and down > 0 and across * down >= 0.5 * box.width * box.height
        found.append((box.score, right))
    return found


def average_precision(found: list[tuple[float, bool]], recalls: list[tuple[float, ...]], total: int) -> float:
    """Area under precision over recall. found: of each box; recalls: of each item, the least score that covers it."""
    ranked = sorted(found, reverse=True)
    needed = np.sort([score for (score,) in recalls])[::-1]
    points = []
    right = 0
    for n, (score, good) in enumerate(ranked, 1):
        right += good
        points.append((np.searchsorted(-needed, -score, "right") / max(1, total), right / n))
    area, last, best = 0.0, 0.0, [p for _, p in points]
    for n in range(len(best) - 2, -1, -1):
        best[n] = max(best[n], best[n + 1])
    for (recall, _), precision in zip(points, best, strict=True):
        area += max(0.0, recall - last) * precision
        last = max(last, recall)
    return float(area)


def measure(detector: Any, data: Path | None, count: int, seed: int) -> dict[str, Any]:
    """All figures but the time."""
    rng = np.random.default_rng(seed)
    pool = backgrounds(data)
    kinds: dict[str, list[Any]] = defaultdict(list)
    for index in range(count):
        kind, image = pool[index % len(pool)]
        kinds[kind].append(planted(rng, image))
    hit: dict[str, list[bool]] = defaultdict(list)
    wrong: list[float] = []
    boxes_seen: list[tuple[float, bool]] = []
    needed: list[tuple[float, ...]] = []
    for kind, made in kinds.items():
        for picture, items in made:
            boxes = detector.find(picture)
            mask = covered(picture.shape, boxes)
            allowed = np.zeros(picture.shape, bool)
            for item in items:
                left, top, far, low = item.box
                allowed[max(0, top - item.size) : low + item.size, max(0, left - item.size) : far + item.size] = True
                good = bool((mask & item.ink).sum() >= 0.95 * item.ink.sum())
                size = next(f"{a}-{b} px" for a, b in SIZES if a <= item.size <= b)
                for key in ("all", f"contrast {item.contrast}", size, kind):
                    hit[key].append(good)
                if good:
                    scores = [
                        box.score
                        for box in boxes
                        if item.ink[box.top : box.top + box.height, box.left : box.left + box.width].any()
                    ]
                    needed.append((min(scores),))
            wrong.append(float((mask & ~allowed).mean()))
            boxes_seen += matches(boxes, items)
    return {
        "items": len(hit["all"]), "images": len(wrong),
        "recall": {key: round(float(np.mean(values)), 4) for key, values in hit.items()},
        "counts": {key: len(values) for key, values in hit.items()},
        "average_precision": round(average_precision(boxes_seen, needed, len(hit["all"])), 4),
        "wrongly_blanked": {
            "median": float(np.median(wrong)), "mean": float(np.mean(wrong)), "p95": float(np.percentile(wrong, 95)),
        },
    }  # fmt: skip


OTHERS = (
    *"BCDEFGHIJKMNOQSTUVWXYZ0123456789", "LI", "RO", "AB", "PK", "42", "JD", "RL", "LE", "AR", "PO", "KARL", "EVA",
    "R2", "PAUL", "APEL", "L B", "R. SMITH", "PA KARL", "L. BRANDT", "RA", "PAT", "APE", "LR", "RB", "BL", "KR", "AL",
    "PL", "LP", "RP", "PAR", "AAP", "PA2", "L5", "R1", "1R", "7L", "LL", "RR", "PAPA", "R-P", "L/R", "BRANDT L",
    "SMITH, R", "LIN", "ROL", "IR", "IL", "PAL", "RAP", "TAP", "OPA", "EL", "ER", "GR", "FL", "BR", "DR", "MR",
)  # fmt: skip
"""What stands alone too, and is no marker: other letters and numbers, initials, names that begin or end like one."""


def markers(data: Path | None, count: int, seed: int) -> dict[str, Any]:
    """How many lone markers stay, and how much else does; letters 20 to 100 pixels high, contrast 50 to 220."""
    rng = np.random.default_rng(seed)
    pool = [image for kind, image in backgrounds(data) if kind.startswith(("CR", "DX"))]
    detector = Policy().detector()
    stays: dict[str, list[bool]] = defaultdict(list)
    for index in range(count):
        text = str(rng.choice(ALLOWED)) if index % 2 else str(rng.choice(OTHERS))
        image = pool[index // 2 % len(pool)]
        scale = max(1.0, 700 / max(image.shape))
        grey = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        taken = np.zeros(grey.shape, bool)
        item = _item(rng, grey, taken, int(rng.integers(20, 101)), int(rng.choice((50, 80, 120, 180, 220))), text)
        if item is None:
            continue
        picture = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        blanked, _ = text_of(picture, np.zeros(grey.shape, bool), "MONOCHROME2", detector, markers=True)
        left = bool((covered(grey.shape, blanked) & item.ink).sum() < 0.1 * item.ink.sum())
        seen = bool((covered(grey.shape, detector.find(picture)) & item.ink).sum() >= 0.5 * item.ink.sum())
        stays["marker" if text in ALLOWED else "other"].append(left)
        if seen:
            stays["marker, seen" if text in ALLOWED else "other, seen"].append(left)
    return {key: {"stay": round(float(np.mean(values)), 4), "of": len(values)} for key, values in stays.items()}


def seconds(detector: Any, data: Path | None) -> float:
    """CPU-seconds for one picture of 2 megapixels (1,408 by 1,440), the least of five."""
    cv2.setNumThreads(1)
    _, image = backgrounds(data)[0]
    picture, _ = planted(np.random.default_rng(1), cv2.resize(image, (1440, 1408)))
    picture = cv2.resize(picture, (1440, 1408))
    detector.find(picture)
    took = []
    for _ in range(5):
        start = time.process_time()
        detector.find(picture)
        took.append(time.process_time() - start)
    return min(took)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=20260701)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markers", action="store_true")
    chosen = parser.parse_args()
    sibling = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = chosen.data or (sibling if sibling.is_dir() else None)
    if chosen.markers:
        print(json.dumps(markers(data, chosen.images, chosen.seed), indent=1))
        return
    detector = Detector.load(chosen.model)
    result = {
        **measure(detector, data, chosen.images, chosen.seed),
        "cpu_seconds_2mpx": round(seconds(detector, data), 4),
    }
    if chosen.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['items']} items in {result['images']} images; average precision {result['average_precision']:.3f}")
    for key in sorted(result["recall"], key=lambda key: (key != "all", len(key), key)):
        print(f"  recall {key:<22} {result['recall'][key]:.3f}  (of {result['counts'][key]})")
    print("  wrongly blanked  median {median:.3%}  mean {mean:.3%}  p95 {p95:.3%}".format(**result["wrongly_blanked"]))
    print(f"  CPU-seconds for 2 megapixels {result['cpu_seconds_2mpx']:.3f}")


if __name__ == "__main__":
    main()
