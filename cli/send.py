"""C-STORE of files as they are (DICOM PS3.4 Annex B): their own SOP classes and transfer syntaxes, no byte changed."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared.errors import ErrorCode, StepwedgeError

if TYPE_CHECKING:
    from pynetdicom.association import Association

MAX_CONTEXTS = 128
"""Presentation contexts that one association can carry (PS3.8 9.3.2.2: odd numbers from 1 to 255)."""

CONNECT_SECONDS = 10.0
RESPONSE_SECONDS = 120.0

# PS3.4 Table B.2-1 and PS3.7 Annex C: what a storage status means; the first entry whose mask fits.
STATUS_WORDS: tuple[tuple[int, int, str], ...] = (
    (0xFFFF, 0x0000, "stored"),
    (0xFFFF, 0xB000, "stored; coercion of data elements"),
    (0xFFFF, 0xB006, "stored; elements discarded"),
    (0xFFFF, 0xB007, "stored; data set does not match SOP class"),
    (0xF000, 0xB000, "stored with a warning"),
    (0xFF00, 0xA700, "refused: out of resources"),
    (0xFF00, 0xA900, "refused: data set does not match SOP class"),
    (0xF000, 0xC000, "refused: cannot understand"),
    (0xFFFF, 0x0110, "processing failure"),
    (0xFFFF, 0x0111, "duplicate SOP instance"),
    (0xFFFF, 0x0117, "invalid SOP instance"),
    (0xFFFF, 0x0122, "SOP class not supported"),
    (0xFFFF, 0x0124, "not authorised"),
    (0xFFFF, 0x0210, "duplicate invocation"),
    (0xFFFF, 0x0211, "unrecognised operation"),
    (0xFFFF, 0x0213, "resource limitation"),
    (0x0000, 0x0000, "failed"),
)


class Peer(NamedTuple):
    """Who is sent to, and as whom."""

    host: str
    port: int
    called: str
    calling: str


class Context(NamedTuple):
    """What is negotiated for an object: its SOP class in its own transfer syntax, and no other."""

    sop_class: str
    transfer_syntax: str


@dataclass(frozen=True)
class Part10:
    """A file that can be sent."""

    path: Path
    context: Context
    sop_instance: str
    size: int


@dataclass(frozen=True)
class Sent:
    """What came of one file."""

    path: Path
    ok: bool
    code: str
    """DICOM status as `0x0000`, or one of our error codes where none was answered."""
    words: str
    sop_instance: str = ""
    seconds: float = 0.0


def status_words(status: int) -> str:
    """What a C-STORE status means."""
    return next(words for mask, value, words in STATUS_WORDS if status & mask == value)


def succeeded(status: int) -> bool:
    """Whether the object is stored: success, or a warning (PS3.7 C.1 and C.4)."""
    return status == 0 or status & 0xF000 == 0xB000


def parse_peer(address: str, called: str, calling: str) -> Peer:
    """HOST:PORT (an IPv6 address in brackets) and two AE titles.

    Raises
    ------
    StepwedgeError
        INVALID_REQUEST where one of them is none.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the address is HOST:PORT, as in 192.0.2.7:11112")
    for title in (called, calling):
        # PS3.5 6.2, VR AE: 1 to 16 characters of the default repertoire, no backslash, no control character.
        if not (title.strip() and len(title) <= 16 and title.isascii() and title.isprintable() and "\\" not in title):
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_INVALID_REQUEST,
                "an AE title has 1 to 16 printable ASCII characters and no backslash",
            )
    return Peer(host, int(port), called.strip(), calling.strip())


def read_head(path: Path) -> Part10:
    """What a file announces of itself: its file meta information (PS3.10 7.1), nothing of the data set.

    Raises
    ------
    StepwedgeError
        NOT_DICOM where it is no Part 10 file, MALFORMED_DICOM where its file meta information is incomplete.
    """
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
    except OSError:
        raise
    except InvalidDicomError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_NOT_DICOM, "not a DICOM file (PS3.10)") from None
    except Exception:  # noqa: BLE001 - whatever the reader trips over, the file is at fault
        raise StepwedgeError(ErrorCode.ERROR_CODE_MALFORMED_DICOM, "the file meta information does not read") from None
    wanted = ("MediaStorageSOPClassUID", "TransferSyntaxUID", "MediaStorageSOPInstanceUID")
    uids = [str(meta.get(keyword) or "") for keyword in wanted]
    if not all(_is_uid(uid) for uid in uids):
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_MALFORMED_DICOM,
            "the file meta information lacks a SOP class, instance or transfer syntax UID",
        )
    return Part10(path, Context(uids[0], uids[1]), uids[2], path.stat().st_size)


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= 64 and all(part.isascii() and part.isdigit() for part in text.split("."))


def send(paths: Sequence[Path], peer: Peer, *, seen: Callable[[Sent], None] = lambda sent: None) -> list[Sent]:
    """Send every file; `seen` is told of each as soon as its end is known.

    Raises
    ------
    StepwedgeError
        DEPENDENCY_UNAVAILABLE, OVERLOADED or PERMISSION_DENIED where the peer takes no association to begin with.
        A file that fails is not raised but returned.
    """
    results: list[Sent] = []

    def take(sent: Sent) -> None:
        results.append(sent)
        seen(sent)

    heads: list[Part10] = []
    for path in paths:
        try:
            heads.append(read_head(path))
        except StepwedgeError as error:
            take(Sent(path, False, error.name, error.message))
        except OSError as error:
            take(Sent(path, False, "FILE", (error.strerror or "cannot be read").lower()))
    for number, batch in enumerate(_batches(heads)):
        _send_batch(batch, peer, take, refusal_ends_all=number == 0)
    return results


def _send_batch(batch: Sequence[Part10], peer: Peer, take: Callable[[Sent], None], *, refusal_ends_all: bool) -> None:
    """Send files; over a new association where the peer ends one, without the file under which it ended two."""
    rest = list(batch)
    try:
        while rest:
            before = len(rest)
            for sent in _store(tuple(rest), peer):
                rest.pop(0)
                take(sent)
            if len(rest) == before:
                take(_lost(rest.pop(0), "DEPENDENCY_UNAVAILABLE", "the peer ended the association"))
    except StepwedgeError as error:
        if refusal_ends_all and len(rest) == len(batch):
            raise
        for head in rest:
            take(_lost(head, error.name, error.message))


def _lost(head: Part10, code: str, words: str) -> Sent:
    return Sent(head.path, False, code, words, head.sop_instance)


def _batches(heads: Sequence[Part10]) -> Iterator[list[Part10]]:
    """The files, so grouped that each group needs no more contexts than an association has."""
    contexts = iter(dict.fromkeys(head.context for head in heads))
    while group := set(islice(contexts, MAX_CONTEXTS)):
        yield [head for head in heads if head.context in group]


def _store(heads: Sequence[Part10], peer: Peer) -> Iterator[Sent]:
    """Send files over one association, in order, until they are done or the peer ends it."""
    association = associate(list(dict.fromkeys(head.context for head in heads)), peer)
    if association is None:
        yield from (_not_taken(head) for head in heads)
        return
    accepted = {Context(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
    try:
        for head in heads:
            sent = _store_one(association, head) if head.context in accepted else _not_taken(head)
            if sent is None:
                return
            yield sent
    finally:
        if association.is_established:
            association.release()


def _not_taken(head: Part10) -> Sent:
    return _lost(head, "SOP_CLASS_MISMATCH", "the peer does not take this SOP class in this transfer syntax")


def associate(contexts: Sequence[Context], peer: Peer) -> Association | None:
    """An association that proposes each context on its own, so that the peer cannot choose another syntax for a file.

    None where the peer speaks DICOM but takes none of the contexts.

    Raises
    ------
    StepwedgeError
        DEPENDENCY_UNAVAILABLE where nobody answers, OVERLOADED where the peer rejects it for the moment (PS3.8 9.3.4),
        PERMISSION_DENIED where it does so for good.
    """
    from pynetdicom import AE, _config

    _config.STORE_SEND_CHUNKED_DATASET = True  # the data set goes out byte for byte as it stands in the file
    entity = AE(ae_title=peer.calling)
    entity.acse_timeout = entity.connection_timeout = CONNECT_SECONDS
    entity.dimse_timeout = entity.network_timeout = RESPONSE_SECONDS
    entity.maximum_pdu_size = 0
    for context in contexts:
        entity.add_requested_context(context.sop_class, context.transfer_syntax)
    association = entity.associate(peer.host, peer.port, ae_title=peer.called)
    if association.is_established:
        _send_at_once(association)
        return association
    where = f"{peer.host}:{peer.port}"
    if association.is_rejected:
        primitive = association.acceptor.primitive
        # PS3.8 9.3.4: result 1 is for good, 2 for the moment.
        permanent = primitive is None or primitive.result != 0x02
        code = ErrorCode.ERROR_CODE_PERMISSION_DENIED if permanent else ErrorCode.ERROR_CODE_OVERLOADED
        reason = f": {primitive.reason_str.lower()}" if primitive is not None else ""
        raise StepwedgeError(code, f"{where} rejected the association{reason}")
    if association.acceptor.primitive is not None:
        return None
    raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, f"{where} does not answer as a DICOM peer")


def _send_at_once(association: Association) -> None:
    """Do not wait for the acknowledgement of one small PDU before the next is sent: that is 40 ms a file."""
    transport = association.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _store_one(association: Association, head: Part10) -> Sent | None:
    """Send one file; None where the association ended under it."""
    started = time.monotonic()
    try:
        answer = association.send_c_store(head.path)
    except RuntimeError:  # ended between the last answer and this request
        return None
    except (ValueError, AttributeError, OSError):
        return Sent(head.path, False, "MALFORMED_DICOM", "cannot be read to its end", head.sop_instance)
    if "Status" not in answer:
        return None
    status = int(answer.Status)
    seconds = time.monotonic() - started
    return Sent(head.path, succeeded(status), f"0x{status:04X}", status_words(status), head.sop_instance, seconds)


def summary(results: Sequence[Sent]) -> list[tuple[str, str, int, bool]]:
    """Status, words, number of files and whether that is a success; successes first, then by number."""
    counts = Counter((not sent.ok, sent.code, sent.words) for sent in results)
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0]))
    return [(code, words, count, not failed) for (failed, code, words), count in ordered]
