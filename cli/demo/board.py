"""What a person sees while studies move: a live table on a terminal, else one line for each step of each study."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cli import terminal
from cli.studies import reason_name, state_name, verdict_name
from stepwedge.common.v1 import common_pb2
from stepwedge.ingest.v1 import ingest_pb2

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

LIVE_ROWS = 24
"""Studies beyond which a table would not fit a terminal: then lines are printed there too."""

STAGES = ("received", "redacted", "assessed", "decided")

_REACHED: Mapping[ingest_pb2.InstanceState.ValueType, int] = {
    ingest_pb2.INSTANCE_STATE_STORED: 0,
    ingest_pb2.INSTANCE_STATE_RECEIVED: 1,
    ingest_pb2.INSTANCE_STATE_REDACTED: 2,
    ingest_pb2.INSTANCE_STATE_ASSESSED: 3,
}


@dataclass
class Row:
    """One study on the board."""

    label: str
    study: ingest_pb2.Study | None = None
    stage: int = 0
    """How many of STAGES all of its images have passed."""
    seconds: Mapping[int, float] = field(default_factory=dict)

    def stage_of(self, study: ingest_pb2.Study) -> int:
        """How many of STAGES the study has passed."""
        if study.decisions and study.state in (ingest_pb2.STUDY_STATE_DELIVERING, ingest_pb2.STUDY_STATE_DONE):
            return len(STAGES)
        return min((_REACHED.get(instance.state, 0) for instance in study.instances), default=0)

    @property
    def decision(self) -> ingest_pb2.Decision | None:
        """Its newest decision."""
        return self.study.decisions[-1] if self.study is not None and self.study.decisions else None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        ends = (ingest_pb2.STUDY_STATE_DONE, ingest_pb2.STUDY_STATE_DEAD_LETTER)
        return self.study is not None and self.study.state in ends


class Board:
    """The studies of a demo, and how they are shown."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        """By Study Instance UID."""
        self._started = time.monotonic()
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the board while studies move; on a terminal it makes room for the summary afterwards."""
        if not terminal.out().is_terminal:
            yield
            return
        from rich.live import Live

        with Live(
            get_renderable=self._table, console=terminal.out(), refresh_per_second=5, transient=True
        ) as self._live:
            yield
        self._live = None

    def update(self, study: ingest_pb2.Study, label: str) -> None:
        """Take in where a study stands now."""
        row = self.rows.setdefault(study.study_instance_uid, Row(label))
        row.label, row.study = label, study
        before, row.stage = row.stage, row.stage_of(study)
        if row.stage > before and (self._live is None or len(self.rows) > LIVE_ROWS):
            self._print_line(row, before)

    def _print_line(self, row: Row, before: int) -> None:
        from rich.text import Text

        passed = ", ".join(STAGES[before : row.stage])
        words = f"   {time.monotonic() - self._started:5.1f} s  {row.label:<34.34} {passed}"
        out = terminal.out()
        if row.stage == len(STAGES) and row.decision is not None:
            out.print(words, terminal.verdict(verdict_name(row.decision.verdict)), soft_wrap=True)
            for reason, detail in _reasons(row.decision):
                terminal.paragraph(Text(f"{reason}: {detail}"), 14)
        else:
            out.print(words, markup=False, soft_wrap=True)

    def _table(self) -> RenderableType:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("   study", no_wrap=True)
        for stage in STAGES[:-1]:
            table.add_column(stage, justify="center")
        table.add_column("verdict", min_width=14)
        for row in list(self.rows.values())[-LIVE_ROWS:]:
            table.add_row(f"   {row.label}", *_marks(row), _verdict(row))
        return table

    def summary(self) -> Table:
        """Each study with its verdict and the reasons in words."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
        table.add_column("study", no_wrap=True, max_width=38)
        table.add_column("images", justify="right")
        table.add_column("verdict", no_wrap=True)
        table.add_column("why")
        for row in self.rows.values():
            images = len(row.study.instances) if row.study is not None else 0
            table.add_row(row.label, str(images), _verdict(row), _why(row))
        return table


def _marks(row: Row) -> list[str]:
    images = row.study.instances if row.study is not None else []
    marks = []
    for number in range(1, len(STAGES)):
        done = sum(_REACHED.get(instance.state, 0) >= number for instance in images)
        marks.append(
            "[green]✓[/]" if done and done == len(images) else f"{done}/{len(images)}" if done else "[dim]·[/]"
        )
    return marks


def _verdict(row: Row) -> str:
    if row.study is None:
        return ""
    if row.stage == len(STAGES) and row.decision is not None:
        return terminal.verdict(verdict_name(row.decision.verdict))
    return f"[dim]{state_name(row.study).lower().replace('_', ' ')}[/]"


def _reasons(decision: ingest_pb2.Decision) -> list[tuple[str, str]]:
    """Each reason of a decision with its sentence."""
    return [(reason_name(reason), detail) for reason, detail in zip(decision.reasons, decision.details, strict=False)]


def _why(row: Row) -> str:
    from rich.markup import escape

    if row.decision is not None:
        told = [f"[bold]{reason}[/]: {escape(detail)}" for reason, detail in _reasons(row.decision)]
        return "\n".join(told) or "[dim]nothing to object to[/]"
    if row.study is not None and row.study.last_error:
        return common_pb2.ErrorCode.Name(row.study.last_error).removeprefix("ERROR_CODE_")
    return ""
