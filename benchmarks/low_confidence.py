"""What LOW_CONFIDENCE tells of poor outlines: confidence beside the Dice with people's outlines, on radiographs as they
came and on the same spoiled with numpy alone.

`python -m benchmarks.low_confidence [--model FOLDER] [--final]` prints, for each threshold, how many of the images as
they came would go to a person, how many of the spoiled, and how many of the poor outlines among either.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import SEED, WITHHELD, pictures, rows_of
from services.inference import chest, thresholds
from services.inference.assess import Assessor
from services.inference.preprocessing import preprocess
from shared import paths
from tests.shared_material import SHARED

Image = NDArray[Any]
POOR: Final = 0.90
"""Dice under which an outline counts as poor."""


def _noise(image: Image, strength: float, make: np.random.Generator) -> Image:
    return image + make.normal(0, strength, image.shape)


def _smear(image: Image, strength: float, make: np.random.Generator) -> Image:
    """The patient moved while the image was taken."""
    step = max(1, round(strength * max(image.shape)))
    return np.asarray(np.mean([np.roll(image, shift, 0) for shift in range(-step, step + 1)], axis=0))


def _flatten(image: Image, strength: float, make: np.random.Generator) -> Image:
    """Next to no contrast, and noise."""
    return 128 + strength * (image - 128) + make.normal(0, 4, image.shape)


def _whiten(image: Image, strength: float, make: np.random.Generator) -> Image:
    """One half is white."""
    spoiled = image.astype(np.float64)
    half = slice(0, image.shape[1] // 2) if make.random() < 0.5 else slice(image.shape[1] // 2, None)
    spoiled[:, half] = spoiled[:, half] * (1 - strength) + 230 * strength
    return spoiled


def _cut(image: Image, strength: float, make: np.random.Generator) -> Image:
    """Only a part of the chest."""
    rows, columns = (round(length * (1 - strength)) for length in image.shape)
    top, left = make.integers(image.shape[0] - rows + 1), make.integers(image.shape[1] - columns + 1)
    spoiled = np.zeros(image.shape)
    spoiled[top : top + rows, left : left + columns] = image[top : top + rows, left : left + columns]
    return spoiled


SPOILERS: Final[tuple[tuple[Callable[[Image, float, np.random.Generator], Image], tuple[float, ...]], ...]] = (
    (_noise, (25.0, 60.0)),
    (_smear, (0.02, 0.06)),
    (_flatten, (0.15, 0.05)),
    (_whiten, (0.6, 0.95)),
    (_cut, (0.3, 0.55)),
)


def _dice(one: Image, other: Image) -> float:
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 0.0


def measured(
    assessor: Assessor, data: Path, most: int, splits: tuple[str, ...]
) -> list[tuple[str, str, float, float, bool]]:
    """Source, how it was spoiled ("" for not at all), confidence, Dice of the lungs and whether the image is refused
    anyway (turned, no chest), of every look."""
    found = []
    make = np.random.default_rng(SEED)
    rows = [row for row in rows_of(data) if row["split"] in splits and row["mask_convention"] == "full"]
    rows = random.Random(SEED).sample(rows, min(most, len(rows)))
    for row, image in zip(rows, pictures(data, rows), strict=True):
        mask = cv2.imread(str(data / "masks" / f"{row['id']}.png"), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            continue
        spoil, strengths = SPOILERS[make.integers(len(SPOILERS))]
        looks = [("", image)]
        for strength in strengths:
            spoiled = np.rint(np.clip(spoil(image.astype(np.float64), strength, make), 0, 255)).astype(np.uint8)
            looks.append((f"{spoil.__name__[1:]} {strength:g}", spoiled))
        for how, shown in looks:
            prepared = preprocess(shown)
            seen = chest.look(assessor.model, prepared.grid, prepared.geometry, None, 0)
            where = prepared.geometry
            truth = cv2.resize((mask == 1).astype(np.uint8), (where.width, where.height), interpolation=cv2.INTER_AREA)
            refused = seen.is_foreign() or chest.quarter_turns(seen) > 0
            refused = refused or seen.probabilities["inverted"] >= thresholds.INVERTED.fail
            dice = _dice(seen.nested["lungs_full"].middle, truth > 0)
            found.append((row["source"], how, seen.confidence, dice, refused))
    return found


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None if SHARED is None else SHARED / "data" / "cxr")
    parser.add_argument("--model", type=Path, default=paths.MODEL, help="folder of a release")
    parser.add_argument("--most", type=int, default=600)
    parser.add_argument("--final", action="store_true", help="the splits kept for the final report, and no others")
    asked = parser.parse_args()
    assessor = Assessor(asked.model)
    print(f"model {assessor.model.name} {assessor.model.version}, seed {SEED}; poor: Dice under {POOR}")
    splits = WITHHELD if asked.final else ("val", "train")
    looks = measured(assessor, asked.data, asked.most, splits)
    left = [one for one in looks if not one[4]]
    print(f"{len(looks)} looks, of which {len(looks) - len(left)} are refused for another reason")
    clean, spoiled = ([one for one in left if bool(one[1]) is state] for state in (False, True))
    for name, group in (("as they came", clean), ("spoiled", spoiled)):
        poor = sum(one[3] < POOR for one in group)
        print(f"{name}: {len(group)}, poor {poor}")
        if not group:
            continue
        scores = np.array([one[2] for one in group])
        print("    confidence, percentiles 0.5 / 1 / 2 / 5 / 50:", np.percentile(scores, (0.5, 1, 2, 5, 50)).round(3))
    for limit in (0.65, 0.75, 0.80, 0.82, 0.84, 0.86, 0.88, 0.90):
        words = []
        for name, group in (("as they came", clean), ("spoiled", spoiled)):
            asked_about = sum(one[2] < limit for one in group)
            bad = [one for one in group if one[3] < POOR]
            caught = sum(one[2] < limit for one in bad)
            words.append(
                f"{name} {100 * asked_about / max(1, len(group)):5.1f} % asked about, "
                f"{caught} of {len(bad)} poor outlines among them"
            )
        print(f"confidence under {limit:.2f}: {'; '.join(words)}")


if __name__ == "__main__":
    main()
