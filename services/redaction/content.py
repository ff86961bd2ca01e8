"""Content items of structured reports: what is done to each by its concept (PS3.15 Table E.3.4-1)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import inf
from typing import Final

from services.redaction import values
from services.redaction.facts import rows
from services.redaction.profile import Action, Option
from shared.date_shift import capped_years
from shared.dicom_encoding import Element, Elements

_CONCEPT_NAME: Final = 0x0040A043
_VALUE_TYPE: Final = 0x0040A040
_BY_REFERENCE: Final = 0x0040DB73
_CODE_VALUE: Final = 0x00080100
_SCHEME: Final = 0x00080102
_MEASURED: Final = 0x0040A300
_NUMERIC_VALUE: Final = 0x0040A30A
_UNITS: Final = 0x004008EA
_SUBJECT_AGE: Final = "121033"
_PER_YEAR: Final = {"a": 1.0, "mo": 12.0, "wk": 52.1775, "d": 365.2425}
_COLUMNS: Final[Mapping[Option, tuple[str, Action]]] = {
    Option.RETAIN_UIDS: ("uids", Action.KEEP),
    Option.RETAIN_DEVICE_IDENTITY: ("device", Action.KEEP),
    Option.RETAIN_INSTITUTION_IDENTITY: ("institution", Action.KEEP),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("patient", Action.KEEP),
    Option.RETAIN_FULL_DATES: ("full_dates", Action.KEEP),
    Option.RETAIN_MODIFIED_DATES: ("modified_dates", Action.SHIFT),
    Option.CLEAN_DESCRIPTORS: ("descriptors", Action.TEXT),
}
_BASIC: Final = {"X": Action.REMOVE, "D": Action.DUMMY, "X/D": Action.DUMMY}
VALUES: Final = (0x0040A120, 0x0040A121, 0x0040A122, 0x0040A123, 0x0040A124, 0x0040A160, 0x0040A13A)
"""DateTime, Date, Time, Person Name, UID, Text Value, Referenced DateTime: what a content item says."""

Rules = Mapping[tuple[str, str, str], Action]


@lru_cache(maxsize=64)
def rules(options: tuple[Option, ...]) -> Rules:
    """Action on a content item by (coding scheme, code value, value type)."""
    found: dict[tuple[str, str, str], Action] = {}
    for row in rows("content_items_2026c.csv"):
        action = _BASIC[row["basic"]]
        for option in options:
            column, taken = _COLUMNS.get(option, ("", Action.TEXT))
            if column and row[column] and (action is not Action.KEEP):
                action = taken
        found[row["scheme"], row["value"], row["value_type"]] = action
    return found


def action(item: Elements, table: Rules) -> Action:
    """What happens to a content item; one that the table does not list keeps what names nobody."""
    value_type = values.first(item, _VALUE_TYPE)
    for element in item:
        if element.tag == _CONCEPT_NAME and element.items:
            concept = element.items[0]
            key = values.first(concept, _SCHEME), values.first(concept, _CODE_VALUE), value_type
            return table.get(key, Action.TEXT)
    return Action.TEXT


def cap_age(item: Elements) -> bool:
    """Whether the content item is an age of the subject over 89 years; then it is 90 years now."""
    children = {element.tag: element.items for element in item if element.items}
    concept, measured = children.get(_CONCEPT_NAME), children.get(_MEASURED)
    if not concept or not measured or values.first(concept[0], _CODE_VALUE) != _SUBJECT_AGE:
        return False
    unit = next((e.items[0] for e in measured[0] if e.tag == _UNITS and e.items), [])
    per_year = _PER_YEAR.get(values.first(unit, _CODE_VALUE), 1.0)
    for at, element in enumerate(measured[0]):
        if element.tag == _NUMERIC_VALUE:
            try:
                years = float(bytes(element.value)) / per_year
            except ValueError:
                years = inf
            if capped_years(years) != years:
                measured[0][at] = Element(_NUMERIC_VALUE, "DS", f"{capped_years(years) * per_year:.0f}".encode())
                return True
    return False


def has_references(elements: Elements) -> bool:
    """Whether a content item names another by its position: then none may be left out."""
    return any(
        element.tag == _BY_REFERENCE or any(map(has_references, element.items or []))
        for element in elements
        if element.tag == _BY_REFERENCE or element.items
    )
