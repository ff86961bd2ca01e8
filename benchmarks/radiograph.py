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
from io import BytesIO
from itertools import pairwise
from typing import Final

import numpy as np
import psutil
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from benchmarks.served import as_served
from services.inference import bilevel
from services.inference.assess import Assessor
from services.inference.pixels import frame_of
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


STAGES: Final = ("redact", "decode", "assess", "masks", "decide")


def one_pass(data: bytes, profile: Profile, assessor: Assessor, policy: Policy) -> dict[str, tuple[float, float]]:
    """Everything once; stage -> seconds by the clock and of the processor."""
    marks: dict[str, tuple[float, float]] = {"": (time.perf_counter(), _processor())}

    def done(stage: str) -> None:
        marks[stage] = (time.perf_counter(), _processor())

    clean = redact(data, Pseudonyms(KEY), profile).data
    done("redact")
    dataset = dicom.read(clean)
    frame_of(dataset, middle=False)
    done("decode")
    result = assessor.assess_dataset(dataset)
    done("assess")
    assert [bilevel.png(bits, result.columns) for bits in result.bits.values()]
    done("masks")
    policy.instance_verdict(result.findings, modality="DX")
    done("decide")
    order = ["", *STAGES]
    took = {
        stage: (marks[stage][0] - marks[before][0], marks[stage][1] - marks[before][1])
        for before, stage in pairwise(order)
    }
    decode, assess = took["decode"], took["assess"]
    took["assess"] = (assess[0] - decode[0], assess[1] - decode[1])  # it decodes once more
    took["whole"] = (sum(took[stage][0] for stage in STAGES), sum(took[stage][1] for stage in STAGES))
    return took


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
    as_served("benchmarks.radiograph")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    assessor, policy = Assessor(paths.MODEL, threads=1), Policy.load(paths.POLICY)
    print(f"{COLUMNS} x {ROWS} pixels, one core, load {os.getloadavg()[0]:.1f}, {asked.repeats} times")
    for profile_name in asked.profiles:
        profile = Profile.load(Profile.file(profile_name))
        for syntax, data in objects().items():
            one_pass(data, profile, assessor, policy)  # what is loaded only once
            passes = [one_pass(data, profile, assessor, policy) for _ in range(asked.repeats)]
            for clock, name in enumerate(("clock", "processor")):
                of = {stage: [1000 * one[stage][clock] for one in passes] for stage in (*STAGES, "whole")}
                words = ", ".join(
                    f"{stage} {np.percentile(found, 50):.0f}/{np.percentile(found, 95):.0f}"
                    for stage, found in of.items()
                )
                kept = np.percentile(of["whole"], 95) < 1000 * ASKED_SECONDS
                under = "under" if kept else "NOT under"
                print(f"{profile_name}, {syntax}, by the {name}: {words} ms (median/p95); {under} 1 s", flush=True)


if __name__ == "__main__":
    main()
