"""Energy is counted where the processor counts it, and nothing is made up where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillation.energy import Energy


def _counter(root: Path, folder_name: str, name: str, microjoules: int) -> Path:
    folder = root / folder_name
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("9999999\n")
    return folder


def test_each_package_is_added_once_and_neither_its_parts_nor_the_platform_around_it_are(tmp_path: Path) -> None:
    _counter(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    _counter(tmp_path, "intel-rapl:1", "package-1", 9_500_000)
    others = {"intel-rapl:0:0": "core", "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0", "dtpm:0": "cpu0"}
    for folder, name in others.items():
        _counter(tmp_path, folder, name, 1)
    (tmp_path / "intel-rapl").mkdir()
    with Energy(tmp_path) as energy:
        _counter(tmp_path, "intel-rapl:0", "package-0", 3_000_000)
        _counter(tmp_path, "intel-rapl:1", "package-1", 500_000)  # started again
        for folder, name in others.items():
            _counter(tmp_path, folder, name, 5_000_000)
    assert energy.joules == pytest.approx(3.0)


@pytest.mark.parametrize("name", [None, "dtpm", "intel-rapl:0"])
def test_without_a_counter_that_reads_nothing_is_said(tmp_path: Path, name: str | None) -> None:
    if name is not None:
        _counter(tmp_path, name, "package-0", 1)
        (tmp_path / name / "energy_uj").write_text("no number")
    with Energy(tmp_path) as energy:
        pass
    assert energy.joules is None
    with Energy(tmp_path / "absent") as energy:
        pass
    assert energy.joules is None
