"""The command as a user runs it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "cli")


@dataclass(frozen=True)
class Ran:
    """What a run of the command did."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """stdout as one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def failed_in_one_line(self, code: str) -> bool:
        """Whether stderr is the one line `error CODE: sentence`."""
        return self.err.startswith(f"error {code}: ") and self.err.count("\n") == 1


def environment(**more: str) -> dict[str, str]:
    """The environment of the tests, without settings of whoever runs them."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STEPWEDGE_")}
    return {**inherited, "PYTHONPATH": str(ROOT), **more}


def stepwedge(
    *arguments: str | Path, cwd: Path | None = None, seconds: float = 60, env: Mapping[str, str] | None = None
) -> Ran:
    """Run the command to its end; stdout and stderr are not terminals."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env=environment(**(env or {})),
        timeout=seconds,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
