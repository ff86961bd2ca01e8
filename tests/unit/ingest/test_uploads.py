"""Half uploads: what is said to be held is durable, goes on from there, and is bounded in number and time."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.ingest import uploads
from services.ingest.uploads import Uploads
from shared.directory_store import DirectoryStore
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import Zone
from shared.paths import ROOT

NAME = "a" * 32


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore({Zone.ORIGINAL: tmp_path})


@pytest.fixture
def half(objects: DirectoryStore) -> Uploads:
    return Uploads(objects, max_bytes=1 << 20)


def files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "incoming").iterdir())


def test_a_cut_upload_goes_on_where_it_was_cut_in_this_process_and_in_the_next(
    half: Uploads, objects: DirectoryStore, tmp_path: Path
):
    upload = half.open("pacs", NAME, 0)
    upload.write(b"abcdef")
    upload.park()
    upload.discard()  # as a handler does at its end
    assert half.held("pacs", NAME)[0] == 6
    assert half.held("operator", NAME)[0] == 0, "another caller's upload of the same name is another one"
    other = Uploads(objects, max_bytes=1 << 20)
    upload = other.open("pacs", NAME, 4)
    upload.write(b"XYZ")
    assert upload.sha256 == hashlib.sha256(b"abcdXYZ").hexdigest()
    assert objects.put_file(Zone.ORIGINAL, upload.close(), upload.sha256).size == 7
    upload.discard()
    assert objects.get(Zone.ORIGINAL, upload.sha256) == b"abcdXYZ"
    assert other.held("pacs", NAME) == (0, None)
    assert files(tmp_path) == []


def test_more_than_is_held_cannot_be_gone_on_from(half: Uploads):
    upload = half.open("pacs", NAME, 0)
    upload.write(b"abc")
    upload.park()
    with pytest.raises(StepwedgeError) as caught:
        half.open("pacs", NAME, 4)
    assert caught.value.code == ErrorCode.ERROR_CODE_WRONG_STATE
    assert half.open("pacs", NAME, 3).size == 3


def test_the_newest_call_has_the_upload_and_the_one_before_writes_no_more(half: Uploads):
    before = half.open("pacs", NAME, 0)
    before.write(b"abc")
    now = half.open("pacs", NAME, 3)
    with pytest.raises(StepwedgeError):
        before.write(b"d")
    with pytest.raises(StepwedgeError):
        before.close()
    before.discard()
    now.write(b"d")
    assert now.sha256 == hashlib.sha256(b"abcd").hexdigest()


def test_a_process_that_is_killed_leaves_what_it_had_synced_and_another_waits_for_its_lock(
    half: Uploads, tmp_path: Path
):
    script = f"""
import sys, pathlib
from shared.directory_store import DirectoryStore
from shared.objects import Zone
from services.ingest import uploads
uploads._SYNC_BYTES = 4
upload = uploads.Uploads(DirectoryStore({{Zone.ORIGINAL: pathlib.Path({str(tmp_path)!r})}}), max_bytes=100).open(
    "pacs", {NAME!r}, 0)
upload.write(b"abcd")
upload.write(b"ef")
print("there", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    with pytest.raises(StepwedgeError) as caught:
        half.open("pacs", NAME, 0)
    assert caught.value.code == ErrorCode.ERROR_CODE_OVERLOADED
    process.kill()
    process.wait()
    assert half.held("pacs", NAME)[0] == 4, "what was not synced is not held"
    upload = half.open("pacs", NAME, 4)
    upload.write(b"EF")
    assert upload.sha256 == hashlib.sha256(b"abcdEF").hexdigest()


def test_a_half_upload_is_forgotten_after_its_time_and_the_oldest_makes_room(
    half: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(uploads, "MOST", 2)
    for number in range(3):
        upload = half.open("pacs", f"{NAME}{number}", 0)
        upload.write(b"abc")
        upload.park()
        os.utime(upload.path, (1_000_000_000 + number,) * 2)
    assert [half.held("pacs", f"{NAME}{number}")[0] for number in range(3)] == [0, 3, 3]
    writing = half.open("pacs", f"{NAME}2", 3)
    os.utime(writing.path, (1_000_000_000,) * 2)
    half.sweep()
    assert half.held("pacs", f"{NAME}1")[0] == 0
    assert half.held("pacs", f"{NAME}2")[0] == 3, "what is being written is never swept"
    writing.discard()
    assert files(tmp_path) == []


def test_one_caller_cannot_push_out_what_another_holds(half: Uploads, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads, "MOST", 2)
    theirs = half.open("operator", NAME, 0)
    theirs.write(b"abc")
    theirs.park()
    os.utime(theirs.path, (1_000_000_000,) * 2)
    for number in range(4):
        upload = half.open("pacs", f"{NAME}{number}", 0)
        upload.write(b"abc")
        upload.park()
    assert half.held("operator", NAME)[0] == 3
    assert sum(half.held("pacs", f"{NAME}{number}")[0] == 3 for number in range(4)) == 2


@pytest.mark.parametrize("name", ["", "short", "x" * 65, "../" * 8, "a" * 15 + "/", "ä" * 20])
def test_a_name_that_could_be_a_path_is_refused(half: Uploads, name: str):
    with pytest.raises(StepwedgeError) as caught:
        half.open("pacs", name, 0)
    assert caught.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST


def test_an_upload_over_the_limit_is_refused_and_leaves_nothing(half: Uploads, tmp_path: Path):
    upload = half.open("pacs", NAME, 0)
    with pytest.raises(StepwedgeError) as caught:
        upload.write(bytes((1 << 20) + 1))
    assert caught.value.code == ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE
    upload.discard()
    assert files(tmp_path) == []
