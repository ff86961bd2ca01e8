"""Objects in the way of the lungs: false alarms on real radiographs, objects planted in them, and how the weights are
fitted.

`python -m benchmarks.objects [alarms|planted|phantom|cost|fit] [--model FOLDER] [--final]`; all but `fit` by default.
`alarms` prints, by source and view, how many radiographs raise OBJECT_IN_THE_WAY, and which; whether they show an
object is for a person to look at (`--shown FILE`, a list of those that do, takes them out of the count; by default the
list of training and validation images beside this file). `planted` draws objects into radiographs that raise nothing
and prints how many are found by kind, size and contrast; `phantom` does it with the digital phantom; `cost` prints the
time of the processor for an image of 2048 x 2560 pixels. `fit` prints the weights of services/inference/in_the_way.py,
for a score of 0 that 1.5 % of the radiographs without an object exceed; it uses training and validation images alone.
With `--final` the others look at the splits that are kept for the final report, and at no others.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import planted_objects
from benchmarks.planted_objects import CONTRASTS, KINDS, SIZES
from benchmarks.quality import SEED, Row, chosen, pictures
from services.inference import chest, in_the_way, thresholds
from services.inference.assess import AssessmentResult, Assessor
from services.inference.findings import FAIL, WARN, name
from services.inference.preprocessing import preprocess
from shared import paths, phantom
from stepwedge.common.v1.common_pb2 import Finding
from tests.shared_material import SHARED

PARTS: Final = ("alarms", "planted", "phantom", "cost")
Image = NDArray[Any]
FALSE_ALARMS: Final = 0.015
SHOWN: Final = Path(__file__).with_name("radiographs_with_objects.txt")


def found_in(result: AssessmentResult) -> Finding | None:
    """The finding, where it tells of an object."""
    for one in result.findings:
        if name(one.code) == "OBJECT_IN_THE_WAY" and one.outcome in (WARN, FAIL):
            return one
    return None


def alarms(assessor: Assessor, data: Path, most: int, shown: frozenset[str], *, final: bool) -> None:
    """Print how many radiographs raise the finding, and which."""
    groups: dict[str, list[tuple[Row, Finding | None]]] = defaultdict(list)
    for group, rows in chosen(data, most, final=final).items():
        for row, image in zip(rows, pictures(data, rows), strict=True):
            groups[" ".join(group.split()[:2])].append((row, found_in(assessor.assess_array(image))))
    for group, looks in groups.items():
        told = [(row["id"], one) for row, one in looks if one is not None]
        clean = [row["id"] for row, _ in looks if row["id"] not in shown]
        false = [place for place, _ in told if place not in shown]
        hiding = sum(one.outcome == FAIL for _, one in told)
        print(f"{group}: {len(looks)} images, {len(told)} alarms ({100 * len(told) / len(looks):.1f} %), {hiding} FAIL")
        if shown:
            print(f"    of {len(clean)} that show none: {len(false)} ({100 * len(false) / max(1, len(clean)):.1f} %)")
        print(f"    {' '.join(place for place, _ in told)}", flush=True)


def planted(assessor: Assessor, data: Path, most: int, *, final: bool) -> None:
    """Print how many planted objects are found: an alarm whose box touches the object."""
    told: dict[tuple[str, int, float], list[bool]] = defaultdict(list)
    turn = 0
    for rows in chosen(data, most, final=final).values():
        for row, image in zip(rows, pictures(data, rows), strict=True):
            before = assessor.assess_array(image)
            lungs = before.masks.get("lungs_full")
            if found_in(before) is not None or lungs is None or not lungs.any():
                continue
            random = np.random.default_rng([SEED, zlib.crc32(row["id"].encode())])
            for _ in range(4):
                kind = list(KINDS)[turn % len(KINDS)]
                size, contrast = (turn // len(KINDS)) % 3, CONTRASTS[(turn // 3) % len(CONTRASTS)]
                turn += 1
                spoiled, place = planted_objects.plant(image, lungs > 0, kind, SIZES[kind][size], contrast, random)
                one = found_in(assessor.assess_array(spoiled))
                told[kind, size, contrast].append(one is not None and _touches(one, place))
    print("kind        " + "".join(f"  contrast {contrast:<13g}" for contrast in CONTRASTS))
    for kind in [*KINDS, "all"]:
        cells = []
        for contrast in CONTRASTS:
            by_size = [
                [
                    hit
                    for (k, s, c), hits in told.items()
                    if kind in (k, "all") and s == size and c == contrast
                    for hit in hits
                ]
                for size in range(3)
            ]
            cells.append(" ".join(f"{100 * sum(hits) / max(1, len(hits)):4.0f}" for hits in by_size) + " % ")
        print(f"{kind:12s}" + "".join(f"  {cell:22s}" for cell in cells))
    print(f"small, middling and large in each cell; {sum(map(len, told.values()))} objects")


def _touches(one: Finding, place: NDArray[np.bool_]) -> bool:
    return any(bool(place[box.top : box.top + box.height, box.left : box.left + box.width].any()) for box in one.boxes)


def of_phantom(assessor: Assessor, seeds: int) -> None:
    """Print what is told of phantoms with and without objects."""
    told: dict[str, list[bool]] = defaultdict(list)
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        side = float(random.choice([-1.0, 1.0]))
        places = {
            "coin": (side * random.uniform(60, 95), random.uniform(130, 260)),
            "electrode": (side * random.uniform(60, 95), random.uniform(130, 220)),
            "necklace": (random.uniform(-10, 10), random.uniform(140, 180)),
        }
        for kind, (x, y) in {"nothing": (0.0, 0.0), **places}.items():
            objects = () if kind == "nothing" else (phantom.Foreign(kind, x, y),)  # type: ignore[arg-type]
            drawn = phantom.chest(seed, columns=512, rows=640, foreign=objects)
            one = found_in(assessor.assess_array(drawn.image, spacing_mm=(drawn.spacing_mm,) * 2))
            told[kind].append(one is not None and (not objects or _touches(one, drawn.masks["foreign"] > 0)))
    for kind, hits in told.items():
        print(f"phantom with {kind}: told in {sum(hits)} of {len(hits)}")


def cost(assessor: Assessor) -> None:
    """Print the milliseconds of the processor that the finding takes of a large image."""
    drawn = phantom.chest(3, columns=2048, rows=2560)
    prepared = preprocess(drawn.image)
    seen = chest.look(assessor.model, prepared.grid, prepared.geometry, None, 0)
    took = []
    for _ in range(20):
        start = time.process_time()
        in_the_way.finding_of(seen, drawn.image, inverted=False, low=prepared.low, high=prepared.high)
        took.append(1000 * (time.process_time() - start))
    print(f"2048 x 2560 pixels: {np.median(took):.1f} ms of the processor (median of {len(took)})")


# --- fitting -----------------------------------------------------------------------------------------------------


def _looks(
    assessor: Assessor, data: Path, most: int, shown: frozenset[str]
) -> Iterator[tuple[str, bool, list[tuple[NDArray[np.float64], float]]]]:
    """The radiograph, whether an object was planted that should be told, and the measures of its pieces with the share
    of each that lies in the object (NaN where that must not count)."""
    for group, rows in chosen(data, most, final=False).items():
        if group.startswith(("hannover", "covid")):  # nearly all of the bedside, with leads
            continue
        for row, image in zip(rows, pictures(data, rows), strict=True):
            if row["id"] in shown:
                continue
            prepared = preprocess(image)
            seen = chest.look(assessor.model, prepared.grid, prepared.geometry, None, 0)
            if not chest.measurable(seen):
                continue
            middle = seen.nested["lungs_full"].middle
            lungs = cv2.resize(middle.astype(np.uint8), image.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
            yield row["id"], False, [(one, 0.0) for one, _ in _measured(image, middle)]
            random = np.random.default_rng([SEED + 1, zlib.crc32(row["id"].encode())])
            for _ in range(2):
                kind = list(KINDS)[random.integers(len(KINDS))]
                size, contrast = SIZES[kind][random.integers(3)], CONTRASTS[1 + random.integers(3)]
                spoiled, place = planted_objects.plant(image, lungs, kind, size, contrast, random)
                yield row["id"], True, [(one, share(place)) for one, share in _measured(spoiled, middle)]


def _measured(image: Image, middle: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.float64], Any]]:
    low, high = (float(one) for one in np.percentile(image, (1, 99)))
    picture = in_the_way.working_picture(image, inverted=False, low=low, high=high)
    lungs = in_the_way.over_the_lungs(middle, picture.shape)
    for measures, (top, left, height, width), own in in_the_way.measured(picture, lungs):

        def share(
            place: NDArray[np.bool_],
            own: NDArray[np.bool_] = own,
            box: tuple[int, int, int, int] = (top, left, height, width),
        ) -> float:
            small = cv2.resize(place.astype(np.uint8), picture.shape[::-1], interpolation=cv2.INTER_AREA) > 0
            return float(small[box[0] : box[0] + box[2], box[1] : box[1] + box[3]][own].mean())

        yield measures, share


def fit(assessor: Assessor, data: Path, most: int, shown: frozenset[str]) -> None:
    """Print the weights: logistic regression of pieces of planted objects against pieces of anatomy, both weighing the
    same, with a ridge; and the threshold. Two halves of the radiographs are held against each other first."""
    import torch  # the workshop's: nothing that is served needs it

    looks = list(_looks(assessor, data, most, shown))

    def fitted(use: list[Any]) -> tuple[NDArray[np.float64], float]:
        rows = [(measures, share) for _, _, pieces in use for measures, share in pieces if share == 0 or share > 0.5]
        x, y = np.array([one for one, _ in rows]), np.array([float(share > 0) for _, share in rows])
        mean, spread = x.mean(0), x.std(0) + 1e-6
        a = torch.tensor(np.column_stack(((x - mean) / spread, np.ones(len(x)))))
        truth, weight = torch.tensor(y), torch.tensor(np.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean())))
        w = torch.zeros(a.shape[1], dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([w], max_iter=300)

        def loss() -> Any:
            optimiser.zero_grad()
            entropy = torch.nn.functional.binary_cross_entropy_with_logits(a @ w, truth, reduction="none")
            total = (entropy * weight).mean() + 1e-3 * (w[:-1] ** 2).sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        found = w.detach().numpy()
        weights = found[:-1] / spread
        return weights, float(found[-1] - weights @ mean)

    def best(pieces: Any, weights: NDArray[np.float64], bias: float) -> float:
        return max((float(measures @ weights) + bias for measures, _ in pieces), default=-99.0)

    def halves(place: str) -> int:
        return zlib.crc32(place.encode()) % 2

    for half in (0, 1):
        weights, bias = fitted([one for one in looks if halves(one[0]) == half])
        other = [one for one in looks if halves(one[0]) != half]
        clean = [best(pieces, weights, bias) for _, planted_, pieces in other if not planted_]
        limit = float(np.quantile(clean, 1 - FALSE_ALARMS))
        hits = [best(pieces, weights, bias) >= limit for _, planted_, pieces in other if planted_]
        print(f"fitted on one half: limit {limit:.2f}; told in the other: {100 * np.mean(hits):.1f} % of {len(hits)}")
    weights, bias = fitted(looks)
    scored = sorted(
        ((best(pieces, weights, bias), place) for place, planted_, pieces in looks if not planted_), reverse=True
    )
    limit = scored[round(FALSE_ALARMS * len(scored))][0]
    print(f"{len(scored)} radiographs without an object; likeliest: {' '.join(place for _, place in scored[:40])}")
    print(f"BIAS: Final = {bias - limit:.3f}\nWEIGHTS: Final = (")
    for what, weight in zip(in_the_way.MEASURES, weights, strict=True):
        print(f"    {weight:.3f},  # {what}")
    print(")")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*PARTS, "fit", []], default=[])
    parser.add_argument("--data", type=Path, default=None if SHARED is None else SHARED / "data" / "cxr")
    parser.add_argument("--model", type=Path, default=paths.MODEL, help="folder of a release")
    parser.add_argument("--most", type=int, default=200, help="images of a group at most")
    parser.add_argument("--shown", type=Path, default=SHOWN, help="radiographs in which a person saw an object")
    parser.add_argument("--phantoms", type=int, default=12)
    parser.add_argument("--final", action="store_true", help="the splits kept for the final report, and no others")
    asked = parser.parse_args()
    what = asked.what or list(PARTS)
    shown = frozenset(asked.shown.read_text().split())
    assessor = Assessor(asked.model)
    print(f"model {assessor.model.name} {assessor.model.version}, seed {SEED}, from {thresholds.OBJECT.warn:g} on")
    cv2.setNumThreads(1)
    if "phantom" in what:
        of_phantom(assessor, asked.phantoms)
    if "cost" in what:
        cost(assessor)
    if asked.data is None or not (asked.data / "index.csv").exists():
        print("there are no radiographs here")
        return
    if "fit" in what:
        fit(assessor, asked.data, asked.most, shown)
    if "alarms" in what:
        alarms(assessor, asked.data, asked.most, shown, final=asked.final)
    if "planted" in what:
        planted(assessor, asked.data, asked.most, final=asked.final)


if __name__ == "__main__":
    main()
