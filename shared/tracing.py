"""OpenTelemetry traces across the cluster; exported only where the settings name a collector.

Context travels as W3C `traceparent` in the metadata of gRPC. Baggage does not travel: it would carry free text. Spans
hold method, identity and status; no exception is recorded on them, since its words may quote a value.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.errors import ErrorCode, StepwedgeError

_propagator = TraceContextTextMapPropagator()
_SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)
_provider: TracerProvider | None = None
_exporting = False


def configure(service: str, otlp_endpoint: str = "") -> None:
    """Make spans for `service`; export them by OTLP over gRPC where `otlp_endpoint` is given.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where a collector is named but the exporter is not installed (extra `otlp`).
    """
    global _exporting, _provider
    # Nothing is read from the process or the host: the resource is the service's name and no more.
    _provider = TracerProvider(resource=Resource({"service.name": f"stepwedge-{service}"}))
    if otlp_endpoint:
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_CONFIGURATION, "telemetry.otlp_endpoint needs the extra otlp to be installed"
            ) from None
        _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint)))
    _exporting = bool(otlp_endpoint)


def shutdown() -> None:
    """Export what is left."""
    if _provider is not None:
        _provider.shutdown()


def tracer() -> trace.Tracer:
    """Return the tracer of this process; before `configure` its spans are not recorded."""
    return _provider.get_tracer("stepwedge") if _provider else trace.NoOpTracer()


def _identifier(bits: int) -> int:
    return random.getrandbits(bits) or 1  # to be different, not secret; seeded anew in a child process


def start(name: str, kind: trace.SpanKind, parent: otel_context.Context | None = None) -> trace.Span:
    """Start a span; where none is exported, one that is no more than its identifiers, which is all that anyone sees."""
    if _exporting or _provider is None:
        return tracer().start_span(name, context=parent, kind=kind)
    above = trace.get_current_span(parent).get_span_context()
    return trace.NonRecordingSpan(
        trace.SpanContext(
            trace_id=above.trace_id if above.is_valid else _identifier(128),
            span_id=_identifier(64),
            is_remote=False,
            trace_flags=_SAMPLED,
        )
    )


@contextmanager
def span(
    name: str, kind: trace.SpanKind = trace.SpanKind.INTERNAL, metadata: Iterable[tuple[str, str | bytes]] = ()
) -> Iterator[trace.Span]:
    """Run the block in a span, the child of the one in `metadata` where that holds a `traceparent`."""
    carrier = {key: value for key, value in metadata if key in _propagator.fields and isinstance(value, str)}
    parent = _propagator.extract(carrier) if carrier else otel_context.get_current()
    current = start(name, kind, parent)
    with trace.use_span(current, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        yield current


def outgoing() -> list[tuple[str, str]]:
    """Return the metadata that hands the current trace to the callee."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return list(carrier.items())


def current_trace_id() -> str:
    """Return the W3C trace id of the current span, 32 hexadecimal digits, or "" outside any."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""
