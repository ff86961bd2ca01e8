"""Wildcards match what the standard says, in a time that no pattern runs away with; so does what a client takes."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.dicomweb import negotiation, qido
from services.ingest.dicomweb.matching import condition
from shared.errors import ErrorCode, StepwedgeError

DESCRIPTION = "00081030"


def matches(pattern: str, text: str, *, tag: str = DESCRIPTION, vr: str = "LO") -> bool:
    value = {"Alphabetic": text} if vr == "PN" else text
    return condition(tag, pattern).matches({tag: {"vr": vr, "Value": [value]}})


@given(st.text("ab*?.", min_size=1, max_size=8), st.text("ab.", min_size=1, max_size=9))
@settings(max_examples=500, deadline=None)
def test_wildcards_match_what_they_match_when_every_way_is_tried(pattern: str, text: str):
    words = {"*": ".*", "?": "."}
    naive = "".join(words.get(one, re.escape(one)) for one in pattern)
    assert matches(pattern, text) == (re.fullmatch(naive, text) is not None)


def test_names_of_people_match_in_any_case_and_across_components():
    assert matches("m?ll*anna", "MÜLLER^Anna", tag="00100010", vr="PN")
    assert not matches("m?ll*annas", "MÜLLER^Anna", tag="00100010", vr="PN")


@pytest.mark.parametrize("pattern", ["*?" * 7 + "Z", "*A" * 7 + "Z"])
def test_no_pattern_of_wildcards_runs_away(pattern: str):
    began = time.monotonic()
    assert not matches(pattern, "A" * 56)
    assert time.monotonic() - began < 0.5


def test_quotations_that_are_never_closed_are_refused_at_once():
    began = time.monotonic()
    with pytest.raises(StepwedgeError) as caught:
        negotiation.accepted(['"' + '\\"' * 15_000])
    assert caught.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST
    assert time.monotonic() - began < 0.5


def test_a_comma_inside_a_quotation_parts_nothing():
    text = 'multipart/related; type="application/dicom"; note="a,\\"b", application/json;q=0.5,, image/jpeg;q=0.7'
    names = [one.name for one in negotiation.accepted([text])]
    assert names == ["application/dicom", "image/jpeg", "application/json"]


@pytest.mark.parametrize("name", ["00400275.-1234567", "-1234567", "0x123456", "1_23_456", "٠٠٤٠٠٢٧٥"])
def test_what_is_not_eight_digits_names_no_attribute(name: str):
    assert qido._path(name) == ""
