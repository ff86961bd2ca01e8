"""The stand-alone verifier against everything that can be done to a log, each with its exit status."""

import ast
import base64
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.audit import record, store, tiles
from services.audit.__main__ import write_export
from shared import database
from shared.transparency.note import Checkpoint, Note, Signer, VerificationKey
from tests.unit.audit.making import KEY, ORIGIN, Producer, close, fill, open_log
from tests.unit.verifier import forging
from tests.unit.verifier.forging import Files
from verifier import verify

SCRIPT = Path(verify.__file__)
SIGNER = Signer(ORIGIN, KEY)
VKEY = str(SIGNER.key)
STRANGER = Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
SIZE = 700


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log's export at 400 records and at 701, the last of them with a list kept beside it."""
    folder = tmp_path_factory.mktemp("log")
    url = f"sqlite:///{folder / 'audit.db'}"
    log = open_log(url, folder)
    producer = Producer()
    fill(log, 400, producer=producer)
    write_export(url, folder / "older.zip")
    fill(log, SIZE - 400, producer=producer, first=400)
    log.submit([producer.prepared(producer.decided(1, instances=800))]).result(10)
    write_export(url, folder / "export.zip")
    close(log)
    return folder / "older.zip", folder / "export.zip"


@pytest.fixture
def files(exports: tuple[Path, Path]) -> Files:
    return forging.read(exports[1])


@pytest.fixture
def older(exports: tuple[Path, Path]) -> str:
    return str(exports[0])


def status(tmp_path: Path, files: Files, **given: Any) -> verify.Report:
    return verify.verify(str(forging.write(tmp_path / "forged.zip", files)), **{"key": VKEY, **given})


def test_an_untouched_export_is_proved(exports: tuple[Path, Path]) -> None:
    report = verify.verify(str(exports[1]), key=VKEY, older=str(exports[0]))
    assert (report.code, report.size, report.older_size, report.gaps) == (verify.PROVED, SIZE + 1, 400, [])
    assert report.kinds == {"RECEIVED": SIZE, "DECIDED": 1}
    assert report.problems == []


def test_a_folder_is_as_good_as_the_archive(exports: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(exports[1]) as archive:
        archive.extractall(tmp_path / "export")
    assert verify.verify(str(tmp_path / "export"), key=VKEY).code == verify.PROVED
    (tmp_path / "export" / "link").symlink_to("/etc/passwd")
    assert verify.verify(str(tmp_path / "export"), key=VKEY).code == verify.MALFORMED


def test_an_empty_log_is_proved(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    close(open_log(url, tmp_path))
    write_export(url, tmp_path / "export.zip")
    assert verify.verify(str(tmp_path / "export.zip"), key=VKEY).code == verify.PROVED


def flip(leaf: bytes) -> bytes:
    return forging.changed(leaf, lambda members: members["event"].update(size_bytes=1))  # type: ignore[attr-defined]


def edited(records: list[bytes], name: str) -> list[bytes]:
    """One of the edits of a list of records that a tamperer may make."""
    return {
        "one record rewritten": [*records[:123], flip(records[123]), *records[124:]],
        "the last record rewritten": [*records[:-1], flip(records[-1])],
        "a record removed": records[:300] + records[301:],
        "the first record removed": records[1:],
        "two records swapped": [*records[:10], records[11], records[10], *records[12:]],
        "a record inserted": [*records[:50], records[5], *records[50:]],
        "a record appended": [*records, records[-1]],
        "the end cut off": records[:600],
        "all removed": [],
    }[name]


EDITS = {
    "one record rewritten": verify.ALTERED,
    "the last record rewritten": verify.ALTERED,
    "a record removed": verify.ALTERED,
    "the first record removed": verify.ALTERED,
    "two records swapped": verify.ALTERED,
    "a record inserted": verify.ALTERED,
    "a record appended": verify.ALTERED,
    "the end cut off": verify.TRUNCATED,
    "all removed": verify.TRUNCATED,
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("trees", [False, True], ids=["tiles as they were", "tiles rebuilt"])
def test_records_edited_under_the_old_checkpoint(tmp_path: Path, files: Files, name: str, trees: bool) -> None:
    forged = forging.rebuilt(files, edited(forging.leaves(files), name), trees=trees)
    report = status(tmp_path, forged)
    assert report.code == EDITS[name], report.problems


def test_the_record_that_was_rewritten_is_named(tmp_path: Path, files: Files) -> None:
    forged = forging.rebuilt(files, edited(forging.leaves(files), "one record rewritten"), trees=False)
    assert status(tmp_path, forged).problems[0]["index"] == 123


@pytest.mark.parametrize("name", EDITS)
def test_a_log_rebuilt_under_another_key_is_not_signed_by_the_trusted_one(
    tmp_path: Path, files: Files, older: str, name: str
) -> None:
    records = forging.renumbered(edited(forging.leaves(files), name))
    forged = forging.rebuilt(files, records, STRANGER)
    forged = without_attachments(forged)
    assert status(tmp_path, forged).code == verify.BAD_SIGNATURE
    # The older export vouches for the key too.
    assert status(tmp_path, forged, key=None, older=older).code == verify.BAD_SIGNATURE


def without_attachments(files: Files) -> Files:
    """Drop what no record refers to any more."""
    wanted = b"".join(forging.leaves(files))
    kept = {
        name: data
        for name, data in files.items()
        if not name.startswith("attachments/") or name.split("/")[1].encode() in wanted
    }
    return forging.with_manifest(kept)


REBUILT = {
    "one record rewritten": verify.FORKED,
    "a record removed": verify.FORKED,
    "the first record removed": verify.FORKED,
    "two records swapped": verify.FORKED,
    "a record inserted": verify.FORKED,
}


@pytest.mark.parametrize("name", REBUILT)
def test_a_log_rebuilt_under_the_real_key_is_caught_by_an_older_checkpoint_and_by_nothing_else(
    tmp_path: Path, files: Files, older: str, name: str
) -> None:
    records = forging.renumbered(edited(forging.leaves(files), name))
    forged = without_attachments(forging.rebuilt(files, records, SIGNER))
    report = status(tmp_path, forged)
    assert report.code == verify.PROVED, report.problems
    assert status(tmp_path, forged, older=older).code == REBUILT[name]


def test_a_log_put_back_to_an_older_state_is_caught_by_a_newer_checkpoint(exports: tuple[Path, Path]) -> None:
    old, new = exports
    assert verify.verify(str(old), key=VKEY).code == verify.PROVED
    assert verify.verify(str(old), key=VKEY, older=str(new)).code == verify.TRUNCATED


def test_two_logs_of_one_size_are_a_fork(tmp_path: Path, files: Files, exports: tuple[Path, Path]) -> None:
    records = [*forging.leaves(files)[:-1], flip(forging.leaves(files)[-1])]
    forged = forging.rebuilt(files, records, SIGNER)
    assert status(tmp_path, forged, older=str(exports[1])).code == verify.FORKED


def test_a_checkpoint_alone_is_enough_to_compare_with(tmp_path: Path, files: Files, older: str) -> None:
    note = tmp_path / "checkpoint"
    note.write_bytes(forging.read(Path(older))["checkpoint"])
    assert status(tmp_path, files, older=str(note)).code == verify.PROVED
    assert status(tmp_path, files, key=None, older=str(note)).code == verify.PROVED
    forged = forging.rebuilt(files, forging.leaves(files), STRANGER)
    assert status(tmp_path, forged, key=None, older=str(note)).code == verify.BAD_SIGNATURE


def test_the_older_checkpoint_of_another_log_is_no_ancestor(tmp_path: Path, files: Files) -> None:
    other = Signer("other.example/log", KEY)
    note = tmp_path / "checkpoint"
    note.write_text(str(Checkpoint("other.example/log", 1, bytes(32)).sign([SIGNER])))
    assert status(tmp_path, files, older=str(note)).code == verify.FORKED
    note.write_text(str(Checkpoint(ORIGIN, 1, bytes(32)).sign([other])))
    assert status(tmp_path, files, older=str(note)).code == verify.BAD_SIGNATURE


def _zip_with(tmp_path: Path, files: Files, *more: tuple[str, bytes]) -> verify.Report:
    path = forging.write(tmp_path / "odd.zip", files)
    with zipfile.ZipFile(path, "a") as archive:
        for name, data in more:
            archive.writestr(name, data)
    return verify.verify(str(path), key=VKEY)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "tile/../../x", "tile\\0\\000", "tile/0/000/", "notes.txt", "C:\\x", "tile/0/\u0660"],
)
def test_a_path_that_does_not_belong_in_an_export_is_malformed(tmp_path: Path, files: Files, name: str) -> None:
    assert _zip_with(tmp_path, files, (name, b"")).code == verify.MALFORMED


def test_an_export_that_was_unpacked_and_packed_again_with_its_folders_is_proved(tmp_path: Path, files: Files) -> None:
    folders = {path[: path.rindex("/") + 1] for path in files if "/" in path} | {"tile/"}
    assert _zip_with(tmp_path, files, *((folder, b"") for folder in sorted(folders))).code == verify.PROVED
    assert _zip_with(tmp_path, files, ("tile/0/", b"x")).code == verify.MALFORMED


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_path_that_is_there_twice_is_malformed(tmp_path: Path, files: Files) -> None:
    assert _zip_with(tmp_path, files, ("checkpoint", files["checkpoint"])).code == verify.MALFORMED


def test_a_link_in_the_archive_is_malformed(tmp_path: Path, files: Files) -> None:
    path = forging.write(tmp_path / "odd.zip", files)
    link = zipfile.ZipInfo("attachments/" + "ab" * 32)
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert verify.verify(str(path), key=VKEY).code == verify.MALFORMED


@pytest.mark.parametrize("name", ["tile/0/009", "tile/5/000", "attachments/" + "ab" * 32, "tile/entries/000.p/5"])
def test_a_file_more_than_the_log_has_is_altered(tmp_path: Path, files: Files, name: str) -> None:
    assert status(tmp_path, forging.with_manifest({**files, name: b"x"})).code == verify.ALTERED


@pytest.mark.parametrize("manifest", [False, True], ids=["manifest as it was", "manifest rebuilt"])
def test_every_file_that_is_dropped_or_swapped_is_noticed(tmp_path: Path, files: Files, manifest: bool) -> None:
    fit = forging.with_manifest if manifest else dict
    for name in set(files) - {"manifest.json"}:
        rest = {other: data for other, data in files.items() if other != name}
        assert status(tmp_path, fit(rest)).code != verify.PROVED, name
        swapped = {**files, name: files["tile/entries/001"] if name != "tile/entries/001" else files["checkpoint"]}
        assert status(tmp_path, fit(swapped)).code != verify.PROVED, name


def test_a_checkpoint_for_more_than_anyone_could_hold_ends_at_once(tmp_path: Path, files: Files) -> None:
    huge = str(Checkpoint(ORIGIN, 2**62, bytes(32)).sign([SIGNER])).encode()
    assert status(tmp_path, {**files, "checkpoint": huge}).code == verify.TRUNCATED


NOT_CANONICAL: dict[str, Callable[[bytes], bytes]] = {
    "a space": lambda leaf: leaf.replace(b":", b": ", 1),
    "members in another order": lambda leaf: json.dumps(dict(reversed(json.loads(leaf).items()))).encode(),
    "a member twice": lambda leaf: b'{"id":"x",' + leaf[1:],
    "a float": lambda leaf: leaf.replace(b'"size_bytes":', b'"size_bytes":1.5,"x":', 1),
    "NaN": lambda leaf: leaf.replace(b'"size_bytes":', b'"size_bytes":NaN,"x":', 1),
    "minus zero": lambda leaf: leaf.replace(b'"conflict":false', b'"conflict":-0'),
    "an escaped letter": lambda leaf: leaf.replace(b'"ingest"', b'"\\u0069ngest"'),
    "not JSON": lambda leaf: b"not JSON",
    "a list": lambda leaf: b"[]",
    "not UTF-8": lambda leaf: leaf.replace(b"ingest", b"\xffngest"),
    "an index that is a string": lambda leaf: leaf.replace(b'"index":5', b'"index":"5"'),
    "deeply nested": lambda leaf: b"[" * 60000,
    "another schema": lambda leaf: leaf.replace(b"record/1", b"record/9"),
}


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_a_signed_record_that_is_not_canonical_is_altered(tmp_path: Path, files: Files, name: str) -> None:
    records = forging.leaves(files)
    records[5] = NOT_CANONICAL[name](records[5])
    report = status(tmp_path, forging.rebuilt(files, records, SIGNER))
    assert report.code == verify.ALTERED
    assert report.problems[0]["index"] == 5


def test_what_is_kept_beside_a_record_is_proved_with_it(tmp_path: Path, files: Files) -> None:
    (name,) = [name for name in files if name.startswith("attachments/")]
    forged = forging.with_manifest({**files, name: files[name].replace(b"REVIEW", b"ACCEPT", 1)})
    report = status(tmp_path, forged)
    assert (report.code, report.problems[0]["index"]) == (verify.ALTERED, SIZE)


def test_gaps_and_repeats_in_the_numbering_are_reported(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    log = open_log(url, tmp_path)
    producer = Producer()
    for number in (1, 1, 2):  # a repeat is accounted for
        log.submit([producer.prepared(producer.received(number))]).result(10)
    producer.sequence += 4
    fill(log, 1, producer=producer, first=3)
    producer.sequence -= 1
    fill(log, 1, producer=producer, first=4)
    close(log)
    write_export(url, tmp_path / "export.zip")
    report = verify.verify(str(tmp_path / "export.zip"), key=VKEY)
    assert report.code == verify.PROVED
    (gap,) = report.gaps
    assert (gap["missing"], gap["missing_count"], gap["used_twice"]) == ([[4, 7]], 4, 1)
    assert "misses 4 records" in verify.summary(report)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda note: note.replace("\n\n", "\n"), verify.MALFORMED),
        (lambda note: note.replace(f"\n{SIZE + 1}\n", f"\n0{SIZE + 1}\n"), verify.MALFORMED),
        (lambda note: note + note.rpartition("\n\n")[2], verify.MALFORMED),
        (lambda note: note.replace("\u2014", "-"), verify.MALFORMED),
        (lambda note: note.replace("=\n", "\n", 1), verify.MALFORMED),
        (lambda note: note.replace(ORIGIN, ORIGIN + "\x07", 1), verify.MALFORMED),
        (lambda note: note.replace(f"\n{SIZE + 1}\n", f"\n{SIZE}\n"), verify.BAD_SIGNATURE),
        (lambda note: note.replace(ORIGIN, "other", 1), verify.BAD_SIGNATURE),
        (lambda note: note.replace(f"\u2014 {ORIGIN}", "\u2014 other"), verify.BAD_SIGNATURE),
    ],
)
def test_a_checkpoint_that_was_edited(tmp_path: Path, files: Files, change: Callable[[str], str], code: int) -> None:
    forged = {**files, "checkpoint": change(files["checkpoint"].decode()).encode()}
    assert status(tmp_path, forged).code == code
    assert status(tmp_path, forging.with_manifest(forged)).code == code


@pytest.mark.parametrize("key", ["rubbish", VKEY[:-2], VKEY.replace("+", "-", 1), VKEY[:-8] + "AAAAAAA="])
def test_a_key_that_is_none_is_malformed(exports: tuple[Path, Path], key: str) -> None:
    assert verify.verify(str(exports[1]), key=key).code == verify.MALFORMED


@pytest.mark.parametrize("name", ["audit.vkey", "."])
def test_a_key_file_that_is_not_there_is_unreadable_and_said_to_be(
    tmp_path: Path, exports: tuple[Path, Path], name: str
) -> None:
    report = verify.verify(str(exports[1]), key=f"{tmp_path}{os.sep}{name}")
    assert report.code == verify.UNREADABLE
    assert "cannot be read" in report.problems[0]["message"]
    assert str(tmp_path) not in report.problems[0]["message"]


@pytest.mark.parametrize("manifest", [b"", b"{}", b"[]", b"[" * 100_000, b'{"format": "stepwedge.export/1"}', b"\xff"])
def test_a_manifest_that_is_none_is_malformed(tmp_path: Path, files: Files, manifest: bytes) -> None:
    assert status(tmp_path, {**files, "manifest.json": manifest}).code == verify.MALFORMED


def test_what_is_not_there_is_unreadable_and_what_is_no_archive_malformed(
    tmp_path: Path, exports: tuple[Path, Path]
) -> None:
    assert verify.verify(str(tmp_path / "nothing.zip")).code == verify.UNREADABLE
    assert verify.verify(str(exports[1]), older=str(tmp_path / "nothing")).code == verify.UNREADABLE
    (tmp_path / "text").write_text("not a zip")
    assert verify.verify(str(tmp_path / "text")).code == verify.MALFORMED
    (tmp_path / "empty").write_bytes(b"")
    assert verify.verify(str(tmp_path / "empty")).code == verify.MALFORMED
    assert verify.verify(str(tmp_path)).code == verify.MALFORMED


def test_an_archive_that_was_cut_short_is_truncated(tmp_path: Path, exports: tuple[Path, Path]) -> None:
    whole = exports[1].read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:length])
        assert verify.verify(str(tmp_path / "cut.zip"), key=VKEY).code == verify.TRUNCATED


def test_no_byte_of_an_archive_can_be_changed_to_any_effect_but_a_report(
    tmp_path: Path, exports: tuple[Path, Path], files: Files
) -> None:
    whole = exports[1].read_bytes()
    chosen = random.Random(4)
    proved = 0
    for _ in range(150):
        data = bytearray(whole)
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        (tmp_path / "flipped.zip").write_bytes(data)
        report = verify.verify(str(tmp_path / "flipped.zip"), key=VKEY)
        if report.code == verify.PROVED:
            # Such as a time stamp of the archive's directory: what is read out of it is still every byte as it was.
            assert forging.read(tmp_path / "flipped.zip") == files
            proved += 1
        else:
            assert report.problems
    assert proved < 40


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000))
def test_arbitrary_bytes_get_a_report(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "fuzz").write_bytes(data)
    assert verify.verify(str(tmp_path / "fuzz")).code in (verify.MALFORMED, verify.TRUNCATED)


# Witnesses.


def witness(name: str, seed: int) -> tuple[str, Ed25519PrivateKey]:
    """The verification key of a witness (C2SP tlog-cosignature) and its private key."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    data = b"\x04" + key.public_key().public_bytes_raw()
    digest = sha256(name.encode() + b"\n" + data).hexdigest()[:8]
    return f"{name}+{digest}+{base64.b64encode(data).decode()}", key


def cosignature(note: bytes, vkey: str, key: Ed25519PrivateKey, when: int, *, header: str = "cosignature/v1") -> bytes:
    """The signature line that the witness adds."""
    text = note.decode().rpartition("\n\n")[0] + "\n"
    signature = key.sign(f"{header}\ntime {when}\n{text}".encode())
    name, digest, _ = vkey.split("+", 2)
    line = base64.b64encode(bytes.fromhex(digest) + when.to_bytes(8, "big") + signature).decode()
    return f"\u2014 {name} {line}\n".encode()


ONE, TWO = witness("witness.example/one", 1), witness("witness.example/two", 2)


def cosigned(files: Files, *lines: bytes) -> Files:
    return forging.with_manifest({**files, "checkpoint": files["checkpoint"] + b"".join(lines)})


def test_a_quorum_of_witnesses_is_asked_for_and_found(tmp_path: Path, files: Files) -> None:
    once = cosigned(files, cosignature(files["checkpoint"], *ONE, 1_790_000_000))
    assert status(tmp_path, once).code == verify.PROVED
    report = status(tmp_path, once, witnesses=[ONE[0]])
    assert (report.code, report.witnesses) == (verify.PROVED, [{"name": "witness.example/one", "time": 1_790_000_000}])
    assert "cosigned by witness.example/one" in verify.summary(report)
    assert status(tmp_path, once, witnesses=[ONE[0], TWO[0]], quorum=1).code == verify.PROVED
    assert status(tmp_path, once, witnesses=[ONE[0], TWO[0]]).code == verify.MISSING_WITNESS
    assert status(tmp_path, once, witnesses=[TWO[0]]).code == verify.MISSING_WITNESS
    assert status(tmp_path, files, witnesses=[ONE[0]]).code == verify.MISSING_WITNESS
    assert status(tmp_path, once, quorum=1).code == verify.MISSING_WITNESS
    both = cosigned(once, cosignature(files["checkpoint"], *TWO, 1))
    assert status(tmp_path, both, witnesses=[ONE[0], TWO[0]]).code == verify.PROVED


def test_one_key_for_two_witnesses_is_refused_and_named_twice_it_counts_once(tmp_path: Path, files: Files) -> None:
    alias = witness("witness.example/alias", 1)
    both = cosigned(files, cosignature(files["checkpoint"], *ONE, 5), cosignature(files["checkpoint"], *alias, 5))
    assert status(tmp_path, both, witnesses=[ONE[0], alias[0]], quorum=1).code == verify.MALFORMED
    assert status(tmp_path, both, witnesses=[ONE[0], ONE[0]], quorum=2).code == verify.MISSING_WITNESS


def test_a_cosignature_of_something_else_is_bad(tmp_path: Path, files: Files) -> None:
    note = files["checkpoint"]
    other = str(Checkpoint(ORIGIN, 5, bytes(32)).sign([SIGNER])).encode()
    for line in (
        cosignature(other, *ONE, 5),
        cosignature(note, *ONE, 5, header="cosignature/v2"),
        cosignature(note, ONE[0], TWO[1], 5),
        cosignature(note, *ONE, 2**63),
    ):
        assert status(tmp_path, cosigned(files, line), witnesses=[ONE[0]]).code == verify.BAD_SIGNATURE


def test_the_keys_of_a_log_and_of_a_witness_do_not_stand_in_for_each_other(tmp_path: Path, files: Files) -> None:
    assert status(tmp_path, files, witnesses=[VKEY]).code == verify.MALFORMED
    assert status(tmp_path, files, key=ONE[0]).code == verify.MALFORMED


def test_a_log_rebuilt_under_the_real_key_lacks_its_witness(tmp_path: Path, files: Files) -> None:
    line = cosignature(files["checkpoint"], *ONE, 5)
    records = forging.renumbered(edited(forging.leaves(files), "one record rewritten"))
    forged = forging.rebuilt(files, records, SIGNER)
    assert status(tmp_path, forged).code == verify.PROVED
    assert status(tmp_path, forged, witnesses=[ONE[0]]).code == verify.MISSING_WITNESS
    assert status(tmp_path, cosigned(forged, line), witnesses=[ONE[0]]).code == verify.BAD_SIGNATURE


# The database, as somebody with every right on it may leave it.

TAMPERED_TABLES = {
    "a leaf rewritten": ('UPDATE entries SET leaf = :forged WHERE "index" = 300', verify.ALTERED),
    "an entry removed": ('DELETE FROM entries WHERE "index" = 300', verify.ALTERED),
    "the tail removed": ('DELETE FROM entries WHERE "index" >= 600', verify.TRUNCATED),
    "two entries swapped": (
        'UPDATE entries SET "index" = CASE "index" WHEN 5 THEN 100006 ELSE 100005 END WHERE "index" IN (5, 6)',
        verify.ALTERED,
    ),
    "a tile removed": ('DELETE FROM tiles WHERE level = 0 AND "index" = 0', verify.PROVED),
    "a tile above removed": ("DELETE FROM tiles WHERE level = 1", verify.ALTERED),
    "what is kept beside removed": ("DELETE FROM attachments", verify.ALTERED),
}


def test_a_database_that_was_tampered_with_gives_an_export_that_shows_it(database_url: str, tmp_path: Path) -> None:
    log = open_log(database_url, tmp_path)
    producer = Producer()
    fill(log, SIZE, producer=producer)
    log.submit([producer.prepared(producer.decided(1, instances=800))]).result(10)
    close(log)
    write_export(database_url, tmp_path / "before.zip")
    forged = flip(forging.leaves(forging.read(tmp_path / "before.zip"))[300])
    engine = database.create_engine(database_url)
    for name, (statement, code) in TAMPERED_TABLES.items():
        saved = save(engine)
        with engine.begin() as connection:
            connection.execute(sa.text(statement), {"forged": forged} if ":forged" in statement else {})
            connection.execute(sa.text('UPDATE entries SET "index" = "index" - 100000 WHERE "index" > 100000'))
        write_export(database_url, tmp_path / "after.zip")
        report = verify.verify(str(tmp_path / "after.zip"), key=VKEY)
        assert report.code == code, (name, report.problems)
        put_back(engine, saved)
    engine.dispose()
    write_export(database_url, tmp_path / "again.zip")
    assert verify.verify(str(tmp_path / "again.zip"), key=VKEY).code == verify.PROVED


TABLES = (store.ENTRIES, store.TILES, store.ATTACHMENTS)


def save(engine: sa.Engine) -> list[list[dict[str, Any]]]:
    """Every row of the tables that are tampered with."""
    with engine.begin() as connection:
        return [[dict(row) for row in connection.execute(sa.select(table)).mappings()] for table in TABLES]


def put_back(engine: sa.Engine, saved: list[list[dict[str, Any]]]) -> None:
    """The rows as they were."""
    with engine.begin() as connection:
        for table, rows in zip(TABLES, saved, strict=True):
            connection.execute(sa.delete(table))
            connection.execute(sa.insert(table), rows)


# The file itself.


def test_it_imports_nothing_but_the_standard_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported <= sys.stdlib_module_names


def test_it_keeps_to_the_syntax_of_python_3_9() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 9))


def run(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # A copy alone in a folder, an interpreter that sees no installed package.
    shutil.copy(SCRIPT, tmp_path / "alone.py")
    command = [sys.executable, "-I", "-S", str(tmp_path / "alone.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=False)


def test_the_command_prints_one_summary_or_json_and_exits_with_the_status(
    tmp_path: Path, exports: tuple[Path, Path], files: Files
) -> None:
    done = run(tmp_path, str(exports[1]), "--key", VKEY, "--older", str(exports[0]))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"PROVED: {SIZE + 1} records of {ORIGIN}")
    (tmp_path / "key").write_text(VKEY + "\n")
    done = run(tmp_path, str(exports[1]), "--key", str(tmp_path / "key"), "--json")
    assert json.loads(done.stdout)["result"] == "PROVED"
    assert json.loads(done.stdout)["key_source"] == "given"
    forged = forging.rebuilt(files, edited(forging.leaves(files), "one record rewritten"), trees=False)
    path = forging.write(tmp_path / "forged.zip", forged)
    done = run(tmp_path, str(path), "--key", VKEY)
    assert (done.returncode, done.stdout) == (verify.ALTERED, "")
    assert done.stderr.startswith("ALTERED: record 123 ")
    done = run(tmp_path, str(path), "--json")
    assert (done.returncode, json.loads(done.stdout)["exit_status"]) == (verify.ALTERED, verify.ALTERED)
    assert run(tmp_path).returncode == 2
    assert run(tmp_path, "/nowhere").returncode == verify.UNREADABLE


def test_without_a_key_it_says_that_the_key_came_with_the_export(tmp_path: Path, exports: tuple[Path, Path]) -> None:
    done = run(tmp_path, str(exports[1]))
    assert done.returncode == 0
    assert "the key inside the export itself" in done.stdout


# Its Ed25519, by the vectors of RFC 8032 7.1 and against the library.

VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd"
        "25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c3"
        "87b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594"
        "a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_ed25519_by_the_vectors_of_rfc_8032(public: str, message: str, signature: str) -> None:
    key, text, signed = (bytes.fromhex(part) for part in (public, message, signature))
    assert verify.ed25519_verify(key, text, signed)
    assert not verify.ed25519_verify(key, text + b"x", signed)
    assert not verify.ed25519_verify(key, text, signed[:-1])
    # RFC 8032 5.1.7: S must be below the order of the group, or one signature would have many forms.
    larger = int.from_bytes(signed[32:], "little") + verify._L
    assert not verify.ed25519_verify(key, text, signed[:32] + larger.to_bytes(32, "little"))


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100), st.integers(0, 63), st.integers(1, 255))
def test_ed25519_agrees_with_the_library(seed: bytes, message: bytes, place: int, change: int) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = key.public_key().public_bytes_raw(), bytearray(key.sign(message))
    assert verify.ed25519_verify(public, message, bytes(signature))
    signature[place] ^= change
    assert not verify.ed25519_verify(public, message, bytes(signature))


@given(st.binary(max_size=300))
def test_ed25519_refuses_arbitrary_bytes(data: bytes) -> None:
    assert not verify.ed25519_verify(data[:32], b"message", data[32:96])


# Its parsers agree with those of the log.


@given(st.binary(max_size=300) | st.sampled_from([str(Checkpoint(ORIGIN, 1, bytes(32)).sign([SIGNER])).encode()]))
def test_the_two_note_parsers_agree(data: bytes) -> None:
    try:
        Note.parse(data)
        good = True
    except ValueError:
        good = False
    try:
        verify._parse_note(data)
        also = True
    except verify.VerificationError:
        also = False
    assert good == also


@given(st.integers(0, 10**9))
def test_the_two_tile_layouts_agree(size: int) -> None:
    small = size % 70_000
    assert [path for path, *_ in verify.hash_tiles(small)] == [tile.path for tile in tiles.tiles_of(small)]
    assert [path for path, *_ in verify.bundles(small)] == [tile.path for tile in tiles.bundles_of(small)]
    assert verify.tile_path("0", size, 256) == tiles.Tile(0, size).path


def test_the_two_forms_of_a_key_agree() -> None:
    key = verify.parse_key(VKEY)
    assert VerificationKey(key.name, key.public) == SIGNER.key
    assert record.SCHEMA == verify.RECORD_SCHEMA
