"""A storage SCP that only counts: the PACS at the other end of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Receiver:
    """What arrived so far."""

    def __init__(self, ae_title: str) -> None:
        self.ae_title = ae_title
        self.port = 0
        self.instances: dict[str, str] = {}
        """SOP Instance UID -> SOP Class UID."""
        self.repeats = 0
        """Objects that came again."""

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.repeats += uid in self.instances
        self.instances[uid] = str(event.request.AffectedSOPClassUID)
        return 0x0000


@contextmanager
def receiver(ae_title: str) -> Iterator[Receiver]:
    """A storage SCP on a free port of the loopback, for any SOP class and transfer syntax."""
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    before = _config.UNRESTRICTED_STORAGE_SERVICE
    _config.UNRESTRICTED_STORAGE_SERVICE = True  # private SOP classes too
    counted = Receiver(ae_title)
    entity = AE(ae_title=ae_title)
    entity.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, counted._store)])
    assert server is not None
    assert server.socket is not None
    counted.port = server.socket.getsockname()[1]
    try:
        yield counted
    finally:
        server.shutdown()
        _config.UNRESTRICTED_STORAGE_SERVICE = before
