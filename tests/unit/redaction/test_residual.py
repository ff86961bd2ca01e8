"""The second opinion: it finds identity that an engine left, in variants, and leaves ordinary objects alone."""

import pytest

from services.redaction import residual
from shared.dicom_encoding import Element, Elements
from shared.pseudonyms import Pseudonyms

PSEUDONYMS = Pseudonyms(bytes(range(32)))

ORIGINAL: Elements = [
    Element(0x00080005, "CS", b"ISO_IR 192"),
    Element(0x00080050, "SH", b"ACC-99 3170"),
    Element(0x00080080, "LO", "Hôpital Zwitscherheim".encode()),
    Element(0x00080090, "PN", b"Brockenhaus^Wilhelmine^^Dr."),
    Element(0x00100010, "PN", "Kanarienvogel^Zachárias".encode()),
    Element(0x00100020, "LO", b"QX4711Z90817"),
    Element(0x00100030, "DA", b"19370411"),
    Element(0x00101040, "LO", b"Am Vogelsang 12, 99998 Piepenhausen"),
]


def _hits(*left: Element) -> int:
    return residual.check(ORIGINAL, list(left), PSEUDONYMS)


@pytest.mark.parametrize(
    "text",
    [
        "KANARIENVOGEL",
        "zacharias kanarienvogel",
        "Kanarienvogel, Zacharias",
        "KanarienvogelZacharias",
        "ZachariasKanarienvogel_ap",
        "qx4711z90817",
        "QX-4711-Z-90817",
        "ACC993170",
        "born 11.04.1937",
        "1937-04-11",
        "19370411",
        "4/11/1937",
        "referred by Brockenhaus",
        "Hopital zwitscherheim",
        "am vogelsang 12 99998 piepenhausen",
    ],
)
def test_an_identifier_in_any_notation_is_found_in_text(text: str) -> None:
    assert _hits(Element(0x00081090, "LO", text.encode())) == 1
    assert _hits(Element(0x00181020, "UT", b"left over: " + text.encode() + b" and more")) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_an_identifier_is_found_in_bytes(encoding: str) -> None:
    blob = b"\x01\x02" + "QX4711Z90817".encode(encoding) + b"\xff\xfe"
    assert _hits(Element(0x00282000, "OB", blob)) == 1


def test_an_identifier_is_found_inside_items_and_codes_and_foreign_uids() -> None:
    code = Element(0x00080104, "LO", b"of Kanarienvogel")
    assert _hits(Element(0x00082218, "SQ", b"", [[Element(0x00082218, "SQ", b"", [[code]])]])) == 1
    assert _hits(Element(0x00200052, "UI", b"1.2.19370411.3.QX4711Z90817")) == 1
    assert _hits(Element(0x00180015, "CS", b"QX4711Z90817")) == 1


def test_an_identifier_is_found_in_the_head_of_a_compressed_frame() -> None:
    frame = b"\xff\xd8\xff\xfe\0\x10Kanarienvogel\0" + bytes(100)
    assert _hits(Element(0x7FE00010, "OB", b"", None, [b"", frame])) == 1


def test_a_clean_object_has_no_hit() -> None:
    assert (
        _hits(
            Element(0x00100010, "PN", PSEUDONYMS.subject("QX4711Z90817").encode()),
            Element(0x00100020, "LO", PSEUDONYMS.subject("QX4711Z90817").encode()),
            Element(0x0020000D, "UI", PSEUDONYMS.uid("1.2.3").encode()),
            Element(0x00081090, "LO", b"Definium 8000"),
            Element(0x00180015, "CS", b"CHEST"),
            Element(0x00180060, "DS", b"125"),
        )
        == 0
    )


def test_words_of_the_standard_are_no_names() -> None:
    original = [Element(0x00100010, "PN", b"Chest^Patient"), Element(0x00100020, "LO", b"1")]
    left = [Element(0x00180015, "CS", b"CHEST"), Element(0x00081090, "LO", b"Chest system 1")]
    assert residual.check(original, left, PSEUDONYMS) == 0
