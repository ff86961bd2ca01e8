"""Calls to the cluster in the name of a person: a deadline on every call, errors in our own words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import DEFAULT_DEADLINE_SECONDS, sync_channel

if TYPE_CHECKING:
    from shared.settings import Settings

Answer = TypeVar("Answer")

PROBE_SECONDS = 2.0


@contextmanager
def channel(settings: Settings, service: str, identity: Identity) -> Iterator[grpc.Channel]:
    """A channel to one service of the cluster in the name of `identity`, closed at the end.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where there is no certificate of this identity; within the block, every failed call as the error
        that the service answered, or DEPENDENCY_UNAVAILABLE with the address where nobody did.
    """
    address = settings.for_service(service).address
    credentials = Credentials.load(settings.cluster.pki, identity)
    made = sync_channel(address, credentials, server=Identity(service))
    try:
        yield made
    except grpc.RpcError as error:
        raise in_our_words(error, service, address) from None
    finally:
        made.close()


def call(method: Callable[..., Answer], request: Any, *, seconds: float = DEFAULT_DEADLINE_SECONDS) -> Answer:
    """Call with a deadline."""
    return method(request, timeout=seconds)


def health(settings: Settings, service: str, identity: Identity = Identity.OPERATOR) -> dict[str, bool]:
    """What a service says of itself: name (`""` is the whole) -> whether it is SERVING. Raises as `channel` does."""
    with channel(settings, service, identity) as link:
        answer = health_pb2_grpc.HealthStub(link).List(health_pb2.HealthListRequest(), timeout=PROBE_SECONDS)
        serving = health_pb2.HealthCheckResponse.SERVING
        return {name: status.status == serving for name, status in answer.statuses.items()}


def wait_serving(settings: Settings, service: str, seconds: float) -> None:
    """Return when the service answers SERVING for itself and for everything that it depends on.

    Raises
    ------
    StepwedgeError
        DEPENDENCY_UNAVAILABLE after `seconds`, naming the dependencies that it still waits for.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            parts = health(settings, service)
            waiting = sorted(
                name.removeprefix("dependency/") for name, serving in parts.items() if not serving and "/" in name
            )
            if parts and all(parts.values()):
                return
            words = f"waits for {', '.join(waiting)}" if waiting else "is not serving"
        except StepwedgeError as error:
            if error.permanent:
                raise
            words = "does not answer"
        if time.monotonic() > deadline:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, f"{service} {words} ({seconds:.0f} s after it was started)"
            )
        time.sleep(0.1)


def in_our_words(error: grpc.RpcError, service: str, address: str) -> StepwedgeError:
    """What a call ended with; with the address where nobody answered."""
    ours = from_rpc(error)
    if ours.code == ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE and ours.message.startswith("the call ended with"):
        return StepwedgeError(ours.code, f"{service} at {address} does not answer; is the cluster up? (stepwedge up)")
    return ours
