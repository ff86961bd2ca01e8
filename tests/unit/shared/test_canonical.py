"""Canonical JSON against the examples of RFC 8785 and against itself."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.canonical import canonical_json, sha256_hex
from shared.errors import StepwedgeError

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


def test_keys_are_sorted_as_in_the_example_of_rfc_8785_3_2_3() -> None:
    example = {
        "\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
        "\U0001f600": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis",
    }  # fmt: skip
    expected = ["Carriage Return", "One", "Control", "Latin Small Letter O With Diaeresis", "Euro Sign",
                "Emoji: Grinning Face", "Hebrew Letter Dalet With Dagesh"]  # fmt: skip
    assert list(json.loads(canonical_json(example)).values()) == expected


def test_strings_are_escaped_as_in_the_example_of_rfc_8785_3_2_2() -> None:
    text = "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/"
    assert canonical_json({"string": text}).decode() == '{"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    assert canonical_json("\b\t\n\f\r\x7f\u2028") == b'"\\b\\t\\n\\f\\r\x7f\xe2\x80\xa8"'


def test_literals_and_empty_containers_are_written_without_blanks() -> None:
    assert canonical_json({"b": [True, False, None, [], {}], "a": -1}) == b'{"a":-1,"b":[true,false,null,[],{}]}'


@pytest.mark.parametrize(
    "wrong", [1.0, float("nan"), 2**53, -(2**53), b"bytes", {1: 2}, {"a": {1}}, "\ud800", object()]
)
def test_what_has_no_one_form_is_refused(wrong: object) -> None:
    with pytest.raises(StepwedgeError, match="INVALID_REQUEST"):
        canonical_json(wrong)


def test_what_is_nested_without_end_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(StepwedgeError, match="INVALID_REQUEST"):
        canonical_json(deep)


@given(VALUES)
def test_reading_gives_the_value_back_and_writing_again_the_same_bytes(value: Any) -> None:
    once = canonical_json(value)
    assert json.loads(once) == value
    assert canonical_json(json.loads(once)) == once


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(0, 9), min_size=2))
def test_the_order_in_which_keys_came_does_not_matter(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_a_digest_is_sixty_four_lower_case_digits() -> None:
    assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
