"""Small pictures for pages: masks made into coloured layers, and bar charts as SVG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from stepwedge.common.v1.common_pb2 import Structure

COLOURS: Final[Mapping[int, tuple[int, int, int]]] = {
    Structure.STRUCTURE_RIGHT_LUNG_FIELD: (86, 180, 233),
    Structure.STRUCTURE_LEFT_LUNG_FIELD: (0, 158, 115),
    Structure.STRUCTURE_HEART: (230, 159, 0),
    Structure.STRUCTURE_LUNGS_FULL: (204, 121, 167),
}
"""Of Okabe and Ito's palette, which colour-blind readers tell apart."""

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_OPACITY: Final = 96


def layer(png: bytes, colour: tuple[int, int, int]) -> bytes:
    """A mask (PNG, 8-bit grey, 0 outside, 255 inside) as a layer of one colour that the image shows through.

    The pixels stay as they are: an 8-bit grey PNG becomes a palette PNG by its header alone (ISO/IEC 15948 11.2).
    Raises ValueError where it is not such a PNG.
    """
    if not png.startswith(_SIGNATURE) or png[12:16] != b"IHDR" or png[24:29] != b"\x08\x00\x00\x00\x00":
        raise ValueError("not an 8-bit grey PNG")
    header = _chunk(b"IHDR", png[16:24] + b"\x08\x03\x00\x00\x00")
    palette = _chunk(b"PLTE", bytes(colour) * 256)
    opacity = _chunk(b"tRNS", bytes(round(_OPACITY * value / 255) for value in range(256)))
    return _SIGNATURE + header + palette + opacity + png[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bars(
    title: str, columns: Sequence[str], series: Sequence[tuple[str, str, Sequence[int]]], *, height: int = 180
) -> str:
    """Stacked bars as SVG without a style: a column each, of series (name, class, one value a column).

    The figures stand in a table beside it, so the picture itself is hidden from screen readers but for its title.
    """
    width, left, bottom, top = 720, 44, 28, 12
    totals = [sum(values[i] for _, _, values in series) for i in range(len(columns))]
    most = max(totals, default=0) or 1
    scale = (height - bottom - top) / most
    step = (width - left) / max(1, len(columns))
    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(title)}</title>",
        f'<text x="{left - 6}" y="{top + 8}" text-anchor="end">{most}</text>',
        f'<text x="{left - 6}" y="{height - bottom}" text-anchor="end">0</text>',
        f'<line x1="{left}" x2="{width}" y1="{height - bottom}" y2="{height - bottom}" class="axis"/>',
    ]
    every = max(1, len(columns) // 12)
    for place, name in enumerate(columns):
        x, y = left + place * step, float(height - bottom)
        for label, kind, values in series:
            tall = values[place] * scale
            if tall:
                y -= tall
                parts.append(
                    f'<rect class="{kind}" x="{x + step * 0.1:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" '
                    f'height="{tall:.1f}"><title>{escape(name)}: {escape(label)} {values[place]}</title></rect>'
                )
        if place % every == 0:
            parts.append(f'<text x="{x + step / 2:.1f}" y="{height - 10}" text-anchor="middle">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def shares(repeated: int, rejected: int, of: int, most: float) -> str:
    """A small bar of two shares as SVG without a style: repeated, and rejected but not repeated, of so many images.

    `most`: the share that fills the bar. The figures stand beside it, so it is hidden from screen readers.
    """
    wide = [100 * count / max(1, of) / (most or 1) for count in (repeated, rejected)]
    return (
        '<svg class="share" aria-hidden="true" viewBox="0 0 100 10" preserveAspectRatio="none">'
        f'<rect class="review" width="{min(100.0, wide[1]):.1f}" height="10"/>'
        f'<rect class="reject" width="{min(100.0, wide[0]):.1f}" height="10"/></svg>'
    )


def interval(low: float, mean: float, high: float) -> str:
    """A mean with its interval between 0.5 and 1 as SVG without a style; the figures stand beside it."""
    left, middle, right = (round(160 * min(1.0, max(0.0, 2 * value - 1)), 1) for value in (low, mean, high))
    return (
        '<svg class="interval" aria-hidden="true" viewBox="0 0 160 12">'
        '<line x1="0" x2="160" y1="11" y2="11"/>'
        f'<rect x="{left}" y="4" width="{max(1.0, right - left):.1f}" height="4"/>'
        f'<circle cx="{middle}" cy="6" r="3"/></svg>'
    )


def line(title: str, values: Sequence[float | None], *, width: int = 160, height: int = 32) -> str:
    """A small line of values over time as SVG without a style, with gaps; its figures stand beside it."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    step = width / max(1, len(values) - 1)
    points: list[list[str]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            points.append([])
        else:
            share = (value - low) / (high - low) if high > low else 0.5
            points[-1].append(f"{place * step:.1f},{height - 3 - share * (height - 6):.1f}")
    parts = [f'<svg class="line" role="img" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">']
    parts.append(f"<title>{escape(title)}</title>")
    for run in points:
        if len(run) > 1:
            parts.append(f'<polyline points="{" ".join(run)}"/>')
        elif run:
            x, y = run[0].split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2"/>')
    return "".join([*parts, "</svg>"])
