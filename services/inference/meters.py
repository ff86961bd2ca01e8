"""What inference counts."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from stepwedge.common.v1.common_pb2 import Finding, Outcome, Reason

DURATION = Histogram(
    "stepwedge_inference_assess_duration",
    "Time from taking a call up to a stored assessment, without the record, seconds.",
    unit="seconds",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
FINDINGS = Counter(
    "stepwedge_inference_findings", "Findings, by code and outcome.", ["finding", "outcome"], unit="findings"
)
OPEN_INFERENCE = Counter(
    "stepwedge_inference_open_inference_requests",
    "Requests to a model by the Open Inference Protocol, by what became of them.",
    ["model", "version", "outcome"],
    unit="requests",
)
SHADOWED = Counter(
    "stepwedge_inference_shadowed_images",
    "Images offered to the candidate in the shadow, by what became of them.",
    ["outcome"],
    unit="images",
)
MODEL = Gauge(
    "stepwedge_inference_model_loaded_boolean", "1 for the model that is served.", ["model", "version", "provider"]
)


def count(findings: Iterable[Finding]) -> None:
    """Count what was found in one image."""
    for one in findings:
        code = Reason.Name(one.code).removeprefix("REASON_")
        FINDINGS.labels(code, Outcome.Name(one.outcome).removeprefix("OUTCOME_")).inc()
