"""Line charts as SVG, by hand: no drawing library is worth its weight here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 280, 52, 40, 28
COLOURS = ("#1f5fa8", "#c2410c", "#2f7d32", "#7b3fa0", "#8a6d00", "#00808a", "#a01f4f", "#555555", "#3b6ea5", "#b05f3c")
Points = Sequence[tuple[float, float]]


def lines(series: Mapping[str, Points], title: str, across: str, up: str, diagonal: bool = False) -> str:
    """One chart as an <svg> element: a line a series, axes at the least and most values, a legend where there are
    several. `diagonal` draws x = y."""
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points] or [0.0, 1.0], [y for _, y in points] or [0.0, 1.0]
    low, high = (min(xs), min(ys)), (max(xs), max(ys))

    def place(x: float, y: float) -> str:
        share_x, share_y = (
            (value - least) / (most - least or 1.0) for value, least, most in zip((x, y), low, high, strict=True)
        )
        return f"{LEFT + share_x * (WIDTH - LEFT - 10):.1f},{HEIGHT - BOTTOM - share_y * (HEIGHT - BOTTOM - TOP):.1f}"

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>']
    parts += [f'<path d="M{LEFT},{TOP} V{HEIGHT - BOTTOM} H{WIDTH - 10}" fill="none" stroke="#888"/>']
    if diagonal:
        ends = " ".join(place(end, end) for end in (max(low), min(high)))
        parts.append(f'<polyline points="{ends}" stroke="#bbb" fill="none"/>')
    for (name, line), colour in zip(series.items(), COLOURS * (1 + len(series) // len(COLOURS)), strict=False):
        path = " ".join(place(x, y) for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        row = TOP + 12 * len([p for p in parts if 'class="name"' in p])
        if len(series) > 1:
            parts.append(f'<text class="name" x="{LEFT + 8}" y="{row + 10}" fill="{colour}">{escape(name)}</text>')
    middle = HEIGHT / 2
    parts += [
        f'<text x="{LEFT}" y="{HEIGHT - 24}">{low[0]:.4g}</text>',
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 24}" text-anchor="end">{high[0]:.4g}</text>',
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>',
        f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{low[1]:.3g}</text>',
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{high[1]:.3g}</text>',
        f'<text x="12" y="{middle}" transform="rotate(-90 12 {middle})" text-anchor="middle">{escape(up)}</text>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'{head} font-family="sans-serif" font-size="11">' + "".join(parts) + "</svg>"
