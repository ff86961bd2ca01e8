"""The ground under every page: who asks, whether they may, what the browser may do, and what is said when it fails."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jinja2
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from services.console import dossier
from services.console.accounts import Accounts, Person
from services.console.gateway import Gateway
from services.console.oidc import Provider
from services.console.requests import Requests
from services.console.wording import Wording, chosen, languages
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import PERSON
from shared.settings import Console
from stepwedge.common.v1.common_pb2 import Outcome, Reason, Structure, Verdict
from stepwedge.ingest.v1.ingest_pb2 import InstanceState, StudyState

COOKIE: Final = "__Host-stepwedge"
"""RFC 6265bis 4.1.3: only over TLS, only from this host, for every path."""
LANGUAGE_COOKIE: Final = "stepwedge-language"
LONGEST_BODY: Final = 65_536
BY_ITSELF: Final = "rows"
"""Query parameter of a page that asks by itself for what is new."""
_VIEW_SECONDS: Final = 900.0
_VIEWS: Final = 100_000

RADIOGRAPHER, OPERATOR, AUDITOR, ADMINISTRATOR = "radiographer", "operator", "auditor", "administrator"
EVERYBODY: Final = frozenset({RADIOGRAPHER, OPERATOR, AUDITOR, ADMINISTRATOR})

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every answer."""

NAVIGATION: Final[Sequence[tuple[str, str, frozenset[str]]]] = (
    ("/studies", "Work list", frozenset({RADIOGRAPHER, OPERATOR})),
    ("/people", "Accounts", frozenset({ADMINISTRATOR})),
    ("/operator", "Operation", frozenset({OPERATOR, ADMINISTRATOR})),
    ("/audit", "Audit log", frozenset({AUDITOR})),
    ("/quality", "Quality", frozenset({RADIOGRAPHER, OPERATOR, AUDITOR})),
    ("/help", "Help", EVERYBODY),
)
"""Path, title, and who may go there; the first that one may is home."""

_STATUS: Final[Mapping[int, int]] = {
    ErrorCode.ERROR_CODE_INVALID_REQUEST: 400,
    ErrorCode.ERROR_CODE_PERMISSION_DENIED: 403,
    ErrorCode.ERROR_CODE_STUDY_NOT_FOUND: 404,
    ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND: 404,
    ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND: 404,
    ErrorCode.ERROR_CODE_WRONG_STATE: 409,
    ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE: 422,
    ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE: 503,
    ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE: 503,
    ErrorCode.ERROR_CODE_OVERLOADED: 503,
}

Handler = Callable[["Call"], Awaitable[Response]]
_log = logs.get_logger(__name__)


@dataclass
class House:
    """What every page stands on."""

    settings: Console
    accounts: Accounts
    gateway: Gateway
    provider: Provider | None
    requests: Requests
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    """Signs the cookie of a sign-in under way; a restart asks to begin again."""
    views: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass
class Call:
    """One request of one person."""

    request: Request
    house: House
    wording: Wording
    person: Person | None

    @property
    def signed_in(self) -> Person:
        """The person; pages that need none never ask."""
        if self.person is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_UNAUTHENTICATED, "nobody is signed in")
        return self.person

    @property
    def token(self) -> str:
        """The session's token, empty for none."""
        return self.request.cookies.get(COOKIE, "")

    def query(self, name: str, longest: int = 200) -> str:
        """A query parameter without outer blanks; INVALID_REQUEST where it is longer."""
        value = self.request.query_params.get(name, "").strip()
        if len(value) > longest:
            raise invalid(f"{name} is too long")
        return value

    def path(self, name: str) -> str:
        """A parameter of the path."""
        return str(self.request.path_params[name])

    async def viewed(self, what: str, *, study: str = "") -> None:
        """Record that the person looks at something; once a quarter of an hour for the same study."""
        known = (self.token, f"{what}/{study}")
        now = time.monotonic()
        if study and now - self.house.views.get(known, -_VIEW_SECONDS) < _VIEW_SECONDS:
            return
        await self.house.gateway.viewed(self.signed_in, what, study=study)
        self._remember(known)

    async def listed(self, what: str, studies: Iterable[str], *, always: bool = True) -> None:
        """Record that a list or a search shows these studies (pseudonyms), before it does.

        Not `always`: a list that renews itself is recorded with what it has not shown in the last quarter of an hour.
        """
        now = time.monotonic()
        shown = [
            study
            for study in studies
            if always or now - self.house.views.get((self.token, f"{what}/{study}"), -_VIEW_SECONDS) >= _VIEW_SECONDS
        ]
        if always or shown:
            await self.house.gateway.viewed(self.signed_in, what, studies=shown)
            for study in shown:
                self._remember((self.token, f"{what}/{study}"))

    def _remember(self, known: tuple[str, str]) -> None:
        if len(self.house.views) >= _VIEWS:
            self.house.views.clear()
        self.house.views[known] = time.monotonic()

    def page(self, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
        """Render a template."""
        role = self.person.role if self.person else ""
        text = (
            _environment()
            .get_template(template)
            .render(
                _=self.wording,
                language=self.wording.language,
                languages=list(languages()),
                person=self.person,
                navigation=[(path, title) for path, title, roles in NAVIGATION if role in roles],
                here=self.request.url.path,
                site=self.house.settings.site_name,
                idle=round(self.house.settings.idle_minutes * 60) + 5,
                csrf=self.person.csrf if self.person else "",
                **context,
            )
        )
        return HTMLResponse(text, status)


def invalid(words: str) -> StepwedgeError:
    """A request that cannot be meant."""
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)


def home(role: str) -> str:
    """Where a role begins."""
    return next(path for path, _, roles in NAVIGATION if role in roles)


def route(path: str, handler: Handler, roles: frozenset[str] | None, *, methods: Sequence[str] = ("GET",)) -> Route:
    """A page. `roles` None: also without a session."""

    async def endpoint(request: Request) -> Response:
        return _with_headers(await _answer(request, handler, roles))

    return Route(path, endpoint, methods=list(methods))


async def not_there(request: Request, _: Exception) -> Response:
    """What is answered for an address that is no page's, or by another method than it has."""
    status = _.status_code if isinstance(_, HTTPException) else 404
    call = await _call(request)
    words = "There is no such page." if status == 404 else "This page cannot be asked for in this way."
    return _with_headers(call.page("error.html", status=status, title="Not found", words=words, code=""))


async def _call(request: Request) -> Call:
    house: House = request.app.state.house
    wording = chosen(request.cookies.get(LANGUAGE_COOKIE, ""), request.headers.get("accept-language", ""))
    token = request.cookies.get(COOKIE, "")
    person = None
    if 0 < len(token) < 100:
        by_itself = BY_ITSELF in request.query_params
        person = await asyncio.to_thread(house.accounts.person, token, renewing=not by_itself)
    return Call(request, house, wording, person)


async def _answer(request: Request, handler: Handler, roles: frozenset[str] | None) -> Response:
    call = await _call(request)
    PERSON.set(call.person.name if call.person else "")
    try:
        if roles is not None:
            if call.person is None:
                return RedirectResponse("/sign-in", 303)
            if call.person.must_change and request.url.path not in ("/password", "/sign-out", "/language"):
                return RedirectResponse("/password", 303)
            if call.person.role not in roles:
                raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, "your role has no access to this page")
        return await handler(call)
    except StepwedgeError as error:
        status = _STATUS.get(error.code, 500)
        if status == 500:
            _log.error("page failed", **logs.describe(error))
        words = error.message if status != 500 else "Something went wrong in the console itself."
        return call.page("error.html", status=status, title="This did not work", words=words, code=error.name)
    except HTTPException:
        raise
    except Exception as error:  # noqa: BLE001 - nothing of it may reach the browser
        _log.error("page failed", **logs.describe(error))
        words = "Something went wrong in the console itself."
        return call.page("error.html", status=500, title="This did not work", words=words, code="INTERNAL")


async def form(call: Call, *, session: bool = True) -> FormData:
    """The fields of a form of ours. Raises PERMISSION_DENIED for one that another site sent, INVALID_REQUEST."""
    request = call.request
    origin = request.headers.get("origin", "")
    if origin and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, "the form came from another site")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, "the form came from another site")
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > LONGEST_BODY:
        raise invalid("the form is too long")
    fields = await request.form(max_files=0, max_fields=50, max_part_size=LONGEST_BODY)
    if session and not hmac.compare_digest(str(fields.get("csrf", "")), call.signed_in.csrf):
        raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, "the form is not of this session; load it again")
    return fields


def text_of(fields: FormData, name: str, longest: int) -> str:
    """One text field without outer blanks. Raises INVALID_REQUEST where it is longer."""
    value = fields.get(name, "")
    text = value.strip() if isinstance(value, str) else ""
    if len(text) > longest:
        raise invalid(f"{name} is too long")
    return text


def set_session(response: Response, token: str) -> Response:
    """Give the browser the session."""
    response.set_cookie(COOKIE, token, secure=True, httponly=True, samesite="lax", path="/")
    return response


def _with_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.globals.update(version=_version(), witnessed=dossier.witnessed)
    made.filters.update(
        verdict=lambda number: Verdict.Name(number).removeprefix("VERDICT_"),
        reason=lambda number: Reason.Name(number).removeprefix("REASON_"),
        outcome=lambda number: Outcome.Name(number).removeprefix("OUTCOME_"),
        structure=lambda number: Structure.Name(number).removeprefix("STRUCTURE_"),
        state=lambda number: StudyState.Name(number).removeprefix("STUDY_STATE_"),
        instance_state=lambda number: InstanceState.Name(number).removeprefix("INSTANCE_STATE_"),
        error=lambda number: ErrorCode.Name(number).removeprefix("ERROR_CODE_"),
        moment=moment,
        number=number,
        unit=unit,
        short=lambda text: f"…{text[-10:]}" if len(text) > 12 else text,
    )
    return made


def _version() -> str:
    """Changes with our style and script, so that no browser goes on with those of before an upgrade."""
    files = sorted(Path(__file__).with_name("static").glob("console.*"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


_UNITS: Final[Mapping[str, str]] = {"mm2": "mm²"}


def unit(code: str) -> str:
    """A unit of UCUM as pages show it: nothing for 1, an annotation without its braces."""
    return "" if code == "1" else _UNITS.get(code, code.replace("{", "").replace("}", "").replace("_", " "))


def moment(stamp: Timestamp) -> str:
    """A time (UTC) as pages show it: "2026-11-22 06:51:32"."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S") if stamp.seconds else ""


def number(value: float) -> str:
    """A measured value with as many digits as one can use."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
