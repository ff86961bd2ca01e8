"""What a model must reach before it may be released: read from gates.toml, held against its evaluation."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GATES = Path(__file__).with_name("gates.toml")


@dataclass(frozen=True)
class Gate:
    """One of gates.toml. bar: what a release must reach; target: what the project wants; `least` says which way."""

    name: str
    path: tuple[str, ...]
    least: bool
    bar: float
    target: float


@dataclass(frozen=True)
class Outcome:
    """One gate held against one evaluation; value None where the evaluation does not say."""

    name: str
    value: float | None
    bar: float
    target: float
    least: bool
    held: bool
    on_target: bool


def read(path: Path = GATES) -> list[Gate]:
    """The gates in order. Raises ValueError where a bar is no number or a gate names no value."""
    found = []
    for row in tomllib.loads(path.read_text(encoding="utf-8"))["gate"]:
        least = "at_least" in row
        bar = row["at_least"] if least else row["at_most"]
        if not math.isfinite(bar) or not row["value"] or ("at_least" in row) == ("at_most" in row):
            raise ValueError(f"gate {row['name']!r} does not say what it asks")
        found.append(Gate(row["name"], tuple(row["value"]), least, float(bar), float(row.get("target", bar))))
    return found


def hold(gates: list[Gate], evaluation: dict[str, Any]) -> list[Outcome]:
    """Every gate's outcome; what was not measured does not hold."""
    return [_one(gate, _look(evaluation, gate.path)) for gate in gates]


def _one(gate: Gate, value: float | None) -> Outcome:
    def reaches(limit: float) -> bool:
        return value is not None and math.isfinite(value) and (value >= limit if gate.least else value <= limit)

    return Outcome(gate.name, value, gate.bar, gate.target, gate.least, reaches(gate.bar), reaches(gate.target))


def _look(content: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        if not isinstance(content, dict) or key not in content:
            return None
        content = content[key]
    return float(content) if isinstance(content, int | float) and not isinstance(content, bool) else None


def as_rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """For the manifest."""
    return [asdict(one) for one in outcomes]
