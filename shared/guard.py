"""What stands between the wire and every handler: identity, access, deadline, admission, errors, telemetry.

One interceptor wraps each handler, of whatever shape, in the same steps. A request is parsed only once its caller has
been let in. Whatever a handler raises, the caller sees a code of the contracts and words of ours.
"""

import asyncio
import contextvars
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn

import grpc
from opentelemetry.trace import SpanKind, Status, StatusCode

from shared import logs, metrics, tracing
from shared.access import ALWAYS_ADMITTED, DEADLINE_OPTIONAL, METHODS, OPEN_ENDED, TALLIED
from shared.calling import DEFAULT_DEADLINE_SECONDS
from shared.errors import DETAILS_KEY, ErrorCode, StepwedgeError, to_status
from shared.identity import CALLER, PERSON, PERSON_KEY, PERSON_NAME, Identity, peer
from shared.refusals import Refusals

# grpc.aio's own names are typed for its interceptors only in part.
Context = Any
Behavior = Callable[[Any, Context], Any]

# gRFC A6: a negative value tells the client's channel not to retry by itself.
_DO_NOT_RETRY = ("grpc-retry-pushback-ms", "-1")
_RETRIED_LATER = frozenset({ErrorCode.ERROR_CODE_STORAGE_FULL, ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE})

_SLOW_SECONDS = 1.0
_TALLY_SECONDS = 10.0

_log = logs.get_logger(__name__)


class _Tally:
    """Calls that succeeded and bear no line of their own: how many by whom, and the longest, every few seconds."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Identity | None], tuple[int, float]] = {}
        self._due: asyncio.TimerHandle | None = None

    def add(self, label: str, caller: Identity | None, seconds: float) -> None:
        count, longest = self._counts.get((label, caller), (0, 0.0))
        self._counts[label, caller] = count + 1, max(longest, seconds)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_TALLY_SECONDS, self.write, context=contextvars.Context())

    def write(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        counts, self._counts = self._counts, {}
        for (label, caller), (count, longest) in counts.items():
            _log.info(
                "calls",
                method=label,
                peer=caller.value if caller else None,
                code=grpc.StatusCode.OK.name,
                count=count,
                seconds=round(longest, 6),
            )


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """The interceptor of every server.

    Parameters
    ----------
    max_concurrent_rpcs
        Calls in progress beyond which the next is refused as OVERLOADED; health checks are not counted.
    refusals
        Where calls are noted that are refused because of who called.
    """

    def __init__(self, max_concurrent_rpcs: int, refusals: Refusals) -> None:
        self._refusals = refusals
        self._handlers: dict[str, Any] = {}
        self._tally = _Tally()
        self._limit = max_concurrent_rpcs
        self._in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._open_ended: dict[asyncio.Task[Any], str] = {}
        self._narrowed: dict[str, frozenset[Identity]] = {}

    def narrow(self, service: str, callers: Iterable[Identity]) -> None:
        """Let only `callers`, of those in the table of access, call the methods of a service."""
        self._narrowed[service] = frozenset(callers)

    async def drain(self, seconds: float) -> None:
        """End the calls that stay open by design; wait up to `seconds` for the others to finish.

        Who watches the health is told NOT_SERVING by it, and let go last.
        """
        self._draining = True
        self._end_open(lambda method: method not in ALWAYS_ADMITTED)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        self._end_open(lambda _: True)
        self._tally.write()

    def _end_open(self, which: Callable[[str], bool]) -> None:
        for task, method in self._open_ended.items():
            if which(method):
                task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of the call, wrapped; None where there is none (UNIMPLEMENTED)."""
        method = str(handler_call_details.method)
        # Handlers are added before the server starts, so those of the table are wrapped once. A caller must not be able
        # to fill the memory with names of methods.
        known = self._handlers.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        wrapped = self._wrapped(handler, method)
        if method in METHODS:
            self._handlers[method] = wrapped
        return wrapped

    def _wrapped(self, handler: Any, method: str) -> Any:
        shape = (
            "stream" if handler.request_streaming else "unary",
            "stream" if handler.response_streaming else "unary",
        )
        behavior: Behavior = getattr(handler, "_".join(shape))
        parse = _parse_stream if handler.request_streaming else _parse
        deserialize = handler.request_deserializer

        async def unary(request: Any, context: Context) -> Any:
            async with self._call(method, context):
                return await behavior(parse(request, deserialize), context)

        async def stream(request: Any, context: Context) -> None:
            async with self._call(method, context):
                responses = behavior(parse(request, deserialize), context)
                if not hasattr(responses, "__aiter__"):
                    await responses  # writes to the context itself
                    return
                async with aclosing(responses):
                    async for response in responses:
                        await context.write(response)

        make = getattr(grpc, "_".join((*shape, "rpc_method_handler")))
        return make(
            stream if handler.response_streaming else unary,
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        began = time.monotonic()
        caller: Identity | None = None
        code = grpc.StatusCode.OK
        error: StepwedgeError | None = None
        with tracing.span(method.lstrip("/"), SpanKind.SERVER, context.invocation_metadata() or ()) as span:
            try:
                try:
                    try:
                        caller = peer(context)
                        self._admit(caller, method, context)
                    except StepwedgeError as refused:
                        self._refusals.note(caller, context, method, refused.code)
                        raise
                    CALLER.set(caller)
                    PERSON.set(_person(caller, context))
                    with self._admitted(method), self._until_drained(method):
                        async with _bounded(method, context):
                            yield
                except StepwedgeError as raised:
                    error = raised
                except grpc.aio.AbortError:
                    raise
                except Exception as raised:  # noqa: BLE001 - a defect of one call must not show its words to anyone
                    _log.error("handler failed", method=method, **logs.describe(raised))
                    error = StepwedgeError(ErrorCode.ERROR_CODE_INTERNAL, "a defect of the service; its log has more")
                if error is not None:
                    code = to_status(error)[0]
                    await _abort(context, error)
                code = _code_set(context) or code
            except grpc.aio.AbortError:
                if error is None:  # a handler of the libraries ended the call by itself
                    code = _code_set(context) or grpc.StatusCode.UNKNOWN
                raise
            except asyncio.CancelledError:
                left = context.time_remaining()
                late = left is not None and left <= 0
                code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                raise
            finally:
                span.set_attribute("rpc.system", "grpc")
                span.set_attribute("rpc.grpc.status_code", code.value[0])
                if code is not grpc.StatusCode.OK:
                    span.set_status(Status(StatusCode.ERROR))
                self._account(method, caller, code, error, time.monotonic() - began)

    def _account(
        self,
        method: str,
        caller: Identity | None,
        code: grpc.StatusCode,
        error: StepwedgeError | None,
        seconds: float,
    ) -> None:
        label = metrics.method_label(method)
        metrics.call(label, code.name, seconds)
        if code is grpc.StatusCode.OK and method in TALLIED and seconds < _SLOW_SECONDS:
            self._tally.add(label, caller, seconds)
            return
        level = "debug" if method in ALWAYS_ADMITTED and code is grpc.StatusCode.OK else "info"
        getattr(_log, level)(
            "call",
            method=label,
            peer=caller.value if caller else None,
            code=code.name,
            error=error.name if error else None,
            duration_seconds=round(seconds, 6),
        )

    def _admit(self, caller: Identity, method: str, context: Context) -> None:
        """Return where the caller may call `method` and the call has a deadline."""
        service = method.lstrip("/").partition("/")[0]
        allowed = METHODS.get(method, frozenset())
        if caller not in allowed & self._narrowed.get(service, allowed):
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_PERMISSION_DENIED, f"the identity {caller.value} may not call this method"
            )
        if context.time_remaining() is None and method not in OPEN_ENDED | DEADLINE_OPTIONAL:
            raise StepwedgeError(ErrorCode.ERROR_CODE_DEADLINE_REQUIRED, "a call must carry a deadline")

    @contextmanager
    def _admitted(self, method: str) -> Iterator[None]:
        """Hold one of the places that the server has for calls."""
        if method in ALWAYS_ADMITTED:
            yield
            return
        if self._in_flight >= self._limit:
            raise StepwedgeError(ErrorCode.ERROR_CODE_OVERLOADED, "the service holds as many calls as it may")
        self._in_flight += 1
        self._idle.clear()
        metrics.IN_FLIGHT.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            metrics.IN_FLIGHT.set(self._in_flight)
            if not self._in_flight:
                self._idle.set()

    @contextmanager
    def _until_drained(self, method: str) -> Iterator[None]:
        """Let the drain end the call where it stays open by design."""
        task = asyncio.current_task()
        if method not in OPEN_ENDED or task is None:
            yield
            return
        if self._draining and method not in ALWAYS_ADMITTED:
            raise _stopping()
        self._open_ended[task] = method
        try:
            yield
        except asyncio.CancelledError:
            if self._draining and task.cancelling():
                task.uncancel()
                raise _stopping() from None
            raise
        finally:
            self._open_ended.pop(task, None)


def _stopping() -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the service is stopping; call again")


@asynccontextmanager
async def _bounded(method: str, context: Context) -> AsyncIterator[None]:
    """End the call where its caller named no deadline and need not, and it takes longer than a call takes."""
    ours = method in DEADLINE_OPTIONAL and context.time_remaining() is None
    bound = asyncio.timeout(DEFAULT_DEADLINE_SECONDS if ours else None)
    try:
        async with bound:
            yield
    except TimeoutError:
        if not bound.expired():
            raise
        raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "there was no answer in time") from None


def _person(caller: Identity, context: Context) -> str:
    """For whom the caller asks; what anybody but the console says of it is not read."""
    if caller != Identity.CONSOLE:
        return ""
    said = [value for key, value in context.invocation_metadata() or () if key == PERSON_KEY]
    if said and (len(said) > 1 or not re.fullmatch(PERSON_NAME, str(said[0]))):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, f"the metadata {PERSON_KEY} names no account")
    return str(said[0]) if said else ""


def _parse(data: Any, deserialize: Callable[[bytes], Any] | None) -> Any:
    if deserialize is None:
        return data
    try:
        return deserialize(data)
    except Exception:  # noqa: BLE001 - protobuf's DecodeError, or what else bytes of a stranger may cause
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the request does not parse") from None


async def _parse_stream(requests: AsyncIterator[Any], deserialize: Callable[[bytes], Any] | None) -> AsyncIterator[Any]:
    async for data in requests:
        yield _parse(data, deserialize)


async def _abort(context: Context, error: StepwedgeError) -> NoReturn:
    """End the call with the status of `error`; raises grpc.aio.AbortError."""
    code, rich = to_status(error)
    trailing: list[tuple[str, str | bytes]] = [(DETAILS_KEY, rich.SerializeToString())]
    if error.permanent or error.code in _RETRIED_LATER:
        trailing.append(_DO_NOT_RETRY)
    await context.abort(code, error.message, tuple(trailing))
    raise AssertionError("abort always raises")


def _code_set(context: Context) -> grpc.StatusCode | None:
    """Return the status that a handler set on its context; None where it set none."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((one for one in grpc.StatusCode if one.value[0] == code), None) if code else None
