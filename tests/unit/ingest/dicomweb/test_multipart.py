"""Multipart bodies: whatever the pieces in which they come, the same parts; whatever is wrong with them, an error."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.dicomweb.multipart import Began, Data, Ended, Reader, media_type
from shared.errors import StepwedgeError

BOUNDARY = "b-o"


def body(parts: list[bytes], *, preamble: bytes = b"", padding: bytes = b"", epilogue: bytes = b"") -> bytes:
    made = preamble
    for part in parts:
        made += b"--b-o" + padding + b"\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n"
    return made + b"--b-o--" + epilogue


def read(data: bytes, cuts: list[int]) -> tuple[list[bytes], bool]:
    reader = Reader(BOUNDARY)
    parts: list[bytes] = []
    ended = at = 0
    for cut in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        for event in reader.feed(data[at:cut]):
            match event:
                case Began():
                    parts.append(b"")
                case Data(piece):
                    parts[-1] += piece
                case Ended():
                    ended += 1
        at = cut
    assert ended == len(parts) or not reader.finished
    return parts, reader.finished


# Bytes that a delimiter is made of, so that a part often looks as if it ended.
tricky = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"--", b"-", b"b-o", b"\r\n--b-", b"x", b"\0"]), max_size=12)
content = tricky.map(b"".join).filter(lambda data: b"\r\n--b-o" not in b"\r\n" + data + b"\r\n")


@settings(max_examples=300)
@given(st.lists(content, max_size=4), st.lists(st.integers(0, 400), max_size=8), st.sampled_from([b"", b" ", b"\t \t"]))
def test_parts_are_what_was_put_in_whatever_the_pieces(parts: list[bytes], cuts: list[int], padding: bytes):
    data = body(parts, padding=padding, preamble=b"said before\r\n", epilogue=b"\r\nsaid after")
    assert read(data, cuts) == (parts, True)
    assert read(data, list(range(len(data)))) == (parts, True), "byte by byte"


def test_a_part_without_headers_is_a_part():
    assert list(Reader(BOUNDARY).feed(b"--b-o\r\n\r\nabc\r\n--b-o--")) == [Began({}), Data(b"abc"), Ended()]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_parts_or_an_error(data: bytes, cuts: list[int]):
    try:
        parts, finished = read(b"--b-o\r\nContent-Type: application/dicom\r\n\r\n" + data, cuts)
    except StepwedgeError:
        pass
    else:
        assert parts or finished


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 5000,
        b"--b-o y\r\n\r\n",
        b"--b-o" + b" " * 300,
        b"--b-o\r\nno colon\r\n\r\n",
        b"--b-o\r\nA: " + b"y" * 9000,
        b"--b-o\r\nA\x00: y\r\n\r\n",
    ],
)
def test_what_is_no_multipart_is_refused_before_much_of_it_is_read(data: bytes):
    with pytest.raises(StepwedgeError):
        list(Reader(BOUNDARY).feed(data))


def test_memory_does_not_grow_with_a_part():
    reader = Reader(BOUNDARY)
    list(reader.feed(b"--b-o\r\n\r\n"))
    for _ in range(50):
        assert all(isinstance(event, Data) for event in reader.feed(b"\r\n--b-" * 10_000))
        assert len(reader._buffer) < 64


@pytest.mark.parametrize(
    ("value", "name", "parameters"),
    [
        ("Multipart/Related", "multipart/related", {}),
        ('a/b; X="1;2" ; y=3', "a/b", {"x": "1;2", "y": "3"}),
        ('a/b;x="a\\"b"', "a/b", {"x": 'a"b'}),
        ("application/dicom+json;", "application/dicom+json", {}),
    ],
)
def test_a_media_type_is_read_with_its_parameters(value: str, name: str, parameters: dict[str, str]):
    made = media_type(value)
    assert (made.name, made.parameters) == (name, parameters)


@pytest.mark.parametrize("value", ["", "a", "a/", "/b", "a/b;x", "a/b;=1", 'a/b;x="1', "a b/c", "a/b/c"])
def test_what_is_no_media_type_is_refused(value: str):
    with pytest.raises(StepwedgeError):
        media_type(value)
