"""C2SP tlog-cosignature against vectors that were made without this code (openssl, hashlib, struct)."""

import base64
from hashlib import sha256
from typing import Any

import pytest

from shared.transparency.cosignature import Cosigner, WitnessKey, cosigners, message
from shared.transparency.note import BadSignatureError, MalformedNoteError, Note, Signature, parse_signature
from tests.unit.witness.making import HONEST, NAME, WITNESS_KEY

# The checkpoint is the specification's example; the seed is 32 bytes 0x42; `openssl pkeyutl -sign -rawin` signed.
TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
VKEY = "witness.example/one+dff8c666+BCFS+NGbeR0kRTJC4V8uq2y3z/p7al7TAJeWDgaYgdsS"
LINE = (
    "\u2014 witness.example/one 3/jGZgAAAABkGFDLEqgtDUsneMqeLcGMqk8Xx08OQIVxF72ZJmEtUU5sbo5WiTljN+UF1cQ+vSoh1gRQ0wV3"
    "Nz9m8DFvjwHDTDcQBA==\n"
)
TIME = 1679315147


def test_the_cosignature_is_the_one_that_openssl_makes() -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    assert str(cosigner.key) == VKEY
    assert cosigner.cosign(TEXT, TIME).line == LINE
    assert WitnessKey.parse(VKEY).time_of(TEXT, parse_signature(LINE[:-1])) == TIME


def test_the_signed_message_is_that_of_the_specification() -> None:
    assert message(TEXT, TIME) == (
        b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"
        b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )


def test_the_time_stands_where_the_example_of_the_specification_has_it() -> None:
    example = parse_signature(
        "\u2014 witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5"
        "nNo0xUe+mbIUBkBIfZ+qnA=="
    )
    assert int.from_bytes(example.signature[:8], "big") == TIME
    assert len(example.signature) == 72


def test_the_key_id_is_that_of_the_type_four() -> None:
    public = WITNESS_KEY.public_key().public_bytes_raw()
    assert WitnessKey.parse(VKEY).id == sha256(NAME.encode() + b"\n\x04" + public).digest()[:4]


def test_the_private_key_comes_back_as_it_was_written() -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    assert str(Cosigner.parse(cosigner.secret() + "\n").key) == VKEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        NAME,
        VKEY.replace("dff8c666", "dff8c667"),
        VKEY.replace("one", "two"),
        VKEY[:-1],
        str(HONEST.signer.key),  # the key of a log
        VKEY.replace("+BCFS", "+ACFS"),
    ],
)
def test_what_is_no_key_of_a_witness_is_refused(text: str) -> None:
    with pytest.raises(MalformedNoteError):
        WitnessKey.parse(text)


@pytest.mark.parametrize("text", ["", "PRIVATE+KEY+x", f"PRIVATE+KEY+{VKEY}x", "PRIVATE+KEY+a+00000000+AAAA", VKEY])
def test_what_is_no_private_key_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(MalformedNoteError) as raised:
        Cosigner.parse(text)
    assert not text or text not in str(raised.value)


def changes() -> dict[str, Any]:
    good = parse_signature(LINE[:-1])
    data = good.signature
    return {
        "another time": data[:7] + bytes([data[7] ^ 1]) + data[8:],
        "another signature": data[:-1] + bytes([data[-1] ^ 1]),
        "too short": data[:-1],
        "too long": data + b"\x00",
        "no time": data[8:],
        "a time beyond 2**63 - 1": b"\x80" + data[1:],
    }


@pytest.mark.parametrize("change", changes())
def test_a_changed_cosignature_does_not_verify_and_does_not_count(change: str) -> None:
    key = WitnessKey.parse(VKEY)
    bad = Signature(key.name, key.id, changes()[change])
    with pytest.raises(BadSignatureError):
        key.time_of(TEXT, bad)
    assert cosigners(Note(TEXT, (bad,)), [key]) == {}
    assert cosigners(Note(TEXT, (parse_signature(LINE[:-1]),)), [key]) == {key.public: TIME}


def test_a_key_counts_once_under_however_many_names() -> None:
    one, alias = Cosigner(NAME, WITNESS_KEY), Cosigner("witness.example/alias", WITNESS_KEY)
    note = Note(TEXT, (one.cosign(TEXT, 5), alias.cosign(TEXT, 6)))
    assert len(cosigners(note, [one.key, alias.key])) == 1


def test_a_cosignature_of_the_time_zero_or_of_the_last_time_is_one() -> None:
    cosigner = Cosigner(NAME, WITNESS_KEY)
    for seconds in (0, 2**63 - 1):
        assert cosigner.key.time_of(TEXT, cosigner.cosign(TEXT, seconds)) == seconds
    for seconds in (-1, 2**63):
        with pytest.raises(ValueError, match="time"):
            cosigner.cosign(TEXT, seconds)


def test_the_message_of_the_key_in_base64_is_canonical() -> None:
    assert base64.b64decode(VKEY.split("+", 2)[2])[0] == 4
