"""Runs the DICOMweb door: uvicorn in a thread of its own, over TLS.

In this process and not beside it, because the door is ingest's door: what comes in is kept, recorded and handed on by
the very objects that the other doors use, with their limits and their one writer to the database. In a thread with a
loop of its own and not on ingest's loop, because cutting a body into parts and encrypting it takes milliseconds at a
time, and gRPC's calls and the confirmations of other doors must not wait for that.
"""

import asyncio
import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.ingest.dicomweb.app import application
from services.ingest.dicomweb.house import House
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import DicomWeb, host_and_port

_SUITES: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"  # RFC 9325 4.2, as at the DICOM door
_FIRST_BYTES_SECONDS: Final = 10.0
"""Within which a connection must have asked for something."""
_RENEWED_SECONDS: Final = 60.0
_CATALOGUE_SECONDS: Final = 2.0
_THREADS: Final = 24
_UNSET: Final = Path()

_log = logs.get_logger(__name__)


class _Protocol(H11Protocol):
    """uvicorn's, but whoever connects and asks for nothing is hung up on: places are few."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._asks = self.loop.call_later(_FIRST_BYTES_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        if self.cycle is None and self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._asks.cancel()
        super().connection_lost(exc)


class DicomWebServer:
    """The door; made on ingest's loop, served from a thread."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._settings = house.settings
        self._context = server_context(house.settings) if house.settings.tls else None
        self._socket = _listening(house.settings)
        self._server = _server(application(house), house.settings, self._context)
        self._thread = threading.Thread(target=self._run, name="dicomweb", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Take requests."""
        self._thread.start()

    def drain(self, seconds: float) -> None:
        """Take nothing new, let what is being answered be answered; blocks."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(seconds)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1.0)
        self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="dicomweb"))
        beside = [
            asyncio.create_task(self._renew(), name="certificate"),
            asyncio.create_task(self._catalogue(), name="catalogue"),
        ]
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _catalogue(self) -> None:
        """Catalogue what came in, so that a search finds it done."""
        while True:
            try:
                while await asyncio.to_thread(self._house.catalogue.catch_up):
                    pass
            except StepwedgeError as error:
                _log.warning("the catalogue waits", error=error.name)
            await asyncio.sleep(_CATALOGUE_SECONDS)

    async def _renew(self) -> None:
        """Use a certificate that was replaced, from the next connection on."""
        if self._context is None:
            return
        files = (self._settings.certificate, self._settings.key)
        seen = _state(files)
        while True:
            await asyncio.sleep(_RENEWED_SECONDS)
            try:
                now = _state(files)
                if now != seen:
                    server_context(self._settings)  # the files are replaced one after the other: only if they fit
                    self._context.load_cert_chain(*files)
                    seen = now
                    _log.info("certificate of the DICOMweb door renewed")
            except (OSError, StepwedgeError):
                continue


def server_context(settings: DicomWeb) -> ssl.SSLContext:
    """TLS 1.2 or later, AEAD only; a certificate is asked for where there is a CA. Raises CONFIGURATION."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.client_ca != _UNSET:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(settings.client_ca)
    except OSError:  # of which ssl.SSLError is one; its words may name paths
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION,
            "certificate, key or CA of the DICOMweb door cannot be read or do not fit each other",
        ) from None
    return context


def _state(files: tuple[Path, ...]) -> list[tuple[int, int]]:
    return [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]


def _listening(settings: DicomWeb) -> socket:
    host, port = host_and_port(settings.listen)
    made = socket(AF_INET6 if ":" in host else AF_INET, SOCK_STREAM)
    made.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION,
            f"the DICOMweb door cannot listen on {settings.listen}: {os.strerror(error.errno or 0)}",
        ) from None
    return made


def _server(app: Starlette, settings: DicomWeb, context: ssl.SSLContext | None) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=10,
            # Places for connections; how many requests are worked on at once is the house's own bound.
            limit_concurrency=settings.max_requests * 8,
            h11_max_incomplete_event_size=32_768,
            ssl_certfile=settings.certificate if context is not None else None,
            ssl_keyfile=settings.key if context is not None else None,
            ssl_context_factory=(lambda *_: context) if context is not None else None,
        )
    )
