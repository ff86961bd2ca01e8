"""The console as one application: every page, the files that belong to them, and nothing from elsewhere."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from services.console.pages import audit, guarding, guide, operation, people, quality, signin, studies
from services.console.web import HEADERS, House, not_there

STATIC: Final = Path(__file__).with_name("static")

mimetypes.add_type("image/webp", ".webp")  # not in every table, and a browser is told not to guess


class _Files(StaticFiles):
    """Our own style and script, with the headers of every answer and an hour in the browser's cache."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = {**HEADERS, "Cache-Control": "max-age=3600"}
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in own.items()]
            await send(message)

        await super().__call__(scope, receive, with_headers)


async def alive(_: Request) -> Response:
    """For a container's probe: the console itself answers."""
    return PlainTextResponse("ok\n", headers=dict(HEADERS))


def application(house: House) -> Starlette:
    """The whole console."""
    pages = (signin, studies, operation, quality, guarding, audit, people, guide)
    made = Starlette(
        routes=[
            Route("/healthz", alive),
            Mount("/static", _Files(directory=STATIC)),
            *(one for page in pages for one in page.ROUTES),
        ],
        exception_handlers={HTTPException: not_there, 404: not_there, 405: not_there},
    )
    made.state.house = house
    return made
