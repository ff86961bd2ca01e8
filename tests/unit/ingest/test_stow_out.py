"""What the answer of a STOW-RS peer means: an object counts as delivered only where the peer says that it has it."""

from typing import Any

import pytest

from services.ingest.outgoing import Outgoing
from services.ingest.stow_out import _judge
from shared.errors import StepwedgeError

UID = "1.2.3"
ONE = Outgoing("1.2.840.10008.5.1.4.1.1.1.1", UID, "1.2.840.10008.1.2.1", "0" * 64)


def item(uid: str, reason: int | None = None) -> dict[str, Any]:
    named: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    return named if reason is None else {**named, "00081197": {"vr": "US", "Value": [reason]}}


STORED = {"00081199": {"vr": "SQ", "Value": [item(UID)]}}


def test_what_is_stored_with_a_warning_is_delivered():
    _judge(ONE, 202, {"00081199": {"vr": "SQ", "Value": [item(UID, 0xB000)]}})
    _judge(ONE, 202, STORED)
    _judge(ONE, 200, None)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [],
        {"0008119A": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA900]}}]}},
        {"00081199": {"vr": "SQ", "Value": [item("1.2.4")]}},
        {"00081199": {"vr": "SQ", "Value": [7]}},
    ],
)
def test_accepted_with_failures_is_no_delivery_of_what_the_answer_does_not_name(answer: Any):
    with pytest.raises(StepwedgeError) as caught:
        _judge(ONE, 202, answer)
    assert not caught.value.permanent


def test_a_failure_that_the_answer_names_stands_whatever_the_status():
    for status in (200, 202, 409):
        with pytest.raises(StepwedgeError) as caught:
            _judge(ONE, status, {"00081198": {"vr": "SQ", "Value": [item(UID, 0xA900)]}})
        assert caught.value.permanent
