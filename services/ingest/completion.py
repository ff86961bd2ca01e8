"""Whether a study is complete: everything has come that was announced, and the site's rules for it are met.

A study that lacks something waits, but never for ever: when its time has passed it is decided with the reason
INCOMPLETE, and what comes later opens the next revision.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from shared.settings import Completion, Need, RequiredSeries
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Reason

LATERAL: Final = frozenset({"LATERAL", "LAT", "LL", "RL", "LLAT", "RLAT"})
"""View positions that a rule means by LATERAL."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of one object that came, see `shared.dicom.Belonging`."""

    sop_instance_uid: str
    series_instance_uid: str
    modality: str = ""
    view: str = ""
    body_part: str = ""
    procedure: str = ""
    study_series: int = 0
    study_instances: int = 0
    series_instances: int = 0


@dataclass(frozen=True, slots=True)
class Announced:
    """What was said of a study beside its objects."""

    instances: int = 0
    """How many it shall have; 0 where nobody said."""
    series: int = 0
    unseen: int = 0
    """How many of those that were announced by name have not come."""


NOTHING: Final = Announced()


@dataclass(frozen=True, slots=True)
class Missing:
    """What a study lacks."""

    instances: int = 0
    series: int = 0
    rules: tuple[str, ...] = ()
    """Names of the rules that are not met."""

    def __bool__(self) -> bool:
        """Whether it lacks anything."""
        return bool(self.instances or self.series or self.rules)

    def as_json(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self)

    @classmethod
    def from_json(cls, members: Mapping[str, Any] | None) -> "Missing":
        """Of a row; nothing where the row has none."""
        return cls(**{**members, "rules": tuple(members["rules"])}) if members else cls()

    def words(self) -> str:
        """ "2 announced instances, 1 announced series, the rule chest"."""
        parts = []
        if self.instances:
            parts.append(f"{self.instances} announced instance{'s' * (self.instances > 1)}")
        if self.series:
            parts.append(f"{self.series} announced series")
        parts += [f"what the rule {name} asks for" for name in self.rules]
        return ", ".join(parts)


def missing(settings: Completion, held: Sequence[Held], announced: Announced = NOTHING) -> Missing:
    """What a study lacks, of what its objects, peers and the site say; of several numbers the greatest counts."""
    series: dict[str, list[Held]] = defaultdict(list)
    for one in held:
        series[one.series_instance_uid].append(one)
    instances = len({one.sop_instance_uid for one in held})
    wanted, wanted_series, of_series = announced.instances, announced.series, 0
    if settings.counts:
        wanted = max([wanted, *(one.study_instances for one in held)])
        wanted_series = max([wanted_series, *(one.study_series for one in held)])
        of_series = sum(
            max(0, max(one.series_instances for one in members) - len({one.sop_instance_uid for one in members}))
            for members in series.values()
        )
    return Missing(
        instances=max(0, announced.unseen, wanted - instances, of_series),
        series=max(0, wanted_series - len(series)),
        rules=tuple(rule.name for rule in settings.required if _holds_for(rule, held) and not _is_met(rule, held)),
    )


def finding(lacking: Missing) -> Finding:
    """The finding with which a study is decided that lacks something."""
    return Finding(
        code=Reason.REASON_INCOMPLETE, outcome=Outcome.OUTCOME_FAIL, detail=f"Did not come: {lacking.words()}."
    )


def _holds_for(rule: RequiredSeries, held: Iterable[Held]) -> bool:
    return any(
        all(
            not named or said in named
            for named, said in (
                (rule.modalities, one.modality),
                (rule.body_parts, one.body_part),
                (rule.procedures, one.procedure),
            )
        )
        for one in held
    )


def _is_met(rule: RequiredSeries, held: Sequence[Held]) -> bool:
    return all(len({one.sop_instance_uid for one in held if _meets(need, one)}) >= need.at_least for need in rule.needs)


def _meets(need: Need, one: Held) -> bool:
    words = set(one.view.replace("-", " ").replace("_", " ").split())
    views = {view for name in need.views for view in (LATERAL if name == "LATERAL" else {name})}
    return (not need.modalities or one.modality in need.modalities) and (not views or bool(views & words))
