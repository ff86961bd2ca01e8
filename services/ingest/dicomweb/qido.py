"""QIDO-RS (PS3.18 10.6): searches for studies, series and instances that are held.

Every study that may match is looked at, newest first, until the answer is full: what the database may know in the open
(UIDs, modality, SOP class) and what it knows by keyed tokens (numbers) narrows the search there; the rest is matched
here, on attributes that were sealed in the database.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from typing import Final

from pydicom.datadict import tag_for_keyword
from sqlalchemy import Engine, func, or_, select
from sqlalchemy.orm import Session, sessionmaker
from starlette.responses import Response

from services.ingest.dicomweb import catalogue, json_model, matching, negotiation
from services.ingest.dicomweb.calls import Call
from services.ingest.dicomweb.catalogue import Catalogue
from services.ingest.dicomweb.holdings import RESULT_MODALITIES, Held, held, held_result, visible_results
from services.ingest.dicomweb.matching import Condition
from services.ingest.dicomweb.negotiation import NotAcceptableError
from services.ingest.dicomweb.parts import multipart_answer
from services.ingest.states import InstanceState
from services.ingest.tables import Catalogued, Instance, Result, Study
from shared import database
from shared.dicom_encoding import dictionary_vr
from shared.errors import ErrorCode, StepwedgeError
from shared.identification import Number

_BATCHES: Final = (50, 200, 1000, 2000)
"""How many studies are looked at at once, growing while the answer is not full."""
_MOST_CONDITIONS: Final = 64
_MOST_OFFSET: Final = 1_000_000
_NUMBER: Final = re.compile("[0-9A-Fa-f]{8}")


class Level(IntEnum):
    """What is searched for."""

    STUDY = 0
    SERIES = 1
    INSTANCE = 2


_LEVEL_TAGS: Final = (catalogue.STUDY_LEVEL, catalogue.SERIES_LEVEL, catalogue.INSTANCE_LEVEL)
_UID_TAGS: Final = {
    "0020000D": Study.study_instance_uid,
    "0020000E": Instance.series_instance_uid,
    "00080018": Instance.sop_instance_uid,
    "00080016": Instance.sop_class_uid,
}
_OF_RESULTS: Final = {
    "0020000E": Result.series_instance_uid,
    "00080018": Result.sop_instance_uid,
    "00080016": Result.sop_class_uid,
}
_BY_RESULTS: Final = frozenset(RESULT_MODALITIES.values())
"""Modalities that a study may have by its results, which its row does not count."""
_MODALITIES: Final = "00080061"
_NUMBERS: Final = {
    "00100020": (Number.PATIENT, Catalogued.patient),
    "00080050": (Number.ACCESSION, Catalogued.accession),
}

# PS3.18 Tables 10.6.3-3 to 10.6.3-5: what every match is described by.
_ALWAYS: Final = (
    (
        *("00080005", "00080020", "00080030", "00080050", "00080056", "00080061", "00080090", "00080201", "00081190"),
        *("00100010", "00100020", "00100030", "00100040", "0020000D", "00200010", "00201206", "00201208"),
    ),
    (
        *("00080005", "00080060", "00080201", "0008103E", "00081190", "0020000E", "00200011", "00201209", "00400244"),
        *("00400245", "00400275"),
    ),
    (
        *("00080005", "00080016", "00080018", "00080056", "00080201", "00081190", "00200013", "00280008", "00280010"),
        *("00280011", "00280100"),
    ),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A search, as far as it can be asked."""

    level: Level
    conditions: Sequence[Condition]
    fields: frozenset[str]
    """Attributes that are asked for beside those that are always given."""
    everything: bool
    offset: int
    limit: int
    fuzzy: bool
    below: Level
    """Level of the resource that the address names: STUDY for all studies, SERIES below one study, and so on."""


@dataclass(frozen=True, slots=True)
class _Match:
    model: json_model.Model
    first: Held
    """The object that it is described by: the first of its study or series, or itself."""
    modalities: Sequence[str]
    """Of the study."""
    series: int
    instances: int


@dataclass(slots=True)
class _Group:
    """A study, a series or an instance, as the rows tell it."""

    first: Held
    entry: Catalogued | None
    series: int
    instances: int
    modalities: Sequence[str] = ()


def question(level: Level, call: Call) -> Question:
    """Read a search out of its address. Raises INVALID_REQUEST."""
    names = {name: call.uid(name) for name in ("study", "series")}
    named = zip(("0020000D", "0020000E"), names.values(), strict=True)
    conditions = [matching.condition(tag, uid) for tag, uid in named if uid]
    fields: set[str] = set()
    everything = fuzzy = False
    offset, limit = 0, call.house.settings.max_results
    for name, value in call.request.query_params.multi_items():
        match name.lower():
            case "includefield":
                for one in filter(None, value.split(",")):
                    everything |= one.lower() == "all"
                    fields |= {_tag(one) or ""} - {""}
            case "limit":
                limit = min(_count(value, name), limit)
            case "offset":
                offset = _count(value, name)
            case "fuzzymatching":
                fuzzy = value.lower() == "true"
            case _:
                tag = _path(name)
                if tag:  # PS3.18 8.3.4: what is no attribute and not known is ignored
                    conditions.append(_condition(tag, value, level))
    if len(conditions) > _MOST_CONDITIONS:
        raise _invalid(f"a search has at most {_MOST_CONDITIONS} conditions")
    below = Level.INSTANCE if names["series"] else Level.SERIES if names["study"] else Level.STUDY
    return Question(level, conditions, frozenset(fields), everything, offset, limit, fuzzy, below)


def _tag(name: str) -> str:
    """Eight hexadecimal digits of an attribute by number or keyword; empty where it is none."""
    if _NUMBER.fullmatch(name):
        return name.upper()
    number = tag_for_keyword(name)
    return f"{number:08X}" if number is not None else ""


def _path(name: str) -> str:
    """The same of an attribute inside sequences, "00400275.00400009"."""
    tags = [_tag(part) for part in name.split(".")]
    return ".".join(tags) if all(tags) else ""


def _condition(tag: str, value: str, level: Level) -> Condition:
    reachable = catalogue.tags_of(_LEVEL_TAGS[: level + 1]) | {_MODALITIES}
    if tag.split(".")[0] not in reachable:
        raise _invalid(f"the attribute {tag} cannot be searched for at this level")
    return matching.condition(tag, value)


def _count(value: str, name: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10) or int(value) > _MOST_OFFSET:
        raise _invalid(f"{name.lower()} must be a number from 0 to {_MOST_OFFSET}")
    return int(value)


class Search:
    """Finds what matches; every method blocks."""

    def __init__(self, engine: Engine, entries: Catalogue) -> None:
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)
        self._catalogue = entries

    def run(self, asked: Question) -> tuple[list[_Match], bool]:
        """The matches of this page, and whether there are more. Raises DEPENDENCY_UNAVAILABLE while the catalogue is
        behind."""
        deadline = time.monotonic() + catalogue.CATCH_UP_SECONDS
        while self._catalogue.catch_up():
            if time.monotonic() > deadline:
                raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, catalogue.BEHIND)
        found: list[_Match] = []
        skipped = 0
        for match in self._matches(asked):
            if skipped < asked.offset:
                skipped += 1
                continue
            if len(found) == asked.limit:
                return found, True
            found.append(match)
        return found, False

    def _matches(self, asked: Question) -> Iterator[_Match]:
        before: int | None = None
        sizes = iter(_BATCHES)
        size = 0
        while True:
            size = next(sizes, size)
            with self._reading.begin() as session:
                studies = self._studies(session, asked, before, size)
                rows = self._rows(session, asked, studies)
            for one in rows:
                model = self._catalogue.open(one.first, one.entry)
                whole = {**model, _MODALITIES: json_model.attribute("CS", *one.modalities)}
                if all(condition.matches(whole) for condition in asked.conditions):
                    yield _Match(model, one.first, one.modalities, one.series, one.instances)
            if len(studies) < size:
                return
            before = min(studies)

    def _studies(self, session: Session, asked: Question, before: int | None, size: int) -> list[int]:
        query = select(Study.id).order_by(Study.id.desc()).limit(size)
        if before is not None:
            query = query.where(Study.id < before)
        for one in asked.conditions:
            if one.tag == "0020000D" and one.exact:
                query = query.where(Study.study_instance_uid.in_(one.values))
            elif one.tag in _UID_TAGS and one.exact:
                received = select(Instance.study_id).where(_UID_TAGS[one.tag].in_(one.values))
                made = select(Result.study_id).where(_OF_RESULTS[one.tag].in_(one.values))
                query = query.where(or_(Study.id.in_(received), Study.id.in_(made)))
            elif one.tag in (_MODALITIES, "00080060") and one.exact and _BY_RESULTS.isdisjoint(one.values):
                query = query.where(or_(*(Study.modalities.contains(value, autoescape=True) for value in one.values)))
            elif one.tag in _NUMBERS and one.exact:
                kind, column = _NUMBERS[one.tag]
                tokens = [self._catalogue.token(kind, value) for value in one.values]
                numbered = select(Instance.study_id).join(Catalogued, Catalogued.instance_id == Instance.id)
                query = query.where(Study.id.in_(numbered.where(column.in_(tokens))))
        return list(session.scalars(query))

    @staticmethod
    def _rows(session: Session, asked: Question, studies: Sequence[int]) -> list[_Group]:
        """Each study, series or SOP instance of these studies, newest study first."""
        if not studies:
            return []
        keys = [Instance.study_id, Instance.series_instance_uid, Instance.sop_instance_uid][: asked.level + 1]
        groups = (
            select(
                func.min(Instance.id).label("first"),
                func.count(Instance.series_instance_uid.distinct()).label("series"),
                func.count(Instance.sop_instance_uid.distinct()).label("instances"),
            )
            .where(Instance.study_id.in_(studies), Instance.state != InstanceState.STORED)
            .group_by(*keys)
        )
        for one in asked.conditions:
            if one.tag in _UID_TAGS and one.tag != "0020000D" and one.exact and asked.level == Level.INSTANCE:
                groups = groups.where(_UID_TAGS[one.tag].in_(one.values))
            elif one.tag == "0020000E" and one.exact and asked.level == Level.SERIES:
                groups = groups.where(Instance.series_instance_uid.in_(one.values))
        grouped = groups.subquery()
        query = (
            select(Instance, Study, Catalogued, grouped.c.series, grouped.c.instances)
            .join(grouped, grouped.c.first == Instance.id)
            .join(Study, Study.id == Instance.study_id)
            .outerjoin(Catalogued, Catalogued.instance_id == Instance.id)
            .order_by(Study.id.desc(), Instance.id)
        )
        named: dict[int, Study] = {}
        found: dict[int, list[_Group]] = {}
        for row, study, entry, series, instances in session.execute(query):
            named[study.id] = study
            found.setdefault(study.id, []).append(_Group(held(row, study), entry, series, instances))
        made: dict[int, list[Held]] = {}
        for result, study in session.execute(visible_results().where(Result.study_id.in_(studies))):
            named[study.id] = study
            made.setdefault(study.id, []).append(held_result(result, study))
        return [
            group
            for number in sorted(named, reverse=True)
            for group in _of_study(named[number], found.get(number, []), made.get(number, []), asked.level)
        ]


def _of_study(study: Study, groups: list[_Group], results: Sequence[Held], level: Level) -> list[_Group]:
    """What was received and, behind it, what was made of the same study."""
    if level == Level.STUDY:
        for group in groups:
            group.series += len({one.series for one in results})
            group.instances += len(results)
    else:
        groups += [_Group(same[0], None, 1, len(same)) for same in _grouped(results, level)]
    modalities = sorted({*filter(None, study.modalities.split("+")), *(one.modality for one in results)})
    for group in groups:
        group.modalities = modalities
    return groups


def _grouped(results: Sequence[Held], level: Level) -> Iterator[list[Held]]:
    groups: dict[str, list[Held]] = {}
    for one in results:
        groups.setdefault(one.series if level == Level.SERIES else one.sop_instance, []).append(one)
    yield from groups.values()


def described(match: _Match, asked: Question, url: str) -> json_model.Model:
    """A match as the answer gives it."""
    # Below the resource that the address names, every level is described (PS3.18 10.6.3.3).
    levels = range(asked.below, asked.level + 1)
    always = {tag for level in levels for tag in _ALWAYS[level]} | {"0020000D"}
    always |= {"0020000E"} if asked.level >= Level.SERIES else set()
    reachable = catalogue.tags_of(_LEVEL_TAGS[: asked.level + 1])
    wanted = always | (reachable if asked.everything else asked.fields & reachable)
    made = {tag: value for tag, value in match.model.items() if tag in wanted}
    made |= {tag: json_model.attribute(dictionary_vr(int(tag, 16))) for tag in always if tag not in made}
    address = f"{url}/studies/{match.first.study}"
    if asked.level >= Level.SERIES:
        address += f"/series/{match.first.series}"
    if asked.level == Level.INSTANCE:
        address += f"/instances/{match.first.sop_instance}"
    known = {
        "00080005": json_model.attribute("CS", "ISO_IR 192"),  # JSON is UTF-8, whatever the object is in
        "00080056": json_model.attribute("CS", "ONLINE"),
        _MODALITIES: json_model.attribute("CS", *match.modalities),
        "00081190": json_model.attribute("UR", address),
        "00201209": json_model.attribute("IS", match.instances),
    }
    if asked.level == Level.STUDY:
        known["00201206"] = json_model.attribute("IS", match.series)
        known["00201208"] = json_model.attribute("IS", match.instances)
    else:
        for tag in ("00201206", "00201208"):
            made.pop(tag, None)
    made |= {tag: value for tag, value in known.items() if tag in always or tag in asked.fields}
    return dict(sorted(made.items()))


async def search(call: Call, level: Level) -> Response:
    """Answer one search."""
    asked = question(level, call)
    query = call.request.query_params
    wanted = negotiation.accepted(call.request.headers.getlist("accept"), query.get("accept", ""))
    offered = (negotiation.DICOM_JSON, negotiation.JSON)
    as_json = not wanted or any(negotiation.matches(one, name) for one in wanted for name in offered)
    if not as_json and not any(negotiation.matches(one, negotiation.DICOM_XML, multipart=True) for one in wanted):
        raise NotAcceptableError
    await asyncio.to_thread(call.house.door.settle)
    matches, more = await asyncio.to_thread(call.house.search.run, asked)
    await call.house.viewed(call.client, "search", studies=(match.first.study_pseudonym for match in matches))
    headers = _warnings(asked, more=more)
    if not matches:
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)
    models = [described(match, asked, call.house.settings.url) for match in matches]
    if as_json:
        kind = negotiation.choose(wanted, offered)
        return Response(json_model.dumps(models), HTTPStatus.OK, headers, kind)

    async def parts() -> AsyncIterator[tuple[str, bytes]]:
        for model in models:
            yield negotiation.DICOM_XML, json_model.to_xml(model)

    return multipart_answer(negotiation.DICOM_XML, parts(), HTTPStatus.OK, headers)


def _warnings(asked: Question, *, more: bool) -> dict[str, str]:
    said: list[str] = []
    if asked.fuzzy:
        said.append("The fuzzymatching parameter is not supported. Only literal matching has been performed.")
    if more:
        said.append("There are additional results that can be requested.")
    return {"Warning": _joined(said)} if said else {}


def _joined(said: Iterable[str]) -> str:
    return ", ".join(f'299 stepwedge "{words}"' for words in said)


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
