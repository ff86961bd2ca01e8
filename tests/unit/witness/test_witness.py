"""Every answer of a witness, what it remembers, and what it must never be brought to do."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.witness.state import MAX_EVIDENCE, State
from services.witness.witness import Witness
from shared.canonical import canonical_json
from shared.errors import ErrorCode, StepwedgeError
from shared.transparency import merkle
from shared.transparency.add_checkpoint import MAX_BODY, AddCheckpoint, encode
from shared.transparency.cosignature import Cosigner
from shared.transparency.note import Checkpoint, MalformedNoteError, Note, Signer, parse_signature
from shared.transparency.rotation import Rotation
from shared.transparency.tlog_proof import TlogProof
from tests.unit.witness.making import (
    FORKED,
    HONEST,
    LOG_KEY,
    NAME,
    ORIGIN,
    WITNESS_KEY,
    Tree,
    entries,
    new_witness,
)

KEY = Cosigner(NAME, WITNESS_KEY).key


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Witness, State]]:
    witness, state = new_witness(tmp_path)
    yield witness, state
    state.close()


@pytest.fixture
def witness(pair: tuple[Witness, State]) -> Witness:
    return pair[0]


def status(witness: Witness, body: bytes) -> int:
    return witness.add_checkpoint(body).status


# The answers, in the order of the specification.


def test_a_checkpoint_that_extends_the_last_one_is_cosigned(witness: Witness) -> None:
    for older, newer in ((0, 1), (1, 7), (7, 8), (8, 256), (256, 300)):
        answer = witness.add_checkpoint(HONEST.asks(older, newer))
        assert (answer.status, answer.content_type) == (HTTPStatus.OK, "text/plain; charset=utf-8")
        text = HONEST.checkpoint(newer).rpartition("\n\n")[0] + "\n"
        assert KEY.time_of(text, parse_signature(answer.body.removesuffix("\n"))) > 1_700_000_000
        assert answer.body.endswith("\n")


def test_the_same_checkpoint_is_cosigned_again(witness: Witness) -> None:
    assert status(witness, HONEST.asks(0, 7)) == 200
    assert status(witness, HONEST.asks(7, 7)) == 200


def test_the_empty_tree_is_cosigned_with_its_one_root_only(witness: Witness) -> None:
    assert status(witness, HONEST.asks(0, 0)) == 200
    wrong = Checkpoint(ORIGIN, 0, bytes(32)).sign([HONEST.signer])
    assert status(witness, encode(0, [], str(wrong))) == 409
    assert status(witness, HONEST.asks(0, 5)) == 200


NOTE = HONEST.checkpoint(7)
HASH = base64.b64encode(bytes(32)).decode()
MALFORMED = {
    "nothing": b"",
    "no old size": NOTE.encode(),
    "no empty line": f"old 0\n{NOTE}".encode(),
    "another word": f"new 0\n\n{NOTE}".encode(),
    "a capital": f"Old 0\n\n{NOTE}".encode(),
    "two spaces": f"old  0\n\n{NOTE}".encode(),
    "a space behind": f"old 0 \n\n{NOTE}".encode(),
    "a leading zero": f"old 00\n\n{NOTE}".encode(),
    "a sign": f"old +1\n\n{NOTE}".encode(),
    "a negative size": f"old -1\n\n{NOTE}".encode(),
    "digits of another script": f"old \u0661\n\n{NOTE}".encode(),
    "a size of 2**63": f"old {2**63}\n\n{NOTE}".encode(),
    "carriage returns": f"old 0\r\n\r\n{NOTE}".encode(),
    "a proof line that is not base64": f"old 1\n{HASH[:-2]}*=\n\n{NOTE}".encode(),
    "a proof line in base64 that is not canonical": f"old 1\n{HASH[:-2]}B=\n\n{NOTE}".encode(),
    "a proof line of URL-safe base64": b"old 1\n" + base64.urlsafe_b64encode(b"\xff" * 32) + b"\n\n" + NOTE.encode(),
    "a proof line of 31 bytes": b"old 1\n" + base64.b64encode(bytes(31)) + b"\n\n" + NOTE.encode(),
    "64 proof lines": encode(1, [bytes(32)] * 64, NOTE),
    "a note without signatures": f"old 0\n\n{NOTE.partition(chr(10) * 2)[0]}\n".encode(),
    "a note cut off": f"old 0\n\n{NOTE}".encode()[:-1],
    "a note with one signature twice": f"old 0\n\n{NOTE}{NOTE.splitlines()[-1]}\n".encode(),
    "a checkpoint of two lines": f"old 0\n\n{ORIGIN}\n7\n\n{NOTE.splitlines()[-1]}\n".encode(),
    "a size with a leading zero": b"old 0\n\n" + NOTE.encode().replace(b"\n7\n", b"\n07\n"),
    "a control character": f"old 0\n\n{NOTE}".encode().replace(b"test", b"te\x00t"),
    "not UTF-8": f"old 0\n\n{NOTE}".encode().replace(b"test", b"te\xfft"),
    "two empty lines": f"old 0\n\n\n{NOTE}".encode(),
    "too long": f"old 0\n\n{NOTE}".encode() + b"x" * MAX_BODY,
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_body_that_is_not_in_the_one_form_is_answered_400(what: str, witness: Witness) -> None:
    assert status(witness, MALFORMED[what]) == 400


def test_an_old_size_beyond_the_checkpoint_is_answered_400(witness: Witness) -> None:
    assert status(witness, encode(8, [], HONEST.checkpoint(7))) == 400


def test_a_log_that_is_not_known_is_answered_404(witness: Witness) -> None:
    assert status(witness, Tree(entries(5), origin="other.example/log").asks(0, 5)) == 404


def test_a_checkpoint_that_no_known_key_signed_is_answered_403(witness: Witness) -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    assert status(witness, Tree(entries(5), key=stranger).asks(0, 5)) == 403
    note = HONEST.checkpoint(7)
    other = HONEST.checkpoint(8)
    swapped = note.rpartition("\u2014")[0] + "\u2014" + other.rpartition("\u2014")[2]
    assert status(witness, encode(0, [], swapped)) == 403


def test_signatures_of_unknown_keys_are_ignored(pair: tuple[Witness, State]) -> None:
    witness, state = pair
    stranger = Signer("stranger.example", Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
    note = Checkpoint(ORIGIN, 7, HONEST.root(7)).sign([stranger, HONEST.signer])
    assert status(witness, encode(0, [], str(note))) == 200
    assert "stranger" not in json.dumps(state._notes[ORIGIN].text) + str(state._notes[ORIGIN])


def test_an_old_size_that_is_not_what_is_held_is_answered_409_with_that_size(witness: Witness) -> None:
    assert status(witness, HONEST.asks(0, 7)) == 200
    for older, newer in ((0, 9), (5, 9), (8, 9), (5, 6), (0, 7)):
        answer = witness.add_checkpoint(HONEST.asks(older, newer))
        assert (answer.status, answer.body, answer.content_type) == (409, "7\n", "text/x.tlog.size")


def test_a_witness_that_holds_nothing_holds_the_size_zero(witness: Witness) -> None:
    answer = witness.add_checkpoint(HONEST.asks(5, 9))
    assert (answer.status, answer.body) == (409, "0\n")


def test_a_proof_that_does_not_verify_is_answered_422(witness: Witness) -> None:
    assert status(witness, HONEST.asks(0, 7)) == 200
    proof = HONEST.proof(7, 20)
    for wrong in ([], proof[:-1], [*proof, bytes(32)], proof[::-1], [bytes(32)] * 63, HONEST.proof(6, 20)):
        assert status(witness, encode(7, wrong, HONEST.checkpoint(20))) == 422
    assert status(witness, encode(7, [bytes(32)], HONEST.checkpoint(7))) == 422
    assert status(witness, HONEST.asks(7, 20)) == 200


def test_a_first_checkpoint_with_a_proof_is_answered_422(witness: Witness) -> None:
    assert status(witness, encode(0, [bytes(32)], HONEST.checkpoint(7))) == 422


# The attacks.


def test_a_fork_is_refused_and_both_sides_of_it_are_kept_as_evidence(
    pair: tuple[Witness, State], tmp_path: Path
) -> None:
    witness, _ = pair
    assert status(witness, HONEST.asks(0, 20)) == 200
    contradiction = witness.add_checkpoint(FORKED.asks(20, 20))
    assert (contradiction.status, contradiction.content_type) == (409, "text/plain; charset=utf-8")
    assert status(witness, FORKED.asks(20, 30)) == 422
    kept = [file.read_text() for file in (tmp_path / "state.evidence").iterdir()]
    assert len(kept) == 2
    for one in kept:
        assert HONEST.checkpoint(20).partition("\n\n")[0] in one
        assert HONEST.checkpoint(20).splitlines()[-1] in one
    assert any(FORKED.checkpoint(20) in one for one in kept)
    assert status(witness, HONEST.asks(20, 30)) == 200


def test_evidence_does_not_fill_the_disk(pair: tuple[Witness, State], tmp_path: Path) -> None:
    witness, _ = pair
    assert status(witness, HONEST.asks(0, 20)) == 200
    for size in range(21, 21 + MAX_EVIDENCE + 10):
        assert status(witness, FORKED.asks(20, size)) == 422
    assert len(list((tmp_path / "state.evidence").iterdir())) == MAX_EVIDENCE


def test_a_log_that_went_back_is_told_how_far_it_was(witness: Witness) -> None:
    assert status(witness, HONEST.asks(0, 200)) == 200
    answer = witness.add_checkpoint(HONEST.asks(100, 120))
    assert (answer.status, answer.body) == (409, "200\n")


def test_of_two_requests_at_once_the_smaller_tree_never_overwrites_the_larger(tmp_path: Path) -> None:
    """The race that the specification numbers: A(N) and B(N + K) both asked from the same size."""
    for attempt in range(40):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        witness, state = new_witness(folder)
        assert status(witness, HONEST.asks(0, 10)) == 200
        begin = threading.Barrier(2)
        answers: dict[int, int] = {}

        def ask(newer: int, witness: Witness = witness, begin: threading.Barrier = begin) -> None:
            body = HONEST.asks(10, newer)
            begin.wait()
            answers[newer] = status(witness, body)  # noqa: B023

        threads = [threading.Thread(target=ask, args=(size,)) for size in (50, 90)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = state.newest(ORIGIN)
        assert held is not None
        # One was first; the other's old size is then out of date.
        assert sorted(answers.values()) == [200, 409]
        assert answers[held.size] == 200
        state.close()
        again = State(folder / "state", KEY)
        assert again.newest(ORIGIN) == held
        again.close()


def test_many_askers_at_once_leave_one_history(tmp_path: Path) -> None:
    witness, state = new_witness(tmp_path)
    cosigned: list[tuple[int, int]] = []

    def ask(sizes: range) -> None:
        for newer in sizes:
            while True:
                held = state.newest(ORIGIN)
                older = held.size if held else 0
                if older > newer:
                    break
                if status(witness, HONEST.asks(older, newer)) == 200:
                    cosigned.append((older, newer))
                    break

    threads = [threading.Thread(target=ask, args=(range(first, 120, 4),)) for first in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = [newer for _, newer in cosigned]
    forward = [(a, b) for a, b in cosigned if a != b]
    assert len({a for a, _ in forward}) == len(forward), "two checkpoints were cosigned as followers of one"
    assert state.newest(ORIGIN) == Checkpoint(ORIGIN, max(sizes), HONEST.root(max(sizes)))
    state.close()


# What it remembers.


def test_nothing_is_said_that_could_not_be_remembered(pair: tuple[Witness, State], tmp_path: Path) -> None:
    witness, _ = pair
    assert status(witness, HONEST.asks(0, 7)) == 200
    (tmp_path / ".state.new").mkdir()  # where the new file would be written
    answer = witness.add_checkpoint(HONEST.asks(7, 9))
    assert (answer.status, "\u2014" in answer.body) == (500, False)
    (tmp_path / ".state.new").rmdir()
    assert status(witness, HONEST.asks(7, 9)) == 200


def test_a_witness_goes_on_where_it_was(tmp_path: Path) -> None:
    witness, state = new_witness(tmp_path)
    assert status(witness, HONEST.asks(0, 200)) == 200
    state.close()
    state = State(tmp_path / "state", KEY)
    witness = Witness(Cosigner(NAME, WITNESS_KEY), [HONEST.signer.key], state)
    assert witness.add_checkpoint(HONEST.asks(0, 5)).body == "200\n"
    assert status(witness, FORKED.asks(200, 250)) == 422
    assert status(witness, HONEST.asks(200, 250)) == 200
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    state.close()


def test_two_logs_are_held_apart(tmp_path: Path) -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    other = Tree(entries(50, other_from=0), origin="other.example/log")
    State.create(tmp_path / "state", cosigner.key)
    state = State(tmp_path / "state", cosigner.key)
    witness = Witness(cosigner, [HONEST.signer.key, other.signer.key], state)
    assert [status(witness, tree.asks(0, 9)) for tree in (HONEST, other)] == [200, 200]
    assert [status(witness, tree.asks(9, 12)) for tree in (HONEST, other)] == [200, 200]
    # The key of one log does not sign for the other.
    note = Checkpoint(ORIGIN, 20, other.root(20)).sign([other.signer])
    assert status(witness, encode(12, other.proof(12, 20), str(note))) == 403
    state.close()


def test_after_a_change_of_the_logs_key_both_may_sign(tmp_path: Path) -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    newer = Tree(entries(300), key=Ed25519PrivateKey.from_private_bytes(b"\x09" * 32))
    State.create(tmp_path / "state", cosigner.key)
    state = State(tmp_path / "state", cosigner.key)
    witness = Witness(cosigner, [HONEST.signer.key, newer.signer.key], state)
    assert [status(witness, HONEST.asks(0, 9)), status(witness, newer.asks(9, 12))] == [200, 200]
    state.close()


def rotation(tree: Tree, size: int, new: Signer) -> tuple[Rotation, Tree, str]:
    """A change of a log's key at a size, the log with the record of it, and its checkpoint, which both keys signed."""
    event = {"old_key": str(tree.signer.key), "new_key": str(new.key), "from_size": size}
    leaf = canonical_json({"event": event, "kind": "KEY_ROTATED", "producer": "audit"})
    changed = Tree([])
    changed.hashes = [*tree.hashes[: size - 1], merkle.leaf_hash(leaf), *tree.hashes[size:]]
    note = Checkpoint(tree.signer.key.name, size, changed.root(size)).sign([tree.signer, new])
    path = merkle.inclusion_proof(size - 1, size, changed._node)
    return Rotation.of(TlogProof(size - 1, tuple(path), note, leaf)), changed, str(note)


def test_with_the_proof_of_a_rotation_each_key_signs_its_own_trees(tmp_path: Path) -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    new = Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x09" * 32))
    proved, log, both = rotation(HONEST, 12, new)
    State.create(tmp_path / "state", cosigner.key)
    state = State(tmp_path / "state", cosigner.key)
    plain = Witness(cosigner, [HONEST.signer.key], state)
    assert status(plain, log.asks(0, 9)) == 200
    # The old key signed the checkpoint of the change too, so a witness that has not heard of it still cosigns that.
    assert status(plain, encode(9, log.proof(9, 12), both)) == 200
    newer = Tree([], key=Ed25519PrivateKey.from_private_bytes(b"\x09" * 32))
    newer.hashes = log.hashes
    assert status(plain, newer.asks(12, 20)) == 403
    told = Witness(cosigner, [HONEST.signer.key], state, rotations=[proved])
    assert status(told, log.asks(12, 20)) == 403  # the old key, after its time
    assert status(told, newer.asks(12, 20)) == 200
    state.close()


def test_the_new_key_signs_nothing_before_its_time_and_a_rotation_needs_a_known_key(tmp_path: Path) -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    key = Ed25519PrivateKey.from_private_bytes(b"\x09" * 32)
    proved, log, _ = rotation(HONEST, 12, Signer(ORIGIN, key))
    State.create(tmp_path / "state", cosigner.key)
    state = State(tmp_path / "state", cosigner.key)
    early = Tree([], key=key)
    early.hashes = log.hashes
    witness = Witness(cosigner, [HONEST.signer.key], state, rotations=[proved])
    assert status(witness, early.asks(0, 9)) == 403
    with pytest.raises(MalformedNoteError):
        Witness(cosigner, [], state, rotations=[proved])
    state.close()


def proof_of_change(tree: Tree, size: int, new: Signer) -> tuple[TlogProof, Tree, str]:
    _, changed, both = rotation(tree, size, new)
    event = {"old_key": str(tree.signer.key), "new_key": str(new.key), "from_size": size}
    leaf = canonical_json({"event": event, "kind": "KEY_ROTATED", "producer": "audit"})
    path = merkle.inclusion_proof(size - 1, size, changed._node)
    return TlogProof(size - 1, tuple(path), Note.parse(both.encode()), leaf), changed, both


def test_a_change_of_the_key_is_learned_only_at_the_checkpoint_that_is_held_and_is_kept(tmp_path: Path) -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    key, thief = (Ed25519PrivateKey.from_private_bytes(bytes([byte]) * 32) for byte in (9, 8))
    proof, log, both = proof_of_change(HONEST, 12, Signer(ORIGIN, key))
    newer = Tree([], key=key)
    newer.hashes = log.hashes
    State.create(tmp_path / "state", cosigner.key)
    state = State(tmp_path / "state", cosigner.key)
    witness = Witness(cosigner, [HONEST.signer.key], state)

    def told(what: bytes) -> int:
        return witness.add_rotation(what).status

    assert status(witness, log.asks(0, 9)) == 200
    assert told(str(proof).encode()) == 409  # nothing was cosigned yet that ends with the change
    assert told(b"") == told(both.encode()) == told(str(proof).encode()[:-30]) == 400
    # One who stole the key has a change of his own, of a history that was never seen here.
    forged, _, _ = proof_of_change(FORKED, 12, Signer(ORIGIN, thief))
    assert status(witness, encode(9, log.proof(9, 12), both)) == 200
    assert told(str(forged).encode()) == 409
    assert status(witness, newer.asks(12, 20)) == 403
    assert told(str(proof).encode()) == 200
    assert told(str(proof).encode()) == 200
    assert status(witness, newer.asks(12, 20)) == 200
    assert status(witness, log.asks(20, 30)) == 403
    stranger, _, _ = proof_of_change(
        Tree(entries(20), origin="other.example/log"), 12, Signer("other.example/log", key)
    )
    assert told(str(stranger).encode()) == 404
    state.close()

    state = State(tmp_path / "state", cosigner.key)
    for known in ([HONEST.signer.key], [HONEST.signer.key, newer.signer.key], [newer.signer.key]):
        again = Witness(cosigner, known, state)
        assert status(again, newer.asks(20, 20)) == 200
    state.close()
    (kept,) = (tmp_path / "state.rotations").iterdir()
    kept.write_bytes(kept.read_bytes()[:-40])
    assert "damaged" in refusal(tmp_path / "state")


def test_a_log_with_the_witnesss_own_key_is_refused(tmp_path: Path) -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    State.create(tmp_path / "state", cosigner.key)
    state = State(tmp_path / "state", cosigner.key)
    with pytest.raises(MalformedNoteError):
        Witness(cosigner, [Signer(ORIGIN, WITNESS_KEY).key], state)
    state.close()


def refusal(path: Path) -> str:
    with pytest.raises(StepwedgeError) as raised:
        State(path, KEY)
    assert raised.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    return raised.value.message


def test_a_witness_without_its_memory_does_not_start(tmp_path: Path) -> None:
    witness, state = new_witness(tmp_path)
    assert status(witness, HONEST.asks(0, 7)) == 200
    assert "another witness runs" in refusal(tmp_path / "state")
    state.close()
    whole = (tmp_path / "state").read_bytes()
    for damaged in (b"", whole[:-20], whole.replace(b"\\n7\\n", b"\\n5\\n"), b"[]", b"null", b"\xff", b"[" * 100_000):
        (tmp_path / "state").write_bytes(damaged)
        assert "damaged" in refusal(tmp_path / "state")
    (tmp_path / "state").write_bytes(whole.replace(str(KEY).encode(), str(HONEST.signer.key).encode()))
    assert "another witness" in refusal(tmp_path / "state")
    (tmp_path / "state").unlink()
    assert "no state" in refusal(tmp_path / "state")
    (tmp_path / "state").write_bytes(whole)
    State(tmp_path / "state", KEY).close()


def test_a_state_is_not_made_over_another(tmp_path: Path) -> None:
    State.create(tmp_path / "state", KEY)
    with pytest.raises(StepwedgeError):
        State.create(tmp_path / "state", KEY)


# The parser, whatever comes.


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_bytes_are_parsed_or_refused_and_nothing_else(body: bytes) -> None:
    with contextlib.suppress(MalformedNoteError):
        AddCheckpoint.parse(body)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_says_the_same(data: st.DataObject) -> None:
    body = bytearray(HONEST.asks(5, 9))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    try:
        asked = AddCheckpoint.parse(bytes(body))
    except MalformedNoteError:
        return
    assert encode(asked.old_size, asked.proof, str(asked.note)) == bytes(body), "two forms of one request"


def test_the_longest_request_that_the_specification_allows_is_read() -> None:
    asked = AddCheckpoint.parse(encode(1, [merkle.EMPTY_ROOT] * 63, NOTE))
    assert len(asked.proof) == 63
    assert LOG_KEY.public_key().public_bytes_raw() == HONEST.signer.key.public
