"""What every part of the DICOMweb door needs, and the way to the loop on which ingest itself lives."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from services.ingest.dicomweb.catalogue import Catalogue
from services.ingest.dicomweb.holdings import Holdings
from services.ingest.dicomweb.tokens import Client, Tokens
from services.ingest.door import Door
from shared.audit import Recorder, view
from shared.errors import ErrorCode
from shared.objects import ObjectStore
from shared.refusals import Refusals
from shared.settings import DicomWeb
from stepwedge.audit.v1 import audit_pb2

if TYPE_CHECKING:
    from services.ingest.dicomweb.qido import Search

SERVICE = "stepwedge.ingest.v1.DicomWeb"
"""What records of refused calls name."""

_T = TypeVar("_T")


class _NoCertificate:
    """Stands for the caller in the record of a refused call: there is no certificate of the cluster."""

    @staticmethod
    def auth_context() -> dict[str, list[bytes]]:
        return {}


@dataclass(frozen=True)
class House:
    """Made on ingest's own loop; used on the door's."""

    settings: DicomWeb
    door: Door
    objects: ObjectStore
    holdings: Holdings
    catalogue: Catalogue
    search: Search
    tokens: Tokens
    recorder: Recorder
    refusals: Refusals
    main: asyncio.AbstractEventLoop
    """Ingest's own loop: recorder, refusals and the door's records belong to it."""
    in_memory: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    """Objects that are read at once."""

    async def on_main(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run on ingest's loop, wait on this one."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.main))

    async def viewed(
        self, client: Client, what: str, *, study: str = "", subject: str = "", studies: Iterable[str] = ()
    ) -> None:
        """Record that a client reads something; nothing is sent before this returns. Raises AUDIT_UNAVAILABLE.

        `studies`: de-identified UIDs of those that a search shows.
        """
        event = view(client.name, "client", what, studies)
        await self.on_main(
            self.recorder.record(
                key=f"viewed/{uuid.uuid4()}",
                outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
                event=event,
                study=study,
                subject=subject,
            )
        )

    def refused(self, method: str, code: ErrorCode.ValueType) -> None:
        """Note a call that was refused because of who called; its record follows by itself."""
        self.main.call_soon_threadsafe(self.refusals.note, None, _NoCertificate(), f"{SERVICE}/{method}", code)
