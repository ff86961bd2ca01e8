"""What the log measures of itself."""

from prometheus_client import Counter, Gauge, Histogram

from stepwedge.audit.v1 import audit_pb2

ENTRIES = Counter("stepwedge_audit_entries", "Entries committed to the log.", unit="entries")
BATCH = Histogram(
    "stepwedge_audit_batch", "Entries in one commit.", unit="entries", buckets=(0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
)
COMMIT = Histogram(
    "stepwedge_audit_commit_duration",
    "Time from the end of the collection of a batch until it is durable, seconds.",
    unit="seconds",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
WRITER = Gauge("stepwedge_audit_writer_boolean", "1 where this process is the one that writes the log, else 0.")
ALERTS = Counter("stepwedge_audit_alerts", "Security alerts recorded, by code.", ["code"], unit="alerts")
MISSING = Counter(
    "stepwedge_audit_missing_records",
    "Sequence numbers of producers that did not arrive in time, by producer.",
    ["producer"],
    unit="records",
)

WITNESSED = Counter(
    "stepwedge_audit_witness_answers",
    "What witnesses answered: cosigned, refused (another history) or away.",
    ["witness", "outcome"],
    unit="answers",
)
COSIGNED = Gauge("stepwedge_audit_cosigned_entries", "Entries under the newest cosigned checkpoint.", unit="entries")
UNCOSIGNED = Gauge(
    "stepwedge_audit_uncosigned_seconds", "How long the newest checkpoint has lacked its quorum.", unit="seconds"
)

CHECKED = Counter("stepwedge_audit_checked_entries", "Entries held against the tree in the background.", unit="entries")
CHECK_REFUSES = Gauge(
    "stepwedge_audit_check_refuses_boolean", "1 where a check found what differs, and queries are refused, else 0."
)


def witnessed(witness: str, outcome: str) -> None:
    """A witness answered, or did not."""
    WITNESSED.labels(witness, outcome).inc()


def committed(entries: int, seconds: float) -> None:
    """A batch is durable."""
    ENTRIES.inc(entries)
    BATCH.observe(entries)
    COMMIT.observe(seconds)


def alerted(alert: audit_pb2.AlertEvent) -> None:
    """An alert is recorded."""
    ALERTS.labels(audit_pb2.AlertCode.Name(alert.code).removeprefix("ALERT_CODE_")).inc()
    if alert.code == audit_pb2.ALERT_CODE_SEQUENCE_GAP:
        MISSING.labels(alert.about).inc(alert.last_sequence - alert.first_sequence + 1)
