"""The object store in a folder: durable, idempotent, verified, and closed where it was not opened."""

import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.directory_store import DirectoryStore
from shared.errors import StepwedgeError
from shared.objects import ObjectStore, Stored, Zone, open_store
from shared.paths import ROOT
from shared.settings import Objects

DATA = b"bytes of an object" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "objects" / "original"


@pytest.fixture
def store(place: Path) -> DirectoryStore:
    return DirectoryStore({Zone.ORIGINAL: place})


def _files(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def test_what_was_put_is_got_back_and_lies_where_its_digest_says(store: DirectoryStore, place: Path) -> None:
    assert store.put(Zone.ORIGINAL, DATA) == Stored(DIGEST, len(DATA), created=True)
    assert store.get(Zone.ORIGINAL, DIGEST) == DATA
    assert store.exists(Zone.ORIGINAL, DIGEST)
    assert _files(place) == [f"{DIGEST[:2]}/{DIGEST}"]
    assert stat.S_IMODE((place / DIGEST[:2] / DIGEST).stat().st_mode) == 0o440


def test_the_same_bytes_again_are_the_same_success(store: DirectoryStore, place: Path) -> None:
    store.put(Zone.ORIGINAL, DATA)
    before = (place / DIGEST[:2] / DIGEST).stat().st_ino
    assert store.put(Zone.ORIGINAL, memoryview(DATA)) == Stored(DIGEST, len(DATA), created=False)
    assert (place / DIGEST[:2] / DIGEST).stat().st_ino == before
    assert len(_files(place)) == 1


def test_a_file_is_taken_over_and_its_temporary_name_is_gone(store: DirectoryStore, place: Path) -> None:
    for created in (True, False):
        temporary = store.new_temporary(Zone.ORIGINAL)
        temporary.write_bytes(DATA)
        assert store.put_file(Zone.ORIGINAL, temporary) == Stored(DIGEST, len(DATA), created=created)
        assert _files(place) == [f"{DIGEST[:2]}/{DIGEST}"]
    assert store.get(Zone.ORIGINAL, DIGEST) == DATA


def test_a_file_that_it_did_not_name_is_left_alone(store: DirectoryStore, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(DATA)
    with pytest.raises(StepwedgeError, match="INVALID_REQUEST"):
        store.put_file(Zone.ORIGINAL, foreign)
    assert foreign.exists()


def test_the_empty_object_is_an_object(store: DirectoryStore) -> None:
    empty = store.put(Zone.ORIGINAL, b"")
    assert store.get(Zone.ORIGINAL, empty.sha256) == b""


def test_an_absent_object_is_not_found(store: DirectoryStore) -> None:
    assert not store.exists(Zone.ORIGINAL, DIGEST)
    with pytest.raises(StepwedgeError, match="OBJECT_NOT_FOUND"):
        store.get(Zone.ORIGINAL, DIGEST)


@pytest.mark.parametrize("damage", [DATA[:-1], DATA + b"x", b"X" + DATA[1:], b""])
def test_damaged_bytes_are_refused_and_mended_by_the_right_ones(
    store: DirectoryStore, place: Path, damage: bytes
) -> None:
    store.put(Zone.ORIGINAL, DATA)
    path = place / DIGEST[:2] / DIGEST
    path.chmod(0o640)
    path.write_bytes(damage)
    with pytest.raises(StepwedgeError, match="OBJECT_CORRUPT"):
        store.get(Zone.ORIGINAL, DIGEST)
    assert store.put(Zone.ORIGINAL, DATA).created
    assert store.get(Zone.ORIGINAL, DIGEST) == DATA


@pytest.mark.parametrize(
    "trick",
    ["../../etc/passwd", "", "a" * 63, "A" * 64, "g" * 64, f"{DIGEST}/..", f"/{DIGEST[1:]}", f"{DIGEST}\n", "\0" * 64,
     "../" * 21 + "x", "０" * 64],
)  # fmt: skip
def test_a_digest_that_is_none_never_becomes_a_path(store: DirectoryStore, trick: str) -> None:
    for call in (store.get, store.exists):
        with pytest.raises(StepwedgeError, match="INVALID_REQUEST"):
            call(Zone.ORIGINAL, trick)


def test_a_zone_that_was_not_opened_is_closed(store: DirectoryStore, tmp_path: Path) -> None:
    for call in (
        lambda: store.put(Zone.DEIDENTIFIED, DATA),
        lambda: store.get(Zone.DEIDENTIFIED, DIGEST),
        lambda: store.exists(Zone.DEIDENTIFIED, DIGEST),
        lambda: store.check(Zone.DEIDENTIFIED),
        lambda: store.new_temporary(Zone.DEIDENTIFIED),
    ):
        with pytest.raises(StepwedgeError, match="PERMISSION_DENIED"):
            call()
    settings = Objects(original=str(tmp_path / "o"), deidentified=str(tmp_path / "d"))
    opened: ObjectStore = open_store(settings, {Zone.DEIDENTIFIED})
    opened.put(Zone.DEIDENTIFIED, DATA)
    assert not (tmp_path / "o").exists()


def test_many_writers_of_one_object_make_it_once(store: DirectoryStore, place: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda _: store.put(Zone.ORIGINAL, DATA), range(64)))
    assert sum(result.created for result in results) == 1
    assert _files(place) == [f"{DIGEST[:2]}/{DIGEST}"]


_DIES = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from shared.directory_store import DirectoryStore
    from shared.objects import Zone

    def die_at(step):
        left = step

        def deadly(function):
            def wrapped(*arguments, **keywords):
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return function(*arguments, **keywords)
            return wrapped

        for name in ("fsync", "link", "mkdir", "unlink", "replace", "open", "chmod"):
            setattr(os, name, deadly(getattr(os, name)))
        DirectoryStore({Zone.ORIGINAL: Path(sys.argv[1], str(step))}).put(Zone.ORIGINAL, b"bytes of an object" * 1000)
        os._exit(0)

    for step in (0, 1, 2, 100, *range(256, 400)):  # the first 256 and some make folders
        child = os.fork() or die_at(step)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(step, code)
        if code == 0:
            break
    """
)


def test_a_crash_at_any_step_leaves_the_whole_object_or_none_and_the_next_start_goes_on(tmp_path: Path) -> None:
    died = subprocess.run(
        [sys.executable, "-c", _DIES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    outcomes = []
    for line in died.stdout.splitlines():
        step, code = line.split()
        place = tmp_path / step
        store = DirectoryStore({Zone.ORIGINAL: place})
        there = store.exists(Zone.ORIGINAL, DIGEST)
        if there:
            assert store.get(Zone.ORIGINAL, DIGEST) == DATA
        leftovers = [name for name in _files(place) if not name.startswith("incoming/")]
        assert leftovers == ([f"{DIGEST[:2]}/{DIGEST}"] if there else [])
        assert store.put(Zone.ORIGINAL, DATA).created is not there
        assert store.get(Zone.ORIGINAL, DIGEST) == DATA
        outcomes.append((int(code), there))
    assert outcomes[-1] == (0, True)
    assert (9, False) in outcomes
    assert (9, True) in outcomes  # died after the object had its name


def test_the_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    store: DirectoryStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def seen_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def seen_link(source: Path, target: Path) -> None:
        steps.append("name")
        link(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "link", seen_link)
    store.put(Zone.ORIGINAL, DATA)
    assert steps == ["file", "name", "folder"]
    steps.clear()
    store.put(Zone.ORIGINAL, DATA)
    assert steps == ["file", "folder"]  # another writer may have died before that
    steps.clear()
    temporary = store.new_temporary(Zone.ORIGINAL)
    temporary.write_bytes(DATA + b"other")
    store.put_file(Zone.ORIGINAL, temporary)
    assert steps == ["file", "name", "folder"]


def test_only_temporary_files_older_than_an_hour_are_swept(store: DirectoryStore, place: Path) -> None:
    young, old = store.new_temporary(Zone.ORIGINAL), store.new_temporary(Zone.ORIGINAL)
    for path in (young, old):
        path.write_bytes(b"half an obj")
    os.utime(old, (time.time() - 3700, time.time() - 3700))
    DirectoryStore({Zone.ORIGINAL: place})
    assert young.exists()
    assert not old.exists()


def test_below_the_low_water_mark_nothing_is_taken_in(place: Path) -> None:
    DirectoryStore({Zone.ORIGINAL: place}, low_water_bytes=1).check(Zone.ORIGINAL)
    with pytest.raises(StepwedgeError, match="STORAGE_FULL"):
        DirectoryStore({Zone.ORIGINAL: place}, low_water_bytes=1 << 62).check(Zone.ORIGINAL)


def test_a_zone_that_is_gone_is_a_dependency_that_does_not_answer(store: DirectoryStore, place: Path) -> None:
    place.rename(place.with_name("elsewhere"))
    for call in (lambda: store.check(Zone.ORIGINAL), lambda: store.put(Zone.ORIGINAL, DATA)):
        with pytest.raises(StepwedgeError, match="DEPENDENCY_UNAVAILABLE") as raised:
            call()
        assert str(place) not in str(raised.value)


def test_no_room_is_storage_full_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from shared.directory_store import DirectoryStore
        from shared.errors import StepwedgeError
        from shared.objects import Zone

        store = DirectoryStore({Zone.ORIGINAL: Path(sys.argv[1])})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            store.put(Zone.ORIGINAL, b"x" * 100_000)
        except StepwedgeError as error:
            print(error.name)
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "zone")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "STORAGE_FULL"
    assert _files(tmp_path / "zone") == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_a_disk_that_is_really_full_is_storage_full_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from shared.directory_store import DirectoryStore
        from shared.errors import StepwedgeError
        from shared.objects import Zone

        place = Path(sys.argv[1])
        store = DirectoryStore({Zone.ORIGINAL: place}, low_water_bytes=2 << 20)
        store.check(Zone.ORIGINAL)
        filler = place / "filler"
        filler.write_bytes(b"x" * (7 << 20))
        outcomes = []
        for call in (lambda: store.check(Zone.ORIGINAL), lambda: store.put(Zone.ORIGINAL, b"y" * (2 << 20))):
            try:
                call()
            except StepwedgeError as error:
                outcomes.append(error.name)
        outcomes.append(len([path for path in place.rglob("*") if path.is_file()]))
        filler.unlink()
        outcomes.append(store.put(Zone.ORIGINAL, b"y" * (2 << 20)).created)
        print(*outcomes)
        """
    )
    place = tmp_path / "disk"
    place.mkdir()
    mount = 'mount -t tmpfs -o size=8m none "$1" && exec "$2" -c "$3" "$1"'
    # A mount namespace of its own: the small disk is gone with the process.
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", str(place), sys.executable, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "permitted" in ended.stderr or "denied" in ended.stderr:
        pytest.skip("this user may not mount a small disk")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["STORAGE_FULL", "STORAGE_FULL", "1", "True"]


@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.ENOSPC, "STORAGE_FULL"), (errno.EDQUOT, "STORAGE_FULL"), (errno.EIO, "DEPENDENCY_UNAVAILABLE")],
)
def test_an_error_of_the_disk_at_fsync_is_never_a_success(
    store: DirectoryStore, place: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    # A disk that fails on demand is the one thing a test cannot have for real.
    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StepwedgeError, match=name):
        store.put(Zone.ORIGINAL, DATA)
    monkeypatch.undo()
    assert not store.exists(Zone.ORIGINAL, DIGEST)
    assert _files(place) == []


def test_the_inventory_lists_every_object_by_its_digest_and_nothing_that_is_still_coming_in(
    store: DirectoryStore,
) -> None:
    made = {store.put(Zone.ORIGINAL, data).sha256: len(data) for data in (DATA, b"", b"another")}
    store.new_temporary(Zone.ORIGINAL).write_bytes(b"half")
    found = list(store.inventory(Zone.ORIGINAL))
    assert dict(found) == made
    assert found == sorted(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_on_a_read_only_file_system_objects_are_read_and_none_is_taken_in(tmp_path: Path) -> None:
    place = tmp_path / "zone"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        empty = DirectoryStore({Zone.ORIGINAL: place})  # whoever fills it has not started yet
        assert list(empty.inventory(Zone.ORIGINAL)) == []
        assert not empty.exists(Zone.ORIGINAL, DIGEST)
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        writer = DirectoryStore({Zone.ORIGINAL: place})
        writer.put(Zone.ORIGINAL, DATA)
        left = writer.new_temporary(Zone.ORIGINAL)
        left.write_bytes(b"left behind")
        os.utime(left, (0, 0))
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        reader = DirectoryStore({Zone.ORIGINAL: place})
        assert reader.get(Zone.ORIGINAL, DIGEST) == DATA
        with pytest.raises(StepwedgeError, match="DEPENDENCY_UNAVAILABLE"):
            reader.put(Zone.ORIGINAL, b"something new")
        with pytest.raises(StepwedgeError, match="DEPENDENCY_UNAVAILABLE"):
            reader.check(Zone.ORIGINAL)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_placed_object_is_there_and_settled_where_it_is_asked_for(tmp_path: Path):
    store = DirectoryStore({Zone.ORIGINAL: tmp_path / "original"})
    for created in (True, False):
        temporary = store.new_temporary(Zone.ORIGINAL)
        temporary.write_bytes(DATA)
        assert store.place(Zone.ORIGINAL, temporary, DIGEST) == Stored(DIGEST, len(DATA), created=created)
        store.settle(Zone.ORIGINAL, DIGEST)
        assert not temporary.exists()
    assert store.get(Zone.ORIGINAL, DIGEST) == DATA
    with pytest.raises(StepwedgeError, match="OBJECT_NOT_FOUND"):
        store.settle(Zone.ORIGINAL, "0" * 64)


def test_a_placed_object_mends_a_damaged_one(tmp_path: Path):
    store = DirectoryStore({Zone.ORIGINAL: tmp_path / "original"})
    store.put(Zone.ORIGINAL, DATA)
    damaged = tmp_path / "original" / DIGEST[:2] / DIGEST
    damaged.chmod(0o640)
    damaged.write_bytes(b"torn")
    temporary = store.new_temporary(Zone.ORIGINAL)
    temporary.write_bytes(DATA)
    assert store.place(Zone.ORIGINAL, temporary, DIGEST).created
    assert store.get(Zone.ORIGINAL, DIGEST) == DATA
