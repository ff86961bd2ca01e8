"""What goes to which destination: the rules of the settings held against one decision; values in, values out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.ingest.results.material import Kind
from shared.settings import Ingest, Route

ORIGINAL: Final = "ORIGINAL"
"""The objects of the study as received."""
CONTENTS: Final = (ORIGINAL, *(str(kind) for kind in Kind))
"""Everything that can be sent, in the order in which it is: a report after what it refers to."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules may ask of a decided study; each a set of names as the settings write them."""

    verdict: str
    reasons: frozenset[str] = frozenset()
    modalities: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()
    stations: frozenset[str] = frozenset()
    calling_ae_titles: frozenset[str] = frozenset()
    called_ae_titles: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sending:
    """What one destination shall get of one decision, and by which rules."""

    destination: str
    contents: tuple[str, ...] = (ORIGINAL,)
    """Of `CONTENTS`, in their order."""
    routes: tuple[str, ...] = ()
    """Names of the rules that matched; empty where the destination's own `verdicts` and `send` did."""


def sendings(settings: Ingest, facts: Facts) -> list[Sending]:
    """What goes where, in the order of the destinations. What several rules send to one destination adds up."""
    matching = [route for route in settings.routes if _matches(route, facts)]
    routed = {name for route in settings.routes for name in route.destinations}
    found = []
    for destination in settings.destinations:
        if destination.name in routed:
            rules = [route for route in matching if destination.name in route.destinations]
            if rules:
                sent = _contents(content for route in rules for content in route.send)
                found.append(Sending(destination.name, sent, tuple(route.name for route in rules)))
        elif facts.verdict in destination.verdicts:
            found.append(Sending(destination.name, _contents(destination.send)))
    return found


def kinds(settings: Ingest, sent: Sequence[Sending]) -> tuple[Kind, ...]:
    """The results that must be made: those that are kept anyhow, and those that somebody gets."""
    wanted = {content.upper() for content in settings.results.keep} | {
        one for sending in sent for one in sending.contents
    }
    return tuple(kind for kind in Kind if kind in wanted)


def _contents(send: Iterable[str]) -> tuple[str, ...]:
    wanted = {content.upper() for content in send}
    return tuple(content for content in CONTENTS if content in wanted)


def _matches(route: Route, facts: Facts) -> bool:
    asked = (
        (route.verdicts, {facts.verdict}),
        (route.reasons, facts.reasons),
        (route.modalities, facts.modalities),
        (route.sites, facts.sites),
        (route.stations, facts.stations),
        (route.calling_ae_titles, facts.calling_ae_titles),
        (route.called_ae_titles, facts.called_ae_titles),
    )
    return all(not wanted or not has.isdisjoint(wanted) for wanted, has in asked)
