"""Image quality: the table of false alarms on clean radiographs, planted faults found, and measures against truth.

`python -m benchmarks.quality [alarms|faults|clipping|cut|blades|foreign|ratio|truth ...]`; all by default. `alarms`
prints, by source, view and age of the radiographs in `--data` (`index.csv`, `images`), how many raise which finding and
which verdict; `faults` turns, mirrors and inverts the same images and prints how many are found; `clipping` holds the
margins against outlines by people that touch the frame; `cut` takes 5 to 20 mm of lung away at one side of images whose
outlines keep clear of it, and holds them against the same images whole; `blades` covers that lung by a black or white
blade instead, and beside it an image whose lungs keep clear of the blade; `foreign` shows objects that are no chest (of
`--objects`, and those that come with pydicom); `ratio` holds the cardiothoracic ratio against references. Splits that
are kept for the final report are looked at with `--final` alone. `truth` holds the measures against the digital
phantom. The faults are made with numpy alone and share no code with the training's. The choice of images is seeded;
where there are no radiographs, what needs them is left out and says so.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray

from services.inference import chest
from services.inference.assess import AssessmentResult, Assessor
from services.inference.coverage import Coverage, coverage
from services.inference.findings import FAIL, NOT_ASSESSABLE, WARN, name
from services.inference.pixels import frame_of
from shared import dicom, paths, phantom
from shared.errors import StepwedgeError
from shared.policy import Policy
from stepwedge.common.v1.common_pb2 import Verdict
from tests.shared_material import SHARED

PARTS: Final = ("alarms", "faults", "clipping", "cut", "blades", "foreign", "ratio", "truth")
WITHHELD: Final = ("test", "test_crossvendor")
SEED: Final = 1

Row = dict[str, str]
Image = NDArray[Any]


def rows_of(data: Path) -> list[Row]:
    """Every row of the index of the radiographs."""
    with (data / "index.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def chosen(data: Path, most: int, *, final: bool) -> dict[str, list[Row]]:
    """Source, view and age -> its images, `most` at most."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows_of(data):
        if (row["split"] in WITHHELD) is final:
            groups[f"{row['source']} {row['view']} {_age(row['age_years'])}"].append(row)
    choose = random.Random(SEED)
    return {group: choose.sample(rows, min(most, len(rows))) for group, rows in sorted(groups.items())}


def _age(years: str) -> str:
    """A band of ages."""
    if not years:
        return "age unknown"
    first = float(years.split("-")[0])
    return next(band for limit, band in ((18, "under 18"), (50, "18-49"), (65, "50-64"), (999, "65+")) if first < limit)


def pictures(data: Path, rows: list[Row]) -> Iterator[Image]:
    """The images of rows of the index."""
    for row in rows:
        image = cv2.imread(str(data / "images" / f"{row['id']}.jpg"), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise SystemExit("an image of the index is not there")
        yield image


def alarms(assessor: Assessor, data: Path, most: int, *, final: bool) -> None:
    """Print what clean images raise. A chest that its exposure has cut off is no clean image: those are in here too."""
    policy = Policy.load(paths.POLICY)
    for group, rows in chosen(data, most, final=final).items():
        count: Counter[str] = Counter()
        for image in pictures(data, rows):
            result = assessor.assess_array(image)
            verdict, _ = policy.instance_verdict(result.findings, modality="DX")
            count[f"verdict {Verdict.Name(verdict).removeprefix('VERDICT_')}"] += 1
            for found in result.findings:
                if found.outcome in (WARN, FAIL):
                    count[f"{'FAIL' if found.outcome == FAIL else 'WARN'} {name(found.code)}"] += 1
        print(f"{group}: {len(rows)} images")
        for what, number in sorted(count.items()):
            print(f"    {what:28s} {number:5d}  {100 * number / len(rows):5.1f} %")


FAULTS: Final[dict[str, tuple[str, Callable[[Image], Image]]]] = {
    "turned by 90": ("TURNED", lambda image: np.rot90(image, -1)),
    "turned by 180": ("TURNED", lambda image: np.rot90(image, 2)),
    "turned by 270": ("TURNED", lambda image: np.rot90(image, 1)),
    "mirrored": ("MIRRORED", lambda image: image[:, ::-1]),
    "inverted": ("INVERTED_POLARITY", lambda image: 255 - image),
}
"""Fault -> the finding that must tell, and what makes it."""


def faults(assessor: Assessor, data: Path, most: int, *, final: bool) -> None:
    """Print how many of the planted faults are found, and by which outcome."""
    for group, rows in chosen(data, most, final=final).items():
        images = list(pictures(data, rows))
        shown = []
        for fault, (code, spoil) in FAULTS.items():
            told = [_outcome(assessor.assess_array(np.ascontiguousarray(spoil(image))), code) for image in images]
            shown.append(f"{fault} {100 * sum(one in (WARN, FAIL) for one in told) / len(told):.1f} %")
        print(f"{group}: {len(rows)} images; found: {', '.join(shown)}")


EDGE_PIXELS: Final = 2
"""An outline that comes so close to the frame is cut off (README of the radiographs)."""


Look = tuple[bool, float, int]
"""Whether the lungs are cut off at a side, the margin that was measured there, and the outcome of its finding."""


def clipping(assessor: Assessor, data: Path, most: int, *, final: bool) -> None:
    """Print how well the margins tell lungs that people's outlines show to be cut off, side by side.

    AUROC of the margin; how many of the cut ones are WARN or FAIL, or FAIL alone, and how many of the others.
    """
    told: dict[str, list[Look]] = defaultdict(list)
    for image, lungs in _outlined(data, most, final=final):
        result = assessor.assess_array(image)
        for side in SIDES:
            if look := _look(result, side, cut=bool(_from(lungs, side)[:EDGE_PIXELS].any())):
                told[side].append(look)
    for side, found in told.items():
        _print_looks(side, found)
    every = [one for found in told.values() for one in found if one[0]]
    if every:
        print(
            f"all sides: {100 * sum(one[2] in (WARN, FAIL) for one in every) / len(every):.1f} % of {len(every)} told"
        )


SIDES: Final = {"TOP": 0, "BOTTOM": 2, "RIGHT": 3, "LEFT": 1}
"""Quarter turns against the clock that bring a side to the top."""
FIELD_MM: Final = 430.0
LOST_MM: Final = (5.0, 10.0, 20.0)
CLEAR_MM: Final = 10.0


def cut(assessor: Assessor, data: Path, most: int, *, final: bool) -> None:
    """Print how well the margins tell images of which a strip with so much lung was taken away from the same images
    whole: AUROC of the margin, and how many of each are WARN or FAIL; beside all whole images, and beside those whose
    lungs keep `CLEAR_MM` away from the edge. Millimetres are those of a field of 43 cm."""
    whole: dict[str, list[Look]] = defaultdict(list)
    clear: dict[str, list[Look]] = defaultdict(list)
    spoilt: dict[tuple[str, float], list[Look]] = defaultdict(list)
    for image, lungs in _outlined(data, most, final=final):
        result = assessor.assess_array(image)
        for side in SIDES:
            end = int(np.flatnonzero(_from(lungs, side).any(axis=1))[0])
            if end < EDGE_PIXELS:
                continue
            a_millimetre = len(_from(image, side)) / FIELD_MM
            if look := _look(result, side, cut=False):
                whole[side].append(look)
                if end >= CLEAR_MM * a_millimetre:
                    clear[side].append(look)
            for lost in LOST_MM:
                strip = end + max(1, round(lost * a_millimetre))
                less = np.ascontiguousarray(np.rot90(_from(image, side)[strip:], -SIDES[side]))
                if look := _look(assessor.assess_array(less), side, cut=True):
                    spoilt[side, lost].append(look)
    for (side, lost), found in sorted(spoilt.items()):
        _print_looks(f"{side} {lost:.0f} mm", found + whole[side])
        _print_looks(f"{side} {lost:.0f} mm, others {CLEAR_MM:.0f} mm clear", found + clear[side])


BLADES: Final = {"black": 0, "white": 255}
ASKEW: Final = (0.0, 5.0)
"""Degrees by which the edge of a blade rises along the side."""
LEAST_BLADE: Final = 0.03
"""Share of the side that a blade covers at least in its middle, to be one that can be seen."""


def blades(assessor: Assessor, data: Path, most: int, *, final: bool) -> None:
    """Print how many images are told (WARN or FAIL of the margin of that side or of COLLIMATION; FAIL alone) of which a
    blade covers so much lung at one side, and of which it stays so far away from the lungs."""
    told: dict[tuple[str, float, str, str], list[int]] = defaultdict(list)
    ways = {f"{abs(mm):2.0f} mm {'lost' if mm > 0 else 'clear'}": mm for mm in (*LOST_MM, -CLEAR_MM, -2 * CLEAR_MM)}
    for image, lungs in _outlined(data, most, final=final):
        for side, degrees, (words, mm) in product(SIDES, ASKEW, ways.items()):
            rows = _from(lungs, side)
            length, across = rows.shape
            ends, rise = rows.argmax(0), math.tan(math.radians(degrees)) * (np.arange(across) - across / 2)
            along = rows.any(0)
            edge = rise + (ends - rise)[along].min() + mm * length / FIELD_MM
            if ends[along].min() < EDGE_PIXELS or edge.mean() < LEAST_BLADE * length:
                continue
            for colour, value in BLADES.items():
                covered = image.copy()
                _from(covered, side)[np.arange(length)[:, None] < edge] = value
                result = assessor.assess_array(covered)
                both = {_outcome(result, code) for code in (f"LUNG_MARGIN_{side}", "COLLIMATION")}
                told[side, degrees, colour, words].append(max(both - {NOT_ASSESSABLE}, default=NOT_ASSESSABLE))
    for (side, degrees, colour, words), found in sorted(told.items()):
        some, sure = (100 * sum(one in outcomes for one in found) / len(found) for outcomes in ((WARN, FAIL), (FAIL,)))
        what = f"{side:6s} {colour}, askew by {degrees:.0f} degrees, {words}"
        print(f"{what:48s}: {some:5.1f} % of {len(found)} told (FAIL {sure:.1f})", flush=True)


def _outlined(data: Path, most: int, *, final: bool) -> Iterator[tuple[Image, Image]]:
    """Images with people's outlines of whole lungs."""
    for rows in chosen(data, most, final=final).values():
        labelled = [row for row in rows if row["mask_convention"] == "full"]
        for row, image in zip(labelled, pictures(data, labelled), strict=True):
            mask = cv2.imread(str(data / "masks" / f"{row['id']}.png"), cv2.IMREAD_GRAYSCALE)
            if mask is not None and (mask == 1).any():
                yield image, mask == 1


def _from(image: Image, side: str) -> Image:
    """The image turned so that a side is on top."""
    return np.rot90(image, SIDES[side])


def _look(result: AssessmentResult, side: str, *, cut: bool) -> Look | None:
    code = f"LUNG_MARGIN_{side}"
    margin = next((one.value for one in result.measurements if one.name == code.lower()), None)
    return None if margin is None else (cut, margin, _outcome(result, code))


def _print_looks(what: str, found: list[Look]) -> None:
    cut, whole = ([one for one in found if one[0] is state] for state in (True, False))
    if not cut or not whole:
        print(f"{what:36s}: {len(cut)} cut off of {len(found)}; nothing to compare")
        return
    wins = sum((c[1] < w[1]) + 0.5 * (c[1] == w[1]) for c in cut for w in whole)
    (hits, sure), (alarms, wrong) = (
        [100 * sum(one[2] in outcomes for one in group) / len(group) for outcomes in ((WARN, FAIL), (FAIL,))]
        for group in (cut, whole)
    )
    print(
        f"{what:36s}: AUROC {wins / (len(cut) * len(whole)):.4f}; {hits:.1f} % of {len(cut)} cut off "
        f"(FAIL {sure:.1f}), {alarms:.1f} % of {len(whole)} others (FAIL {wrong:.1f})",
        flush=True,
    )


def foreign(assessor: Assessor, objects: Sequence[Path]) -> None:
    """Print how many pictures that are no frontal chest are told, each shown as if its header called it one."""
    told: list[bool] = []
    missed: list[str] = []
    for path in objects:
        try:
            dataset = dicom.read(path.read_bytes())
            if coverage(dataset).coverage is not Coverage.OTHER:
                continue
            frame = frame_of(dataset, middle=True)
        except (StepwedgeError, OSError):
            continue
        for turn in range(4):  # each way round, so that a handful of objects is more than a handful of looks
            image = np.ascontiguousarray(np.rot90(frame.values, turn))
            if min(image.shape) < 64:
                continue
            result = assessor.assess_array(image, inverted=frame.inverted)
            outcomes = [_outcome(result, code) in (WARN, FAIL) for code in ("NOT_A_CHEST", "BLANK_IMAGE")]
            told.append(any(outcomes))
            if not told[-1]:
                missed.append(f"{path.stem}/{90 * turn}")
    share = 100 * sum(told) / max(1, len(told))
    print(f"{len(told)} looks at objects that are no frontal chest: {share:.1f} % told")
    if missed:
        print(f"    not told: {', '.join(missed)}")


def ratio(assessor: Assessor, data: Path) -> None:
    """Print the error of the cardiothoracic ratio on the references, by split."""
    rows = [row for row in rows_of(data) if row["ctr"]]
    errors: dict[str, list[float]] = defaultdict(list)
    for row, image in zip(rows, pictures(data, rows), strict=True):
        result = assessor.assess_array(image)
        value = next((one.value for one in result.measurements if one.name == "cardiothoracic_ratio"), float("nan"))
        errors[row["split"]].append(abs(value - float(row["ctr"])))
    for split, found in sorted({**errors, "all": list(chain(*errors.values()))}.items()):
        of = np.array(found)
        print(
            f"{split:16s} {len(of):4d} references: mean absolute error {np.nanmean(of):.4f}, "
            f"95 % within {np.nanpercentile(of, 95):.4f}; {int(np.isnan(of).sum())} not assessable"
        )


def _outcome(result: AssessmentResult, code: str) -> int:
    return next((one.outcome for one in result.findings if name(one.code) == code), 0)


def truth(assessor: Assessor, seeds: int) -> None:
    """Print the measures of phantoms beside what was drawn."""
    turns, breath, shares = [], [], []
    for seed in range(seeds):
        anatomy = phantom.chest(seed, columns=64, rows=80).anatomy
        for degrees in (-12.0, -6.0, 0.0, 6.0, 12.0):
            drawn = _drawn(seed, replace(anatomy, rotation_degrees=degrees))
            right, left = (drawn.masks[f"{side}_lung_field"] > 0 for side in ("right", "left"))
            turns.append((degrees, chest.rotation_index(right, left), _value(assessor, drawn, "rotation_index")))
        for level in (0.65, 0.75, 0.85, 0.95, 1.05):
            drawn = _drawn(seed, replace(anatomy, height=level))
            breath.append((level, _value(assessor, drawn, "inspiration_index")))
        for blades in (0.0, 8.0, 16.0, 24.0):
            drawn = _drawn(seed, anatomy, blades)
            height, width = (length * drawn.spacing_mm for length in drawn.image.shape)
            open_share = (height - 2 * blades) * (width - 2 * blades) / (height * width)
            shares.append((1 - open_share, _value(assessor, drawn, "collimated_share")))
    for degrees in sorted({one[0] for one in turns}):
        of = np.array([one[1:] for one in turns if one[0] == degrees], np.float64)
        print(
            f"rotation {degrees:+5.1f} degrees: index {np.nanmean(of[:, 1]):+.3f} measured, {of[:, 0].mean():+.3f} true"
        )
    table = np.array(turns, np.float64)
    fine = np.isfinite(table).all(1)
    error = np.abs(table[fine, 1] - table[fine, 2]).mean()
    print(f"rotation index, measured against true: mean absolute error {error:.4f}")
    slope = np.polyfit(table[fine, 0], table[fine, 2], 1)[0]
    spread = table[fine & (table[:, 0] == 0), 2].std()
    print(f"rotation index: {slope:+.4f} a degree; {spread:.3f} standard deviation among phantoms that are not rotated")
    for level in sorted({one[0] for one in breath}):
        of = np.array([one[1] for one in breath if one[0] == level])
        mean, low, high = np.nanmean(of), np.nanmin(of), np.nanmax(of)
        print(f"inspiration level {level:.2f}: index {mean:.3f}, from {low:.3f} to {high:.3f}")
    table = np.array(shares)
    error = np.nanmean(np.abs(table[:, 0] - table[:, 1]))
    print(f"share behind the blades: mean absolute error {error:.4f}, {len(table)} images")


def _drawn(seed: int, anatomy: phantom.Anatomy, blades_mm: float = 0.0) -> phantom.Phantom:
    return phantom.chest(seed, columns=512, rows=640, anatomy=anatomy, collimation_mm=blades_mm)


def _value(assessor: Assessor, drawn: phantom.Phantom, measured: str) -> float:
    result = assessor.assess_array(drawn.image, spacing_mm=(drawn.spacing_mm,) * 2)
    return next((one.value for one in result.measurements if one.name == measured), float("nan"))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--data", type=Path, default=None if SHARED is None else SHARED / "data" / "cxr")
    parser.add_argument("--objects", type=Path, default=None if SHARED is None else SHARED / "data" / "dicom")
    parser.add_argument("--model", type=Path, default=paths.MODEL, help="folder of a release")
    parser.add_argument("--most", type=int, default=200, help="images of a group at most")
    parser.add_argument("--phantoms", type=int, default=6)
    parser.add_argument("--final", action="store_true", help="the splits kept for the final report, and no others")
    asked = parser.parse_args()
    what = asked.what or list(PARTS)
    assessor = Assessor(asked.model)
    print(f"model {assessor.model.name} {assessor.model.version}, seed {SEED}")
    for part in ("alarms", "faults", "clipping", "cut", "blades", "ratio"):
        if part in what and (asked.data is None or not (asked.data / "index.csv").exists()):
            print(f"{part}: left out, since there are no radiographs here")
        elif part == "ratio" and part in what:
            print("\nratio")
            ratio(assessor, asked.data)
        elif part in what:
            print(f"\n{part}", flush=True)
            by_part = {"alarms": alarms, "faults": faults, "clipping": clipping, "cut": cut, "blades": blades}
            by_part[part](assessor, asked.data, asked.most, final=asked.final)
    if "foreign" in what:
        print("\nforeign")
        folders = [asked.objects, Path(pydicom.__file__).parent / "data"]
        foreign(assessor, sorted(path for folder in folders if folder is not None for path in folder.rglob("*.dcm")))
    if "truth" in what:
        print("\ntruth")
        truth(assessor, asked.phantoms)


if __name__ == "__main__":
    main()
