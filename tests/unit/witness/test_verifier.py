"""The stand-alone verifier with an export whose newest checkpoint is not cosigned yet, and an earlier one is."""

from pathlib import Path

import pytest

from services.audit.__main__ import write_export
from shared.transparency.cosignature import Cosigner
from shared.transparency.note import Checkpoint, Note, Signer
from tests.unit.audit.making import KEY, ORIGIN, close, fill, open_log
from tests.unit.verifier import forging
from tests.unit.verifier.forging import Files
from tests.unit.witness.making import NAME, WITNESS_KEY
from verifier import verify

SIGNER = Signer(ORIGIN, KEY)
WITNESS = Cosigner(NAME, WITNESS_KEY)
EARLIER, SIZE = 300, 700


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, Note]:
    """An export of 700 records, and the checkpoint of the first 300 with its cosignature."""
    folder = tmp_path_factory.mktemp("log")
    url = f"sqlite:///{folder / 'audit.db'}"
    log = open_log(url, folder)
    fill(log, EARLIER)
    assert log.head is not None
    note = Note.parse(log.head.note.encode())
    fill(log, SIZE - EARLIER, first=EARLIER)
    write_export(url, folder / "export.zip")
    close(log)
    return forging.read(folder / "export.zip"), cosigned(note)


def cosigned(note: Note) -> Note:
    return Note(note.text, (*note.signatures, WITNESS.cosign(note.text, 5)))


def with_earlier(files: Files, note: Note) -> Files:
    return forging.with_manifest({**files, "cosigned-checkpoint": str(note).encode()})


def report(tmp_path: Path, files: Files, *, quorum: int | None = None, ask: bool = True) -> verify.Report:
    archive = forging.write(tmp_path / "export.zip", files)
    keys = [str(WITNESS.key)] if ask else []
    return verify.verify(str(archive), key=str(SIGNER.key), witnesses=keys, quorum=quorum)


def test_it_says_how_far_the_witnesses_went(tmp_path: Path, parts: tuple[Files, Note]) -> None:
    files, note = parts
    found = report(tmp_path, with_earlier(files, note))
    assert (found.code, found.cosigned_size) == (verify.MISSING_WITNESS, EARLIER)
    assert found.problems[0]["index"] == EARLIER
    assert "first 300 of 700" in verify.summary(found)
    assert report(tmp_path, with_earlier(files, note), ask=False).code == verify.PROVED
    assert report(tmp_path, with_earlier(files, note), quorum=0).code == verify.PROVED


def test_a_cosigned_newest_checkpoint_counts_before_an_earlier_one(tmp_path: Path, parts: tuple[Files, Note]) -> None:
    files, note = parts
    whole = str(cosigned(Note.parse(files["checkpoint"]))).encode()
    found = report(tmp_path, with_earlier({**files, "checkpoint": whole}, note))
    assert (found.code, found.cosigned_size) == (verify.PROVED, SIZE)


def test_what_was_written_anew_since_a_cosignature_is_forked_though_nobody_asks(
    tmp_path: Path, parts: tuple[Files, Note]
) -> None:
    files, note = parts
    records = forging.leaves(files)
    del records[5]
    rewritten = forging.rebuilt(files, forging.renumbered(records), SIGNER)
    assert report(tmp_path, rewritten, ask=False).code == verify.PROVED
    for ask in (True, False):
        assert report(tmp_path, with_earlier(rewritten, note), ask=ask).code == verify.FORKED


def test_a_log_that_ends_before_what_was_cosigned_is_truncated(tmp_path: Path, parts: tuple[Files, Note]) -> None:
    files, note = parts
    short = forging.rebuilt(files, forging.leaves(files)[:200], SIGNER)
    assert report(tmp_path, with_earlier(short, note)).code == verify.TRUNCATED


def test_a_cosigned_checkpoint_of_another_log_or_of_no_log_is_refused(
    tmp_path: Path, parts: tuple[Files, Note]
) -> None:
    files, note = parts
    other = Checkpoint("other.example/log", EARLIER, Checkpoint.parse(note.text).root)
    assert report(tmp_path, with_earlier(files, cosigned(other.sign([SIGNER])))).code == verify.FORKED
    stranger = Note(note.text, note.signatures[1:])
    assert report(tmp_path, with_earlier(files, stranger)).code == verify.BAD_SIGNATURE
    broken = forging.with_manifest({**files, "cosigned-checkpoint": b"nothing"})
    assert report(tmp_path, broken).code == verify.MALFORMED
    unlisted = {**files, "cosigned-checkpoint": str(note).encode()}
    assert report(tmp_path, unlisted).code == verify.ALTERED
