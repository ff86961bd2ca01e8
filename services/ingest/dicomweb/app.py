"""The DICOMweb door as one application: addresses, who may call, and errors in words that hold nothing of a patient."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Scope_

from services.ingest import metrics
from services.ingest.dicomweb import qido, stow, wado
from services.ingest.dicomweb.calls import Call
from services.ingest.dicomweb.house import House
from services.ingest.dicomweb.negotiation import NotAcceptableError
from services.ingest.dicomweb.pace import Pace, TooSlowError
from services.ingest.dicomweb.stow import RefusedError
from services.ingest.dicomweb.tokens import Client, Scope
from shared import logs
from shared.errors import ErrorCode, StepwedgeError

ROOT: Final = "/dicom-web"

_E = ErrorCode
STATUS: Final = {
    _E.ERROR_CODE_INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    _E.ERROR_CODE_INVALID_UID: HTTPStatus.BAD_REQUEST,
    _E.ERROR_CODE_UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    _E.ERROR_CODE_PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    _E.ERROR_CODE_STUDY_NOT_FOUND: HTTPStatus.NOT_FOUND,
    _E.ERROR_CODE_ENTRY_NOT_FOUND: HTTPStatus.NOT_FOUND,
    _E.ERROR_CODE_OBJECT_NOT_FOUND: HTTPStatus.GONE,
    _E.ERROR_CODE_PIXELS_UNDECODABLE: HTTPStatus.NOT_ACCEPTABLE,
    _E.ERROR_CODE_OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
    _E.ERROR_CODE_STORAGE_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
    _E.ERROR_CODE_AUDIT_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    _E.ERROR_CODE_DEPENDENCY_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Status by the error that it stands for; any other is 500."""

HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
"""Of every answer: what is asked for is a patient's, and no cache on the way keeps it."""

_LINGER_BYTES: Final = 64 << 20
_LINGER_SECONDS: Final = 5.0

_log = logs.get_logger(__name__)


class _Body:
    """The body of a request; what is left of one that was refused is read, a little of it.

    A connection closed over unread bytes loses the answer on its way.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def receive(self) -> Message:
        """The next message, as the application gets it."""
        message = await self._receive()
        self._ended = self._ended or message["type"] != "http.request" or not message.get("more_body")
        return message

    async def linger(self) -> None:
        """Read on to the end, up to a bound of bytes and of time."""
        left = _LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0 and not self._ended:
                    left -= len((await self.receive()).get("body", b""))


Page = Callable[[Call], Awaitable[Response]]


def route(path: str, name: str, page: Page, scope: Scope, method: str = "GET") -> Route:
    """An address, what answers there, and what a token must be good for. `name`: as records and metrics call it."""

    async def answer(request: Request) -> Response:
        body = _Body(request.receive)
        made = await _answered(Request(request.scope, body.receive), name, page, scope)
        if made.status_code >= HTTPStatus.BAD_REQUEST and not request.headers.get("expect"):
            await _linger(request.app.state, body)  # who asks before sending has not sent it
        for header, value in HEADERS.items():
            made.headers.setdefault(header, value)
        metrics.DICOMWEB_REQUESTS.labels(name, str(made.status_code)).inc()
        return made

    return Route(path, answer, methods=[method], name=name)


async def _linger(state: State, body: _Body) -> None:
    """As `_Body.linger`, for a quarter of all places at most: whoever has no token must not hold them all."""
    if state.lingering < max(1, state.house.settings.max_requests // 4):
        state.lingering += 1
        try:
            await body.linger()
        finally:
            state.lingering -= 1


async def _answered(request: Request, name: str, page: Page, scope: Scope) -> Response:
    house: House = request.app.state.house
    try:
        client = await _let_in(request, house, name, scope)
        return await page(Call(request, house, client))
    except StepwedgeError as error:
        return _refusal(STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR), error.name, error.message)
    except RefusedError as error:
        return _refusal(error.status, error.status.phrase, error.words)
    except NotAcceptableError:
        return _refusal(HTTPStatus.NOT_ACCEPTABLE, "NOT_ACCEPTABLE", "no media type that is taken can be had here")
    except ClientDisconnect:
        return Response(status_code=400)
    except Exception as error:  # noqa: BLE001 - the words of a stranger's exception may hold anything
        _log.error("a request could not be answered", **logs.describe(error))
        return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL", "a defect; the service's log says where")


async def _let_in(request: Request, house: House, name: str, scope: Scope) -> Client:
    try:
        given = request.headers.get("authorization", "")
        return await run_in_threadpool(house.tokens.check, given, scope, datetime.now(UTC))
    except StepwedgeError as error:
        if error.code in (_E.ERROR_CODE_UNAUTHENTICATED, _E.ERROR_CODE_PERMISSION_DENIED):
            house.refused(name, error.code)
        raise


def _refusal(status: HTTPStatus, code: str, words: str) -> Response:
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="stepwedge"'
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(stow.RETRY_SECONDS)
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        headers["Connection"] = "close"
    return JSONResponse({"error": code, "detail": words}, status, headers)


class Admission:
    """Tells whoever comes while as much is in progress as may be to come back later. An answer counts until its end,
    for which its reader may not take for ever."""

    def __init__(self, app: ASGIApp, most: int, pace: Callable[[Send], Send] = Pace) -> None:
        self._app = app
        self._left = most
        self._pace = pace

    async def __call__(self, scope: Scope_, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._left <= 0:
            await _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "OVERLOADED", "as many requests as may be are in progress")(
                scope, receive, send
            )
        else:
            self._left -= 1
            try:
                await self._app(scope, receive, self._pace(send))
            except TooSlowError:
                _log.warning("an answer was broken off, its reader is too slow")
                raise
            finally:
                self._left += 1


async def _not_there(request: Request, error: Exception) -> Response:
    status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
    kept = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return JSONResponse({"error": status.phrase, "detail": "nothing here"}, status, {**HEADERS, **kept})


async def _alive(_: Request) -> Response:
    return JSONResponse({"status": "ok"}, headers=dict(HEADERS))


async def _store(call: Call) -> Response:
    return await stow.store(call.request, call.house, call.uid("study"))


def _searching(level: qido.Level) -> Page:
    async def answer(call: Call) -> Response:
        return await qido.search(call, level)

    return answer


def _reading() -> list[BaseRoute]:
    """PS3.18 Table 10.4.1-1: the resources below a study, and what can be had of each."""
    study, series = "/studies/{study}", "/studies/{study}/series/{series}"
    instance = f"{series}/instances/{{instance}}"
    made: list[BaseRoute] = [
        route(f"{instance}/frames/{{frames}}", "RetrieveFrames", wado.frames, Scope.READ),
        route(f"{instance}/frames/{{frames}}/rendered", "RetrieveRendered", wado.render, Scope.READ),
        route(f"{instance}/frames/{{frames}}/thumbnail", "RetrieveThumbnail", wado.thumbnail, Scope.READ),
        route(f"{instance}/bulkdata/{{path:path}}", "RetrieveBulkData", wado.bulkdata, Scope.READ),
    ]
    for where, level in (
        ("/studies", qido.Level.STUDY),
        (f"{study}/series", qido.Level.SERIES),
        (f"{study}/instances", qido.Level.INSTANCE),
        (f"{series}/instances", qido.Level.INSTANCE),
        ("/series", qido.Level.SERIES),
        ("/instances", qido.Level.INSTANCE),
    ):
        made.append(route(where, "Search", _searching(level), Scope.READ))
    for resource in (study, series, instance):
        made += [
            route(resource, "Retrieve", wado.retrieve, Scope.READ),
            route(f"{resource}/metadata", "RetrieveMetadata", wado.metadata, Scope.READ),
            route(f"{resource}/rendered", "RetrieveRendered", wado.render, Scope.READ),
            route(f"{resource}/thumbnail", "RetrieveThumbnail", wado.thumbnail, Scope.READ),
        ]
    return made


def routes() -> list[BaseRoute]:
    """Every resource below the root of the service."""
    return [
        route("/studies", "Store", _store, Scope.STORE, "POST"),
        route("/studies/{study}", "Store", _store, Scope.STORE, "POST"),
        *_reading(),
    ]


def application(house: House) -> Starlette:
    """The whole door."""
    made = Starlette(
        routes=[Route("/healthz", _alive), Mount(ROOT, app=Router(routes(), redirect_slashes=False))],
        exception_handlers={HTTPException: _not_there},
    )
    made.add_middleware(Admission, most=house.settings.max_requests)
    made.state.house = house
    made.state.lingering = 0
    return made
