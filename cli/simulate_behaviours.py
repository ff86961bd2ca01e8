"""How a PACS misbehaves: what each does, what a cluster must answer, and where each study must end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Final

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from cli.send import Peer
from cli.simulate_objects import Material
from cli.simulate_peer import Answer, Line, Object
from shared.errors import StepwedgeError

VERIFICATION: Final = "1.2.840.10008.1.1"
FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND: a question that is not for this peer."""


@dataclass(frozen=True)
class End:
    """Where a study must end; asked over gRPC."""

    study: str
    instances: int
    """How many it has; 0: the cluster has not heard of it."""
    reason: str = ""
    """A reason that its newest decision gives; empty for any."""
    revision: int = 1
    """Of its newest decision, at least."""
    never: str = ""
    """A verdict that would be wrong; empty for none."""


@dataclass
class Observed:
    """What happened."""

    good: bool
    words: str
    ends: list[End] = field(default_factory=list)


class Bench:
    """What a behaviour works with."""

    def __init__(self, peer: Peer, material: Material, *, huge_bytes: int, decided: Callable[[str], bool]) -> None:
        self.peer = peer
        self.material = material
        self.huge_bytes = huge_bytes
        self.decided = decided
        """Wait until a study is decided (or for as long as one takes, where nobody can be asked)."""

    def line(self, objects: Sequence[Object]) -> AbstractContextManager[Line]:
        """See `Line.open`."""
        return Line.open(self.peer, [(one.sop_class, one.transfer_syntax) for one in objects])

    def send(self, objects: Sequence[Object]) -> list[Answer]:
        """Send objects over one association, well-behaved."""
        with self.line(objects) as line:
            return [line.store(one) for one in objects]


def _all_stored(answers: Sequence[Answer]) -> tuple[bool, str]:
    good = all(one.stored for one in answers)
    return good, "; ".join(dict.fromkeys(str(one) for one in answers)) + f" ({len(answers)})"


def _echo(bench: Bench) -> Observed:
    with Line.open(bench.peer, [(VERIFICATION, str(ImplicitVRLittleEndian))]) as line:
        status = line.association.send_c_echo()
    answer = Answer(int(status.Status) if "Status" in status else None)
    return Observed(answer.status == 0, str(answer))


def _well_behaved(bench: Bench) -> Observed:
    study = bench.material.study(3)
    return Observed(*_all_stored(bench.send(study)), [End(study[0].study, 3)])


def _duplicate(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    answers = [*bench.send([one, one]), *bench.send([one])]
    return Observed(*_all_stored(answers), [End(one.study, 1)])


def _late(bench: Bench) -> Observed:
    first, second = bench.material.study(2)
    answers = bench.send([first])
    decided = bench.decided(first.study)
    answers += bench.send([second])
    good, words = _all_stored(answers)
    return Observed(good and decided, words, [End(first.study, 2, revision=2)])


def _out_of_order(bench: Bench) -> Observed:
    one, other = bench.material.study(4, series=2), bench.material.study(3)
    mixed = [*one, *other]
    bench.material.random.shuffle(mixed)
    return Observed(*_all_stored(bench.send(mixed)), [End(one[0].study, 4), End(other[0].study, 3)])


def _broken_off(bench: Bench, end: Callable[[Line], None]) -> Observed:
    before, half = bench.material.study(2)
    with bench.line([before, half]) as line:
        answers = [line.store(before)]
        line.begin(half, bench.material.random.uniform(0.2, 0.8))
        end(line)
    answers += bench.send([half])
    good, words = _all_stored(answers)
    return Observed(good, f"whole, half, then again: {words}", [End(before.study, 2)])


def _slow(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    with bench.line([one]) as line:
        answer = line.store(one, pause=0.15)
    return Observed(*_all_stored([answer]), [End(one.study, 1)])


def _overlapping(bench: Bench) -> Observed:
    study = bench.material.study(8, series=2)
    hands = [study[start::4] for start in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = [answer for some in pool.map(bench.send, hands) for answer in some]
    return Observed(*_all_stored(answers), [End(study[0].study, 8)])


def _wrong_syntax(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    claimed = JPEGBaseline8Bit if one.transfer_syntax != JPEGBaseline8Bit else JPEG2000Lossless
    (answer,) = bench.send([replace(one, transfer_syntax=str(claimed))])
    end = End(one.study, 1, never="ACCEPT") if answer.stored else End(one.study, 0)
    return Observed(answer.status is not None, str(answer), [end])


def _wrong_vr(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    implicit, explicit = str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian)
    claimed = implicit if one.transfer_syntax != implicit else explicit
    (answer,) = bench.send([replace(one, transfer_syntax=claimed)])
    return Observed(answer.status is not None, str(answer), [End(one.study, 1 if answer.stored else 0)])


def _lying_uid(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    series = bench.material.uid("series")
    other = bench.material.object(one.study, series, instance=one.sop_instance, number=2)
    answers = [*bench.send([one]), *bench.send([other])]
    return Observed(*_all_stored(answers), [End(one.study, 2, "INSTANCE_CONFLICT")])


def _lying_announcement(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    (answer,) = bench.send([replace(one, sop_instance=bench.material.uid("lie"))])
    return Observed(answer.refused, str(answer), [End(one.study, 0)])


def _lying_class(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    ct = "1.2.840.10008.5.1.4.1.1.2"
    lie = replace(one, sop_class=ct if one.sop_class != ct else "1.2.840.10008.5.1.4.1.1.4")
    (answer,) = bench.send([lie])
    return Observed(answer.refused, str(answer), [End(one.study, 0)])


def _spoiled(bench: Bench, spoil: Callable[[bytes], bytes]) -> Observed:
    good_one, bad = bench.material.study(1)[0], bench.material.study(1)[0]
    bad = replace(bad, data_set=spoil(bad.data_set))
    with bench.line([good_one]) as line:
        refused = line.store(bad)
        stored = line.store(good_one)
    words = f"bad one: {refused}; good one behind it: {stored}"
    return Observed(refused.refused and stored.stored, words, [End(bad.study, 0), End(good_one.study, 1)])


def _not_dicom(bench: Bench) -> Observed:
    return _spoiled(bench, lambda data: bench.material.random.randbytes(min(len(data), 1 << 16)))


def _truncated(bench: Bench) -> Observed:
    share = bench.material.random.uniform(0.3, 0.9)
    return _spoiled(bench, lambda data: data[: int(len(data) * share)])


def _nameless(bench: Bench) -> Observed:
    # The Study Instance UID with its tag made one that no dictionary knows: the object says of no study.
    return _spoiled(bench, lambda data: data.replace(b"\x20\x00\x0d\x00", b"\x20\x00\x0b\x00", 1))


def _huge(bench: Bench) -> Observed:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage as WordCapture

    from cli.simulate_objects import PATIENT, encoded

    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = WordCapture, bench.material.uid("instance")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = bench.material.uid("study"), bench.material.uid("series")
    ds.PatientName, ds.PatientID = PATIENT
    ds.Modality, ds.Rows, ds.Columns = "OT", 1024, 1024
    ds.NumberOfFrames = max(1, bench.huge_bytes >> 21)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.PixelData = bytes(int(ds.NumberOfFrames) << 21)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    one = encoded(ds)
    began = time.monotonic()
    (answer,) = bench.send([one])
    words = f"{answer}, {len(one.data_set) >> 20} MiB in {time.monotonic() - began:.1f} s"
    return Observed(answer.status is not None, words, [End(one.study, 1 if answer.stored else 0)])


def _silent(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    with bench.line([one]) as idle:
        answers = bench.send([one])
        time.sleep(2.0)
        answers.append(idle.store(one))
    good, words = _all_stored(answers)
    return Observed(good, f"beside and after the silence: {words}", [End(one.study, 1)])


def _unserved(bench: Bench) -> Observed:
    (one,) = bench.material.study(1)
    syntax = str(ImplicitVRLittleEndian)
    with Line.open(bench.peer, [(FIND, syntax), (one.sop_class, one.transfer_syntax)]) as line:
        refused = (FIND, syntax) not in line.accepted
        answer = line.store(one)
    words = f"query {'not accepted' if refused else 'accepted'}; object: {answer}"
    return Observed(refused and answer.stored, words, [End(one.study, 1)])


@dataclass(frozen=True)
class Behaviour:
    """One way to misbehave."""

    name: str
    does: str
    expected: str
    run: Callable[[Bench], Observed]


BEHAVIOURS: Final[Sequence[Behaviour]] = (
    Behaviour("echo", "asks whether anybody is there (C-ECHO)", "0x0000", _echo),
    Behaviour("well-behaved", "sends three images", "stored; one decision on three", _well_behaved),
    Behaviour("duplicate", "sends one image three times", "stored each time, kept once", _duplicate),
    Behaviour("late", "sends an image when its study is decided", "stored; a second decision on both", _late),
    Behaviour("out-of-order", "mixes two studies and three series", "stored; each study with its own", _out_of_order),
    Behaviour(
        "aborted", "aborts in the middle of an image, sends it again", "nothing of the half; kept once",
        lambda bench: _broken_off(bench, Line.abort),
    ),
    Behaviour(
        "cut", "drops the connection in the middle of an image, sends it again", "nothing of the half; kept once",
        lambda bench: _broken_off(bench, Line.cut),
    ),
    Behaviour("slow", "sends an image in small pieces with pauses", "stored", _slow),
    Behaviour("silent", "holds an association open and says nothing", "others go on; then it does", _silent),
    Behaviour("overlapping", "sends a study over four associations", "stored; one study of eight", _overlapping),
    Behaviour("wrong-syntax", "says JPEG and sends no JPEG", "refused, or stored and never ACCEPT", _wrong_syntax),
    Behaviour("wrong-vr", "mixes up implicit and explicit VR", "refused, or stored and decided", _wrong_vr),
    Behaviour("lying-uid", "sends other content under a UID that is known", "stored beside it; REVIEW", _lying_uid),
    Behaviour("lying-announcement", "announces another instance", "refused; no trace", _lying_announcement),
    Behaviour("lying-class", "announces another SOP class than it sends", "refused; no trace", _lying_class),
    Behaviour("truncated", "ends an image before its end", "refused; the next one stored", _truncated),
    Behaviour("not-dicom", "sends noise", "refused; the next one stored", _not_dicom),
    Behaviour("nameless", "sends an image that names no study", "refused; the next one stored", _nameless),
    Behaviour("huge", "sends a very large object", "stored, or refused with a status", _huge),
    Behaviour("unserved", "asks for a service that is not offered (C-FIND)", "not accepted; objects stored", _unserved),
)  # fmt: skip
"""In the order in which they are tried."""


def attempt(behaviour: Behaviour, bench: Bench) -> Observed:
    """Try one; what breaks off is an observation too."""
    try:
        return behaviour.run(bench)
    except StepwedgeError as error:
        return Observed(False, error.message)
    except (OSError, RuntimeError) as error:
        return Observed(False, f"broke off ({type(error).__name__})")
