"""One record proved by a file of its own (C2SP tlog-proof): by the stand-alone verifier and by the log's reader."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.audit.proofs import proof_of
from shared.transparency import merkle
from shared.transparency.cosignature import Cosigner
from shared.transparency.note import Checkpoint, MalformedNoteError, Note, Signer
from shared.transparency.tlog_proof import FORMAT, MAX_EXTRA, TlogProof, path_length
from tests.unit.audit.making import KEY, ORIGIN, close, fill, open_log
from tests.unit.shared.test_merkle import INCLUSION, LEAVES, ROOTS
from verifier import verify

SIGNER = Signer(ORIGIN, KEY)
VKEY = str(SIGNER.key)
COSIGNER = Cosigner("witness.example/one", Ed25519PrivateKey.from_private_bytes(b"\x11" * 32))


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> TlogProof:
    """The proof of record 123 of 300."""
    folder = tmp_path_factory.mktemp("log")
    log = open_log(f"sqlite:///{folder / 'audit.db'}", folder)
    fill(log, 300)
    made = proof_of(log.store, 123)
    close(log)
    return made


def cosigned(proof: TlogProof) -> TlogProof:
    line = COSIGNER.cosign(proof.note.text, 1_790_000_000)
    return TlogProof(proof.index, proof.path, Note(proof.note.text, (*proof.note.signatures, line)), proof.extra)


def report(tmp_path: Path, text: str | bytes, **given: Any) -> verify.Report:
    file = tmp_path / "one.tlog-proof"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return verify.verify_proof(str(file), **{"key": VKEY, **given})


def test_a_record_is_proved_by_its_file_alone(proof: TlogProof, tmp_path: Path) -> None:
    done = report(tmp_path, str(proof))
    assert (done.code, done.index, done.size) == (verify.PROVED, 123, 300), done.problems
    assert done.record is not None
    assert done.record["index"] == 123
    assert "record 123" in verify.summary(done)
    assert "not proved" in verify.summary(done)


def test_without_the_record_inside_it_is_named(proof: TlogProof, tmp_path: Path) -> None:
    bare = TlogProof(proof.index, proof.path, proof.note)
    assert report(tmp_path, str(bare)).code == verify.USAGE
    assert proof.extra is not None
    (tmp_path / "record").write_bytes(proof.extra)
    assert report(tmp_path, str(bare), record=str(tmp_path / "record")).code == verify.PROVED
    assert report(tmp_path, str(proof), record=str(tmp_path / "record")).code == verify.PROVED
    (tmp_path / "record").write_bytes(proof.extra.replace(b"DIMSE", b"STOWS"))
    assert report(tmp_path, str(bare), record=str(tmp_path / "record")).code == verify.ALTERED
    assert report(tmp_path, str(proof), record=str(tmp_path / "record")).code == verify.ALTERED


def test_a_quorum_of_witnesses_is_asked_of_a_proof_too(proof: TlogProof, tmp_path: Path) -> None:
    both = str(cosigned(proof))
    assert report(tmp_path, both, witnesses=[str(COSIGNER.key)]).code == verify.PROVED
    assert report(tmp_path, str(proof), witnesses=[str(COSIGNER.key)]).code == verify.MISSING_WITNESS
    assert report(tmp_path, both, witnesses=[str(COSIGNER.key)] * 2, quorum=2).code == verify.MISSING_WITNESS
    same = Cosigner("witness.example/log", KEY)  # the log's own key
    assert report(tmp_path, both, witnesses=[str(same.key)]).code == verify.MALFORMED


def lines(change: Callable[[list[str]], list[str] | None]) -> Callable[[TlogProof], str]:
    """A change of the lines before the checkpoint."""

    def forged(proof: TlogProof) -> str:
        head, _, note = str(proof).partition("\n\n")
        rows = head.split("\n")
        return "\n".join(change(rows) or rows) + "\n\n" + note

    return forged


def _index(text: str) -> Callable[[list[str]], list[str]]:
    return lambda rows: [text if row.startswith("index") else row for row in rows]


def _note(change: Callable[[str], str]) -> Callable[[TlogProof], str]:
    def forged(proof: TlogProof) -> str:
        head, blank, note = str(proof).partition("\n\n")
        return head + blank + change(note)

    return forged


def _loose(row: str) -> str:
    """The same 32 bytes in base64 that is not canonical: the last character's unused bits are set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return row[:-2] + alphabet[alphabet.index(row[-2]) | 1] + "="


BAD: dict[str, tuple[Callable[[TlogProof], str], int]] = {
    "another format": (lambda p: str(p).replace("@v1", "@v2", 1), verify.MALFORMED),
    "no format": (lambda p: str(p).partition("\n")[2], verify.MALFORMED),
    "an index beyond the tree": (lines(_index("index 300")), verify.MALFORMED),
    "an index far beyond": (lines(_index("index 9223372036854775808")), verify.MALFORMED),
    "an index below zero": (lines(_index("index -1")), verify.MALFORMED),
    "an index with a zero before it": (lines(_index("index 0123")), verify.MALFORMED),
    "an index in other digits": (lines(_index("index ١")), verify.MALFORMED),
    "no index": (lines(lambda rows: [row for row in rows if not row.startswith("index")]), verify.MALFORMED),
    "the next index": (lines(_index("index 124")), verify.ALTERED),
    "a surplus hash": (lines(lambda rows: [*rows, rows[-1]]), verify.MALFORMED),
    "a hash too few": (lines(lambda rows: rows[:-1]), verify.MALFORMED),
    "64 hashes": (lines(lambda rows: [*rows[:3], *[rows[-1]] * 64]), verify.MALFORMED),
    "a hash of 31 bytes": (lines(lambda rows: [*rows[:-1], base64.b64encode(bytes(31)).decode()]), verify.MALFORMED),
    "another hash": (lines(lambda rows: [*rows[:-1], base64.b64encode(bytes(32)).decode()]), verify.ALTERED),
    "hashes in another order": (lines(lambda rows: [*rows[:3], *rows[:2:-1]]), verify.ALTERED),
    "base64 that is not canonical": (lines(lambda rows: [*rows[:-1], _loose(rows[-1])]), verify.MALFORMED),
    "base64 with a space": (lines(lambda rows: [*rows[:-1], rows[-1] + " "]), verify.MALFORMED),
    "base64 without its padding": (lines(lambda rows: [*rows[:-1], rows[-1].rstrip("=")]), verify.MALFORMED),
    "empty extra data": (lines(lambda rows: [rows[0], "extra ", *rows[2:]]), verify.MALFORMED),
    "two extra lines": (lines(lambda rows: [*rows[:2], *rows[1:]]), verify.MALFORMED),
    "extra data that is another record": (
        lines(lambda rows: [rows[0], "extra " + base64.b64encode(b"{}").decode(), *rows[2:]]),
        verify.ALTERED,
    ),
    "carriage returns": (lambda p: str(p).replace("\n", "\r\n"), verify.MALFORMED),
    "a control character in the note": (_note(lambda note: "\x07" + note), verify.MALFORMED),
    "a control character before it": (lines(lambda rows: [rows[0] + "\x00", *rows[1:]]), verify.MALFORMED),
    "two signatures of one key": (_note(lambda note: note + note.splitlines()[-1] + "\n"), verify.MALFORMED),
    "no signature": (_note(lambda note: note.partition("\n\n")[0] + "\n"), verify.MALFORMED),
    "another size": (_note(lambda note: note.replace("\n300\n", "\n301\n", 1)), verify.BAD_SIGNATURE),
    "nothing": (lambda p: "", verify.MALFORMED),
    "not ASCII before the checkpoint": (lines(lambda rows: [rows[0], "extra ü", *rows[2:]]), verify.MALFORMED),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_code(name: str, proof: TlogProof, tmp_path: Path) -> None:
    forge, code = BAD[name]
    text = forge(proof)
    assert report(tmp_path, text).code == code
    if code == verify.MALFORMED:
        with pytest.raises(MalformedNoteError):
            TlogProof.parse(text.encode())


def test_a_checkpoint_of_another_key_or_another_log_proves_nothing(proof: TlogProof, tmp_path: Path) -> None:
    stranger = Signer(ORIGIN, Ed25519PrivateKey.generate())
    assert report(tmp_path, str(proof), key=str(stranger.key)).code == verify.BAD_SIGNATURE
    head = proof.checkpoint
    other = Checkpoint("other.example/log", head.size, head.root).sign([SIGNER])
    assert report(tmp_path, str(TlogProof(proof.index, proof.path, other, proof.extra))).code == verify.BAD_SIGNATURE


def test_the_longest_extra_data_is_an_entrys_and_no_longer(proof: TlogProof) -> None:
    longest = TlogProof(proof.index, proof.path, proof.note, bytes(MAX_EXTRA))
    assert TlogProof.parse(str(longest).encode()) == longest
    with pytest.raises(MalformedNoteError):
        TlogProof.parse(str(TlogProof(proof.index, proof.path, proof.note, bytes(MAX_EXTRA + 1))).encode())


# Vectors, and agreement with what is written apart.


def test_roots_and_proofs_of_the_reference_vectors_by_the_stand_alone_verifier() -> None:
    hashes = bytearray(b"".join(merkle.leaf_hash(leaf) for leaf in LEAVES))
    tree = verify.Tree(hashes)
    assert [tree.root(size).hex() for size in range(9)] == ROOTS
    for (index, size), path in INCLUSION.items():
        root = verify.root_by_path(merkle.leaf_hash(LEAVES[index]), index, size, [bytes.fromhex(one) for one in path])
        assert root.hex() == ROOTS[size]


@given(size=st.integers(1, 200), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_proof_of_a_small_tree_leads_to_its_root_and_has_the_length_that_is_computed(
    size: int, data: st.DataObject
) -> None:
    leaves = [merkle.leaf_hash(b"%d" % number) for number in range(size)]
    index = data.draw(st.integers(0, size - 1))

    def node(height: int, place: int) -> bytes:
        return merkle.perfect_root(leaves[place << height : (place + 1) << height])

    path = merkle.inclusion_proof(index, size, node)
    assert len(path) == path_length(index, size)
    assert verify.root_by_path(leaves[index], index, size, path) == merkle.root_of(size, node)


EXAMPLE = FORMAT.encode() + b"\nindex 0\n\nlog\n1\n" + base64.b64encode(bytes(32)) + b"\n\n"


@given(st.binary(max_size=400) | st.builds(lambda tail: EXAMPLE + tail, st.binary(max_size=200)))
@example(EXAMPLE + "— log AAAAAAA=\n".encode())
@settings(max_examples=300, deadline=None)
def test_the_two_parsers_of_a_proof_agree_on_any_bytes(data: bytes) -> None:
    _agree(data)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_the_two_parsers_of_a_proof_agree_on_what_was_changed(data: st.DataObject) -> None:
    head = Checkpoint(ORIGIN, 5, bytes(32)).sign([SIGNER])
    whole = bytearray(str(TlogProof(3, (bytes(32),) * 3, head, b"{}")).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        if data.draw(st.booleans()):
            whole[place] = data.draw(st.integers(0, 255))
        else:
            del whole[place]
    _agree(bytes(whole))


def _agree(data: bytes) -> None:
    try:
        ours: TlogProof | None = TlogProof.parse(data)
    except MalformedNoteError:
        ours = None
    try:
        theirs: verify.Proof | None = verify.parse_proof(data)
        assert theirs is not None
        checkpoint = verify.read_checkpoint(theirs.note)
        verify.root_by_path(bytes(32), theirs.index, checkpoint.size, theirs.path)
    except verify.VerificationError as failure:
        theirs = None
        assert {failure.code} == {verify.MALFORMED}  # noqa: PT017
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert (ours.index, list(ours.path), ours.extra) == (theirs.index, theirs.path, theirs.extra)
        assert str(ours).encode() == data


def test_the_command_proves_a_record_in_an_interpreter_that_has_nothing_else(proof: TlogProof, tmp_path: Path) -> None:
    file = tmp_path / "one.tlog-proof"
    file.write_text(str(proof))
    command = [sys.executable, "-I", "-S", verify.__file__, "proof", str(file), "--key", VKEY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:18]) == (0, "PROVED: record 123")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["record"]["index"] == 123
    assert subprocess.run(command[:-2], capture_output=True, check=False).returncode == verify.USAGE
