"""The mark outside the database."""

from pathlib import Path

import pytest

from services.audit.high_water import HighWater, Mark
from shared.errors import ErrorCode, StepwedgeError

ONE, TWO, THREE = (Mark(size, bytes([size]) * 32) for size in (1, 2, 3))


def test_there_is_no_mark_before_the_first(tmp_path: Path) -> None:
    assert HighWater(tmp_path / "mark").read() is None


def test_the_newest_mark_is_read_back_by_another_process(tmp_path: Path) -> None:
    writer = HighWater(tmp_path / "sub" / "mark")
    for mark in (ONE, TWO, THREE):
        writer.write(mark)
        assert HighWater(tmp_path / "sub" / "mark").read() == mark
    writer.close()


@pytest.mark.parametrize("data", [b"", b" " * 100, b" " * 512, b"\x00" * 512])
def test_a_file_whose_maker_was_stopped_before_the_first_mark_holds_none_and_takes_one(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "mark"
    path.write_bytes(data)
    high_water = HighWater(path)
    assert high_water.read() is None
    high_water.write(ONE)
    high_water.close()
    assert HighWater(path).read() == ONE


@pytest.mark.parametrize("torn", range(0, 512, 16))
def test_a_torn_write_leaves_the_mark_before_it(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "mark"
    writer = HighWater(path)
    writer.write(ONE)
    writer.write(TWO)
    writer.close()
    whole = path.read_bytes()
    newest = whole.index(b"2 ")
    path.write_bytes(whole[:newest] + b"\x00" * (torn // 2) + whole[newest + torn // 2 :])
    if torn == 0:
        assert HighWater(path).read() == TWO
    else:
        assert HighWater(path).read() == ONE


def test_a_file_without_a_whole_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    path.write_bytes(b"rubbish")
    with pytest.raises(StepwedgeError) as raised:
        HighWater(path).read()
    assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT


def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StepwedgeError) as raised:
        HighWater(tmp_path / "file" / "mark").write(ONE)
    assert raised.value.code == ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE
