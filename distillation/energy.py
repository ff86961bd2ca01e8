"""What a piece of work costs in energy, where the processor counts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Self

COUNTERS: Final = Path("/sys/class/powercap")
"""Where Linux shows the counters of processor packages (RAPL, of Intel and AMD); only root reads them by default."""


class Energy:
    """Joules that all processor packages spent while the block ran, whoever's work they did: `joules` after it, None
    where no counter can be read."""

    def __init__(self, counters: Path = COUNTERS) -> None:
        packages = sorted(counters.glob("*")) if counters.is_dir() else []
        self._packages = [one for one in packages if re.fullmatch(r"[a-z-]+:\d+", one.name)]  # not parts of a package
        self.joules: float | None = None

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        before, after = self._before, self._read()
        if before and after:
            # A full counter starts again at zero.
            self.joules = sum((now - then) % most for (then, most), (now, _) in zip(before, after, strict=True)) / 1e6

    def _read(self) -> list[tuple[int, int]]:
        """Microjoules, and how many a counter holds, of each package."""
        try:
            return [
                (int((one / "energy_uj").read_text()), 1 + int((one / "max_energy_range_uj").read_text()))
                for one in self._packages
            ]
        except (OSError, ValueError):
            return []
