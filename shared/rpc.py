"""A gRPC server as every service runs it, and the start of a service's process."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shared import keys, logs, metrics, settings, tracing
from shared.build import software_build
from shared.calling import DEFAULT_DEADLINE_SECONDS, MAX_MESSAGE_BYTES, channel, probe, sync_channel
from shared.errors import ErrorCode, StepwedgeError
from shared.guard import Guard
from shared.health import Health
from shared.identity import Identity
from shared.pki import Credentials, refuse_development
from shared.refusals import Refusals
from shared.settings import Settings, host_and_port

__all__ = [
    "DEFAULT_DEADLINE_SECONDS",
    "GRACE_SECONDS",
    "MAX_MESSAGE_BYTES",
    "Hooks",
    "Server",
    "channel",
    "main",
    "probe",
    "sync_channel",
]

GRACE_SECONDS = 20.0
"""How long calls in flight may take to finish once the process was told to stop."""

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: starting again without a change is useless."""

# The core's own bound, above ours, which answers with a code and leaves health checks in.
_HEADROOM = 64
_BLOCKING_THREADS = 32

_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Two processes on one port would split the calls without anyone noticing.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # So that clients look again now and then which processes there are; what is in flight goes on where it is.
    ("grpc.max_connection_age_ms", 600_000),
    # Longest list of headers, so that metadata cannot be used to fill the memory.
    ("grpc.max_metadata_size", 16 * 1024),
]

_log = logs.get_logger(__name__)


class Server:
    """A gRPC server over mutual TLS; made inside a running event loop.

    Parameters
    ----------
    identity
        Which service this is.
    settings
        Where it listens, its limits and its certificate.
    health
        What it answers of its well-being.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where the certificate is absent, or made for development and the cluster is in production.
    """

    def __init__(self, identity: Identity, settings: Settings, health: Health) -> None:
        self.identity = identity
        self.address = ""
        self._section = settings.for_service(identity)
        self._health = health
        self._credentials = Credentials.load(settings.cluster.pki, identity)
        refuse_development(self._credentials, production=settings.cluster.production)
        keys.refuse_development(settings.cluster.keys, production=settings.cluster.production)
        self.refusals = Refusals()
        self._guard = Guard(self._section.max_concurrent_rpcs, self.refusals)
        self._server = grpc.aio.server(
            interceptors=[self._guard],
            options=_OPTIONS,
            maximum_concurrent_rpcs=self._section.max_concurrent_rpcs + _HEADROOM,
        )
        self._names = ["grpc.health.v1.Health", reflection.SERVICE_NAME]
        self._told_to_stop = asyncio.Event()
        self._told_again = asyncio.Event()
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, self._server)

    def add(self, register: Callable[[Any, grpc.aio.Server], None], servicer: object, service_name: str) -> None:
        """Serve a servicer.

        Parameters
        ----------
        register
            The generated `add_<Service>Servicer_to_server`.
        servicer
            Its implementation: coroutines and asynchronous generators.
        service_name
            Full name, "stepwedge.audit.v1.AuditService".
        """
        register(servicer, self._server)
        self._names.append(service_name)
        self._health.service(service_name)

    def narrow(self, service_name: str, callers: Iterable[Identity]) -> None:
        """Let only `callers`, of those in the table of access, call a service."""
        self._guard.narrow(service_name, callers)

    def stop(self) -> None:
        """Begin the drain, as a SIGTERM does."""
        self._told_to_stop.set()

    async def run(
        self,
        *,
        on_ready: Callable[[], None] | None = None,
        on_drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Serve until SIGTERM, SIGINT or `stop`, then drain and return.

        Draining: health says NOT_SERVING, no new connection is taken, calls that stay open by design are ended, calls
        in flight finish within `GRACE_SECONDS`. A second signal ends them at once.

        Parameters
        ----------
        on_ready
            Called once calls are served and every dependency was probed once.
        on_drain
            Awaited while the calls finish, within the same time; for work that does not come by gRPC.
        """
        reflection.enable_server_reflection(self._names, self._server)
        self._listen()
        stop_metrics = metrics.serve(self._section.metrics)[1] if self._section.metrics else _nothing
        remove_handlers = self._handle_signals()
        try:
            await self._server.start()
            await self._health.start()
            _log.info("serving", address=self.address, build=software_build())
            if on_ready:
                on_ready()
            await self._told_to_stop.wait()
            _log.info("draining")
            await self._health.drain()
            await self._finish(on_drain)
            await self.refusals.close()
            _log.info("stopped")
        finally:
            remove_handlers()
            await self._server.stop(0)
            await self._health.stop()
            await asyncio.to_thread(stop_metrics)

    async def _finish(self, on_drain: Callable[[], Awaitable[None]] | None) -> None:
        """Let calls and other work end within the grace; cut both short where the process is told to stop again."""
        ending: asyncio.Future[Any] = asyncio.gather(
            self._server.stop(GRACE_SECONDS), self._guard.drain(GRACE_SECONDS), _within_grace(on_drain)
        )
        again: asyncio.Future[Any] = asyncio.ensure_future(self._told_again.wait())
        await asyncio.wait({ending, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not ending.done():
            _log.warning("told to stop again; what is in progress is cut short")
            ending.cancel()
            await asyncio.wait({ending})

    def _listen(self) -> None:
        host, _ = host_and_port(self._section.listen)
        certificates = _Certificates(self._credentials, self.identity)
        try:
            port = self._server.add_secure_port(self._section.listen, certificates.server_credentials())
        except RuntimeError:
            port = 0
        if not port:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_CONFIGURATION,
                f"{self.identity.value} cannot listen on {self._section.listen}: taken or not ours",
            )
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _handle_signals(self) -> Callable[[], None]:
        loop = asyncio.get_running_loop()

        def told() -> None:
            (self._told_again if self._told_to_stop.is_set() else self._told_to_stop).set()

        handled = []
        for number in (signal.SIGTERM, signal.SIGINT):
            # Signals reach the main thread only; a server in another is stopped by `stop`.
            with suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, told)
                handled.append(number)

        def remove() -> None:
            for number in handled:
                loop.remove_signal_handler(number)

        return remove


class _Certificates:
    """The server's certificate, read again when its files were replaced, so that a renewal needs no restart."""

    def __init__(self, credentials: Credentials, identity: Identity) -> None:
        self._credentials = credentials
        self._identity = identity
        self._seen = self._state()

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return what a port is opened with; a client must show a certificate of the cluster's CA."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            self._renewed,  # type: ignore[arg-type]  # None, for no change, is missing in its stubs
            require_client_authentication=True,
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        ca, certificate, key = self._credentials.read()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration where the files changed and go together; asked before each handshake."""
        try:
            now = self._state()
            if now == self._seen:
                return None
            # The files are replaced one after the other; until they match, the old ones serve.
            Credentials.load(self._credentials.ca.parent, self._identity)
            configuration = self._configuration()
        except (OSError, StepwedgeError):
            return None
        self._seen = now
        _log.info("certificate renewed")
        return configuration

    def _state(self) -> tuple[tuple[int, int], ...]:
        files = (self._credentials.ca, self._credentials.certificate, self._credentials.key)
        return tuple((file.stat().st_ino, file.stat().st_mtime_ns) for file in files)


def _nothing() -> None:
    return None


async def _within_grace(on_drain: Callable[[], Awaitable[None]] | None) -> None:
    if on_drain is None:
        return
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await on_drain()
    except TimeoutError:
        _log.warning("work in progress did not end within the grace")
    except Exception as error:  # noqa: BLE001 - the calls in flight finish all the same
        _log.error("work in progress did not end well", **logs.describe(error))


@dataclass(frozen=True)
class Hooks:
    """What a service wants to be told of its own life."""

    on_ready: Callable[[], None] | None = None
    """Calls are served."""
    on_drain: Callable[[], Awaitable[None]] | None = None
    """The process was told to stop; awaited beside the calls in flight."""
    on_stopped: Callable[[], Awaitable[None]] | None = None
    """No call is in flight any more; close what calls need."""


async def main(identity: Identity, build: Callable[[Settings, Health, Server], Awaitable[Hooks | None]]) -> None:
    """Run a service's process; `services/<x>/__main__.py` is `asyncio.run(main(Identity.X, build))`.

    Reads the settings, starts logs, traces and metrics, lets `build` add servicers, dependencies and background work,
    serves, and writes the one line "ready <service> <host:port>" to stdout. Returns after a drain (exit status 0).

    Raises
    ------
    SystemExit
        78 where the configuration is wrong, 1 for any other refusal to start; the reason is a line on stderr.
    """
    # What a service writes is for itself and its group: the databases and the objects hold identity.
    os.umask(0o027)
    logs.configure(identity.value)
    loop = asyncio.get_running_loop()
    logs.watch_loop(loop)
    # Blocking work (fsync, SQL) of every call in flight at once, not of the few that two cores suggest.
    loop.set_default_executor(ThreadPoolExecutor(_BLOCKING_THREADS, thread_name_prefix="blocking"))
    try:
        configuration = settings.load()
        logs.configure(identity.value, configuration.telemetry.log_level)
        tracing.configure(identity.value, configuration.telemetry.otlp_endpoint)
        health = Health()
        server = Server(identity, configuration, health)
        hooks = await build(configuration, health, server) or Hooks()

        def ready() -> None:
            sys.stdout.write(f"ready {identity.value} {server.address}\n")
            sys.stdout.flush()
            if hooks.on_ready:
                hooks.on_ready()

        try:
            await server.run(on_ready=ready, on_drain=hooks.on_drain)
        finally:
            if hooks.on_stopped:
                await hooks.on_stopped()
    except StepwedgeError as error:
        _log.critical("refused to start", error=error.name, detail=logs.Words(error.message))
        wrong = error.code == ErrorCode.ERROR_CODE_CONFIGURATION
        raise SystemExit(EXIT_CONFIGURATION if wrong else EXIT_FAILURE) from None
    finally:
        tracing.shutdown()
