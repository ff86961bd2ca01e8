"""One 5-megapixel radiograph on one core: how long it takes from bytes to verdict, stage by stage.

`python -m benchmarks.radiograph [--repeats 20]` binds itself to one core, draws a phantom of 2048 x 2560 pixels, and
does with it in one process what the services do with each object: redact it, read it, decode it, assess it, encode the
masks, judge it. Prints the median and the 95th percentile of each stage and of the whole, for each transfer syntax and
each profile: by the clock, and of the whole also the time of the processor (with the process that decodes), which says
what the clock would on a machine that does nothing else. Network, disk and the log are not in it
(`benchmarks/ingest.py`).
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from io import BytesIO
from typing import Final

import cv2
import numpy as np
import psutil
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from services.inference.assess import Assessor
from services.inference.pixels import frame_of
from services.inference.service import png
from services.redaction.engine import redact
from services.redaction.profile import Profile
from shared import dicom, paths, phantom
from shared.policy import Policy
from shared.pseudonyms import Pseudonyms

COLUMNS, ROWS = 2048, 2560
SYNTAXES: Final = {"uncompressed": ExplicitVRLittleEndian, "RLE": RLELossless, "JPEG 2000": JPEG2000Lossless}
ASKED_SECONDS: Final = 1.0
KEY: Final = bytes(range(32))


def objects() -> dict[str, bytes]:
    """The radiograph in each transfer syntax."""
    made = {}
    drawn = phantom.chest(11, columns=COLUMNS, rows=ROWS)
    for name, syntax in SYNTAXES.items():
        dataset = phantom.to_dicom(
            drawn,
            patient_name="Test^Radiograph",
            patient_id="1",
            study_uid="2.25.1",
            series_uid="2.25.2",
            sop_instance_uid="2.25.3",
        )
        if syntax != ExplicitVRLittleEndian:
            dataset.compress(syntax)
        written = BytesIO()
        dataset.save_as(written, enforce_file_format=True)
        made[name] = written.getvalue()
    return made


def one_pass(data: bytes, profile: Profile, assessor: Assessor, policy: Policy, took: dict[str, list[float]]) -> None:
    """Everything once; seconds of each stage are added to `took`."""
    marks, before = [time.perf_counter()], _processor()

    def stage(name: str) -> None:
        marks.append(time.perf_counter())
        took[name].append(marks[-1] - marks[-2])

    clean = redact(data, Pseudonyms(KEY), profile).data
    stage("redact")
    dataset = dicom.read(clean)
    frame_of(dataset, middle=False)
    stage("decode")
    result = assessor.assess_dataset(dataset)
    took["assess"].append(time.perf_counter() - marks[-1] - took["decode"][-1])  # it decodes once more
    marks.append(time.perf_counter())
    encoded = [png(mask) for mask in result.masks.values()]
    assert encoded
    stage("masks")
    policy.instance_verdict(result.findings, modality="DX")
    stage("decide")
    took["whole"].append(sum(took[name][-1] for name in ("redact", "decode", "assess", "masks", "decide")))
    took["processor"].append(_processor() - before - took["decode"][-1])


def _processor() -> float:
    """Seconds of the processor that this process and those that it started have used."""
    me = psutil.Process()
    return float(sum(one.cpu_times().user + one.cpu_times().system for one in (me, *me.children(recursive=True))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--profiles", nargs="*", default=["basic"])
    asked = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    cv2.setNumThreads(1)
    assessor, policy = Assessor(paths.MODEL, threads=1), Policy.load(paths.POLICY)
    print(f"{COLUMNS} x {ROWS} pixels, one core, load {os.getloadavg()[0]:.1f}, {asked.repeats} times")
    for profile_name in asked.profiles:
        profile = Profile.load(Profile.file(profile_name))
        for syntax, data in objects().items():
            took: dict[str, list[float]] = defaultdict(list)
            one_pass(data, profile, assessor, policy, defaultdict(list))  # what is loaded only once
            for _ in range(asked.repeats):
                one_pass(data, profile, assessor, policy, took)
            words = ", ".join(
                f"{stage} {1000 * np.percentile(found, 50):.0f} / {1000 * np.percentile(found, 95):.0f}"
                for stage, found in took.items()
            )
            kept = [np.percentile(took[clock], 95) < ASKED_SECONDS for clock in ("whole", "processor")]
            print(f"{profile_name}, {syntax}: {words} ms (median / p95)")
            print(f"    under 1 s at p95: by the clock {kept[0]}, by the processor {kept[1]}", flush=True)


if __name__ == "__main__":
    main()
