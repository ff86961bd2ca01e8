"""Prometheus metrics: what every service measures of itself, and the endpoint that serves them.

A metric's name begins with `stepwedge_` and ends with its unit; its labels take values from closed sets (methods,
codes, names in the settings), never from objects.
"""

from collections.abc import Callable
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, Info, start_http_server

from shared.access import METHODS
from shared.build import VERSION, software_build
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import host_and_port

REQUESTS = Counter(
    "stepwedge_rpc_requests", "Calls served, by method and gRPC status code.", ["method", "code"], unit="calls"
)
LATENCY = Histogram(
    "stepwedge_rpc_duration",
    "Time from the arrival of a call to its end, seconds.",
    ["method"],
    unit="seconds",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
IN_FLIGHT = Gauge("stepwedge_rpc_in_flight", "Calls in progress, without health checks.", unit="calls")
DEPENDENCY = Gauge(
    "stepwedge_dependency_up_boolean", "1 where the last probe of the dependency passed, else 0.", ["dependency"]
)
RECORDS = Counter(
    "stepwedge_audit_records", "Records handed to the log, by how that ended.", ["result"], unit="records"
)
RECORD_LATENCY = Histogram(
    "stepwedge_audit_record_duration",
    "Time from handing a record in until the log has it, seconds.",
    unit="seconds",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
BUILD = Info("stepwedge", "Version and digest of the sources of the running software.")


@cache
def _counted(label: str, code: str) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(label, code), LATENCY.labels(label)


def call(label: str, code: str, seconds: float) -> None:
    """Count a call that ended.

    Parameters
    ----------
    label
        What `method_label` gave.
    code
        Name of its gRPC status.
    seconds
        How long it took.
    """
    counter, histogram = _counted(label, code)
    counter.inc()
    histogram.observe(seconds)


def method_label(method: str) -> str:
    """Return `method` where it is one of ours, else "unknown": a caller must not be able to make up labels."""
    return method if method in METHODS else "unknown"


def serve(address: str) -> tuple[str, Callable[[], None]]:
    """Serve `/metrics` over HTTP in a thread of its own.

    Parameters
    ----------
    address
        "host:port"; port 0 takes any that is free.

    Returns
    -------
    tuple
        The real "host:port", and what stops it.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where the address cannot be had.
    """
    host, port = host_and_port(address)
    BUILD.info({"version": VERSION, "build": software_build()})
    try:
        server, thread = start_http_server(port, host)
    except OSError:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION, f"metrics cannot be served on {address}: taken or not ours"
        ) from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{server.server_port}", stop
