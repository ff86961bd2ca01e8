"""What a compressed frame carries beside the picture (comments, application data, what follows its end): blanked.

Nothing moves, so that offset tables stay true, and no sample changes.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from shared.dicom_encoding import Bytes

# ISO/IEC 10918-1 B.1.1.3. Kept: APP0 JFIF, APP14 Adobe and APP8 (SPIFF, the colour transform of JPEG-LS), on which the
# colours depend.
_KEPT_APPLICATION: Final[dict[int, tuple[bytes, ...]]] = {
    0xE0: (b"JFIF\0",),
    0xEE: (b"Adobe",),
    0xE8: (b"SPIFF\0", b"mrfx"),
}
_APPLICATION: Final = range(0xE0, 0xF0)
_COMMENT: Final = 0xFE
_JPEG_END: Final = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_J2K_COMMENT: Final = 0xFF64  # ISO/IEC 15444-1 A.9.2
_J2K_TILE: Final = 0xFF90
_J2K_END: Final = 0xFFD9


def blanked(fragment: Bytes, *, whole: bool) -> tuple[Bytes, int]:
    """The fragment with what is not picture turned into zeros, and how many pieces that were.

    whole: the fragment is a complete frame, so that whatever follows its end is no part of it. A fragment of another
    kind, or one whose segments do not add up, comes back as it is: whether it decodes is not asked here.
    """
    head = bytes(fragment[:4])
    if head[:2] == b"\xff\xd8":
        return _blank(fragment, _jpeg(bytes(fragment), whole=whole))
    if head == b"\xff\x4f\xff\x51":
        return _blank(fragment, _j2k(bytes(fragment), whole=whole))
    return fragment, 0


def _blank(fragment: Bytes, spans: list[tuple[int, int]]) -> tuple[Bytes, int]:
    spans = [(start, end) for start, end in spans if any(fragment[start:end])]
    if not spans:
        return fragment, 0
    result = bytearray(fragment)
    for start, end in spans:
        result[start:end] = bytes(end - start)
    return bytes(result), len(spans)


def _jpeg(data: bytes, *, whole: bool) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    pos = 2
    while pos + 4 <= len(data) and data[pos] == 0xFF:
        marker = data[pos + 1]
        if marker == 0xFF:
            pos += 1
            continue
        if marker == 0xD9:
            return [*spans, (pos + 2, len(data))] if whole else spans
        end = pos + 2 + struct.unpack_from(">H", data, pos + 2)[0]
        payload = data[pos + 4 : end]
        if marker == _COMMENT or (marker in _APPLICATION and not payload.startswith(_KEPT_APPLICATION.get(marker, ()))):
            spans.append((pos + 4, min(end, len(data))))
        if marker == 0xDA:
            following = _JPEG_END.search(data, end)
            if following is None:
                return spans
            end = following.end() - 2
        pos = end
    if whole and data[pos : pos + 2] == b"\xff\xd9":
        spans.append((pos + 2, len(data)))
    return spans


def _j2k(data: bytes, *, whole: bool) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    pos = 2
    while pos + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, pos)
        if marker in (_J2K_TILE, _J2K_END) or marker < 0xFF00:
            break
        if marker == _J2K_COMMENT:
            spans.append((pos + 6, min(pos + 2 + length, len(data))))
        pos += 2 + length
    while pos + 12 <= len(data) and data[pos : pos + 2] == b"\xff\x90":
        part = struct.unpack_from(">I", data, pos + 6)[0]
        if part < 14:
            return spans  # 0: up to the end of the codestream
        pos += part
    if whole and data[pos : pos + 2] == b"\xff\xd9":
        spans.append((pos + 2, len(data)))
    return spans
