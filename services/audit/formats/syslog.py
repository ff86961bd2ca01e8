"""Audit messages as syslog frames: RFC 5424 with the fixed words of DICOM PS3.15 A.6, octet-counted by RFC 5425."""

import re

from services.audit.formats import dicom
from services.audit.formats.facts import Event, microseconds

PRI = 10 * 8 + 5
"""Facility 10 (security and authorisation), severity 5 (notice): PS3.15 A.6."""
MSGID = "DICOM+RFC3881"
APPLICATION = "stepwedge"

_BOM = b"\xef\xbb\xbf"  # RFC 5424 6.4: what begins with it is UTF-8
_NOT_PRINTED = re.compile(r"[^!-~]")
_LONGEST_HOST = 255


def frame(event: Event, host: str, process: int, *, most: int | None = None) -> bytes:
    """A record as one frame: its length in octets, a blank, the syslog message.

    Parameters
    ----------
    event
        The record.
    host
        HOSTNAME of the header; what RFC 5424 6.2.4 does not allow in it becomes a question mark.
    process
        PROCID.
    most
        Longest syslog message, octets; None for any. Facts out of lists are left out of a longer one.
    """
    name = _NOT_PRINTED.sub("?", host)[:_LONGEST_HOST] or "-"
    moment = microseconds(event.members["recorded_at"])
    header = f"<{PRI}>1 {_NOT_PRINTED.sub('?', moment)} {name} {APPLICATION} {process} {MSGID} - ".encode() + _BOM
    body = header + dicom.message(event, None if most is None else most - len(header))
    return f"{len(body)} ".encode() + body
