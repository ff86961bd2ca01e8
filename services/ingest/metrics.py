"""What ingest measures of itself. Labels come from closed sets, never from objects."""

import math
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

RECEIVED = Counter(
    "stepwedge_ingest_received",
    "Objects accepted, by the door they came through and whether they were new, known, or in conflict.",
    ["channel", "outcome"],
    unit="objects",
)
RECEIVED_BYTES = Counter(
    "stepwedge_ingest_received", "Bytes of the objects kept, by the door they came through.", ["channel"], unit="bytes"
)
REFUSED = Counter(
    "stepwedge_ingest_refused",
    "Objects refused, by the door they came through and the error's code.",
    ["channel", "error"],
    unit="objects",
)
ACCEPT_SECONDS = Histogram(
    "stepwedge_ingest_accept_duration",
    "Time from the last byte of an object until its sender was answered, seconds.",
    ["channel"],
    unit="seconds",
    buckets=_SECONDS,
)
ASSOCIATIONS = Gauge("stepwedge_ingest_open_associations", "DICOM associations open now.", unit="associations")
ASSOCIATIONS_ENDED = Counter(
    "stepwedge_ingest_ended",
    "DICOM associations that ended, by how: released, aborted or rejected.",
    ["how"],
    unit="associations",
)
STUDIES = Gauge("stepwedge_ingest_held", "Studies, by state.", ["state"], unit="studies")
DUE = Gauge("stepwedge_ingest_due", "Studies whose next step is due and not yet begun.", unit="studies")
OLDEST_DUE = Gauge("stepwedge_ingest_due_age", "Age of the step that is due longest, seconds.", unit="seconds")
STEP_SECONDS = Histogram(
    "stepwedge_ingest_step_duration",
    "Time that a step took, by step and how it ended, seconds.",
    ["step", "outcome"],
    unit="seconds",
    buckets=_SECONDS,
)
VERDICTS = Counter("stepwedge_ingest_decided", "Decisions, by verdict.", ["verdict"], unit="studies")
DECISION_SECONDS = Histogram(
    "stepwedge_ingest_decision_delay",
    "Time from the end of the quiet period until the decision was visible, seconds.",
    unit="seconds",
    buckets=_SECONDS,
)
DICOMWEB_REQUESTS = Counter(
    "stepwedge_ingest_dicomweb",
    "Requests to the DICOMweb door that were answered, by what was asked for and the HTTP status.",
    ["service", "status"],
    unit="requests",
)
CONSTANCY_DRIFTED = Gauge(
    "stepwedge_ingest_constancy_drifted",
    "Values of the last constancy test that had left their tolerance; NaN before the first test.",
    unit="values",
)
CONSTANCY_TESTED = Gauge(
    "stepwedge_ingest_constancy_tested_timestamp",
    "When the last constancy test was, seconds since 1970; NaN before the first test.",
    unit="seconds",
)


def tell_of_constancy(last_test: Callable[[], tuple[float, int] | None]) -> None:
    """Ask for the last test whenever the figures are read: another process may have made it."""

    def told(place: int) -> float:
        try:
            found = last_test()
        except Exception:  # noqa: BLE001 - the other figures must be read while the database is away
            return math.nan
        return math.nan if found is None else float(found[place])

    CONSTANCY_TESTED.set_function(lambda: told(0))
    CONSTANCY_DRIFTED.set_function(lambda: told(1))
