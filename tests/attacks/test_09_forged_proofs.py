"""Attack 9: proofs and notes that are forged, or bent just as far as a lenient reader would let them.

The parsers themselves are fuzzed in tests/unit/verifier, tests/unit/witness and tests/unit/shared.
"""

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from services.audit import tiles
from shared.paths import ROOT
from shared.transparency import merkle
from shared.transparency.note import Checkpoint
from stepwedge.audit.v1 import audit_pb2
from tests.attacks import insider
from tests.attacks.keys_of_others import STRANGER
from tests.attacks.scene import ALTERED, BAD_SIGNATURE, MALFORMED, ONCE, PROVED, TRUNCATED, Scene
from tests.unit.verifier import forging
from tests.unit.verifier.forging import Files
from tests.unit.witness.making import Tree

NOTES: dict[str, tuple[Callable[[str], str], int]] = {
    "base64 that is not canonical": (lambda note: _loosened(note), MALFORMED),
    "base64 without its padding": (lambda note: note.replace("=\n", "\n", 1), MALFORMED),
    "a signature twice": (lambda note: note + note.rpartition("\n\n")[2], MALFORMED),
    "sixty-five signatures": (lambda note: note + "".join(_line(number) for number in range(64)), MALFORMED),
    "a control character": (lambda note: note.replace("stepwedge/audit", "stepwedge\x1b/audit", 1), MALFORMED),
    "a carriage return": (lambda note: note.replace("\n", "\r\n"), MALFORMED),
    "a size with a leading zero": (lambda note: _with_size(note, "0600"), MALFORMED),
    "a size with a sign": (lambda note: _with_size(note, "+600"), MALFORMED),
    "no signature": (lambda note: note.rpartition("\n\n")[0] + "\n", MALFORMED),
    "an empty line more": (lambda note: note.replace("\n", "\n\n", 1), MALFORMED),
    "size 0 under the old signature": (lambda note: _with_size(note, "0"), BAD_SIGNATURE),
    "another size under the old signature": (lambda note: _with_size(note, "5"), BAD_SIGNATURE),
    "another log's name": (lambda note: note.replace("stepwedge/audit", "stepwedge/other", 1), BAD_SIGNATURE),
    "a signature of zeros": (lambda note: _zeroed(note), BAD_SIGNATURE),
}


def _with_size(note: str, size: str) -> str:
    first, _, rest = note.split("\n", 2)
    return "\n".join([first, size, rest])


def _loosened(note: str) -> str:
    """The root with other bits behind its end: the same 32 bytes to a lenient reader."""
    lines = note.split("\n")
    assert lines[2].endswith("=")
    last = lines[2][-2]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    lines[2] = lines[2][:-2] + alphabet[alphabet.index(last) ^ 1] + "="
    assert base64.b64decode(lines[2])
    return "\n".join(lines)


def _line(number: int) -> str:
    return f"\u2014 other.example/{number} {base64.b64encode(os.urandom(68)).decode()}\n"


def _zeroed(note: str) -> str:
    text, _, lines = note.rpartition("\n\n")
    name = lines.split("\n")[0].split(" ")
    kept = base64.b64decode(name[2])[:4]
    return f"{text}\n\n\u2014 {name[1]} {base64.b64encode(kept + bytes(64)).decode()}\n"


@pytest.fixture(scope="module")
def files(scene: Scene) -> Files:
    return forging.read(scene.export)


@ONCE
@pytest.mark.parametrize("name", NOTES)
def test_09_a_checkpoint_that_is_bent_is_refused(scene: Scene, files: Files, name: str) -> None:
    bend, code = NOTES[name]
    forged = {**files, "checkpoint": bend(files["checkpoint"].decode()).encode()}
    told = scene.judge(forging.write(scene.folder / "bent.zip", forging.with_manifest(forged)))
    assert told.code == code, told.words


@ONCE
def test_09_an_inner_node_does_not_pass_for_a_record(scene: Scene, files: Files) -> None:
    """Second preimage: entries that are pairs of hashes would give the same root, were leaves not hashed apart."""
    hashes = [merkle.leaf_hash(leaf) for leaf in forging.leaves(files)[:512]]
    pairs = [hashes[number] + hashes[number + 1] for number in range(0, 512, 2)]
    assert sha256(b"\x01" + pairs[0]).digest() == merkle.node_hash(hashes[0], hashes[1])
    forged = {**files, "tile/entries/000": tiles.encode_bundle(pairs)}
    assert scene.judge(forging.write(scene.folder / "pairs.zip", forging.with_manifest(forged))).code == ALTERED


@ONCE
def test_09_a_checkpoint_of_a_tree_that_nobody_has_is_truncated_and_a_stranger_s_is_not_signed(
    scene: Scene, files: Files
) -> None:
    for signer, code in ((scene.place.signer, TRUNCATED), (STRANGER, BAD_SIGNATURE)):
        note = str(Checkpoint(signer.key.name, 2**62, bytes(32)).sign([signer])).encode()
        told = scene.judge(forging.write(scene.folder / "huge.zip", {**files, "checkpoint": note}))
        assert told.code == code


@ONCE
def test_09_a_log_of_size_0_in_place_of_a_full_one_is_altered(scene: Scene, files: Files) -> None:
    """Signed with the real key, over the records that are there."""
    signer = scene.place.signer
    empty = str(Checkpoint(signer.key.name, 0, merkle.EMPTY_ROOT).sign([signer])).encode()
    forged = forging.with_manifest({**files, "checkpoint": empty})
    assert scene.judge(forging.write(scene.folder / "empty.zip", forged)).code == ALTERED


REQUESTS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "sixty-four hashes in the proof": (lambda body: _more_hashes(body, 64), 400),
    "a hash more than the proof needs": (lambda body: _more_hashes(body, 1), 422),
    "base64 that is not canonical": (lambda body: body.replace(b"old 0\n", b"old 0\nAA=\n", 1), 400),
    "an old size that is larger": (lambda body: body.replace(b"old 0", b"old 99999", 1), 400),
    "an old size below zero": (lambda body: body.replace(b"old 0", b"old -1", 1), 400),
    "another log": (lambda body: body.replace(b"stepwedge/audit\n", b"stepwedge/other\n", 1), 404),
    "a signature of nobody": (lambda body: body.replace(b"\xe2\x80\x94 stepwedge/audit", b"\xe2\x80\x94 nobody"), 403),
}


def _more_hashes(body: bytes, count: int) -> bytes:
    hashes = b"".join(base64.b64encode(bytes([number]) * 32) + b"\n" for number in range(count))
    return body.replace(b"old 0\n", b"old 0\n" + hashes, 1)


@ONCE
def test_09_a_request_that_is_bent_gets_its_status_from_the_witness_and_is_not_cosigned(scene: Scene) -> None:
    tree = Tree(insider.leaves_of(scene.place), origin=scene.vkey.split("+")[0], key=scene.place.signing)
    with scene.new_witness() as witness:
        for name, (bend, status) in REQUESTS.items():
            assert witness.ask(bend(tree.asks(0, 40))).status == status, name
        assert witness.ask(tree.asks(0, 40)).status == 200
        assert witness.ask(_more_hashes(tree.asks(0, 41), 3)).status == 409
        bent = tree.asks(40, 60).replace(b"\n\n", b"\n" + base64.b64encode(bytes(32)) + b"\n\n", 1)
        assert witness.ask(bent).status == 422, "a surplus hash"


# The proof of one record (C2SP tlog-proof), as the service hands it out.

PROOFS: dict[str, tuple[Callable[[str], str], int]] = {
    "the next index": (lambda proof: proof.replace("index 123\n", "index 124\n"), ALTERED),
    "an index beyond the tree": (lambda proof: proof.replace("index 123\n", "index 999999\n"), MALFORMED),
    "an index with a leading zero": (lambda proof: proof.replace("index 123\n", "index 0123\n"), MALFORMED),
    "a hash more": (lambda proof: proof.replace("index 123\n", f"index 123\n{HASH}\n"), MALFORMED),
    "a hash less": (lambda proof: _without(proof, 3), MALFORMED),
    "two hashes exchanged": (lambda proof: _exchanged(proof, 3, 4), ALTERED),
    "sixty-four hashes": (lambda proof: proof.replace("index 123\n", "index 123\n" + f"{HASH}\n" * 64), MALFORMED),
    "a hash in loose base64": (lambda proof: proof.replace("index 123\n", f"index 123\n{HASH[:-2]}B=\n"), MALFORMED),
    "another record": (lambda proof: _with_record(proof, insider.flipped), ALTERED),
    "no record": (lambda proof: _with_record(proof, lambda _: b""), MALFORMED),
    "an inner node as the record": (lambda proof: _with_record(proof, lambda leaf: b"\x01" + bytes(64)), ALTERED),
    "a carriage return": (lambda proof: proof.replace("\n", "\r\n"), MALFORMED),
    "another first line": (lambda proof: proof.replace("tlog-proof@v1", "tlog-proof@v2"), MALFORMED),
    "another size under the old signature": (lambda proof: _with_checkpoint_size(proof), BAD_SIGNATURE),
}
HASH = base64.b64encode(bytes(32)).decode()


def _without(proof: str, line: int) -> str:
    lines = proof.split("\n")
    return "\n".join([*lines[:line], *lines[line + 1 :]])


def _exchanged(proof: str, one: int, other: int) -> str:
    lines = proof.split("\n")
    lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines)


def _with_record(proof: str, change: Callable[[bytes], bytes]) -> str:
    lines = proof.split("\n")
    leaf = base64.b64decode(lines[1].removeprefix("extra "))
    lines[1] = f"extra {base64.b64encode(change(leaf)).decode()}"
    return "\n".join(lines)


def _with_checkpoint_size(proof: str) -> str:
    head, _, note = proof.partition("\n\n")
    return f"{head}\n\n{_with_size(note, str(int(note.split(chr(10))[1]) + 1))}"


@pytest.fixture(scope="module")
def proof(scene: Scene) -> str:
    with scene.town.serving(scene.copy()) as service:
        request = audit_pb2.GetProofRequest(index=insider.VICTIM)
        text: str = service.stub(scene.auditor).GetProof(request, timeout=20).proof
    return text


def test_09_the_proof_of_one_record_is_proved_and_bent_it_is_not(scene: Scene, proof: str, tmp_path: Path) -> None:
    file = tmp_path / "one.tlog-proof"
    file.write_text(proof, newline="")
    assert judge_proof(file, scene.vkey) == PROVED
    assert judge_proof(file, str(STRANGER.key)) == BAD_SIGNATURE
    for name, (bend, code) in PROOFS.items():
        assert bend(proof) != proof, name
        file.write_text(bend(proof), newline="")
        assert judge_proof(file, scene.vkey) == code, name


def judge_proof(file: Path, key: str) -> int:
    command = [sys.executable, "-I", "-S", str(ROOT / "verifier" / "verify.py"), "proof", str(file), "--key", key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode
