"""In and out: sign-in by password or by the site's provider, the forced first password, the language."""

from __future__ import annotations

import asyncio
import hmac
from typing import Final

from starlette.responses import RedirectResponse, Response

from services.console.accounts import Attempt
from services.console.oidc import Challenge, Provider
from services.console.web import COOKIE, EVERYBODY, LANGUAGE_COOKIE, Call, form, home, route, set_session, text_of
from services.console.wording import languages
from shared.errors import ErrorCode, StepwedgeError

CHALLENGE_COOKIE: Final = "__Host-stepwedge-sign-in"
_WORDS: Final = {
    "refused": "Name or password is wrong.",
    "locked": "Too many wrong passwords. Wait a quarter of an hour, or ask an administrator.",
}


async def start(call: Call) -> Response:
    """The first address: to the reader's own first page, or to the sign-in."""
    return RedirectResponse(home(call.person.role) if call.person else "/sign-in", 303)


async def ask(call: Call) -> Response:
    """The sign-in."""
    if call.person:
        return RedirectResponse(home(call.person.role), 303)
    return _asked(call)


def _asked(call: Call, words: str = "", status: int = 200) -> Response:
    settings = call.house.settings
    return call.page(
        "sign_in.html", status=status, words=words, local=settings.local_accounts, provider=bool(call.house.provider)
    )


async def sign_in(call: Call) -> Response:
    """A name and a password; whatever comes of it is recorded before it is answered."""
    if not call.house.settings.local_accounts:
        raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, "this site signs in by its own provider only")
    fields = await form(call, session=False)
    name, password = text_of(fields, "name", 64), str(fields.get("password", ""))
    accounts, gateway = call.house.accounts, call.house.gateway
    attempt = await asyncio.to_thread(accounts.attempt, name, password)
    await gateway.attempted(attempt, "local")
    if attempt.act != "sign_in":
        return _asked(call, _WORDS[attempt.act], 403)
    token = await asyncio.to_thread(accounts.open, attempt.person, attempt.role, "local")
    return set_session(RedirectResponse("/", 303), token)


async def sign_out(call: Call) -> Response:
    """End the session."""
    await form(call)
    person = call.signed_in
    await asyncio.to_thread(call.house.accounts.close, call.token)
    await call.house.gateway.acted("sign_out", person.name, role=person.role, method=person.method)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")
    return response


async def password(call: Call) -> Response:
    """The page on which one changes one's password."""
    if call.signed_in.method != "local":
        raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "your password is kept by the site's provider")
    return call.page("password.html", words="")


async def change_password(call: Call) -> Response:
    """A new password; every session of the account ends, and this one begins anew."""
    fields, person = await form(call), call.signed_in
    old, new, again = (str(fields.get(name, "")) for name in ("old", "new", "again"))
    accounts = call.house.accounts
    try:
        if not hmac.compare_digest(new.encode(), again.encode()):
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the two new passwords differ")
        recorded = call.house.gateway.acting("password_changed", person.name, role=person.role)
        await asyncio.to_thread(accounts.change_password, person.name, old, new, recorded)
    except StepwedgeError as error:
        return call.page("password.html", status=400, words=error.message)
    token = await asyncio.to_thread(accounts.open, person.name, person.role, "local")
    return set_session(RedirectResponse("/", 303), token)


async def language(call: Call) -> Response:
    """Choose a language; it concerns nobody else, so it needs no session."""
    fields = await form(call, session=False)
    wanted = text_of(fields, "language", 8)
    response = RedirectResponse(_own_path(text_of(fields, "here", 500)), 303)
    if wanted in languages():
        response.set_cookie(LANGUAGE_COOKIE, wanted, secure=True, httponly=True, samesite="lax", max_age=31_536_000)
    return response


def _own_path(path: str) -> str:
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and "\n" not in path else "/"


def _provider(call: Call) -> Provider:
    if call.house.provider is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "this site has no sign-in provider")
    return call.house.provider


async def to_provider(call: Call) -> Response:
    """Send the browser to the site's provider."""
    challenge = Challenge.new()
    response = RedirectResponse(await _provider(call).address(challenge), 303)
    response.set_cookie(
        CHALLENGE_COOKIE,
        challenge.sealed(call.house.secret),
        secure=True,
        httponly=True,
        samesite="lax",
        max_age=600,
        path="/",
    )
    return response


async def from_provider(call: Call) -> Response:
    """The browser is back from the provider."""
    challenge = Challenge.opened(call.request.cookies.get(CHALLENGE_COOKIE, ""), call.house.secret)
    code, state = call.query("code", 2048), call.query("state")
    provider, gateway = _provider(call), call.house.gateway
    try:
        if challenge is None or not code or not hmac.compare_digest(state.encode(), challenge.state.encode()):
            words = "this sign-in was not begun here, or too long ago; begin again"
            raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, words)
        name, role = await provider.person(code, challenge)
    except StepwedgeError as error:
        if error.code == ErrorCode.ERROR_CODE_PERMISSION_DENIED:
            await gateway.attempted(Attempt("refused", "unknown"), "oidc")
        raise
    await gateway.attempted(Attempt("sign_in", name, role), "oidc")
    token = await asyncio.to_thread(call.house.accounts.open, name, role, "oidc")
    response = set_session(RedirectResponse("/", 303), token)
    response.delete_cookie(CHALLENGE_COOKIE, path="/", secure=True, httponly=True, samesite="lax")
    return response


ROUTES: Final = [
    route("/", start, None),
    route("/sign-in", ask, None),
    route("/sign-in", sign_in, None, methods=["POST"]),
    route("/sign-out", sign_out, EVERYBODY, methods=["POST"]),
    route("/password", password, EVERYBODY),
    route("/password", change_password, EVERYBODY, methods=["POST"]),
    route("/language", language, None, methods=["POST"]),
    route("/oidc/start", to_provider, None),
    route("/oidc/callback", from_provider, None),
]
