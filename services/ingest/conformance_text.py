"""A document of headings, paragraphs, lists and tables, as Markdown and as one HTML file that prints."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Heading:
    """A numbered heading: "4.2.1.1 SOP Classes"; its level is that of its number."""

    number: str
    text: str

    @property
    def level(self) -> int:
        """1 for "4", 2 for "4.2"."""
        return self.number.count(".") + 1


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under titles."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


_RULE: Final = "---"

Block = Heading | Paragraph | Table


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """CommonMark with tables."""
    lines = [f"# {title}", ""]
    for block in blocks:
        match block:
            case Heading():
                lines += [f"{'#' * (block.level + 1)} {block.number} {block.text}", ""]
            case Paragraph():
                lines += [_escaped(block.text), ""]
            case Table():
                lines += [_row(block.titles), _row([_RULE] * len(block.titles)), *map(_row, block.rows), ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    for letter in "\\`*_<>|":
        text = text.replace(letter, f"\\{letter}")
    return text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell if cell == _RULE else _escaped(cell) for cell in cells)} |"


_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 0 0 1rem; font-size: 14px; }
th, td { border: 1px solid #999; padding: .25rem .5rem; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
th { background: #eee; } tr { break-inside: avoid; } h2 { margin-top: 2.5rem; } h2, h3, h4, h5 { break-after: avoid; }
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One file without script, and without anything that lies elsewhere."""
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>",
        "<nav><ul>",
        *(
            f'<li><a href="#s{block.number}">{block.number} {html.escape(block.text)}</a></li>'
            for block in blocks
            if isinstance(block, Heading) and block.level == 1
        ),
        "</ul></nav>",
    ]
    for block in blocks:
        match block:
            case Heading():
                level = min(block.level + 1, 6)
                text = f"{block.number} {html.escape(block.text)}"
                parts.append(f'<h{level} id="s{block.number}">{text}</h{level}>')
            case Paragraph():
                parts.append(f"<p>{html.escape(block.text)}</p>")
            case Table():
                parts.append(f"<table><thead>{_cells('th', block.titles)}</thead><tbody>")
                parts += [_cells("td", row) for row in block.rows]
                parts.append("</tbody></table>")
    return "\n".join([*parts, "</body></html>\n"])


def _cells(tag: str, cells: Sequence[str]) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    return f"<tr>{''.join(f'<{tag}{scope}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
