"""STOW-RS (PS3.18 10.5): objects in, each its own success or failure, kept and recorded before it counts as stored."""

import asyncio
import mmap
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from services.ingest import metrics
from services.ingest.dicomweb import negotiation
from services.ingest.dicomweb.house import House
from services.ingest.dicomweb.json_model import attribute, dumps, to_xml
from services.ingest.dicomweb.multipart import Began, Data, Ended, MediaType, Reader, media_type
from services.ingest.door import Incoming, Kept
from shared import dicom, dicom_encoding, logs
from shared.errors import ErrorCode, StepwedgeError

CHANNEL: Final = "STOW"

_E = ErrorCode
FAILURE_REASONS: Final[Mapping[ErrorCode.ValueType, int]] = {
    # PS3.18 Table I.2-2, as the statuses of PS3.4 Table B.2-1. "Refused out of Resources": the client tries again.
    _E.ERROR_CODE_STORAGE_FULL: 0xA700,
    _E.ERROR_CODE_AUDIT_UNAVAILABLE: 0xA700,
    _E.ERROR_CODE_DEPENDENCY_UNAVAILABLE: 0xA700,
    _E.ERROR_CODE_OVERLOADED: 0xA700,
    # "Error: Data Set does not match SOP Class"; also of an object that is not of the study in the address.
    _E.ERROR_CODE_SOP_CLASS_MISMATCH: 0xA900,
    # "Error: Cannot understand"; the last digits are ours, the same as over DIMSE.
    _E.ERROR_CODE_MALFORMED_DICOM: 0xC000,
    _E.ERROR_CODE_NOT_DICOM: 0xC010,
    _E.ERROR_CODE_OBJECT_TOO_LARGE: 0xC020,
    # PS3.7 Annex C: "Invalid SOP Instance".
    _E.ERROR_CODE_INVALID_UID: 0x0117,
}
"""Failure Reason (0008,1197) by the error that it stands for; any other is "Processing failure"."""
PROCESSING_FAILURE: Final = 0x0110

_LATER: Final = 0xA700
RETRY_SECONDS: Final = 5
_WRITE_BYTES: Final = 1 << 20
_AT_ONCE: Final = 8
"""Objects of one request that are being kept and recorded while the next comes in."""
_MOST_PARTS: Final = 50_000

_CLASS, _INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E

_log = logs.get_logger(__name__)


class RefusedError(Exception):
    """The request as a whole is answered with this status."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


@dataclass(slots=True)
class Outcome:
    """What became of one part."""

    names: Mapping[int, str] = field(default_factory=dict)
    """SOP Class, SOP Instance and Study Instance UID, as far as the object says."""
    reason: int = 0
    """Failure Reason; 0 for stored."""


class _Part:
    """One part on its way in."""

    def __init__(self, house: House, content_type: str) -> None:
        self._house = house
        self._pieces: list[bytes] = []
        self._size = 0
        self.incoming: Incoming | None = None
        self.error: StepwedgeError | None = None
        kind = media_type(content_type).name if content_type else negotiation.DICOM
        if kind != negotiation.DICOM:
            self.error = StepwedgeError(_E.ERROR_CODE_NOT_DICOM, "a part is no application/dicom")

    async def write(self, piece: bytes) -> None:
        """Take a piece; after an error the rest is read and dropped."""
        if self.error is None:
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size >= _WRITE_BYTES:
                await self.flush()

    async def flush(self) -> None:
        """Put what has come so far into the file."""
        pieces, self._pieces, self._size = self._pieces, [], 0
        if self.error is None:
            try:
                await asyncio.to_thread(self._write, pieces)
            except StepwedgeError as error:
                self.error = error
                await asyncio.to_thread(self.discard)

    def _write(self, pieces: Sequence[bytes]) -> None:
        if self.incoming is None:
            self.incoming = self._house.door.open()
        for piece in pieces:
            self.incoming.write(memoryview(piece))

    def discard(self) -> None:
        """Leave nothing of it."""
        if self.incoming is not None:
            self.incoming.discard()


async def store(request: Request, house: House, study: str = "") -> Response:
    """Answer one request. Raises RefusedError, NotAcceptableError, StepwedgeError for what concerns it as a whole."""
    offered = (negotiation.DICOM_JSON, negotiation.DICOM_XML, negotiation.JSON)
    wanted = negotiation.accepted(request.headers.getlist("accept"), request.query_params.get("accept", ""))
    answer = negotiation.choose(wanted, offered)
    reader = Reader(_boundary(request))
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > house.settings.max_request_bytes:
        raise _too_large(house)
    outcomes: list[Outcome] = []
    framed = True
    try:
        await _take_all(request, house, reader, study, outcomes)
    except StepwedgeError as error:
        if error.code != _E.ERROR_CODE_INVALID_REQUEST or not outcomes:
            raise
        framed = False  # what came whole is stored, and the client learns which
    if not framed or not reader.finished:
        outcomes.append(Outcome(reason=FAILURE_REASONS[_E.ERROR_CODE_MALFORMED_DICOM]))
    status = HTTPStatus.BAD_REQUEST if not framed or not reader.finished else _status(outcomes)
    content = _content(outcomes, house.settings.url, study)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    body = to_xml(content) if answer == negotiation.DICOM_XML else dumps(content)
    return Response(body, status, headers, answer)


def _boundary(request: Request) -> str:
    kind: MediaType = media_type(request.headers.get("content-type", "application/octet-stream"))
    if kind.name != negotiation.MULTIPART:
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be multipart/related")
    of = media_type(kind.parameters.get("type", negotiation.DICOM)).name
    if of != negotiation.DICOM:
        # Metadata and bulk data apart (PS3.18 8.7.3.2, 8.7.3.3) would have to be put together into an object that the
        # client never made; here an object is kept as its maker wrote it.
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, 'the parts must be of type="application/dicom"')
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must not be compressed")
    return kind.parameters.get("boundary", "")


def _too_large(house: House) -> RefusedError:
    return RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {house.settings.max_request_bytes} bytes"
    )


async def pieces(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes; a client that falls silent is given up."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(seconds):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "nothing came for too long") from None
        yield piece


async def _take_all(request: Request, house: House, reader: Reader, study: str, outcomes: list[Outcome]) -> None:
    """Read the body; keep each part as it comes, in the background, while the next one is read."""
    places = asyncio.Semaphore(_AT_ONCE)
    tasks: list[asyncio.Task[None]] = []
    part: _Part | None = None
    total = 0

    async def finish(done: _Part, outcome: Outcome) -> None:
        try:
            await _keep(house, done, study, outcome)
        finally:
            places.release()

    try:
        async for piece in pieces(request, house.settings.idle_seconds):
            total += len(piece)
            if total > house.settings.max_request_bytes:
                raise _too_large(house)
            for event in reader.feed(piece):
                match event:
                    case Began(headers):
                        part = _Part(house, headers.get("content-type", ""))
                    case Data(content) if part is not None:
                        await part.write(content)
                    case Ended() if part is not None:
                        if len(outcomes) >= _MOST_PARTS:
                            raise RefusedError(
                                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {_MOST_PARTS} parts"
                            )
                        await places.acquire()
                        outcomes.append(Outcome())
                        tasks.append(asyncio.create_task(finish(part, outcomes[-1])))
                        tasks = [one for one in tasks if not one.done()]
                        part = None
                    case _:
                        pass
    finally:
        if part is not None:
            await asyncio.shield(asyncio.to_thread(part.discard))
        # What came whole is kept, whatever became of the rest; it is durable or gone before anything is answered.
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep(house: House, part: _Part, study: str, outcome: Outcome) -> None:
    """One whole part: durable, then recorded (laws 1 and 2); or its reason."""
    outcome.reason = PROCESSING_FAILURE
    try:
        await part.flush()
        if part.error is not None:
            raise part.error
        assert part.incoming is not None
        kept = await asyncio.to_thread(_kept, house, part.incoming, study, outcome)
        await house.on_main(house.door.record(kept))
        outcome.reason = 0
    except StepwedgeError as error:
        outcome.reason = FAILURE_REASONS.get(error.code, PROCESSING_FAILURE)
        metrics.REFUSED.labels(CHANNEL, error.name).inc()
    except Exception as error:  # noqa: BLE001 - one part must not sink the rest
        _log.error("a part could not be kept", **logs.describe(error))
    finally:
        await asyncio.shield(asyncio.to_thread(part.discard))


def _kept(house: House, incoming: Incoming, study: str, outcome: Outcome) -> Kept:
    path = incoming.close()
    outcome.names = _names(path)
    if study and outcome.names.get(_STUDY) and outcome.names[_STUDY] != study:
        raise StepwedgeError(_E.ERROR_CODE_SOP_CLASS_MISMATCH, "the object is not of the study in the address")
    return house.door.keep(incoming, CHANNEL)


def _names(path: Path) -> dict[int, str]:
    """What the object says of itself, for the answer; what is no UID is left out, and what is wrong is found later."""
    if not path.stat().st_size:
        return {}
    names: dict[int, str] = {}
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            encoded = dicom_encoding.parse(data)  # type: ignore[arg-type]  # slices of a mapping are bytes
            names = dicom.texts(encoded, frozenset({_CLASS, _INSTANCE, _STUDY, _SERIES}))
            del encoded
        except StepwedgeError:
            names = {}
        finally:
            with suppress(BufferError):
                data.close()
    return {tag: text for tag, text in names.items() if dicom.is_uid(text)}


def _status(outcomes: Sequence[Outcome]) -> HTTPStatus:
    """PS3.18 Table 10.5.3-1."""
    failed = [one.reason for one in outcomes if one.reason]
    if not outcomes:
        return HTTPStatus.BAD_REQUEST
    if not failed:
        return HTTPStatus.OK
    if len(failed) < len(outcomes):
        return HTTPStatus.ACCEPTED
    if all(reason == _LATER for reason in failed):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.CONFLICT


def _content(outcomes: Sequence[Outcome], url: str, study: str) -> dict[str, object]:
    """The Store Instances Response Module (PS3.18 Table 10.5.3-2)."""
    stored = [_reference(one, url) for one in outcomes if not one.reason]
    failed = [_reference(one, "") for one in outcomes if one.reason]
    nameless = [attribute("US", one.reason) for one in outcomes if one.reason and _INSTANCE not in one.names]
    studies = {one.names[_STUDY] for one in outcomes if not one.reason and _STUDY in one.names} | ({study} - {""})
    content: dict[str, object] = {}
    if len(studies) == 1:
        content["00081190"] = attribute("UR", f"{url}/studies/{studies.pop()}")
    if failed:
        content["00081198"] = {"vr": "SQ", "Value": failed}
    if stored:
        content["00081199"] = {"vr": "SQ", "Value": stored}
    if nameless:  # failures of what names no SOP instance; they stand in both, since older clients know only the first
        content["0008119A"] = {"vr": "SQ", "Value": [{"00081197": reason} for reason in nameless]}
    return dict(sorted(content.items()))


def _reference(one: Outcome, url: str) -> dict[str, object]:
    item: dict[str, object] = {}
    if _CLASS in one.names:
        item["00081150"] = attribute("UI", one.names[_CLASS])
    if _INSTANCE in one.names:
        item["00081155"] = attribute("UI", one.names[_INSTANCE])
    if url:
        study, series, instance = (one.names[tag] for tag in (_STUDY, _SERIES, _INSTANCE))
        item["00081190"] = attribute("UR", f"{url}/studies/{study}/series/{series}/instances/{instance}")
    if one.reason:
        item["00081197"] = attribute("US", one.reason)
    return item
