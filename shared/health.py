"""Health as it is: a service is SERVING while everything it depends on passes its probe.

grpc.health.v1 names: "" and each service are the whole; "dependency/<name>" is one dependency. Probes run at once and
every two seconds, and more often while one fails, so that a recovery shows soon.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # absent from its stubs

from shared import logs, metrics

Probe = Callable[[], Awaitable[None]]

INTERVAL_SECONDS = 2.0
FAILING_INTERVAL_SECONDS = 0.5
PROBE_SECONDS = 2.0
"""Patience with one probe."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_log = logs.get_logger(__name__)


@dataclass
class _Dependency:
    probe: Probe
    required: bool
    ok: bool | None = None
    """None until the first probe has ended."""


class Servicer(aio.HealthServicer):  # type: ignore[misc]
    """The library's servicer, which says SERVING before anything was probed and does not list what it knows."""

    def __init__(self) -> None:
        super().__init__()
        self._server_status[""] = _NOT_SERVING

    async def List(  # noqa: N802 - named by the contract
        self, request: health_pb2.HealthListRequest, context: object
    ) -> health_pb2.HealthListResponse:
        """Answer with every name and its status, dependencies included."""
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._server_status.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


class Health:
    """What a process knows about the well-being of itself and of what it needs."""

    def __init__(self) -> None:
        self.servicer = Servicer()
        self._dependencies: dict[str, _Dependency] = {}
        self._services: set[str] = {""}
        self._loops: set[asyncio.Task[None]] = set()
        self._running = False
        self._draining = False
        self._changed = asyncio.Lock()

    def dependency(self, name: str, probe: Probe, *, required: bool = True) -> None:
        """Watch a dependency.

        Parameters
        ----------
        name
            Short and constant, as "database"; shows as "dependency/<name>".
        probe
            Returns where the dependency is well, else raises; given up after two seconds.
        required
            Whether the service cannot serve without it.
        """
        self._dependencies[name] = _Dependency(probe, required)
        if self._running:
            self._watch(name)

    def service(self, name: str) -> None:
        """Answer for the gRPC service `name` too."""
        self._services.add(name)

    def ok(self, name: str) -> bool:
        """Say whether the last probe of the dependency `name` passed; False before the first has ended."""
        dependency = self._dependencies.get(name)
        return dependency is not None and dependency.ok is True

    def serving(self) -> bool:
        """Say whether the whole serves."""
        return (
            self._running
            and not self._draining
            and all(one.ok is True for one in self._dependencies.values() if one.required)
        )

    def snapshot(self) -> dict[str, str]:
        """Return name -> "SERVING", "NOT_SERVING" or, before the first probe has ended, "UNKNOWN"; "" is the whole."""
        words = {None: "UNKNOWN", True: "SERVING", False: "NOT_SERVING"}
        result = {"": words[self.serving()]}
        result.update({name: words[one.ok] for name, one in self._dependencies.items()})
        return result

    async def start(self) -> None:
        """Probe everything once, then go on probing in the background."""
        await self._publish()  # NOT_SERVING until the probes have said otherwise
        self._running = True
        await asyncio.gather(*(self._probe(name) for name in list(self._dependencies)))
        await self._publish()
        for name in list(self._dependencies):
            self._watch(name)

    async def drain(self) -> None:
        """Say NOT_SERVING from now on, whatever the probes find."""
        self._draining = True
        await self._publish()
        await self.servicer.enter_graceful_shutdown()

    async def stop(self) -> None:
        """End the probing."""
        self._running = False
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    def _watch(self, name: str) -> None:
        task = asyncio.create_task(self._keep_probing(name), name=f"probe {name}")
        self._loops.add(task)
        task.add_done_callback(self._loops.discard)

    async def _keep_probing(self, name: str) -> None:
        while True:
            began = time.monotonic()
            if await self._probe(name):
                await self._publish()
            interval = INTERVAL_SECONDS if self.ok(name) else FAILING_INTERVAL_SECONDS
            await asyncio.sleep(max(0.0, interval - (time.monotonic() - began)))

    async def _probe(self, name: str) -> bool:
        """Probe once; return whether the answer differs from the last."""
        dependency = self._dependencies[name]
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await dependency.probe()
            now = True
        except Exception as error:  # noqa: BLE001 - whatever a probe raises, the dependency is not well
            now = False
            if dependency.ok is not False:
                _log.warning("dependency fails", dependency=name, **logs.describe(error))
        if now and dependency.ok is False:
            _log.info("dependency is well again", dependency=name)
        changed, dependency.ok = dependency.ok is not now, now
        metrics.DEPENDENCY.labels(name).set(now)
        return changed

    async def _publish(self) -> None:
        async with self._changed:
            whole = _SERVING if self.serving() else _NOT_SERVING
            for name in self._services:
                await self.servicer.set(name, whole)
            for name, one in self._dependencies.items():
                await self.servicer.set(f"dependency/{name}", _SERVING if one.ok else _NOT_SERVING)
