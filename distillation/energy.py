"""What a piece of work costs in energy, where the processor counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

COUNTERS: Final = Path("/sys/class/powercap")
"""Where Linux shows the counters of processor packages (RAPL, of Intel and AMD); only root reads them by default."""


class Energy:
    """Joules that all processor packages spent while the block ran, whoever's work they did: `joules` after it, None
    where no counter can be read."""

    def __init__(self, counters: Path = COUNTERS) -> None:
        self._packages = _packages(counters)
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


def _packages(counters: Path) -> list[Path]:
    """Counters of packages, and of neither their parts nor the platform around them (psys). Some machines have each
    once more, by another road (intel-rapl-mmio)."""
    return [one.parent for one in sorted(counters.glob("intel-rapl:*/name")) if one.read_text().startswith("package-")]
