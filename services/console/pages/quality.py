"""Quality over time: what was decided, why, and how often people saw it otherwise; as charts and as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Final

from starlette.responses import Response

from services.console import pictures
from services.console.gateway import call as ask
from services.console.web import AUDITOR, OPERATOR, RADIOGRAPHER, Call, invalid, route
from stepwedge.common.v1.common_pb2 import Reason, Verdict
from stepwedge.ingest.v1 import ingest_pb2

SPANS: Final = (7, 30, 90, 365)
WHO: Final = frozenset({RADIOGRAPHER, OPERATOR, AUDITOR})
SERIES: Final = (
    (Verdict.VERDICT_ACCEPT, "ACCEPT"),
    (Verdict.VERDICT_REVIEW, "REVIEW"),
    (Verdict.VERDICT_REJECT, "REJECT"),
)


async def quality(call: Call) -> Response:
    """Charts, each with its figures."""
    days, found = await _summary(call)
    weekly = days > 30
    columns = _columns(days, weekly=weekly)
    verdicts: Counter[tuple[str, int]] = Counter()
    for one in found.decisions:
        verdicts[_column(one.day, weekly), one.verdict] += one.count
    series = [
        (call.wording(name), name.lower(), [verdicts[column, number] for column in columns]) for number, name in SERIES
    ]
    by_modality: dict[str, Counter[int]] = {}
    for one in found.decisions:
        by_modality.setdefault(one.modality, Counter())[one.verdict] += one.count
    by_reason: Counter[int] = Counter()
    for given in found.reasons:
        by_reason[given.reason] += given.count
    agreed = sum(one.count for one in found.reviews if one.decided == one.verdict)
    total = sum(one.count for one in found.decisions)
    return call.page(
        "quality.html",
        days=days,
        spans=SPANS,
        chart=pictures.bars(call.wording("Verdicts by week" if weekly else "Verdicts by day"), columns, series),
        columns=columns,
        series=series,
        modalities=sorted(by_modality.items()),
        reasons=by_reason.most_common(),
        reviews=found.reviews,
        reviewed=sum(one.count for one in found.reviews),
        agreed=agreed,
        total=total,
        verdict_numbers=SERIES,
    )


async def as_csv(call: Call) -> Response:
    """The counts behind the charts, a row each."""
    _, found = await _summary(call)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\r\n")
    rows.writerow(["day", "what", "modality", "verdict", "reason", "count"])
    for one in found.decisions:
        rows.writerow([one.day, "decided", one.modality, _name(one.verdict), "", one.count])
    for given in found.reasons:
        reason = Reason.Name(given.reason).removeprefix("REASON_")
        rows.writerow([given.day, "reason", "", "", reason, given.count])
    for said in found.reviews:
        rows.writerow([said.day, "reviewed", "", f"{_name(said.decided)}>{_name(said.verdict)}", "", said.count])
    headers = {"Content-Disposition": 'attachment; filename="quality.csv"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


async def _summary(call: Call) -> tuple[int, ingest_pb2.SummarizeDecisionsResponse]:
    wanted = call.query("days") or "30"
    if wanted not in {str(span) for span in SPANS}:
        raise invalid("there is no such span")
    request = ingest_pb2.SummarizeDecisionsRequest()
    getattr(request, "from").FromDatetime(datetime.now(UTC) - timedelta(days=int(wanted)))
    return int(wanted), await ask(call.house.gateway.ingest.SummarizeDecisions, request)


def _columns(days: int, *, weekly: bool) -> list[str]:
    today = datetime.now(UTC).date()
    every = [today - timedelta(days=back) for back in range(days, -1, -1)]
    return list(dict.fromkeys(_column(day.isoformat(), weekly) for day in every))


def _column(day: str, weekly: bool) -> str:
    if not weekly:
        return day[5:]
    year, week, _ = date.fromisoformat(day).isocalendar()
    return f"{year % 100:02}W{week:02}"


def _name(verdict: Verdict.ValueType) -> str:
    return Verdict.Name(verdict).removeprefix("VERDICT_")


ROUTES: Final = [route("/quality", quality, WHO), route("/quality.csv", as_csv, WHO)]
