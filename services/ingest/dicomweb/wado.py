"""WADO-RS (PS3.18 10.4): what is held, as objects, metadata, frames, bulk data and pictures."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeVar

from starlette.responses import Response, StreamingResponse

from services.ingest.dicomweb import json_model, negotiation, rendering, transcoding
from services.ingest.dicomweb.calls import Call
from services.ingest.dicomweb.holdings import Held
from services.ingest.dicomweb.negotiation import NotAcceptableError, Wanted
from services.ingest.dicomweb.parts import multipart_answer
from shared import dicom
from shared.dicom_encoding import EXPLICIT_LITTLE
from shared.errors import ErrorCode, StepwedgeError

_MOST_FRAMES: Final = 10_000
_FRAMES: Final = re.compile(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*")
_PATH: Final = re.compile(r"[0-9A-Fa-f]{8}(/[0-9]{1,6}/[0-9A-Fa-f]{8}){0,16}")

_T = TypeVar("_T")


async def retrieve(call: Call) -> Response:
    """Objects: a study, a series, or one."""
    held = await _held(call)
    wanted = _wanted(call)
    chosen = [(one, _syntax(wanted, one)) for one in held]
    served = [(one, syntax) for one, syntax in chosen if syntax is not None]
    if not served:
        raise NotAcceptableError
    await _viewed(call, held, "objects")
    status = HTTPStatus.OK if len(served) == len(held) else HTTPStatus.PARTIAL_CONTENT
    first = next((one for one in wanted if negotiation.matches(one, negotiation.DICOM, multipart=one.multipart)), None)
    if first is not None and not first.multipart and first.name != "*/*" and len(held) == 1:
        data = await _object(call, held[0], served[0][1])
        return Response(data, status, _notes(held), negotiation.DICOM)

    async def parts() -> AsyncIterator[tuple[str, bytes]]:
        for one, syntax in served:
            data = await _object(call, one, syntax)
            said = EXPLICIT_LITTLE if syntax == "" else one.transfer_syntax if syntax == "*" else syntax
            yield f"{negotiation.DICOM};transfer-syntax={said}", data

    return multipart_answer(negotiation.DICOM, parts(), status, _notes(held))


def _wanted(call: Call) -> list[Wanted]:
    query = call.request.query_params
    return negotiation.accepted(call.request.headers.getlist("accept"), query.get("accept", ""))


def _syntax(wanted: Sequence[Wanted], one: Held) -> str | None:
    """The transfer syntax in which this object goes; None where there is none that is taken."""
    for want in wanted or [Wanted("*/*", False, "", 1.0)]:
        fits = negotiation.matches(want, negotiation.DICOM, multipart=want.multipart)
        if fits and transcoding.can_serve(one.transfer_syntax, want.transfer_syntax):
            return want.transfer_syntax
    return None


async def _object(call: Call, one: Held, syntax: str) -> bytes:
    def work() -> bytes:
        data = call.house.objects.get(one.zone, one.sha256)
        return b"".join(transcoding.transcoded(data, one.transfer_syntax, syntax))

    return await _in_memory(call, work)


async def _in_memory(call: Call, work: Callable[[], _T]) -> _T:
    """Run what holds an object in memory; only so many at once do."""
    async with call.house.in_memory:
        return await asyncio.to_thread(work)


async def _held(call: Call) -> Sequence[Held]:
    """What the address names. Raises STUDY_NOT_FOUND."""
    names = [call.uid(name) for name in ("study", "series", "instance")]
    await asyncio.to_thread(call.house.door.settle)
    found = await asyncio.to_thread(call.house.holdings.find, *names)
    if not found:
        raise StepwedgeError(ErrorCode.ERROR_CODE_STUDY_NOT_FOUND, "nothing of this name is held")
    return found


async def _viewed(call: Call, held: Sequence[Held], what: str) -> None:
    # A study whose objects name several people is a read of each of them; of results alone, of the study.
    for subject in dict.fromkeys(one.subject for one in held if one.subject) or ("",):
        await call.house.viewed(call.client, what, study=held[0].study_pseudonym, subject=subject)


def _notes(held: Sequence[Held]) -> dict[str, str]:
    """What the client should know beside the answer."""
    if any(one.conflict for one in held):
        return {"Warning": '299 stepwedge "another object was received under the same SOP Instance UID"'}
    return {}


# -- metadata


async def metadata(call: Call) -> Response:
    """Everything but bulk data, as JSON or XML."""
    held = await _held(call)
    wanted = _wanted(call)
    takes_json = any(
        negotiation.matches(one, name) for one in wanted for name in (negotiation.DICOM_JSON, negotiation.JSON)
    )
    xml = bool(wanted) and not takes_json
    if xml and not any(negotiation.matches(one, negotiation.DICOM_XML, multipart=True) for one in wanted):
        raise NotAcceptableError
    await _viewed(call, held, "metadata")

    async def models() -> AsyncIterator[json_model.Model]:
        for one in held:
            yield await _in_memory(call, lambda one=one: _model(call, one))  # type: ignore[misc]

    if xml:

        async def parts() -> AsyncIterator[tuple[str, bytes]]:
            async for model in models():
                yield negotiation.DICOM_XML, json_model.to_xml(model)

        return multipart_answer(negotiation.DICOM_XML, parts(), HTTPStatus.OK, _notes(held))
    # The first before the answer begins, so that what cannot be had at all has a status.
    iterator = models()
    first = json_model.dumps(await anext(iterator))

    async def body() -> AsyncIterator[bytes]:
        yield b"[" + first
        async for model in iterator:
            yield b"," + json_model.dumps(model)
        yield b"]"

    kind = negotiation.choose(wanted, (negotiation.DICOM_JSON, negotiation.JSON))
    return StreamingResponse(body(), HTTPStatus.OK, _notes(held), kind)


def _model(call: Call, one: Held) -> json_model.Model:
    base = f"{address(call, one)}/bulkdata"
    dataset = dicom.read(call.house.objects.get(one.zone, one.sha256))
    model = json_model.of_dataset(dataset, lambda path: f"{base}/{path}")
    # PS3.18 10.4.1.1.2: what a client must know before it asks for frames.
    model["00083002"] = json_model.attribute("UI", one.transfer_syntax)
    return dict(sorted(model.items()))


def address(call: Call, one: Held) -> str:
    """Where an object is retrieved."""
    return f"{call.house.settings.url}/studies/{one.study}/series/{one.series}/instances/{one.sop_instance}"


# -- frames and bulk data


async def frames(call: Call) -> Response:
    """Frames, native or as they lie compressed."""
    listed = str(call.request.path_params["frames"])
    if not _FRAMES.fullmatch(listed):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "frames are numbers from 1, joined by commas")
    numbers = [int(number) for number in listed.split(",")]
    if len(numbers) > _MOST_FRAMES:
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, f"at most {_MOST_FRAMES} frames at once")
    (one,) = await _held(call)
    native, kind, single = _form(_wanted(call), one, len(numbers))
    await _viewed(call, [one], "frames")

    def work() -> Iterator[bytes]:
        data = call.house.objects.get(one.zone, one.sha256)
        if native:
            return transcoding.native_frames(data, one.transfer_syntax, numbers)
        return transcoding.stored_frames(data, numbers)

    iterator = await _in_memory(call, work)
    first = await _in_memory(call, lambda: _next(iterator))
    if single:
        return Response(first, HTTPStatus.OK, _notes([one]), kind)
    said = f"{kind};transfer-syntax={EXPLICIT_LITTLE if native else one.transfer_syntax}"

    async def parts() -> AsyncIterator[tuple[str, bytes]]:
        yield said, first
        for _ in numbers[1:]:
            yield said, await _in_memory(call, lambda: _next(iterator))

    return multipart_answer(kind, parts(), HTTPStatus.OK, _notes([one]))


def _next(iterator: Iterator[bytes]) -> bytes:
    frame = next(iterator, None)
    if frame is None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, "there are fewer frames than the header says")
    return frame


def _form(wanted: Sequence[Wanted], one: Held, count: int) -> tuple[bool, str, bool]:
    """Whether native, as what media type, and whether as a single part. Raises NotAcceptableError."""
    compressed = transcoding.MEDIA_TYPES.get(one.transfer_syntax, "")
    can_decode = transcoding.can_serve(one.transfer_syntax, "")
    for want in wanted or [Wanted(negotiation.OCTETS, True, "", 1.0)]:
        single = not want.multipart and want.name != "*/*"
        if single and count > 1:
            continue
        anything = want.name == "*/*"
        as_it_lies = want.transfer_syntax in ("*", one.transfer_syntax) or not want.transfer_syntax
        if compressed and want.name in (compressed, "image/*") and as_it_lies:
            return False, compressed, single
        if anything and compressed and want.transfer_syntax in ("*", one.transfer_syntax):
            return False, compressed, single
        octets = negotiation.matches(want, negotiation.OCTETS, multipart=want.multipart)
        if octets and want.transfer_syntax in ("", "*", EXPLICIT_LITTLE) and can_decode:
            return True, negotiation.OCTETS, single
    raise NotAcceptableError


async def bulkdata(call: Call) -> Response:
    """One value, by the path that metadata gave; pixel data as its frames are, in one."""
    path = str(call.request.path_params["path"])
    if not _PATH.fullmatch(path):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "this names no bulk data")
    (one,) = await _held(call)
    wanted = _wanted(call)
    octets = [want for want in wanted if negotiation.matches(want, negotiation.OCTETS, multipart=want.multipart)]
    if wanted and not octets:
        raise NotAcceptableError
    await _viewed(call, [one], "bulkdata")
    data = await _in_memory(call, lambda: _bulk(call.house.objects.get(one.zone, one.sha256), one, path))
    if octets and not octets[0].multipart and octets[0].name != "*/*":
        return Response(data, HTTPStatus.OK, _notes([one]), negotiation.OCTETS)

    async def parts() -> AsyncIterator[tuple[str, bytes]]:
        yield negotiation.OCTETS, data

    return multipart_answer(negotiation.OCTETS, parts(), HTTPStatus.OK, _notes([one]))


def _bulk(data: bytes, one: Held, path: str) -> bytes:
    dataset = dicom.read(data)
    *items, tag = path.split("/")
    try:
        for sequence, number in zip(items[::2], items[1::2], strict=True):
            dataset = dataset[int(sequence, 16)].value[int(number)]
        value: Any = dataset[int(tag, 16)].value
    except (KeyError, IndexError, TypeError, ValueError):
        value = None
    if not isinstance(value, bytes):
        raise StepwedgeError(ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND, "the object has no such bulk data")
    if not items and int(tag, 16) == 0x7FE00010 and one.transfer_syntax in transcoding.MEDIA_TYPES:
        transcoding.refuse_many(dataset)
        count = transcoding.frame_count(dataset)
        return b"".join(transcoding.native_frames(data, one.transfer_syntax, list(range(1, count + 1))))
    return value


# -- pictures


async def render(call: Call) -> Response:
    """A picture of an object, of one of its frames, or of something in the middle of a series or study."""
    return await _picture(call, rendering.wish(call.request.query_params), "rendered")


async def thumbnail(call: Call) -> Response:
    """A small picture."""
    side = rendering.THUMBNAIL
    given = rendering.wish(call.request.query_params)
    made = rendering.Wish(given.window, given.viewport or (side, side), given.quality)
    return await _picture(call, made, "thumbnail")


async def _picture(call: Call, wish: rendering.Wish, what: str) -> Response:
    listed = str(call.request.path_params.get("frames", "0"))
    if listed != "0" and not re.fullmatch(r"[1-9][0-9]{0,8}", listed):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "one frame is rendered at a time")
    held = await _held(call)
    images = [one for one in held if one.modality not in ("SR", "PR", "KO", "DOC")] or held
    one = images[len(images) // 2]
    kind = negotiation.choose(_wanted(call), tuple(rendering.FORMATS))
    await _viewed(call, [one], what)

    def work() -> bytes:
        data = call.house.objects.get(one.zone, one.sha256)
        return rendering.rendered(data, int(listed), kind, wish)

    return Response(await _in_memory(call, work), HTTPStatus.OK, _notes([one]), kind)
