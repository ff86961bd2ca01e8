"""What is said of an object that came in: under which names it is kept, and by what device it was made.

Imports no database and no RPC, so that the processes that receive are small (`services.ingest.dimse_worker`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared import constancy, dicom
from shared.dicom import Belonging, Equipment
from shared.pseudonyms import Pseudonyms

_MODALITY: Final = re.compile(r"[A-Z][A-Z0-9_]{0,15}")


@dataclass(frozen=True, slots=True)
class Said:
    """What names a device: what the object says of it, and the AE title under which it called."""

    equipment: Equipment
    calling_ae_title: str = ""
    called_ae_title: str = ""
    """Of ours, which it was sent to; names no device."""

    @property
    def empty(self) -> bool:
        """Whether nothing was said."""
        return self == NOTHING


NOTHING: Final = Said(Equipment())
UNSAID: Final = Belonging()


@dataclass(frozen=True, slots=True)
class Arrival:
    """An object that lies in the zone `original`, as the door read it. All digests in hexadecimal."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    study: str
    series: str
    instance: str
    """These three: pseudonyms of the three UIDs."""
    subject: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    sha256: str
    content_sha256: str
    size_bytes: int
    commitment: str
    channel: str
    device: Said = NOTHING
    """What made it, as it says."""
    belonging: Belonging = UNSAID
    """What it says of its study."""
    person: str = ""
    """Keyed pseudonyms of patient number, birth date and sex, see `persons`."""

    @property
    def constancy(self) -> bool:
        """Whether it is a phantom of the constancy test."""
        made_by = self.device.equipment
        return (made_by.manufacturer, made_by.model, made_by.serial) == constancy.DEVICE

    @property
    def record_key(self) -> str:
        """Idempotency key of its `received` record."""
        return record_key(self.instance, self.commitment)

    def as_json(self) -> dict[str, Any]:
        """For another process; `from_json` reads it."""
        device = {**_members(self.device), "equipment": _members(self.device.equipment)}
        return {**_members(self), "device": device, "belonging": _members(self.belonging)}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "Arrival":
        """The arrival that `as_json` told of."""
        device = members["device"]
        said = Said(Equipment(**device["equipment"]), device["calling_ae_title"], device["called_ae_title"])
        return cls(**{**members, "device": said, "belonging": Belonging(**members["belonging"])})


def _members(one: Arrival | Said | Equipment | Belonging) -> dict[str, Any]:
    # `dataclasses.asdict` copies every string deeply, which takes most of what it costs to send an arrival.
    return {name: getattr(one, name) for name in one.__slots__}


def record_key(instance: str, commitment: str) -> str:
    """Idempotency key of the `received` record of an instance: its pseudonym and the commitment to its digest."""
    return f"received/{instance}/{commitment}"


def persons(name: Pseudonyms, uids: dicom.Uids) -> str:
    """Patient number, birth date and sex as keyed pseudonyms that hold in this study alone: enough to see that two
    objects of it contradict each other, and of no use to link a person to anything else."""

    def part(kind: str, value: str) -> str:
        said = "".join(value.upper().split())
        return name.text(f"study {kind}", f"{uids.study}/{said}")[:8] if said else ""

    return "/".join(part(kind, uids.identity.get(kind, "")) for kind in ("patient_id", "birth_date", "sex"))


@dataclass(frozen=True, slots=True)
class Names:
    """Gives what came in its names.

    `name_of`: the de-identified UID that a study has already, by its UID; empty where nothing of it came yet.
    """

    pseudonyms: Pseudonyms
    name_of: Callable[[str], str]

    def arrival(
        self, uids: dicom.Uids, sha256: str, content_sha256: str, size: int, channel: str, device: Said
    ) -> Arrival:
        """What is said of an object."""
        name = self.pseudonyms
        if name.rotated:  # a late image of a study bears names under the key that named the study
            name = name.naming(uids.study, self.name_of(uids.study))
        return Arrival(
            study_instance_uid=uids.study,
            series_instance_uid=uids.series,
            sop_instance_uid=uids.sop_instance,
            study=name.uid(uids.study),
            series=name.uid(uids.series),
            instance=name.uid(uids.sop_instance),
            subject=name.subject(uids.patient_id, uids.issuer),
            sop_class_uid=uids.sop_class,
            transfer_syntax_uid=uids.transfer_syntax,
            # A code of PS3.3 C.7.3.1.1.1 or nothing: free text in this place could be anything.
            modality=uids.modality if _MODALITY.fullmatch(uids.modality) else "",
            sha256=sha256,
            content_sha256=content_sha256,
            size_bytes=size,
            commitment=name.commitment(sha256),
            channel=channel,
            device=device,
            belonging=uids.belonging,
            person=persons(name, uids),
        )
