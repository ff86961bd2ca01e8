"""Rules of the settings held against decisions: who gets what, and by which rule."""

from typing import Any

import pytest

from services.ingest.results.material import Kind
from services.ingest.routing import Facts, Sending, kinds, sendings
from shared.settings import Destination, Ingest, Results, Route

FACTS = Facts(
    verdict="REJECT",
    reasons=frozenset({"LUNG_MARGIN_TOP"}),
    modalities=frozenset({"DX", "SR"}),
    sites=frozenset({"north"}),
    stations=frozenset({"ROOM1"}),
    calling_ae_titles=frozenset({"DX1"}),
    called_ae_titles=frozenset({"STEPWEDGE"}),
)


def destination(name: str, **more: Any) -> Destination:
    return Destination(name=name, ae_title="PACS", host="pacs", port=104, **more)


def test_without_rules_a_destination_follows_its_own_settings():
    settings = Ingest(
        destinations=[
            destination("accepts"),
            destination("rejects", verdicts=["REJECT"]),
            destination("results", verdicts=["ACCEPT", "REJECT"], send=["sr", "seg", "original"]),
        ]
    )
    assert sendings(settings, FACTS) == [
        Sending("rejects", ("ORIGINAL",)),
        Sending("results", ("ORIGINAL", "SEG", "SR")),
    ]
    assert sendings(settings, Facts("ACCEPT"))[0] == Sending("accepts", ("ORIGINAL",))


@pytest.mark.parametrize(
    ("asked", "matches"),
    [
        ({}, True),
        ({"verdicts": ["ACCEPT", "REJECT"]}, True),
        ({"verdicts": ["ACCEPT"]}, False),
        ({"modalities": ["DX"]}, True),
        ({"modalities": ["CT"]}, False),
        ({"reasons": ["LUNG_MARGIN_TOP", "BLANK_IMAGE"]}, True),
        ({"reasons": ["BLANK_IMAGE"]}, False),
        ({"sites": ["north"]}, True),
        ({"sites": ["south"]}, False),
        ({"stations": ["ROOM1"]}, True),
        ({"stations": ["ROOM2"]}, False),
        ({"calling_ae_titles": ["DX1"]}, True),
        ({"calling_ae_titles": ["DX2"]}, False),
        ({"called_ae_titles": ["STEPWEDGE"]}, True),
        ({"called_ae_titles": ["OTHER"]}, False),
        ({"modalities": ["DX"], "verdicts": ["ACCEPT"]}, False),
    ],
)
def test_a_rule_matches_where_each_of_its_lists_holds_something_of_the_study(asked: dict[str, Any], matches: bool):
    route = Route(name="rule", destinations=["a"], send=["sr"], **asked)
    found = sendings(Ingest(destinations=[destination("a")], routes=[route]), FACTS)
    assert found == ([Sending("a", ("SR",), ("rule",))] if matches else [])


def test_what_several_rules_send_to_one_destination_adds_up_and_both_are_named():
    settings = Ingest(
        destinations=[destination("a", verdicts=["REJECT"]), destination("b", verdicts=["REJECT"])],
        routes=[
            Route(name="first", destinations=["a"], send=["sr"]),
            Route(name="second", destinations=["a"], send=["original", "pdf"], modalities=["DX"]),
            Route(name="third", destinations=["a"], send=["seg"], modalities=["CT"]),
        ],
    )
    assert sendings(settings, FACTS) == [
        Sending("a", ("ORIGINAL", "SR", "PDF"), ("first", "second")),
        Sending("b", ("ORIGINAL",)),
    ]


def test_results_are_made_for_whoever_gets_them_and_where_they_are_kept():
    settings = Ingest(results=Results(keep=["pdf"]))
    assert kinds(settings, []) == (Kind.PDF,)
    assert kinds(settings, [Sending("a", ("ORIGINAL", "SR"))]) == (Kind.SR, Kind.PDF)
    assert kinds(Ingest(), [Sending("a")]) == ()
