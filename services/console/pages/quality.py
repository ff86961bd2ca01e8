"""Quality over time: what was decided, why, where and on what device, how often people saw it otherwise, what drifts.

Each picture has its figures beside it, and everything can be had as CSV.
"""

from __future__ import annotations

import asyncio
import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Final

from starlette.responses import Response

from services.console import pictures
from services.console.gateway import call as ask
from services.console.gateway import call_or_none
from services.console.web import AUDITOR, OPERATOR, RADIOGRAPHER, Call, invalid, route
from shared import reasons
from shared.spreadsheet import guard
from stepwedge.common.v1.common_pb2 import Reason, Verdict
from stepwedge.inference.v1 import inference_pb2
from stepwedge.ingest.v1 import ingest_pb2

SPANS: Final = (7, 30, 90, 365)
WHO: Final = frozenset({RADIOGRAPHER, OPERATOR, AUDITOR})
SERIES: Final = (
    (Verdict.VERDICT_ACCEPT, "ACCEPT"),
    (Verdict.VERDICT_REVIEW, "REVIEW"),
    (Verdict.VERDICT_REJECT, "REJECT"),
)
DRIFTED: Final = 0.5
"""Standard deviations of the time before by which a mean moved: from here on it is worth a look (Cohen's d, medium)."""
ENOUGH: Final = 20
"""Images on either side, below which nothing is said of drift."""


async def quality(call: Call) -> Response:
    """Charts, each with its figures."""
    asked = _asked(call)
    found, measured, models, rates = await asyncio.gather(
        _summary(call, asked, sum_days_of_devices=True), _measured(call, asked), _models(call), _rates(call, asked)
    )
    columns = _columns(asked.days, weekly=asked.weekly)
    verdicts: Counter[tuple[str, int]] = Counter()
    by_modality: dict[str, Counter[int]] = defaultdict(Counter)
    for one in found.decisions:
        verdicts[_column(one.day, asked.weekly), one.verdict] += one.count
        by_modality[one.modality][one.verdict] += one.count
    series = [
        (call.wording(name), name.lower(), [verdicts[column, number] for column in columns]) for number, name in SERIES
    ]
    by_reason: Counter[int] = Counter()
    for given in found.reasons:
        by_reason[given.reason] += given.count
    said: Counter[tuple[str, bool]] = Counter()
    for review in found.reviews:
        said[_column(review.day, asked.weekly), review.decided == review.verdict] += review.count
    opinions = [
        (call.wording("agreed"), "accept", [said[column, True] for column in columns]),
        (call.wording("overruled"), "reject", [said[column, False] for column in columns]),
    ]
    overruled: Counter[tuple[int, int]] = Counter()
    for review in found.reviews:
        if review.decided != review.verdict:
            overruled[review.decided, review.verdict] += review.count
    rooms, devices = _places(found)
    when = "by week" if asked.weekly else "by day"
    return call.page(
        "quality.html",
        days=asked.days,
        device=asked.device,
        spans=SPANS,
        chart=pictures.bars(call.wording(f"Verdicts {when}"), columns, series),
        columns=columns,
        series=series,
        modalities=sorted(by_modality.items()),
        rooms=rooms,
        devices=devices,
        reasons=by_reason.most_common(),
        opinions=opinions,
        opinions_chart=pictures.bars(call.wording(f"Judgements {when}"), columns, opinions),
        overruled=overruled.most_common(),
        words=reasons.WORDS,
        reviewed=sum(one.count for one in found.reviews),
        agreed=sum(one.count for one in found.reviews if one.decided == one.verdict),
        total=sum(one.count for one in found.decisions),
        verdict_numbers=SERIES,
        drift=drifts(measured, asked.days, weekly=asked.weekly),
        weekly=asked.weekly,
        models=models,
        rates=rates,
        shares_of=_shares,
        rates_chart=pictures.bars(call.wording("Rejected and repeated images, by week"), *_drawn(call, rates.by_week)),
        line=lambda one: pictures.line(one.name, one.means),
        interval=pictures.interval,
        drifted=DRIFTED,
        enough=ENOUGH,
    )


COLUMNS: Final = (
    *("day", "what", "modality", "room", "device", "verdict", "reason", "count"),
    *("measurement", "unit", "mean", "sd"),
    *("model", "group", "low", "high"),
)


async def as_csv(call: Call) -> Response:
    """The counts and means behind the charts, a row each; of more than a month by the week, called after its Monday."""
    asked = _asked(call)
    found, measured, models = await asyncio.gather(_summary(call, asked), _measured(call, asked), _models(call))
    names = {one.id: _name_of(one) for one in found.devices}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\r\n")
    rows.writerow(COLUMNS)
    for one in found.decisions:
        rows.writerow([one.day, "decided", one.modality, "", "", _verdict(one.verdict), "", one.count])
    for given in found.reasons:
        rows.writerow([given.day, "reason", "", "", "", "", _reason(given.reason), given.count])
    for made in found.by_device:
        room, device = names.get(made.device_id, ("", ""))
        rows.writerow([made.day, "decided", "", room, device, _verdict(made.verdict), "", made.count])
    for why in found.reasons_by_device:
        room, device = names.get(why.device_id, ("", ""))
        rows.writerow([why.day, "reason", "", room, device, "", _reason(why.reason), why.count])
    for said in found.reviews:
        changed = f"{_verdict(said.decided)}>{_verdict(said.verdict)}"
        rows.writerow([said.day, "reviewed", "", "", "", changed, "", said.count])
    for day in measured:
        values = [day.name, day.unit, f"{day.mean:.6g}", f"{day.deviation:.6g}"]
        rows.writerow([day.day, "measured", "", "", "", "", "", day.count, *values])
    for model in models:
        for part in model.subgroups:
            figures = [f"Dice, {part.measure}", "1", f"{part.mean:.6g}", ""]
            named = [f"{model.name}/{model.version}", f"{part.attribute}: {part.group}"]
            ends = [f"{part.low:.6g}", f"{part.high:.6g}"]
            rows.writerow(["", "group", *[""] * 5, part.images, *figures, *named, *ends])
    headers = {"Content-Disposition": 'attachment; filename="quality.csv"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


async def rates_as_csv(call: Call) -> Response:
    """Images, rejected and repeated ones by week, room, device and reason; the shares are of all images of the row.

    A row without a reason is of all images; one with a reason, of those that were rejected for it.
    """
    asked = _asked(call)
    found = await _repeats(call, asked, "by_week", "by_device", "by_reason")
    names = {one.id: _name_of(one) for one in found.devices}
    sums: dict[tuple[str, str, str, int], Rate] = defaultdict(Rate)
    for one in found.counts:
        sums[_column(one.day, weekly=True), *names.get(one.device_id, ("", "")), one.reason].add(one)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\r\n")
    rows.writerow(
        ["week", "room", "device", "reason", "images", "rejected", "reject_rate", "repeated", "repeat_rate", "unsaid"]
    )
    for (week, room, device, reason), rate in sorted(sums.items()):
        images = sums[week, room, device, 0].images
        shares = [f"{count / images:.4f}" if images else "" for count in (rate.rejected, rate.repeated)]
        why = _reason(reason) if reason else ""  # type: ignore[arg-type]
        rows.writerow(
            [week, room, device, why, images, rate.rejected, shares[0], rate.repeated, shares[1], rate.unsaid]
        )
    headers = {"Content-Disposition": 'attachment; filename="rates.csv"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


@dataclass(frozen=True)
class Asked:
    """What the page is about."""

    days: int
    device: int
    """Number of a device; 0 for all."""

    @property
    def weekly(self) -> bool:
        """Whether it is told by the week: of more than a month, days are too many to read."""
        return self.days > 31

    @property
    def since(self) -> datetime:
        """The beginning (UTC)."""
        return datetime.now(UTC) - timedelta(days=self.days)


def _asked(call: Call) -> Asked:
    days, device = call.query("days") or "30", call.query("device") or "0"
    if days not in {str(span) for span in SPANS}:
        raise invalid("there is no such span")
    if not (device.isascii() and device.isdigit() and len(device) < 10):
        raise invalid("there is no such device")
    return Asked(int(days), int(device))


async def _summary(
    call: Call, asked: Asked, *, sum_days_of_devices: bool = False
) -> ingest_pb2.SummarizeDecisionsResponse:
    request = ingest_pb2.SummarizeDecisionsRequest(
        device=ingest_pb2.DeviceFilter(id=asked.device),
        sum_days_of_devices=sum_days_of_devices,
        without_states=True,
        by_week=asked.weekly,
    )
    getattr(request, "from").FromDatetime(asked.since)
    answer: ingest_pb2.SummarizeDecisionsResponse = await ask(call.house.gateway.ingest.SummarizeDecisions, request)
    return answer


async def _measured(call: Call, asked: Asked) -> Sequence[ingest_pb2.MeasurementDay]:
    request = ingest_pb2.SummarizeMeasurementsRequest(
        device=ingest_pb2.DeviceFilter(id=asked.device), by_week=asked.weekly
    )
    getattr(request, "from").FromDatetime(asked.since)
    answer: ingest_pb2.SummarizeMeasurementsResponse = await ask(
        call.house.gateway.ingest.SummarizeMeasurements, request
    )
    return answer.days


async def _repeats(call: Call, asked: Asked, *by: str) -> ingest_pb2.SummarizeRepeatsResponse:
    request = ingest_pb2.SummarizeRepeatsRequest(device=ingest_pb2.DeviceFilter(id=asked.device))
    for field in by:
        setattr(request, field, True)
    getattr(request, "from").FromDatetime(asked.since)
    answer: ingest_pb2.SummarizeRepeatsResponse = await ask(call.house.gateway.ingest.SummarizeRepeats, request)
    return answer


@dataclass
class Rate:
    """Radiographs of a week, room, device or reason."""

    images: int = 0
    rejected: int = 0
    repeated: int = 0
    unsaid: int = 0
    """Rejected ones of which nobody can tell whether they were repeated."""

    def add(self, one: ingest_pb2.RepeatCount) -> None:
        """Count these too."""
        self.images += one.images
        self.rejected += one.rejected
        self.repeated += one.repeated
        self.unsaid += one.unsaid


@dataclass(frozen=True)
class Rates:
    """Reject and repeat rates, each breakdown in the order in which it is shown."""

    total: Rate
    by_week: list[tuple[str, Rate]]
    by_room: list[tuple[str, Rate]]
    by_device: list[tuple[str, Rate]]
    by_reason: list[tuple[int, Rate]]
    within_minutes: int


async def _rates(call: Call, asked: Asked) -> Rates:
    """What ingest counts, see `services.ingest.repeats` for what a repeat is."""
    of_weeks, of_devices, of_reasons = await asyncio.gather(
        *(_repeats(call, asked, by) for by in ("by_week", "by_device", "by_reason"))
    )
    weeks = {week: Rate() for week in _columns(asked.days, weekly=True)}
    for one in of_weeks.counts:
        weeks.setdefault(_column(one.day, weekly=True), Rate()).add(one)
    names = {one.id: _name_of(one) for one in of_devices.devices}
    rooms: dict[str, Rate] = defaultdict(Rate)
    devices: dict[str, Rate] = defaultdict(Rate)
    total = Rate()
    for one in of_devices.counts:
        room, device = names.get(one.device_id, ("", ""))
        rooms[room].add(one)
        devices[device].add(one)
        total.add(one)
    reasons: dict[int, Rate] = defaultdict(Rate)
    for one in of_reasons.counts:
        if one.reason:
            reasons[one.reason].add(one)
            reasons[one.reason].images = total.images
    return Rates(
        total,
        list(weeks.items()),
        _most_repeated(rooms),
        _most_repeated(devices),
        sorted(reasons.items(), key=lambda it: (-it[1].rejected, it[0])),
        of_weeks.within_minutes,
    )


def _most_repeated(rates: dict[str, Rate]) -> list[tuple[str, Rate]]:
    def order(item: tuple[str, Rate]) -> tuple[float, float, str]:
        name, one = item
        return -one.repeated / max(1, one.images), -one.rejected / max(1, one.images), name

    return sorted(rates.items(), key=order)


def _shares(one: Rate, rows: Sequence[tuple[object, Rate]]) -> str:
    most = max(rate.rejected / max(1, rate.images) for _, rate in rows)
    return pictures.shares(one.repeated, one.rejected, one.images, most)


def _drawn(call: Call, weeks: Sequence[tuple[str, Rate]]) -> tuple[list[str], list[tuple[str, str, list[int]]]]:
    return [week for week, _ in weeks], [
        (call.wording("repeated"), "reject", [one.repeated for _, one in weeks]),
        (call.wording("rejected, not repeated"), "review", [one.rejected - one.repeated for _, one in weeks]),
    ]


async def _models(call: Call) -> list[inference_pb2.Model]:
    """What judges now, with how it did on groups of its evaluation; empty while inference does not answer."""
    found = await call_or_none(call.house.gateway.inference.ListModels, inference_pb2.ListModelsRequest())
    return [] if found is None else [one for one in found.models if one.role != "beside"]


@dataclass(frozen=True)
class Place:
    """A room or a device, with the verdicts on what was made there."""

    name: str
    room: str
    number: int
    """Of the device; 0 for a room, and for what names no device."""
    counts: Counter[int]

    @property
    def total(self) -> int:
        """Decided studies."""
        return self.counts.total()


def _places(found: ingest_pb2.SummarizeDecisionsResponse) -> tuple[list[Place], list[Place]]:
    """Rooms and devices, those with the largest share of rejected studies first."""
    names = {one.id: _name_of(one) for one in found.devices}
    rooms: dict[str, Counter[int]] = defaultdict(Counter)
    devices: dict[int, Counter[int]] = defaultdict(Counter)
    for one in found.by_device:
        rooms[names.get(one.device_id, ("", ""))[0]][one.verdict] += one.count
        devices[one.device_id][one.verdict] += one.count
    return (
        _worst_first(Place(name, name, 0, counts) for name, counts in rooms.items()),
        _worst_first(
            Place(names.get(number, ("", ""))[1], names.get(number, ("", ""))[0], number, counts)
            for number, counts in devices.items()
        ),
    )


def _worst_first(places: Iterable[Place]) -> list[Place]:
    return sorted(places, key=lambda one: (-one.counts[Verdict.VERDICT_REJECT] / max(1, one.total), one.name))


def _name_of(device: ingest_pb2.Device) -> tuple[str, str]:
    """(room, device) in words, fit for a spreadsheet: what an object says must not begin a formula there."""
    made_by = " ".join(part for part in (device.manufacturer, device.model) if part)
    said = ", ".join(part for part in (device.station, made_by, device.serial_number) if part)
    return guard(device.room), guard(said or device.calling_ae_title)


@dataclass(frozen=True)
class Moved:
    """A measurement: the last quarter of the time against what came before."""

    name: str
    unit: str
    before: tuple[int, float, float]
    """Number of images, mean, standard deviation."""
    now: tuple[int, float, float]
    shift: float | None
    """Between the means, in standard deviations of the time before; None where there are too few images to say."""
    means: tuple[float | None, ...]
    """The mean of each day or week; None for one without images."""

    @property
    def drifted(self) -> bool:
        """Whether it is worth a look."""
        return self.shift is not None and abs(self.shift) >= DRIFTED


def drifts(measured: Iterable[ingest_pb2.MeasurementDay], days: int, *, weekly: bool = False) -> list[Moved]:
    """How each measurement moved in the last `days` days, what moved most first; `weekly`: told by their Mondays."""
    today = datetime.now(UTC).date()
    every = [today - timedelta(days=back) for back in range(days, -1, -1)]
    if weekly:
        every = list(dict.fromkeys(day - timedelta(days=day.weekday()) for day in every))
    told = [day.isoformat() for day in every]
    recent = told[-max(1, (len(told) - 1) // 4) :][0]
    named: dict[tuple[str, str], dict[str, ingest_pb2.MeasurementDay]] = defaultdict(dict)
    for one in measured:
        named[one.name, one.unit][one.day] = one
    found = []
    for (name, unit), by_day in named.items():
        before = _pooled(one for day, one in by_day.items() if day < recent)
        now = _pooled(one for day, one in by_day.items() if day >= recent)
        shift = None
        if min(before[0], now[0]) >= ENOUGH and before[2] > 0:
            shift = (now[1] - before[1]) / before[2]
        means = tuple(by_day[day].mean if day in by_day else None for day in told)
        found.append(Moved(name, unit, before, now, shift, means))
    return sorted(found, key=lambda one: (-abs(one.shift or 0.0), one.name))


def _pooled(days: Iterable[ingest_pb2.MeasurementDay]) -> tuple[int, float, float]:
    """Number, mean and standard deviation of the images of several days."""
    count, total, squares = 0, 0.0, 0.0
    for one in days:
        count += one.count
        total += one.count * one.mean
        squares += (one.count - 1) * one.deviation**2 + one.count * one.mean**2
    if not count:
        return 0, 0.0, 0.0
    mean = total / count
    return count, mean, math.sqrt(max(0.0, (squares - count * mean**2) / (count - 1))) if count > 1 else 0.0


def _columns(days: int, *, weekly: bool) -> list[str]:
    today = datetime.now(UTC).date()
    every = [today - timedelta(days=back) for back in range(days, -1, -1)]
    return list(dict.fromkeys(_column(day.isoformat(), weekly) for day in every))


@cache
def _column(day: str, weekly: bool) -> str:
    if not weekly:
        return day[5:]
    year, week, _ = date.fromisoformat(day).isocalendar()
    return f"{year % 100:02}W{week:02}"


def _verdict(verdict: Verdict.ValueType) -> str:
    return Verdict.Name(verdict).removeprefix("VERDICT_")


def _reason(reason: Reason.ValueType) -> str:
    return Reason.Name(reason).removeprefix("REASON_")


ROUTES: Final = [
    route("/quality", quality, WHO),
    route("/quality.csv", as_csv, WHO),
    route("/quality/rates.csv", rates_as_csv, WHO),
]
