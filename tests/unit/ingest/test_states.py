"""The tables of states."""

import pytest

from services.ingest.states import (
    ACTIVE_STATES,
    INSTANCE_TRANSITIONS,
    STUDY_TRANSITIONS,
    InstanceEvent,
    InstanceState,
    StudyEvent,
    StudyState,
    next_study_state,
)
from shared.errors import ErrorCode, StepwedgeError


def test_an_instance_that_arrives_is_taken_in_every_state_of_its_study():
    for state in StudyState:
        assert (state, StudyEvent.INSTANCE) in STUDY_TRANSITIONS


def test_only_a_person_takes_a_study_out_of_the_dead_letter():
    ways_out = {
        event
        for (state, event), after in STUDY_TRANSITIONS.items()
        if state == StudyState.DEAD_LETTER and after != StudyState.DEAD_LETTER
    }
    assert ways_out == {StudyEvent.REQUEUED, StudyEvent.REDELIVER}


def test_every_state_can_be_reached_and_every_active_state_can_be_given_up():
    assert {*STUDY_TRANSITIONS.values(), StudyState.RECEIVING} == set(StudyState)
    for state in ACTIVE_STATES:
        assert STUDY_TRANSITIONS[state, StudyEvent.GIVEN_UP] == StudyState.DEAD_LETTER


def test_no_instance_goes_back_unless_its_derived_object_is_lost():
    order = list(InstanceState)
    for (state, event), after in INSTANCE_TRANSITIONS.items():
        assert order.index(after) >= order.index(state) or event == InstanceEvent.DERIVED_LOST


def test_an_event_out_of_place_is_wrong_state():
    with pytest.raises(StepwedgeError) as caught:
        next_study_state(StudyState.DONE, StudyEvent.DECIDED)
    assert caught.value.code == ErrorCode.ERROR_CODE_WRONG_STATE
