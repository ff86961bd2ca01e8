"""The files that a user names: what cannot be read is told and passed over, and no path becomes another."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli import files
from shared.errors import StepwedgeError


@contextmanager
def _as_somebody_else() -> Iterator[None]:
    """Root reads everything: be nobody meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a/1.dcm", "closed/2.dcm", "z/3.dcm"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    for path in (tmp_path, *tmp_path.parents):  # nobody must reach the folder
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp") and len(path.parts) > 2:
            path.chmod(path.stat().st_mode | 0o711)
    for path in (folder, folder / "a", folder / "z"):
        path.chmod(0o755)
    (folder / "closed").chmod(0)
    return folder


def test_a_folder_that_cannot_be_read_is_told_and_the_rest_is_found(tree: Path) -> None:
    skipped: list[tuple[str, str]] = []
    with _as_somebody_else():
        found = files.named([tree], lambda path, why: skipped.append((path.name, why)))
    assert [path.name for path in found] == ["1.dcm", "3.dcm"]
    assert skipped == [("closed", "permission denied")]
    with _as_somebody_else(), pytest.raises(StepwedgeError, match="permission denied"):
        files.named([tree])


def test_a_path_that_does_not_exist_stops_nothing_either(tree: Path) -> None:
    skipped: list[str] = []
    found = files.named([tree / "none", tree / "a"], lambda path, why: skipped.append(path.name))
    assert [path.name for path in found] == ["1.dcm"]
    assert skipped == ["none"]


def test_a_name_that_is_no_text_is_shown_as_text_that_json_takes() -> None:
    shown = files.shown(Path(os.fsdecode(b"scan\xff\xe9 \xc3\xa9.dcm")))
    assert shown == "scan\\xff\\xe9 é.dcm"
    assert json.loads(json.dumps(shown)).encode("utf-8").decode() == shown
