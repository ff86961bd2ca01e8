"""What follows from a decision where a peer sent results of ours back."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from services.ingest.dispatch import Dispatch
from services.ingest.results.material import Kind, Made
from services.ingest.routing import Sending
from services.ingest.store import Arrival, Claim, StudyStore
from services.ingest.tables import Decision
from shared.settings import Destination, Ingest
from tests.unit.ingest.conftest import NOW, QUIET
from tests.unit.ingest.test_store import claimed, decision, received, settled

Make = Callable[..., Arrival]
SECOND = timedelta(seconds=1)
BOTH = ("ORIGINAL", "SR")
REPORT = "1.2.3.1.1.2"
"""What `arrival("2")` is called."""


def a_destination(name: str) -> Destination:
    return Destination(
        name=name, ae_title=name.upper(), host="127.0.0.1", port=104, verdicts=["ACCEPT"], send=["original", "sr"]
    )


SETTINGS = Ingest(destinations=[a_destination("near"), a_destination("far")])


@pytest.fixture
def dispatch(studies: StudyStore) -> Dispatch:
    away: Any = None  # a plan sends, makes and records nothing
    return Dispatch(SETTINGS, studies, away, away, away, origin="log", backoff=lambda _: SECOND, stopping=lambda: False)


def judged(studies: StudyStore, claim: Claim, at: Any, *rows: int) -> Decision:
    """The next decision of the study, on these rows, before it is in the log."""
    studies.complete(claim, at)
    made = decision(studies, claim.study_id, at)
    made.instances = [{"id": row} for row in rows]
    written = studies.write_decision(claim, made)
    assert written is not None
    return written


def reported(studies: StudyStore, arrival: Make, reached: tuple[str, ...]) -> int:
    """A study that is decided and has its report, which these destinations got with the image; the image's row."""
    image = received(studies, arrival("1"))
    claim = claimed(studies)
    settled(studies, claim, image)
    first = judged(studies, claim, NOW + QUIET, image)
    studies.confirm_decision(
        claim, first.id, 9, [Sending("near", BOTH), Sending("far", BOTH)], NOW + QUIET, kinds=[Kind.SR]
    )
    (making,) = studies.snapshot(claim.study_id).makings
    report = Made(Kind.SR, "1.2", REPORT, "2.25.7", "1.2.840.10008.1.2.1", "a" * 64, "b" * 64, 10)
    studies.results_made(claim, making.id, [report], NOW + QUIET)
    for delivery in studies.snapshot(claim.study_id).deliveries:
        if delivery.destination in reached:
            studies.sent(claim, delivery.id, NOW + QUIET)
            studies.confirm_delivered(claim, delivery.id, 10)
    studies.release(claim, NOW + QUIET)
    return image


async def planned(studies: StudyStore, dispatch: Dispatch, at: Any, *rows: int) -> tuple[list[str], tuple[Kind, ...]]:
    """What the next decision, on these rows, sends where, and what is made for it."""
    claim = claimed(studies, at)
    for one in studies.snapshot(claim.study_id, only_unsettled=True).instances:
        settled(studies, claim, one.id)
    second = judged(studies, claim, at + QUIET, *rows)
    sent, kinds = await dispatch.plan(studies.snapshot(claim.study_id), second)
    return [one.destination for one in sent], kinds


async def test_nothing_goes_out_again_for_a_report_that_came_back(
    studies: StudyStore, arrival: Make, dispatch: Dispatch
) -> None:
    image = reported(studies, arrival, ("near", "far"))
    received(studies, arrival("2"), at=NOW + 2 * QUIET)
    assert await planned(studies, dispatch, NOW + 2 * QUIET, image) == ([], ())


async def test_a_destination_that_was_away_gets_its_images_though_another_sent_the_report_back(
    studies: StudyStore, arrival: Make, dispatch: Dispatch
) -> None:
    image = reported(studies, arrival, ("near",))
    received(studies, arrival("2"), at=NOW + 2 * QUIET)
    assert await planned(studies, dispatch, NOW + 2 * QUIET, image) == (["far"], (Kind.SR,))


async def test_an_image_of_a_machine_whose_clock_is_behind_is_no_echo(
    studies: StudyStore, arrival: Make, dispatch: Dispatch
) -> None:
    image = reported(studies, arrival, ("near", "far"))
    late = received(studies, arrival("3"), at=NOW - timedelta(hours=2))
    received(studies, arrival("2"), at=NOW + 2 * QUIET)
    destinations, kinds = await planned(studies, dispatch, NOW + 2 * QUIET, image, late)
    assert (destinations, kinds) == (["near", "far"], (Kind.SR,))
