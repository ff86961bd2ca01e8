"""Decodes compressed frames in a process of its own: a stranger's codestream can bring down a native decoder.

The decoders are C and C++ and abort on some damaged input (GDCM 3.2 does, on JPEG). The helper process takes one frame
at a time over a pipe and answers with samples or with nothing; when it dies or hangs, that frame does not decode, and
the next frame gets a new helper. What native code prints goes nowhere: it may quote the object.
"""

from __future__ import annotations

import json
import os
import resource
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

SECONDS: Final = 60.0
"""Patience with one frame, by the clock: the machine may be busy."""
CPU_SECONDS: Final = 5.0
"""What one frame may compute, with `CPU_SECONDS_A_MEGAPIXEL` on top: then the kernel ends the helper, even one whose
owner died."""
CPU_SECONDS_A_MEGAPIXEL: Final = 2.0
"""About ten times what JPEG 2000 needs, the slowest."""
ATTRIBUTES: Final = (
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PhotometricInterpretation", "PlanarConfiguration",
)  # fmt: skip
"""What a decoder is told of the image (PS3.3 C.7.6.3)."""

DECODED: Final[Mapping[str, str]] = {
    "1.2.840.10008.1.2": "1, 8, 16, 32 and 64 bits, whole numbers and real ones",
    "1.2.840.10008.1.2.1": "as above",
    "1.2.840.10008.1.2.1.98": "as above",
    "1.2.840.10008.1.2.1.99": "as above",
    "1.2.840.10008.1.2.2": "as above",
    "1.2.840.10008.1.2.4.50": "8 bits",
    "1.2.840.10008.1.2.4.51": "8 bits; 12 bits of one sample a pixel",
    "1.2.840.10008.1.2.4.55": "8 bits of one sample a pixel",
    "1.2.840.10008.1.2.4.57": "up to 16 bits",
    "1.2.840.10008.1.2.4.70": "up to 16 bits",
    "1.2.840.10008.1.2.4.80": "up to 16 bits",
    "1.2.840.10008.1.2.4.81": "up to 16 bits",
    "1.2.840.10008.1.2.4.90": "up to 16 bits",
    "1.2.840.10008.1.2.4.91": "up to 16 bits",
    "1.2.840.10008.1.2.4.201": "up to 16 bits",
    "1.2.840.10008.1.2.4.202": "up to 16 bits",
    "1.2.840.10008.1.2.4.203": "up to 16 bits",
    "1.2.840.10008.1.2.5": "1, 8, 16 and 32 bits",
}
"""The transfer syntaxes whose pixels we can look at, and how deep; held to by `test_transfer_syntaxes.py`."""

_SIZES: Final = struct.Struct("<II")  # of the JSON head, of the bytes behind it
_MAX_HEAD: Final = 4096


class DecodingError(Exception):
    """The frame does not decode."""


class _Helper:
    """The helper process of this process; one frame at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode(self, syntax: str, image: Mapping[str, Any], frame: bytes, *, rgb: bool, most: int) -> NDArray[Any]:
        """One frame as [rows, columns] or [rows, columns, samples]; DecodingError."""
        return self.decode_named(syntax, image, frame, rgb=rgb, most=most)[0]

    def decode_named(
        self, syntax: str, image: Mapping[str, Any], frame: bytes, *, rgb: bool, most: int
    ) -> tuple[NDArray[Any], str]:
        """As `decode`, with the Photometric Interpretation of what was decoded: some decoders undo its transform."""
        head = json.dumps({"syntax": syntax, "image": dict(image), "rgb": rgb}).encode()
        with self._lock:
            try:
                process = self._running()
                deadline = time.monotonic() + SECONDS
                _write(process.stdin, head, frame, deadline)
                told, samples = _read(process.stdout, deadline, most)
            except (OSError, EOFError, ValueError, DecodingError, subprocess.SubprocessError):
                self._end()
                raise DecodingError from None
        if not told.get("ok"):
            raise DecodingError
        try:
            shape = [int(n) for n in told["shape"]]
            return np.frombuffer(samples, np.dtype(str(told["dtype"]))).reshape(shape).copy(), str(told["photometric"])
        except (KeyError, TypeError, ValueError):
            raise DecodingError from None

    def start(self) -> None:
        """Start the helper now, so that the first frame does not wait for it, or while starting is still allowed."""
        with self._lock:
            self._running()

    def _running(self) -> subprocess.Popen[bytes]:
        # After a fork the pipes belong to the parent.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._process = subprocess.Popen(
                # As a script, isolated: it needs nothing else of ours, and a confined owner may not list the checkout.
                [sys.executable, "-I", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # the terminal's Ctrl-C is for the owner, whose end it sees
            )
            self._owner = os.getpid()
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    _close(pipe)
        self._process = None


_helper: Final = _Helper()
decode: Final = _helper.decode
decode_named: Final = _helper.decode_named
start: Final = _helper.start


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:
        return


def _write(pipe: IO[bytes] | None, head: bytes, body: bytes, deadline: float) -> None:
    assert pipe is not None
    descriptor = pipe.fileno()
    for piece in (_SIZES.pack(len(head), len(body)) + head, body):
        left = memoryview(piece)
        while left:
            if not select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))[1]:
                raise DecodingError
            left = left[os.write(descriptor, left[: 1 << 20]) :]


def _read(pipe: IO[bytes] | None, deadline: float, most: int) -> tuple[dict[str, Any], bytes]:
    assert pipe is not None
    descriptor = pipe.fileno()

    def exactly(size: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < size:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise DecodingError
            piece = os.read(descriptor, min(size - len(pieces), 1 << 20))
            if not piece:
                raise EOFError
            pieces += piece
        return bytes(pieces)

    head_size, size = _SIZES.unpack(exactly(_SIZES.size))
    if head_size > _MAX_HEAD or size > most:
        raise DecodingError
    head = json.loads(exactly(head_size))
    return (head if isinstance(head, dict) else {}), exactly(size)


def _serve() -> None:
    """The helper's own life: until the owner closes the pipe, by its will or by its death."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    # Whatever native code prints must not get between the answers.
    answers = os.fdopen(os.dup(target.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())
    while True:
        sizes = source.read(_SIZES.size)
        if len(sizes) < _SIZES.size:
            return
        head_size, size = _SIZES.unpack(sizes)
        head, frame = json.loads(source.read(head_size)), source.read(size)
        try:
            _limit(head["image"])
            samples, photometric = _decoded(head, frame)
            told: dict[str, Any] = {"ok": True, "dtype": samples.dtype.str, "shape": samples.shape}
            told["photometric"] = photometric
            body = samples.tobytes()
        except Exception:  # noqa: BLE001 - decoders raise whatever the bytes make them raise
            told, body = {"ok": False}, b""
        words = json.dumps(told).encode()
        answers.write(_SIZES.pack(len(words), len(body)) + words)
        answers.write(body)
        answers.flush()


def _limit(image: Mapping[str, Any]) -> None:
    """How long this frame may compute."""
    megapixels = int(image["Rows"]) * int(image["Columns"]) * int(image.get("SamplesPerPixel", 1)) / 1e6
    seconds = time.process_time() + CPU_SECONDS + CPU_SECONDS_A_MEGAPIXEL * megapixels
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if most == resource.RLIM_INFINITY else min(soft, most), most))


_JP2_SIGNATURE: Final = b"\x00\x00\x00\x0cjP  "
_BOX: Final = struct.Struct(">I4s")  # length with this head, type


def codestream_start(frame: bytes) -> int:
    """Where the codestream begins: some vendors leave it in a JP2 file (ISO/IEC 15444-1 I.4, I.5).

    DecodingError for boxes that lead nowhere: pydicom 3.0 would follow one of no length for ever.
    """
    if not frame.startswith(_JP2_SIGNATURE):
        return 0
    at = 12
    while at + _BOX.size <= len(frame):
        length, kind = _BOX.unpack_from(frame, at)
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)
        if length < _BOX.size:
            break
        at += length
    raise DecodingError


def _decoded(head: dict[str, Any], frame: bytes) -> tuple[NDArray[Any], str]:
    """By what pydicom knows, and beside it by what it refuses and a decoder of ours can do."""
    image, syntax = head["image"], head["syntax"]
    codestream_start(frame)
    mono = image.get("SamplesPerPixel", 1) == 1
    if syntax in _GDCM_ALONE and mono and (syntax != _EXTENDED or _precision(frame) > 8):
        return _by_gdcm(syntax, image, frame), str(image["PhotometricInterpretation"])
    if syntax == _RLE and image.get("BitsAllocated") == 1 and mono:
        return _bits_run_length(image, frame), str(image["PhotometricInterpretation"])
    return _by_pydicom(head, frame)


_EXPLICIT: Final = "1.2.840.10008.1.2.1"
_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1.98"  # frames as they are, in fragments (PS3.5 A.4.11)
_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
_GDCM_ALONE: Final = frozenset({_EXTENDED, "1.2.840.10008.1.2.4.55"})
_RLE: Final = "1.2.840.10008.1.2.5"
_FRAME_HEADERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ISO/IEC 10918-1 B.1.1.3


def _precision(frame: bytes) -> int:
    """Bits of a sample by the frame header of a JPEG codestream (ISO/IEC 10918-1 B.2.2); 0 where there is none."""
    at = 2
    while at + 5 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xFF:
            at += 1
        elif frame[at + 1] in _FRAME_HEADERS:
            return frame[at + 4]
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return 0


def _by_gdcm(syntax: str, image: Mapping[str, Any], frame: bytes) -> NDArray[Any]:
    """JPEG that pydicom leaves to decoders that we may not ship: 12 bits (process 4), and progressive (10, 12)."""
    import gdcm  # type: ignore[import-untyped]

    precision = _precision(frame)
    if precision not in (8, 12):
        raise DecodingError
    stored = 8 if precision == 8 else 16
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    rows, columns = int(image["Rows"]), int(image["Columns"])
    picture = gdcm.Image()
    picture.SetNumberOfDimensions(2)
    picture.SetDimensions((columns, rows, 1))
    picture.SetDataElement(element)
    picture.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    picture.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    picture.SetPixelFormat(gdcm.PixelFormat(1, stored, precision, precision - 1, 0))
    samples = np.frombuffer(picture.GetBuffer().encode("utf-8", "surrogateescape"), f"<u{stored // 8}")
    if samples.size != rows * columns or int(image["BitsAllocated"]) < stored:
        raise DecodingError
    wide = f"{'i' if image.get('PixelRepresentation') else 'u'}{int(image['BitsAllocated']) // 8}"
    values = samples.reshape(rows, columns).astype(wide)
    if wide[0] == "i":  # the codestream knows no sign: the stored bits carry it
        shift = 8 * values.dtype.itemsize - int(image["BitsStored"])
        values = (values << shift) >> shift
    return values


def _bits_run_length(image: Mapping[str, Any], frame: bytes) -> NDArray[Any]:
    """Single bits: one segment of the packed cells of the frame (PS3.5 8.1.1, Annex G)."""
    from rle.rle import decode_segment  # type: ignore[import-not-found]

    rows, columns = int(image["Rows"]), int(image["Columns"])
    segments, first, second = struct.unpack_from("<III", frame)
    if segments != 1 or first != 64 or second:
        raise DecodingError
    packed = np.frombuffer(decode_segment(frame[first:]), np.uint8)
    cells = np.unpackbits(packed[: -(-rows * columns // 8)], bitorder="little")
    if cells.size < rows * columns:
        raise DecodingError
    return cells[: rows * columns].reshape(rows, columns)


def _by_pydicom(head: dict[str, Any], frame: bytes) -> tuple[NDArray[Any], str]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    syntax = UID(_EXPLICIT if head["syntax"] == _UNCOMPRESSED else head["syntax"])
    dataset.file_meta.TransferSyntaxUID = syntax
    for keyword, value in head["image"].items():
        setattr(dataset, keyword, value)
    dataset.NumberOfFrames = 1
    dataset.PixelData = encapsulate([frame], has_bot=False) if syntax.is_encapsulated else frame
    dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
    samples, told = get_decoder(syntax).as_array(dataset, index=0, raw=not head["rgb"])
    return np.ascontiguousarray(samples), str(told["photometric_interpretation"])


if __name__ == "__main__":
    _serve()
