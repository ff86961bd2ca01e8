"""What the ladder gains: looks of which the served form is unsure, before and after the form above it looked too.

    python -m benchmarks.ladder [--model models/chest-student/...] [--data FOLDER] [--split val] [--most 120] [--json]

Images with human masks, as they are and with the faults of `distillation.corruptions` (no training image shows them) at
three severities. `poor` is a lungs' mask with a Dice under 0.90; `silent`, a poor one that LOW_CONFIDENCE does not
name; `person`, what a site that reviews LOW_CONFIDENCE shows to a person. Needs the project's radiographs with masks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from distillation.corruptions import FAMILIES, OCCLUSION, corrupted
from distillation.data import read_image, read_index
from distillation.evaluate import People, people_of
from distillation.measures import dice
from services.inference import chest
from services.inference.chest import Look
from services.inference.findings import FAIL, PASS
from services.inference.ladder import LookingTwice, climb
from services.inference.preprocessing import preprocess
from services.inference.registry import Model, load
from shared import paths
from tests.shared_material import SHARED

POOR = 0.90
SEVERITIES = (1, 3, 5)


def measure(model: Path, data: Path, split: str, most: int) -> dict[str, dict[str, int | float]]:
    """By severity (0: as they are): counts of looks, and mean Dice of those that climbed, before and after."""
    served, above = load(model), load(model, whole=True)
    above.wrap(LookingTwice)
    counts = {severity: Counter[str]() for severity in (0, *SEVERITIES)}
    overlap: dict[int, list[tuple[float, float]]] = {severity: [] for severity in counts}
    items = [item for item in read_index(data) if item.split == split and item.convention]
    chosen = np.random.default_rng(1).permutation(len(items))[:most]
    for place in chosen.tolist():
        one = preprocess(read_image(data, items[place]))
        truth = people_of(data, items[place], one.geometry)
        for severity, family in ((0, ""), *((s, f) for s in SEVERITIES for f in (*FAMILIES, *OCCLUSION))):
            rng = np.random.default_rng((place, severity))
            grid = corrupted(one.grid, one.geometry, family, severity, rng) if family else one.grid

            def look(with_model: Model, grid: np.ndarray = grid) -> Look:
                return chest.look(with_model, grid, one.geometry, None, 1)  # noqa: B023 - called within this round

            first = look(served)
            beyond, rungs = climb(first, served, above, look)
            used = beyond[-1] if rungs and rungs[-1].used else first
            before, after = _dice(first, truth), _dice(used, truth)
            unsure, still = (chest.low_confidence(seen).outcome for seen in (first, used))
            counts[severity].update(
                looks=1,
                climbed=int(bool(rungs)),
                used=int(used is not first),
                poor=int(before < POOR),
                silent_before=int(before < POOR and unsure == PASS),
                silent_after=int(after < POOR and still == PASS),
                person_before=int(unsure != PASS),
                person_after=int(still != PASS),
                poor_shown_to_a_person=int(after < POOR and still != PASS),
                failed=int(still == FAIL),
            )
            if rungs:
                overlap[severity].append((before, after))
    return {
        str(severity): {
            **found,
            **{
                name: round(float(np.mean([pair[i] for pair in overlap[severity]])), 4) if overlap[severity] else 0.0
                for i, name in enumerate(("dice_of_climbed_before", "dice_of_climbed_after"))
            },
        }
        for severity, found in counts.items()
    }


def _dice(seen: Look, truth: People) -> float:
    """Dice of the lungs in the convention of the image, inside its letterbox."""
    names = ("lungs_full",) if 3 in truth.masks else ("right_lung_field", "left_lung_field")
    box = seen.where
    place = np.s_[box.top : box.top + box.height, box.left : box.left + box.width]
    ours = np.any([seen.nested[name].middle for name in names], axis=0)
    people = np.any([truth.masks[c] for c in ((3,) if 3 in truth.masks else (0, 1))], axis=0)[place]
    return dice(ours & truth.inside[place], people & truth.inside[place])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=paths.MODEL)
    parser.add_argument("--data", type=Path, default=None if SHARED is None else SHARED / "data" / "cxr")
    parser.add_argument("--split", default="val")
    parser.add_argument("--most", type=int, default=120, help="images at most")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.data is None:
        sys.exit("no radiographs here: say where they are with --data")
    found = measure(asked.model, asked.data, asked.split, asked.most)
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    names = list(found["0"])
    width = max(map(len, names))
    print(f"{'severity':{width}} " + "".join(f"{severity:>9}" for severity in found))
    for name in names:
        print(f"{name:{width}} " + "".join(f"{row.get(name, 0):>9}" for row in found.values()))


if __name__ == "__main__":
    main()
