"""Inference: its service beside bare ONNX Runtime in one run, the time of each stage, and the table of false alarms.

`python -m benchmarks.inference speed` prints images a second of the bare model, of the engine and of the service over
gRPC with references, one after the other on the same phantoms, with their ratios.
`python -m benchmarks.inference alarms --data FOLDER` prints, by source and split of the radiographs in FOLDER
(`index.csv`, `images`, `masks`), how many raise which finding. Splits for the final report are left out. "clear" are
images on which people's outlines stay at least 2 % of the field away from every edge, "near" all others.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import psutil

from services.inference import chest, general, masks
from services.inference.assess import Assessor
from services.inference.findings import FAIL, WARN, name
from services.inference.pixels import frame_of
from services.inference.preprocessing import preprocess
from services.inference.service import png
from shared import dicom, paths, phantom
from shared.policy import Policy
from stepwedge.common.v1.common_pb2 import Verdict
from tests.wire.inference_house import House, as_bytes, uid

WITHHELD = ("test", "test_crossvendor")


def _object(seed: int, columns: int, rows: int) -> bytes:
    dataset = phantom.to_dicom(
        phantom.chest(seed, columns=columns, rows=rows),
        patient_name="",
        patient_id="",
        study_uid=uid(1),
        series_uid=uid(2),
        sop_instance_uid=uid(1000 + seed),
    )
    return as_bytes(dataset)


def _milliseconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 95th percentile."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - began))
    return float(np.percentile(took, 50)), float(np.percentile(took, 95))


def speed(images: int, columns: int, rows: int, callers: int) -> None:
    """Print throughput of model, engine and service, and the stages of one image."""
    assessor = Assessor(paths.MODEL)
    objects = [_object(seed, columns, rows) for seed in range(min(images, 6))]
    data = objects[0]
    dataset = dicom.read(data)
    frame = frame_of(dataset, middle=False)
    prepared = preprocess(frame.values, frame.inverted)
    session = ort.InferenceSession(
        str(paths.MODEL / "student.int8.onnx"), _options(), providers=["CPUExecutionProvider"]
    )
    seen = chest.look(assessor.model, prepared.grid, prepared.geometry, None, 0)
    one = masks.full_size(seen.answer.logits, seen.where)["lungs_full"]
    stages: dict[str, Callable[[], object]] = {
        "bare model": lambda: session.run(None, {"image": prepared.tensor}),
        "read the object": lambda: dicom.read(data),
        "decode the frame": lambda: frame_of(dataset, middle=False),
        "general checks": lambda: (general.structure(frame.values), general.grey_range(frame.values)),
        "preprocess": lambda: preprocess(frame.values, frame.inverted),
        "model and measurements": lambda: chest.look(assessor.model, prepared.grid, prepared.geometry, None, 0),
        "masks at full size": lambda: masks.full_size(seen.answer.logits, seen.where),
        "PNG of four masks": lambda: [png(one) for _ in range(4)],
        "engine, whole": lambda: assessor.assess_dicom(data).masks,
    }
    print(f"{columns} x {rows} pixels, {len(data) / 2**20:.1f} MiB; load average {psutil.getloadavg()[0]:.1f}")
    medians = {}
    for stage, work in stages.items():
        work()
        medians[stage], slow = _milliseconds(work, images)
        print(f"{stage:24s} p50 {medians[stage]:8.2f} ms   p95 {slow:8.2f} ms")
    engine = 1000 / medians["engine, whole"]
    served = _served(objects, images, callers)
    print(f"bare model {1000 / medians['bare model']:8.1f} images/s")
    print(f"engine     {engine:8.1f} images/s")
    print(f"service    {served:8.1f} images/s with {callers} callers: {served / engine:.2f} of the engine")


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _served(objects: list[bytes], images: int, callers: int) -> float:
    """Images a second through gRPC, references, record and all."""
    with tempfile.TemporaryDirectory() as folder:
        house = House(Path(folder))
        try:
            house.start("audit")
            began = time.perf_counter()
            house.start("inference")
            print(f"service ready after {time.perf_counter() - began:.2f} s")
            references = [house.reference(data) for data in objects]
            for reference in references:
                house.assess(reference)
            with ThreadPoolExecutor(callers) as pool:
                began = time.perf_counter()
                list(pool.map(house.assess, [references[index % len(references)] for index in range(images)]))
                took = time.perf_counter() - began
            resident = psutil.Process(house.processes["inference"].pid).memory_info().rss
            print(f"service resident {resident / 2**20:.0f} MiB")
            return images / took
        finally:
            house.close()


def alarms(data: Path, most: int) -> None:
    """Print the table of false alarms."""
    assessor, policy = Assessor(paths.MODEL), Policy.load(paths.POLICY)
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    with (data / "index.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["split"] not in WITHHELD:
                groups[row["source"], row["split"]].append(row)
    choose = random.Random(1)
    for (source, split), rows in sorted(groups.items()):
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in choose.sample(rows, min(most, len(rows))):
            image = cv2.imread(str(data / "images" / f"{row['id']}.jpg"), cv2.IMREAD_GRAYSCALE)
            result = assessor.assess_array(image)
            count = counts[_clearance(data / "masks" / f"{row['id']}.png", source)]
            count["images"] += 1
            verdict, _ = policy.instance_verdict(result.findings, modality="DX")
            count[f"verdict {Verdict.Name(verdict).removeprefix('VERDICT_')}"] += 1
            for found in result.findings:
                if found.outcome in (WARN, FAIL):
                    count[f"{'FAIL' if found.outcome == FAIL else 'WARN'} {name(found.code)}"] += 1
        for clearance, count in sorted(counts.items()):
            total = count.pop("images")
            print(f"{source}/{split}, {clearance}: {total} images")
            for what, number in sorted(count.items()):
                print(f"    {what:36s} {number:5d}  {100 * number / total:5.1f} %")


def _clearance(mask: Path, source: str) -> str:
    if not mask.exists():
        return "no outline"
    outline = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    lungs = np.isin(outline, (1, 2) if source == "wingspan" else (1,))
    if not lungs.any():
        return "no outline"
    rows, columns = np.flatnonzero(lungs.any(1)), np.flatnonzero(lungs.any(0))
    height, width = lungs.shape
    least = min(rows[0] / height, 1 - (rows[-1] + 1) / height, columns[0] / width, 1 - (columns[-1] + 1) / width)
    return "clear" if least >= 0.02 else "near"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--images", type=int, default=30)
    fast.add_argument("--columns", type=int, default=2048)
    fast.add_argument("--rows", type=int, default=2500)
    fast.add_argument("--callers", type=int, default=4)
    false = commands.add_parser("alarms")
    false.add_argument("--data", type=Path, required=True)
    false.add_argument("--most", type=int, default=600, help="images of a source and split at most")
    chosen = parser.parse_args()
    if chosen.command == "speed":
        speed(chosen.images, chosen.columns, chosen.rows, chosen.callers)
    else:
        alarms(chosen.data, chosen.most)


if __name__ == "__main__":
    main()
