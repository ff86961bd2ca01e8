"""Signed notes and checkpoints, by the example of Go's sumdb and against everything that is not one."""

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shared.transparency.note import (
    BadSignatureError,
    Checkpoint,
    MalformedNoteError,
    Note,
    Signature,
    Signer,
    VerificationKey,
    open_checkpoint,
)
from tests.unit.audit.making import KEY, ORIGIN

VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SKEY = b"PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
LINE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
NOTE = f"{TEXT}\n\u2014 PeterNeumann {LINE}\n"

SIGNER = Signer(ORIGIN, KEY)
CHECKPOINT = Checkpoint(ORIGIN, 5, bytes(range(32)))
SIGNED = str(CHECKPOINT.sign([SIGNER]))


def test_the_example_of_sumdb_verifies_and_is_signed_alike() -> None:
    key = VerificationKey.parse(VKEY)
    assert str(key) == VKEY
    note = Note.parse(NOTE.encode())
    assert note.text == TEXT
    assert note.verify([key]) == [key]
    assert str(Note(TEXT, (Signer.load(SKEY, "PeterNeumann").sign(TEXT),))) == NOTE


def test_a_pem_key_signs_under_the_name_that_it_is_given() -> None:
    pem = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    assert Signer.load(pem, ORIGIN).key == SIGNER.key


@pytest.mark.parametrize("data", [b"", b"not a key", SKEY[:-4], SKEY.replace(b"c74f20a3", b"c74f20a4")])
def test_what_is_no_signing_key_is_refused_without_showing_it(data: bytes) -> None:
    with pytest.raises(MalformedNoteError) as raised:
        Signer.load(data, "PeterNeumann")
    assert "AYEK" not in str(raised.value)


def test_a_signature_by_another_key_counts_for_nothing() -> None:
    other = Signer(ORIGIN, Ed25519PrivateKey.generate())
    with pytest.raises(BadSignatureError, match="no known key"):
        open_checkpoint(str(CHECKPOINT.sign([other])).encode(), [SIGNER.key])
    both = str(CHECKPOINT.sign([other, SIGNER]))
    assert open_checkpoint(both.encode(), [SIGNER.key]) == CHECKPOINT


def test_a_wrong_signature_under_a_known_key_condemns_the_note() -> None:
    good = SIGNER.sign(CHECKPOINT.text)
    bad = Signature(good.name, good.key_id, bytes(64))
    with pytest.raises(BadSignatureError, match="does not verify"):
        open_checkpoint(str(Note(CHECKPOINT.text, (bad,))).encode(), [SIGNER.key])


def test_a_checkpoint_of_another_log_is_refused() -> None:
    with pytest.raises(BadSignatureError, match="another log"):
        open_checkpoint(SIGNED.encode(), [SIGNER.key], origin="other.example/log")


def test_extension_lines_are_kept_and_signed() -> None:
    extended = Checkpoint(ORIGIN, 7, bytes(32), ("one", "two"))
    assert open_checkpoint(str(extended.sign([SIGNER])).encode(), [SIGNER.key]) == extended


BAD_NOTES = {
    "no signature": b"text\n",
    "no blank line": NOTE.replace("\n\n", "\n").encode(),
    "no newline at the end": NOTE[:-1].encode(),
    "hyphen for the dash": NOTE.replace("\u2014", "-").encode(),
    "control character": NOTE.replace("think", "th\x07nk").encode(),
    "carriage return": NOTE.replace("\n", "\r\n").encode(),
    "tab": NOTE.replace("you ", "you\t", 1).encode(),
    "not UTF-8": NOTE.encode() + b"\xff",
    "signature twice": (NOTE + NOTE.rpartition("\n\n")[2]).encode(),
    "base64 with spaces": NOTE.replace("x08go/", "x08 go/").encode(),
    "base64 without padding": NOTE.replace("AM=", "AM").encode(),
    "base64 with surplus bits": NOTE.replace("nAM=", "nAN=").encode(),
    "base64url": NOTE.replace("go/Z", "go_Z").encode(),
    "short signature": f"{TEXT}\n\u2014 PeterNeumann AAAA\n".encode(),
    "plus in a name": NOTE.replace("\u2014 Peter", "\u2014 Pet+r").encode(),
    "no name": NOTE.replace("\u2014 PeterNeumann", "\u2014 ").encode(),
    "65 signatures": (TEXT + "\n" + "".join(f"\u2014 n{i} {LINE}\n" for i in range(65))).encode(),
    "too long": b"a" * 70_000 + b"\n\n" + NOTE.encode(),
}


@pytest.mark.parametrize("name", BAD_NOTES)
def test_a_malformed_note_is_refused(name: str) -> None:
    with pytest.raises(MalformedNoteError):
        Note.parse(BAD_NOTES[name])


def test_sixteen_signatures_are_accepted() -> None:
    lines = "".join(f"\u2014 n{i} {LINE}\n" for i in range(16))
    assert len(Note.parse((TEXT + "\n" + lines).encode()).signatures) == 16


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "origin\n",
        f"origin\n5\n{ROOT}",
        f"\n5\n{ROOT}\n",
        f"origin\n05\n{ROOT}\n",
        f"origin\n+5\n{ROOT}\n",
        f"origin\n-1\n{ROOT}\n",
        f"origin\n5 \n{ROOT}\n",
        f"origin\n\u0665\n{ROOT}\n",
        f"origin\n9223372036854775808\n{ROOT}\n",
        f"origin\n99999999999999999999\n{ROOT}\n",
        f"origin\n5\n{ROOT[:-1]}\n",
        f"origin\n5\n{ROOT} \n",
        "origin\n5\nAAAA\n",
        f"origin\n5\n{ROOT}\n\nextension\n",
    ],
)
def test_a_malformed_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(MalformedNoteError):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00",
        f"name+00000000+{VKEY[-44:]}",
        VKEY.replace("PeterNeumann", "Peter Neumann"),
        VKEY + "A",
        VKEY.replace("+AR", "+BR"),
        f"+c74f20a3+{VKEY[-44:]}",
    ],
)
def test_a_malformed_verification_key_is_refused(text: str) -> None:
    with pytest.raises(MalformedNoteError):
        VerificationKey.parse(text)


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_is_read_back(size: int, root: bytes) -> None:
    made = Checkpoint(ORIGIN, size, root)
    assert open_checkpoint(str(made.sign([SIGNER])).encode(), [SIGNER.key], ORIGIN) == made


@given(st.integers(0, len(SIGNED.encode()) - 1), st.integers(1, 255))
def test_no_byte_of_a_signed_checkpoint_can_be_changed(place: int, change: int) -> None:
    data = bytearray(SIGNED.encode())
    data[place] ^= change
    with pytest.raises((MalformedNoteError, BadSignatureError)):
        open_checkpoint(bytes(data), [SIGNER.key], ORIGIN)


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_arbitrary_bytes_are_refused_or_are_a_note(data: bytes) -> None:
    try:
        note = Note.parse(data)
    except MalformedNoteError:
        return
    assert str(note).encode() == data
