"""Channels to the services of the cluster: mutual TLS to one named identity, deadlines, retries, trace propagation."""

import json
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import context as otel_context
from opentelemetry import trace

from shared import tracing
from shared.access import OPEN_ENDED, RETRIED
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.identity import Identity
from shared.pki import Credentials

DEFAULT_DEADLINE_SECONDS = 30.0
"""What a call gets that names none, unless its method stays open by design."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Longest message either way."""

_PROBE_SECONDS = 1.5


def channel(address: str, credentials: Credentials, *, server: Identity) -> grpc.aio.Channel:
    """Return a channel for coroutines.

    Parameters
    ----------
    address
        "host:port".
    credentials
        Our own.
    server
        Who must answer; TLS refuses every other certificate, of the same CA too.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where a file of the credentials cannot be read.
    """
    return _AsyncChannel(grpc.aio.secure_channel(address, _tls(credentials), options=_options(server)))


def sync_channel(address: str, credentials: Credentials, *, server: Identity) -> grpc.Channel:
    """Return a channel for code without an event loop, as the command line; see `channel`."""
    return _SyncChannel(grpc.secure_channel(address, _tls(credentials), options=_options(server)))


def probe(to: grpc.aio.Channel, service: str = "") -> Callable[[], Any]:
    """Return a probe for `Health.dependency` that passes while the service behind the channel says SERVING."""
    stub = health_pb2_grpc.HealthStub(to)

    async def check() -> None:
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=_PROBE_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the service says NOT_SERVING")

    return check


def _tls(credentials: Credentials) -> grpc.ChannelCredentials:
    ca, certificate, key = credentials.read()
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)


def _options(server: Identity) -> list[tuple[str, Any]]:
    return [
        # The name that the certificate must hold; only that service's does.
        ("grpc.ssl_target_name_override", server.host),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A service that was restarted is found again within two seconds, not within two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Services of a cluster are never reached through the proxy of the site's web traffic.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", _SERVICE_CONFIG),
    ]


def _service_config() -> str:
    names = []
    for method in sorted(RETRIED):
        service, _, name = method.lstrip("/").partition("/")
        names.append({"service": service, "method": name})
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    }
    # Throttling (gRFC A6): a server that fails most calls is not sent several times as many.
    return json.dumps(
        {
            # A name that stands for several processes (a headless Service) has its calls spread over all of them.
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": names, "retryPolicy": policy}],
            "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
        }
    )


_SERVICE_CONFIG = _service_config()


class _Callable:
    """One method of a channel: starts a span, hands the trace on, and sets the deadline where the caller set none."""

    def __init__(self, inner: Any, method: str) -> None:
        self._inner = inner
        self._method = method

    def _prepared(self, keywords: dict[str, Any], span: trace.Span) -> dict[str, Any]:
        if keywords.get("timeout") is None and self._method not in OPEN_ENDED:
            keywords["timeout"] = DEFAULT_DEADLINE_SECONDS
        token = otel_context.attach(trace.set_span_in_context(span))
        try:
            keywords["metadata"] = (*(keywords.get("metadata") or ()), *tracing.outgoing())
        finally:
            otel_context.detach(token)
        return keywords

    def _start(self) -> trace.Span:
        return tracing.start(self._method.lstrip("/"), trace.SpanKind.CLIENT)

    def __call__(self, request: Any = None, **keywords: Any) -> Any:
        """Call; for coroutines the answer is a call object, else the response (or the iterator of responses)."""
        span = self._start()
        try:
            result = self._inner(request, **self._prepared(keywords, span))
        except BaseException:
            span.end()
            raise
        if hasattr(result, "add_done_callback"):
            result.add_done_callback(lambda _: span.end())
        else:
            span.end()
        return result

    def future(self, request: Any, **keywords: Any) -> Any:
        """Call without waiting (channels without an event loop)."""
        span = self._start()
        result = self._inner.future(request, **self._prepared(keywords, span))
        result.add_done_callback(lambda _: span.end())
        return result

    def with_call(self, request: Any, **keywords: Any) -> Any:
        """Call and return the response with its call object (channels without an event loop)."""
        span = self._start()
        try:
            return self._inner.with_call(request, **self._prepared(keywords, span))
        finally:
            span.end()


class _Methods:
    """The four shapes of methods, over the channel underneath."""

    _inner: Any

    def unary_unary(self, method: str, *args: Any, **keywords: Any) -> Any:
        """Return the method as a callable."""
        return _Callable(self._inner.unary_unary(method, *args, **keywords), method)

    def unary_stream(self, method: str, *args: Any, **keywords: Any) -> Any:
        """Return the method as a callable."""
        return _Callable(self._inner.unary_stream(method, *args, **keywords), method)

    def stream_unary(self, method: str, *args: Any, **keywords: Any) -> Any:
        """Return the method as a callable."""
        return _Callable(self._inner.stream_unary(method, *args, **keywords), method)

    def stream_stream(self, method: str, *args: Any, **keywords: Any) -> Any:
        """Return the method as a callable."""
        return _Callable(self._inner.stream_stream(method, *args, **keywords), method)


class _AsyncChannel(_Methods, grpc.aio.Channel):
    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner: grpc.aio.Channel = inner

    async def __aenter__(self) -> "_AsyncChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()


class _SyncChannel(_Methods, grpc.Channel):
    def __init__(self, inner: grpc.Channel) -> None:
        self._inner: grpc.Channel = inner

    def __enter__(self) -> "_SyncChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._inner.close()

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        self._inner.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._inner.unsubscribe(callback)
