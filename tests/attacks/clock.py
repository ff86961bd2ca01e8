"""The audit service under a clock that a file sets: real in all else."""

import os
import runpy
import sys
import time
from pathlib import Path

VARIABLE = "ATTACK_CLOCK_FILE"
"""Names the file that holds how many seconds the clock is wrong."""


def set_to(file: Path, seconds: float) -> None:
    """Set the clock so many seconds ahead, at once, as `date -s` does."""
    new = file.with_suffix(".new")
    new.write_text(str(seconds))
    new.replace(file)


def serve() -> int:
    """Run the service; only `time.time` and `time.time_ns` are moved, as setting the system's clock moves them."""
    file = Path(os.environ[VARIABLE])
    true_time, true_time_ns = time.time, time.time_ns

    def offset() -> float:
        return float(file.read_text() or "0")

    time.time = lambda: true_time() + offset()
    time.time_ns = lambda: true_time_ns() + int(offset() * 1e9)
    sys.argv = ["services.audit"]
    runpy.run_module("services.audit", run_name="__main__", alter_sys=True)
    return 0
