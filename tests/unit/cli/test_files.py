"""Which files a user means, and how what is said about them is written."""

import os
from pathlib import Path

import pytest

from cli import files, terminal
from shared.errors import StepwedgeError


def test_a_folder_means_every_file_below_it_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.dcm", "a.dcm", "sub/c.dcm", "sub/.hidden", ".cache/d.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in files.named([tmp_path])]
    assert found == ["a.dcm", "b.dcm", "sub/c.dcm"]


def test_a_file_named_twice_is_meant_once(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(b"")
    assert files.named([file, tmp_path]) == [file]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [path.name for path in files.named([tmp_path])] == ["a.dcm"]


def test_a_pipe_in_a_folder_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StepwedgeError) as caught:
        files.named([tmp_path])
    assert caught.value.name == "FILE"


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepwedgeError) as caught:
        files.named([tmp_path / "nothing"])
    assert caught.value.name == "FILE"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_told_as_people_do(seconds: float, words: str) -> None:
    assert terminal.duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(12, "12 B"), (39206, "39.2 kB"), (2.5e12, "2500.0 GB")])
def test_sizes_are_told_as_people_do(count: float, words: str) -> None:
    assert terminal.size(count) == words


def test_control_characters_in_a_name_are_written_out() -> None:
    assert terminal.printable("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"
