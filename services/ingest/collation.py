"""What is seen only where several images lie side by side: images twice, slices, geometry, patients, the device.

Values in, values out: facts of the images of one study, and what images of their devices usually measure; out come
findings, each with the modality that it is about, so that a policy can judge it. They are made anew for every decision
and recorded with it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

from services.ingest.tables import Instance
from shared import slices
from stepwedge.common.v1.common_pb2 import Finding, Measurement, Outcome, Reason
from stepwedge.inference.v1 import inference_pb2

PASS, WARN, FAIL = Outcome.OUTCOME_PASS, Outcome.OUTCOME_WARN, Outcome.OUTCOME_FAIL
NOT_ASSESSABLE = Outcome.OUTCOME_NOT_ASSESSABLE

LEAST_IMAGES: Final = 30
"""Images of a device that must have been measured before a new one is held against them."""
USUAL_DAYS: Final = 90
"""Days before the last arrival whose images count as usual for a device."""
_SPREADS: Final = 4.0
"""Standard deviations from the mean that are unusual: by chance, one image in 16,000 of a normal distribution."""
_LEAST_SHARE: Final = {"noise": 0.5, "sharpness": 0.2}
"""Share of the mean below which a difference is none, however little images of the device differ."""
OF_THE_DEVICE: Final = {"noise": Reason.REASON_NOISE, "sharpness": Reason.REASON_SHARPNESS}
_VOLUMES: Final = frozenset({"CT", "MR", "PT"})
_AXES_DIGITS: Final = 2  # of direction cosines: half a degree
_SPACING_DIGITS: Final = 3


@dataclass(frozen=True, slots=True)
class Usual:
    """What images of a device measure: how many there were, their mean and standard deviation."""

    count: int
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a study, as far as it concerns the others."""

    series: str
    sop_instance: str
    modality: str
    site: str
    person: str
    device: int
    rows: int
    columns: int
    facts: inference_pb2.ImageFacts
    measured: Mapping[str, float]
    empty: bool = False
    """Nothing is on it; of a slice that alone is a doubt."""


class Collated(NamedTuple):
    """A finding of several images, and what a rule of the policy can be bound to."""

    finding: Finding
    modality: str = ""
    site: str = ""


def image(instance: Instance) -> Image:
    """An instance whose assessment is settled."""
    assessment = inference_pb2.Assessment.FromString(instance.assessment)
    return Image(
        instance.series_instance_uid,
        instance.sop_instance_uid,
        instance.modality,
        instance.site,
        instance.person,
        instance.device_id or 0,
        assessment.rows,
        assessment.columns,
        assessment.facts,
        {one.name: one.value for one in assessment.measurements if one.name in OF_THE_DEVICE},
        any(
            one.code == Reason.REASON_BLANK_IMAGE and one.measurement.value < one.threshold
            for one in assessment.findings
        ),
    )


def collate(images: Sequence[Image], usual: Mapping[tuple[int, str], Usual]) -> list[Collated]:
    """Every finding of a study.

    Parameters
    ----------
    images
        Its images, in order of receipt.
    usual
        (device, measurement) -> what is usual for it.
    """
    if not images:
        return []
    by_modality: dict[str, list[Image]] = defaultdict(list)
    for one in images:
        by_modality[one.modality].append(one)
    main = max(by_modality, key=lambda modality: len(by_modality[modality]))
    found = [Collated(finding, main, images[0].site) for finding in (*_duplicates(images), *_patients(images))]
    for modality, group in by_modality.items():
        for finding in (*_empty(group), *_geometry(group), *_slices(group), *_against_the_device(group, usual)):
            found.append(Collated(finding, modality, group[0].site))
    return found


# --- images twice ------------------------------------------------------------------------------------------------


def _duplicates(images: Sequence[Image]) -> Iterator[Finding]:
    """DUPLICATE_IMAGES: the same pixels under other SOP Instance UIDs; within a series, or across series, which is
    how presentations and secondary captures are made on purpose."""
    known: dict[str, list[Image]] = defaultdict(list)
    for one in images:
        if one.facts.pixels_sha256:
            known[one.facts.pixels_sha256].append(one)
    if sum(len(alike) for alike in known.values()) < 2:
        return
    within = across = 0
    for alike in known.values():
        distinct = {one.sop_instance: one for one in alike}  # two objects under one UID are a conflict, told elsewhere
        series = Counter(one.series for one in distinct.values())
        within += sum(count - 1 for count in series.values())
        across += len(series) - 1
    value = Measurement(name="duplicate_images", value=float(within + across), unit="{images}")
    outcome = FAIL if within else WARN if across else PASS
    words = {
        FAIL: "images of one series have the same pixels under different identifiers",
        WARN: "an image of one series has the pixels of one of another",
        PASS: "no two images have the same pixels",
    }
    yield Finding(
        code=Reason.REASON_DUPLICATE_IMAGES, outcome=outcome, measurement=value, threshold=1.0, detail=words[outcome]
    )


# --- patients ----------------------------------------------------------------------------------------------------

_IDENTITY: Final = ("patient number", "birth date", "sex")


def _patients(images: Sequence[Image]) -> Iterator[Finding]:
    """MIXED_PATIENTS, by the keyed pseudonyms of number, birth date and sex; what an object leaves out contradicts
    nothing."""
    said = [one.person.split("/") for one in images if one.person.count("/") == len(_IDENTITY) - 1]
    if len(said) < 2:
        return
    different = [{parts[place] for parts in said if parts[place]} for place in range(len(_IDENTITY))]
    most = max(len(one) for one in different)
    contradicted = [word for word, values in zip(_IDENTITY, different, strict=True) if len(values) > 1]
    value = Measurement(name="patients", value=float(max(1, most)), unit="{patients}")
    words = f"the objects name different values for: {', '.join(contradicted)}" if contradicted else "one patient"
    outcome = FAIL if contradicted else PASS
    yield Finding(code=Reason.REASON_MIXED_PATIENTS, outcome=outcome, measurement=value, threshold=2.0, detail=words)


# --- slices and geometry -----------------------------------------------------------------------------------------


def _stacks(images: Iterable[Image]) -> dict[tuple[str, str], list[Image]]:
    """Single slices by series and stack; two objects under one UID are told of elsewhere."""
    stacks: dict[tuple[str, str], dict[str, Image]] = defaultdict(dict)
    for one in images:
        if one.facts.stack and one.facts.frames <= 1 and one.modality in _VOLUMES:
            stacks[one.series, one.facts.stack][one.sop_instance] = one
    return {key: list(group.values()) for key, group in stacks.items()}


def _empty(images: Iterable[Image]) -> Iterator[Finding]:
    """BLANK_IMAGE, of a series all of whose slices are empty; most volumes have some at their ends."""
    series: dict[str, list[bool]] = defaultdict(list)
    for (name, _), group in _stacks(images).items():
        series[name] += [one.empty for one in group]
    if any(all(empty) for empty in series.values()):
        words = "every slice of a series is empty"
        yield Finding(code=Reason.REASON_BLANK_IMAGE, outcome=FAIL, detail=words)


def _axes(one: Image) -> tuple[float, ...]:
    return tuple(round(value, _AXES_DIGITS) + 0.0 for value in one.facts.orientation)


def _geometry(images: Iterable[Image]) -> Iterator[Finding]:
    """GEOMETRY: one size, spacing and frame of reference, and one orientation, in each stack."""
    most, outcome, words = 0, PASS, "one geometry in each series"
    for group in _stacks(images).values():
        if len(group) < 2:
            continue
        sizes = {(one.rows, one.columns) for one in group}
        spacings = {tuple(round(value, _SPACING_DIGITS) for value in one.facts.spacing) for one in group}
        frames = {one.facts.frame_of_reference for one in group}
        axes = Counter(_axes(one) for one in group)
        most = max(most, len({(one.rows, one.columns, *_axes(one), *one.facts.spacing) for one in group}))
        for there, verdict, said in (
            (len(sizes) > 1, FAIL, "the size of the images changes within a series"),
            (len(spacings) > 1, FAIL, "the distance of the pixels changes within a series"),
            (len(frames) > 1, FAIL, "the frame of reference changes within a series"),
            (len(axes) > 1, WARN, "the orientation changes within a series"),
        ):
            if there and verdict > outcome:
                outcome, words = verdict, said
        most = max(most, 1)
    if most:
        value = Measurement(name="geometries", value=float(most), unit="{geometries}")
        yield Finding(code=Reason.REASON_GEOMETRY, outcome=outcome, measurement=value, threshold=2.0, detail=words)


def _slices(images: Iterable[Image]) -> Iterator[Finding]:
    """SLICES, of each stack and orientation of a series that has enough of them."""
    judged: list[slices.Places] = []
    for group in _stacks(images).values():
        planes: dict[tuple[float, ...], list[float]] = defaultdict(list)
        for one in group:
            planes[_axes(one)].append(slices.depth(one.facts.position, one.facts.orientation))
        judged += [places for depths in planes.values() if (places := slices.judge(depths)).usual_mm]
    if not judged:
        return
    missing, doubled, uneven = (sum(getattr(one, name) for one in judged) for name in ("missing", "doubled", "uneven"))
    outcome = FAIL if missing or doubled else WARN if uneven else PASS
    words = "the slices lie at even distances"
    if missing:
        words = f"{missing} slices are missing" if missing > 1 else "a slice is missing"
    elif doubled:
        words = "two slices lie in one place"
    elif uneven:
        words = "the distances of the slices are uneven"
    value = Measurement(name="missing_slices", value=float(missing), unit="{slices}")
    yield Finding(code=Reason.REASON_SLICES, outcome=outcome, measurement=value, threshold=1.0, detail=words)


# --- against the device ------------------------------------------------------------------------------------------


def _against_the_device(images: Sequence[Image], usual: Mapping[tuple[int, str], Usual]) -> Iterator[Finding]:
    """NOISE and SHARPNESS: the median of the study's images of a device over the mean of what it usually makes."""
    for name, code in OF_THE_DEVICE.items():
        by_device: dict[int, list[float]] = defaultdict(list)
        for one in images:
            if one.device and name in one.measured:
                by_device[one.device].append(one.measured[name])
        judged = [
            _of_one_device(name, code, median(values), usual.get((device, name)))
            for device, values in by_device.items()
        ]
        if judged:
            yield max(judged, key=lambda finding: (finding.outcome == WARN, finding.outcome == PASS))


def _of_one_device(name: str, code: Reason.ValueType, value: float, usual: Usual | None) -> Finding:
    if usual is None or usual.count < LEAST_IMAGES or usual.mean <= 0:
        count = 0 if usual is None else usual.count
        words = f"{count} images of this device were measured; {LEAST_IMAGES} are needed to know what is usual"
        return Finding(code=code, outcome=NOT_ASSESSABLE, detail=words)
    reach = max(_LEAST_SHARE[name], _SPREADS * usual.deviation / usual.mean)
    ratio = value / usual.mean
    measured = Measurement(name=f"relative_{name}", value=round(ratio, 6), unit="1")
    measured.low, measured.high = round(max(0.0, 1 - reach), 6), round(1 + reach, 6)
    unusual = not 1 - reach <= ratio <= 1 + reach
    way = "more" if ratio > 1 else "less"
    words = f"much {way} {name} than images of this device have" if unusual else f"{name} as usual for this device"
    limit = measured.high if ratio > 1 else measured.low
    return Finding(code=code, outcome=WARN if unusual else PASS, measurement=measured, threshold=limit, detail=words)
