"""Objects made to break a reader: each is cleaned, or refused with a code, quickly and in bounded memory."""

import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from services.redaction.engine import Redacted, RefusedError, redact
from services.redaction.profile import Profile
from shared.dicom_encoding import MAX_ELEMENTS, MAX_FRAGMENTS, MAX_ITEMS
from shared.errors import ErrorCode
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.canaries import minimal

PSEUDONYMS = Pseudonyms(bytes(range(32)))
SECONDS = 10.0
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
UNDEFINED = b"\xff\xff\xff\xff"
REGION = b"\x08\x00\x18\x22"  # Anatomic Region Sequence, which every profile keeps
NAME = b"\x10\x00\x10\x00PN\x0c\x00Verborgen^An"


def written(ds: Dataset) -> bytes:
    """The object as a file."""
    out = io.BytesIO()
    ds.preamble = b"\0" * 128
    pydicom.dcmwrite(out, ds, enforce_file_format=False)
    return out.getvalue()


PLAIN = written(minimal())
AT = PLAIN.index(b"\x10\x00\x10\x00PN")


def within(*pieces: bytes) -> bytes:
    """A plain object with these bytes before the patient's name."""
    return PLAIN[:AT] + b"".join(pieces) + PLAIN[AT:]


def tried(data: bytes) -> Redacted | RefusedError:
    """What comes of the object, in time; nothing else may come."""
    begun = time.process_time()
    result: Redacted | RefusedError
    try:
        result = redact(data, PSEUDONYMS, Profile.basic())
    except RefusedError as error:
        result = error
    assert "erborgen" not in str(result if isinstance(result, RefusedError) else "")
    assert time.process_time() - begun < SECONDS
    return result


def code(data: bytes) -> ErrorCode.ValueType:
    """The code with which the object is refused."""
    result = tried(data)
    assert isinstance(result, RefusedError)
    return result.code


def sequence(content: bytes, tag: bytes = REGION, vr: bytes = b"SQ") -> bytes:
    """A sequence of a defined length."""
    return tag + vr + b"\0\0" + struct.pack("<I", len(content)) + content


def test_a_million_and_a_half_of_empty_items_are_refused() -> None:
    assert code(within(sequence((ITEM + b"\0\0\0\0") * 1_500_000))) == ErrorCode.ERROR_CODE_MALFORMED_DICOM


def test_as_many_items_as_are_allowed_are_done_in_time() -> None:
    count = MAX_ITEMS // 10
    assert isinstance(tried(within(sequence((ITEM + b"\0\0\0\0") * count))), Redacted)


def test_more_elements_or_fragments_than_are_allowed_are_refused() -> None:
    element = b"\x09\x00\x01\x10LO\x02\x00ab"
    assert code(within(element * (MAX_ELEMENTS + 1))) == ErrorCode.ERROR_CODE_MALFORMED_DICOM
    start = PLAIN.index(b"\xe0\x7f\x10\x00")
    head = PLAIN[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    pixels = b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED + (ITEM + b"\0\0\0\0") * (MAX_FRAGMENTS + 1) + SEQUENCE_END
    assert code(head + pixels) == ErrorCode.ERROR_CODE_MALFORMED_DICOM


@pytest.mark.parametrize("end", [b"", (ITEM_END + SEQUENCE_END) * 10_000], ids=["open", "closed"])
def test_ten_thousand_sequences_inside_each_other_are_refused(end: bytes) -> None:
    nested = (REGION + b"SQ\0\0" + UNDEFINED + ITEM + UNDEFINED) * 10_000
    assert code(within(nested, NAME, end)) == ErrorCode.ERROR_CODE_MALFORMED_DICOM


@pytest.mark.parametrize("vr", [b"UN", b"SQ"])
def test_ten_thousand_sequences_of_known_length_inside_each_other_are_refused_or_dropped(vr: bytes) -> None:
    content = NAME
    for _ in range(2_000):
        content = sequence(ITEM + struct.pack("<I", len(content)) + content, vr=vr)
    result = tried(within(content))
    if isinstance(result, Redacted):
        assert b"Verborgen" not in result.data
    else:
        assert result.code == ErrorCode.ERROR_CODE_MALFORMED_DICOM


@pytest.mark.parametrize(
    "pieces",
    [
        [REGION + b"SQ\0\0" + UNDEFINED + ITEM + UNDEFINED, NAME],
        [REGION + b"SQ\0\0" + UNDEFINED, NAME],
        [REGION + b"SQ\0\0" + struct.pack("<I", 1 << 30), ITEM],
        [b"\x08\x00\x90\x10LO\xff\xff", NAME],
        [b"\x08\x00\x90\x10UT\0\0" + UNDEFINED, NAME],
        [b"\x08\x00\x90\x10UT\0\0" + struct.pack("<I", 0xFFFFFFFE), NAME],
    ],
)
def test_lengths_that_hold_nothing_together_are_refused(pieces: list[bytes]) -> None:
    assert code(within(*pieces)) == ErrorCode.ERROR_CODE_MALFORMED_DICOM


@pytest.mark.parametrize("tag", [b"\x08\x00\x90\x10", b"\x18\x00\x30\x10", b"\x62\x00\x05\x00", b"\x08\x00\x60\x00"])
@pytest.mark.parametrize(
    "vr", [b"LO", b"SH", b"CS", b"UT", b"UN", b"OB", b"DS", b"IS", b"UI", b"FD", b"AT", b"ZZ", b"\0\0"]
)
@pytest.mark.parametrize("short", [False, True])
def test_an_element_that_swallowed_a_name_is_not_kept_whatever_its_vr(tag: bytes, vr: bytes, short: bool) -> None:
    content = NAME if short else b"ok  " + NAME
    long_form = vr in (b"UT", b"UN", b"OB")
    length = b"\0\0" + struct.pack("<I", len(content)) if long_form else struct.pack("<H", len(content))
    result = tried(within(tag + vr + length + content))
    if isinstance(result, Redacted):
        assert b"erborgen" not in result.data


@pytest.mark.parametrize(
    "charset", ["ISO_IR 999", "ISO 2022 IR 87", "GB18030", "ISO_IR 192", "\\ISO 2022 IR 149", "utf8"]
)
def test_a_wrong_character_set_hides_no_name(charset: str) -> None:
    ds = minimal()
    ds.ManufacturerModelName = "Scanner of AURELIA CNRYSON"
    data = written(ds)
    value = charset.encode() + b" " * (len(charset) & 1)
    at = data.index(b"\x08\x00\x16\x00UI")
    data = data[:at] + b"\x08\x00\x05\x00CS" + struct.pack("<H", len(value)) + value + data[at:]
    result = tried(data)
    assert isinstance(result, Redacted)
    assert b"CNRYSON" not in result.data.upper()


@pytest.mark.parametrize("value", [b"\xff\xff\xff\xff", b"9" * 12, b"-1", b"1e9 ", b"Verborgen ", b"2\\3\\4 "])
@pytest.mark.parametrize("vr", [b"IS", b"US", b"UN", b"ZZ", b"LO"])
def test_a_number_of_frames_that_is_none_is_no_trouble(vr: bytes, value: bytes) -> None:
    length = b"\0\0" + struct.pack("<I", len(value)) if vr == b"UN" else struct.pack("<H", len(value))
    start = PLAIN.index(b"\x28\x00\x10\x00US")
    result = tried(PLAIN[:start] + b"\x28\x00\x08\x00" + vr + length + value + PLAIN[start:])
    if isinstance(result, Redacted):
        assert b"erborgen" not in result.data
        pydicom.dcmread(io.BytesIO(result.data)).save_as(io.BytesIO())


def test_a_deflated_bomb_is_refused_before_it_fills_the_memory() -> None:
    start = 144 + int.from_bytes(PLAIN[140:144], "little")
    meta = PLAIN[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    meta = meta.replace(b"\x02\x00\x10\x00UI\x14\x00", b"\x02\x00\x10\x00UI\x16\x00")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 24)
    bomb = [packer.compress(PLAIN[start:])] + [packer.compress(zeros) for _ in range(5)] + [packer.flush()]
    assert code(meta + b"".join(bomb)) == ErrorCode.ERROR_CODE_MALFORMED_DICOM


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_large_object_takes_little_more_than_itself_twice() -> None:
    program = """
import os, sys
from pathlib import Path
from services.redaction.engine import redact
from services.redaction.profile import Profile
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.test_bad_input import PLAIN, written
from tests.unit.redaction.canaries import minimal
redact(PLAIN, Pseudonyms(bytes(32)), Profile.basic())
ds = minimal()
ds.Rows = ds.Columns = 6000
ds.PixelData = bytes(range(256)) * (6000 * 6000 * 2 // 256)
data = written(ds)
del ds
before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
Path("/proc/self/clear_refs").write_text("5")
redact(data, Pseudonyms(bytes(32)), Profile.basic())
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print((int(peak.split()[1]) * 1024 - before) / len(data))
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=root, text=True)
    assert float(done.stdout) < 1.5, "besides the object itself"


def test_a_transfer_syntax_that_names_something_else_is_refused() -> None:
    """A UID of the dictionary is not one of a transfer syntax; pydicom would not save the result."""
    ds = minimal()
    sop_class = str(ds.SOPClassUID).encode()
    old, at = b"1.2.840.10008.1.2.1\0", PLAIN.index(b"\x02\x00\x10\x00UI")
    padded = sop_class + b"\0" * (len(sop_class) % 2)
    assert PLAIN[at + 8 : at + 8 + len(old)] == old
    assert code(PLAIN[: at + 6] + struct.pack("<H", len(padded)) + padded + PLAIN[at + 8 + len(old) :]) == (
        ErrorCode.ERROR_CODE_NOT_REDACTABLE
    )


@pytest.mark.parametrize("vr", [b"IS", b"DS", b"LO", b"UN"])
def test_a_character_set_of_another_vr_makes_no_result_that_cannot_be_read(vr: bytes) -> None:
    """pydicom would take a number for the character set, and give up."""
    at = PLAIN.index(b"\x08\x00\x16\x00UI")
    head = struct.pack("<HI", 0, 2) if vr == b"UN" else struct.pack("<H", 2)
    done = tried(PLAIN[:at] + b"\x08\x00\x05\x00" + vr + head + b"1 " + PLAIN[at:])
    assert isinstance(done, Redacted)
    pydicom.dcmread(io.BytesIO(done.data)).save_as(io.BytesIO())
