"""The DICOM JSON Model (PS3.18 Annex F) and, from it, the Native DICOM Model in XML (PS3.19 A.1)."""

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from shared.dicom_encoding import PIXEL_TAGS

Model = dict[str, Any]
"""Tag in eight hexadecimal digits to `{"vr": ..., "Value": [...]}`."""

INLINE_BYTES: Final = 1024
"""A longer value without text is fetched apart (PS3.18 F.2.6, Bulk Data URI)."""

_BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_WHOLE: Final = frozenset({"IS", "SL", "SS", "SV", "UL", "US", "UV"})
_REAL: Final = frozenset({"DS", "FD", "FL"})
_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_COMPONENTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def attribute(vr: str, *values: Any) -> dict[str, Any]:
    """One attribute; without values where it is empty."""
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def dumps(model: Any) -> bytes:
    """As JSON (RFC 8259), UTF-8."""
    return json.dumps(model, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def of_dataset(dataset: Dataset, uri: Callable[[str], str] | None = None, path: str = "") -> Model:
    """The model of a data set of `shared.dicom`.

    uri: makes the Bulk Data URI of a path below the instance; without it, long values and pixel data are left out. The
    path of a value is its tag, and inside sequences tag and number of the item (from 0) for each.
    """
    model: Model = {}
    for element in dataset:
        if element.tag.element == 0 or element.tag.group == 2:  # group lengths; file meta information (F.2.2)
            continue
        tag = f"{int(element.tag):08X}"
        made = _attribute(element, uri, f"{path}{tag}")
        if made is not None:
            model[tag] = made
    return model


def _attribute(element: DataElement, uri: Callable[[str], str] | None, path: str) -> dict[str, Any] | None:
    vr = str(element.VR)[:2]
    value = element.value
    if vr == "SQ":
        items = [of_dataset(item, uri, f"{path}/{number}/") for number, item in enumerate(value or [])]
        return attribute("SQ", *items)
    if vr in _BINARY or isinstance(value, bytes | bytearray):
        return _binary(vr if vr in _BINARY else "UN", value, uri, path, pixels=int(element.tag) in PIXEL_TAGS)
    if value is None or value == "":
        return {"vr": vr}
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    return attribute(vr, *(_value(vr, one) for one in values))


def _binary(vr: str, value: Any, uri: Callable[[str], str] | None, path: str, *, pixels: bool) -> dict[str, Any] | None:
    data = bytes(value or b"")
    if not data and not pixels:
        return {"vr": vr}
    if len(data) <= INLINE_BYTES and not pixels:
        return {"vr": vr, "InlineBinary": base64.b64encode(data).decode("ascii")}
    return {"vr": vr, "BulkDataURI": uri(path)} if uri is not None else None


def _value(vr: str, value: Any) -> Any:
    if value is None or value == "":
        return None
    if vr == "PN":
        return _name(value)
    if vr == "AT":
        return f"{int(value):08X}"
    try:
        if vr in _WHOLE:
            return int(value)
        if vr in _REAL:
            number = float(value)
            # F.2.3.1: JSON has no word for these.
            return number if math.isfinite(number) else str(number).replace("nan", "NaN")
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return str(value).rstrip("\0")


def _name(value: Any) -> dict[str, str] | None:
    components = value.components if isinstance(value, PersonName) else tuple(str(value).split("="))
    groups = {group: str(text) for group, text in zip(_GROUPS, components, strict=False) if text}
    return groups or None


# -- XML


def to_xml(model: Mapping[str, Any]) -> bytes:
    """The Native DICOM Model of a JSON model, UTF-8."""
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xml:space="preserve" '
    head += 'xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
    return (head + "".join(_elements(model)) + "</NativeDicomModel>\n").encode("utf-8", "replace")


def _elements(model: Mapping[str, Any]) -> Iterable[str]:
    for tag, content in model.items():
        keyword = keyword_for_tag(int(tag, 16))
        named = f" keyword={quoteattr(keyword)}" if keyword else ""
        yield f'<DicomAttribute tag="{tag}" vr="{content["vr"]}"{named}>'
        if "BulkDataURI" in content:
            yield f"<BulkData uri={quoteattr(content['BulkDataURI'])}/>"
        if "InlineBinary" in content:
            yield f"<InlineBinary>{content['InlineBinary']}</InlineBinary>"
        for number, value in enumerate(content.get("Value", []), start=1):
            yield from _numbered(content["vr"], number, value)
        yield "</DicomAttribute>"


def _numbered(vr: str, number: int, value: Any) -> Iterable[str]:
    if vr == "SQ":
        yield f'<Item number="{number}">'
        yield from _elements(value)
        yield "</Item>"
    elif vr == "PN":
        yield f'<PersonName number="{number}">'
        for group, text in (value or {}).items():
            parts = zip(_COMPONENTS, text.split("^"), strict=False)
            inner = "".join(f"<{name}>{_text(part)}</{name}>" for name, part in parts if part)
            yield f"<{group}>{inner}</{group}>"
        yield "</PersonName>"
    else:
        yield f'<Value number="{number}">{"" if value is None else _text(str(value))}</Value>'


def _text(value: str) -> str:
    return escape(_NOT_XML.sub("", value))
