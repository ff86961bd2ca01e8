"""What the commands print: answers on stdout, everything about the work (progress, notes, errors) on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PLAIN_WIDTH = 100
"""Columns where the output is not a terminal: wide enough for every table of ours, narrow enough for a mail."""

PROGRESS_LINE_SECONDS = 10.0
"""How often progress is said in a line where stderr is not a terminal."""

STYLE_OF_VERDICT: Mapping[str, str] = {
    "ACCEPT": "bold green",
    "REVIEW": "bold yellow",
    "REJECT": "bold red",
    "NOT_ASSESSABLE": "bold magenta",
}


@cache
def out() -> Console:
    """Rich console on stdout."""
    return _console(stderr=False)


@cache
def err() -> Console:
    """Rich console on stderr; a live progress bar and lines printed through it do not disturb each other."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, emoji=False, width=PLAIN_WIDTH)
    return console


def printable(value: object) -> str:
    """Text of a path (or of anything the user gave) that no terminal takes for a command."""
    text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def emit(answer: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout, at once."""
    sys.stdout.write(json.dumps(answer, ensure_ascii=True, separators=(", ", ": "), allow_nan=False) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Say something about the work, on stderr."""
    err().print(printable(text), markup=False, soft_wrap=True)


def error(code: str, sentence: str) -> None:
    """Say that one item of many failed; the work goes on."""
    err().print(printable(f"error {code}: {sentence}"), markup=False, soft_wrap=True)


def verdict(name: str) -> str:
    """A verdict as Rich markup."""
    style = STYLE_OF_VERDICT.get(name)
    return f"[{style}]{name}[/]" if style else name


def duration(seconds: float) -> str:
    """Seconds in words: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def size(count: float) -> str:
    """Bytes in words with decimal prefixes: `39.2 kB`."""
    for prefix in ("B", "kB", "MB", "GB"):
        if count < 1000 or prefix == "GB":
            return f"{count:.0f} {prefix}" if prefix == "B" else f"{count:.1f} {prefix}"
        count /= 1000
    raise AssertionError("unreachable")


def paragraph(text: RenderableType, indent: int) -> None:
    """Print on stdout, indented, wrapped to the width; without blanks at the ends of lines where nobody sees them."""
    from rich.padding import Padding

    console = out()
    block = Padding(text, (0, 0, 0, indent), expand=False)
    if console.is_terminal:
        console.print(block)
        return
    with console.capture() as captured:
        console.print(block)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far long work is and how long it will still take; yields what to call with each step done.

    A bar where stderr is a terminal, else a line every ten seconds; nothing where the work is over before that.
    """
    if total > 1 and err().is_terminal:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=err(), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda steps: bar.advance(task, steps)
        return
    yield _lines(title, total)


@contextmanager
def counter(title: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how much is done where nobody knows how much there is; yields what to call with the number so far."""
    if not err().is_terminal:
        yield lambda done: None
        return
    with err().status(title) as status:
        yield lambda done: status.update(f"{title}: {done:,} {unit}")


def _lines(title: str, total: int) -> Callable[[int], None]:
    started = said = time.monotonic()
    done = 0

    def advance(steps: int) -> None:
        nonlocal done, said
        done += steps
        now = time.monotonic()
        if now - said >= PROGRESS_LINE_SECONDS and 0 < done < total:
            said = now
            left = (now - started) / done * (total - done)
            note(f"{title}: {done} of {total}, about {duration(left)} left")

    return advance
