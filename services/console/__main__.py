"""Starts the console: `python -m services.console` serves HTTPS; exit status as of `shared.rpc.main`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import uvicorn

from services.console.accounts import Accounts
from services.console.app import application
from services.console.gateway import Gateway
from services.console.oidc import Provider
from services.console.requests import Requests
from services.console.web import House
from shared import database, keys, logs, settings
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.pki import Credentials, refuse_development
from shared.rpc import EXIT_CONFIGURATION, EXIT_FAILURE
from shared.settings import Settings, host_and_port

MIGRATIONS: Final = Path(__file__).parent / "migrations"
GRACE_SECONDS: Final = 10

_log = logs.get_logger(__name__)


class _Server(uvicorn.Server):
    """Says the one line on stdout that a service says, once it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End on SIGTERM or SIGINT with exit status 0, a second time at once; uvicorn would raise the signal again."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: Any = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if not self.should_exit:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            await self._ready(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


async def serve(configuration: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    section = configuration.console
    refuse_development(
        Credentials.load(configuration.cluster.pki, Identity.CONSOLE), production=configuration.cluster.production
    )
    engine = database.create_engine(section.database)
    database.upgrade(engine, MIGRATIONS)
    accounts = Accounts(
        engine, idle=timedelta(minutes=section.idle_minutes), longest=timedelta(hours=section.session_hours)
    )
    _first_administrator(accounts, section.first_password, local=section.local_accounts)
    provider = Provider(section.oidc, callback=f"{section.url}/oidc/callback") if section.oidc.issuer else None
    gateway = Gateway(configuration)
    house = House(section, accounts, gateway, provider, Requests(engine))
    host, port = host_and_port(section.listen)
    server = _Server(
        uvicorn.Config(
            application(house),
            host=host,
            port=port,
            ssl_certfile=str(section.certificate),
            ssl_keyfile=str(section.key),
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=256,
            h11_max_incomplete_event_size=32_768,
        ),
        _say_ready,
    )
    try:
        await server.serve()
    finally:
        await gateway.close()
        await asyncio.to_thread(engine.dispose)


async def _say_ready(address: str) -> None:
    sys.stdout.write(f"ready console {address}\n")
    sys.stdout.flush()
    _log.info("serving", address=address)


def _first_administrator(accounts: Accounts, file: Path, *, local: bool) -> None:
    """Make the account `admin` on the first start, its password in a file that only the owner reads."""
    password = accounts.first_administrator() if local else None
    if password is not None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.unlink(missing_ok=True)
        keys.write_new(file, (password + "\n").encode(), 0o600)


def run() -> None:
    """Run the process."""
    os.umask(0o027)
    logs.configure("console")
    try:
        configuration = settings.load()
        logs.configure("console", configuration.telemetry.log_level)
        asyncio.run(serve(configuration))
    except StepwedgeError as error:
        _log.critical("refused to start", error=error.name, detail=logs.Words(error.message))
        wrong = error.code == ErrorCode.ERROR_CODE_CONFIGURATION
        raise SystemExit(EXIT_CONFIGURATION if wrong else EXIT_FAILURE) from None
    except OSError as error:
        _log.critical("refused to start", error="CONFIGURATION", **logs.describe(error))
        raise SystemExit(EXIT_CONFIGURATION) from None


if __name__ == "__main__":
    run()
