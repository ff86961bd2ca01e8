"""Dates and times (PS3.5 6.2, DA, DT, TM): whether a value is one, and the same moved (PS3.15 E.3.6)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from pydicom.datadict import keyword_for_tag

from services.redaction import values
from services.redaction.facts import rows
from shared.date_shift import DUMMY, DateShift, anchor
from shared.dicom import patient
from shared.dicom_encoding import Encoded
from shared.pseudonyms import Pseudonyms

TEMPORAL: Final = frozenset({"DA", "DT", "TM"})
_DATE: Final = r"(?:1[5-9]|2[0-2])\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_OLD_DATE: Final = r"(?:1[5-9]|2[0-2])\d\d\.(?:0[1-9]|1[0-2])\.(?:0[1-9]|[12]\d|3[01])"
_CLOCK: Final = r"(?:[01]\d|2[0-3])(?:[0-5]\d(?:[0-5]\d|60)?)?"
_TIME: Final = r"(?:[01]\d|2[0-3])(?::?[0-5]\d(?::?(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?"
_ZONE: Final = r"[+-](?:0\d|1[0-4])[0-5]\d"
_MOMENT: Final = (
    rf"(?:(?:1[5-9]|2[0-2])\d\d)(?:(?:0[1-9]|1[0-2])(?:(?:0[1-9]|[12]\d|3[01])"
    rf"(?:{_CLOCK}(?:\.\d{{1,6}})?)?)?)?(?:{_ZONE})?"
)
_FORMS: Final = {
    "DA": re.compile(rf"{_DATE}|{_OLD_DATE}"),
    "TM": re.compile(_TIME),
    "DT": re.compile(_MOMENT),
}
ZONE: Final = re.compile(_ZONE)
_MODIFIED: Final = 0x00280303
_INSTANCE: Final = 0x00080018
_STUDY: Final = 0x0020000D
_IDENTITY_REMOVED: Final = 0x00120062
_EXAMINATION: Final = (0x00080020, 0x00080021, 0x00080022, 0x0008002A, 0x00080023, 0x00080012)
"""Study, Series, Acquisition Date, Acquisition DateTime, Content Date, Instance Creation Date."""


def is_moment(vr: str, text: str) -> bool:
    """Whether every value of the text is a date, time or date with time as the VR demands (an empty one counts)."""
    form = _FORMS[vr]
    return all(not part.strip() or form.fullmatch(part.strip()) for part in text.split("\\"))


@lru_cache(maxsize=1)
def constants() -> frozenset[int]:
    """Attributes whose date is that of a device, a vocabulary or a template: many people share it, so that moved it
    would tell by how much."""
    return frozenset(int(row["tag"], 16) for row in rows("constant_dates.csv"))


def shift(original: Encoded, pseudonyms: Pseudonyms, subject: str, *, uids_stay: bool) -> DateShift:
    """How the dates of an object move; not again where the object is one of ours whose dates were moved already.

    People without a Patient ID do not share one shift: each of their studies has its own. Where besides the UIDs stay,
    or there are none but public ones, nothing would tell that the dates were moved, and none is kept.
    """
    elements = original.data_set
    patient_id, _ = patient(original)
    uids = [values.first(elements, tag) for tag in (_STUDY, _INSTANCE)]
    names = [uid for uid in uids if uid and not values.is_public_uid(uid)]
    study = names[0] if names else ""
    moved = values.first(elements, _IDENTITY_REMOVED) == "YES" and values.first(elements, _MODIFIED) == "MODIFIED"
    ours = pseudonyms.is_subject(patient_id) or any(map(pseudonyms.is_ours, names))
    whose = subject if patient_id else pseudonyms.uid(study)
    marked = bool(patient_id) or bool(names and not uids_stay)
    day = anchor(values.first(elements, tag) for tag in _EXAMINATION) if marked else None
    return pseudonyms.date_shift(whose, day, done=moved and ours)


def moved(how: DateShift, tag: int, vr: str, text: str) -> str | None:
    """The value moved; None where it may not move, or is no date."""
    keyword = "Calibration" if tag in constants() else keyword_for_tag(tag)
    if how.done:
        return text if is_moment(vr, text) else None
    new = how.moved(vr, text, keyword)
    lost = any(
        part.startswith(DUMMY) or (vr == "TM" and part == "000000" and old.strip() != part)
        for part, old in zip(new.split("\\"), text.split("\\"), strict=True)
    )
    return None if lost else new
