"""Who may open an association: the title that is called, the title that calls, and the network it calls from."""

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pynetdicom.acse import ACSE
from pynetdicom.association import Association

from shared import logs
from shared.settings import ANY_TITLE, Ingest

# PS3.8 Table 9-21: rejected for good, by the service user, for this reason.
CALLING_NOT_RECOGNIZED: Final = 3
CALLED_NOT_RECOGNIZED: Final = 7
# Rejected for now, by the presentation-related part of the service provider.
LOCAL_LIMIT_EXCEEDED: Final = (0x02, 0x03, 0x02)

_log = logs.get_logger(__name__)

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Admission:
    """The rules of the settings."""

    def __init__(self, settings: Ingest) -> None:
        self._called = {settings.ae_title, *settings.other_ae_titles} if settings.check_called_ae_title else None
        self._calling = frozenset(settings.calling_ae_titles)
        self._networks: Mapping[str, Sequence[_Network]] = {
            title: [ipaddress.ip_network(network) for network in networks]
            for title, networks in settings.calling_networks.items()
        }

    def refusal(self, called: str, calling: str, address: str) -> int:
        """The reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4); 0 to let in."""
        if self._called is not None and called.strip() not in self._called:
            return CALLED_NOT_RECOGNIZED
        if self._calling and calling.strip() not in self._calling:
            return CALLING_NOT_RECOGNIZED
        networks = self._networks.get(calling.strip(), self._networks.get(ANY_TITLE))
        if networks is not None and not _within(address, networks):
            return CALLING_NOT_RECOGNIZED
        return 0


class Negotiation(ACSE):
    """pynetdicom's negotiation, once the rules let the requestor in."""

    def __init__(self, association: Association, admission: Admission, admit: Callable[[], bool]) -> None:
        super().__init__(association)
        self._admission = admission
        self._admit = admit

    def _negotiate_as_acceptor(self) -> None:
        request, address = self.requestor.primitive, self.requestor.address
        assert request is not None
        reason = self._admission.refusal(request.called_ae_title or "", request.calling_ae_title or "", address or "")
        if not reason:
            if self._admit():
                super()._negotiate_as_acceptor()
                return
            _log.warning("association rejected", reason=logs.Words("as many as may be are open"))
            self.send_reject(*LOCAL_LIMIT_EXCEEDED)
            self.assoc.kill()
            return
        # Titles come from the network and may hold anything, so they stay out of the line.
        _log.warning("association rejected", reason="called" if reason == CALLED_NOT_RECOGNIZED else "calling")
        self.send_reject(0x01, 0x01, reason)
        self.assoc.kill()


def _within(address: str, networks: Sequence[_Network]) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in network for network in networks)
