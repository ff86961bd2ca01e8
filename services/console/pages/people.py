"""For the administrator: who may sign in, and in which role."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.datastructures import FormData
from starlette.responses import Response

from services.console.accounts import ROLES
from services.console.web import ADMINISTRATOR, AUDITOR, OPERATOR, RADIOGRAPHER, Call, form, invalid, route, text_of
from shared.errors import StepwedgeError

SEES: Final = {
    RADIOGRAPHER: "The work list, studies with their images, an own judgement, quality.",
    OPERATOR: "Services, queue and dead letter, studies, quality.",
    AUDITOR: "The log, proofs, dossiers, exports, erasure and legal hold, quality; no images.",
    ADMINISTRATOR: "Accounts, and how the services are; no studies and no log.",
}
"""Role -> what it is for, in a sentence."""


async def people(call: Call) -> Response:
    """The accounts."""
    return await _page(call)


async def _page(call: Call, *, made: tuple[str, str] | None = None, words: str = "", status: int = 200) -> Response:
    accounts = await asyncio.to_thread(call.house.accounts.everyone)
    given = {one.role for one in accounts if not one.disabled}
    return call.page(
        "people.html",
        accounts=accounts,
        roles=ROLES,
        lacking=[role for role in ROLES if role not in given],
        sees=SEES,
        local=call.house.settings.local_accounts,
        made=made,
        words=words,
        status=status,
    )


async def change(call: Call) -> Response:
    """Create, reset, change the role of, close or open an account; each is recorded."""
    fields = await form(call)
    action = _ACTIONS.get(text_of(fields, "action", 16))
    if action is None:
        raise invalid("there is no such action")
    try:
        return await action(call, fields)
    except StepwedgeError as error:
        return await _page(call, words=error.message, status=400)


async def _create(call: Call, fields: FormData) -> Response:
    name, role = text_of(fields, "name", 64), text_of(fields, "role", 32)
    recorded = call.house.gateway.acting("account_created", name, role=role, by=call.signed_in.name)
    password = await asyncio.to_thread(call.house.accounts.create, name, role, recorded)
    return await _page(call, made=(name, password))


async def _reset(call: Call, fields: FormData) -> Response:
    name = text_of(fields, "name", 64)
    recorded = call.house.gateway.acting("account_changed", name, by=call.signed_in.name)
    password = await asyncio.to_thread(call.house.accounts.reset, name, recorded)
    return await _page(call, made=(name, password))


async def _role(call: Call, fields: FormData) -> Response:
    name, role = text_of(fields, "name", 64), text_of(fields, "role", 32)
    recorded = call.house.gateway.acting("account_changed", name, role=role, by=call.signed_in.name)
    await asyncio.to_thread(call.house.accounts.set_role, name, role, recorded)
    return await _page(call)


async def _disable(call: Call, fields: FormData) -> Response:
    return await _disabled(call, fields, True)


async def _enable(call: Call, fields: FormData) -> Response:
    return await _disabled(call, fields, False)


async def _disabled(call: Call, fields: FormData, disabled: bool) -> Response:
    name = text_of(fields, "name", 64)
    recorded = call.house.gateway.acting("account_changed", name, by=call.signed_in.name)
    await asyncio.to_thread(call.house.accounts.set_disabled, name, disabled, recorded)
    return await _page(call)


_ACTIONS: Final[dict[str, Callable[[Call, FormData], Awaitable[Response]]]] = {
    "create": _create,
    "reset": _reset,
    "role": _role,
    "disable": _disable,
    "enable": _enable,
}

ROUTES: Final = [
    route("/people", people, frozenset({ADMINISTRATOR})),
    route("/people", change, frozenset({ADMINISTRATOR}), methods=["POST"]),
]
