"""Inference: its service beside bare ONNX Runtime in one run, and the time of each stage.

`python -m benchmarks.inference speed` prints images a second of the bare model, of the engine and of the service over
gRPC with references, one after the other on the same phantoms, with their ratios.
`python -m benchmarks.inference model` prints those of the bare model and of the same model over the Open Inference
Protocol. `python -m benchmarks.inference batching` prints what dynamic batching gains or costs here.
(False alarms: `benchmarks/quality.py`. Devices: `benchmarks/gpu.py`.)
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil

from benchmarks.served import as_served
from services.inference import bilevel, chest, general, masks, tensors
from services.inference.assess import AssessmentResult, Assessor
from services.inference.backends import OUTPUTS
from services.inference.batching import Batching
from services.inference.pixels import frame_of
from services.inference.preprocessing import preprocess
from services.inference.registry import load
from shared import dicom, paths, phantom
from shared.identity import Identity
from stepwedge.inference.v1 import inference_pb2
from stepwedge.open_inference.v2 import open_inference_pb2_grpc
from tests.wire.inference_house import House, as_bytes, uid

ROUNDS = 3


def _object(seed: int, columns: int, rows: int) -> bytes:
    return _as_object(phantom.chest(seed, columns=columns, rows=rows), 1000 + seed)


def _as_object(drawn: phantom.Phantom, number: int) -> bytes:
    dataset = phantom.to_dicom(
        drawn, patient_name="", patient_id="", study_uid=uid(1), series_uid=uid(2), sop_instance_uid=uid(number)
    )
    return as_bytes(dataset)


def _different(columns: int, rows: int) -> Iterator[bytes]:
    """Objects of which no two are alike, nor their masks: one that was assessed before costs no record and no file."""
    drawn = [phantom.chest(seed, columns=columns, rows=rows) for seed in range(4)]
    for number in itertools.count():
        one = drawn[number % len(drawn)]
        yield _as_object(replace(one, image=np.roll(one.image, number // len(drawn), axis=0)), 2000 + number)


def _milliseconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 95th percentile."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - began))
    return float(np.percentile(took, 50)), float(np.percentile(took, 95))


def speed(images: int, columns: int, rows: int, callers: int, workers: int) -> None:
    """Print throughput of model, engine and service, and the stages of one image."""
    assessor = Assessor(paths.MODEL)
    data = _object(0, columns, rows)
    dataset = dicom.read(data)
    frame = frame_of(dataset, middle=False)
    prepared = preprocess(frame.values, frame.inverted)
    session = ort.InferenceSession(
        str(paths.MODEL / "student.int8.onnx"), _options(), providers=["CPUExecutionProvider"]
    )
    seen = chest.look(assessor.model, prepared.grid, prepared.geometry, None, 0)
    bits = masks.full_size(seen.answer.logits, seen.where)
    stages: dict[str, Callable[[], object]] = {
        "bare model": lambda: session.run(None, {"image": prepared.tensor}),
        "read the object": lambda: dicom.read(data),
        "decode the frame": lambda: frame_of(dataset, middle=False),
        "general checks": lambda: (general.structure(frame.values), general.grey_range(frame.values)),
        "preprocess": lambda: preprocess(frame.values, frame.inverted),
        "model and measurements": lambda: chest.look(assessor.model, prepared.grid, prepared.geometry, None, 0),
        "masks at full size": lambda: masks.full_size(seen.answer.logits, seen.where),
        "PNG of four masks": lambda: [bilevel.png(one, columns) for one in bits.values()],
        "engine, whole": lambda: _pictures(assessor.assess_dicom(data)),
    }
    print(f"{columns} x {rows} pixels, {len(data) / 2**20:.1f} MiB; load average {psutil.getloadavg()[0]:.1f}")
    medians = {}
    for stage, work in stages.items():
        work()
        medians[stage], slow = _milliseconds(work, images)
        print(f"{stage:24s} p50 {medians[stage]:8.2f} ms   p95 {slow:8.2f} ms")
    alone, served = _in_turns(assessor, columns, rows, images, callers, workers)
    print(f"bare model {1000 / medians['bare model']:8.1f} images/s")
    for name, rounds in (("engine", alone), ("service", served)):
        speeds, cpu = [one.images_per_second for one in rounds], np.median([one.cpu for one in rounds])
        print(
            f"{name:10s} {np.median(speeds):8.1f} images/s ({min(speeds):.1f} to {max(speeds):.1f})"
            f"   p50 {np.median([one.median for one in rounds]):7.1f} ms   CPU {cpu:6.1f} ms"
        )
    pairs = list(zip(served, alone, strict=True))
    ratios = [one.images_per_second / other.images_per_second for one, other in pairs]
    print(
        f"service, {callers} callers, {workers} workers: {np.median(ratios):.2f} of the engine "
        f"({min(ratios):.2f} to {max(ratios):.2f}), and {np.median([other.cpu / one.cpu for one, other in pairs]):.2f} "
        "by processor time of the process that answers"
    )


def _pictures(result: AssessmentResult) -> list[bytes]:
    """The masks as the service stores them."""
    return [bilevel.png(bits, result.columns) for bits in result.bits.values()]


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _in_turns(
    assessor: Assessor, columns: int, rows: int, images: int, callers: int, workers: int
) -> tuple[list[Asked], list[Asked]]:
    """The engine by a loop without server, store and log, and what comes through gRPC, references, record and all;
    both give the same answer, masks as pictures. In turns, so that a machine that changes its pace changes both."""
    alone, served = [], []
    turn = itertools.cycle([_object(seed, columns, rows) for seed in range(4)])
    with tempfile.TemporaryDirectory() as folder:
        house = House(Path(folder), workers=workers)
        try:
            house.start("audit")
            began = time.perf_counter()
            house.start("inference")
            print(f"service ready after {time.perf_counter() - began:.2f} s")
            process = psutil.Process(house.processes["inference"].pid)
            stub = house.inference()  # one connection, as ingest keeps one
            others = {"log": psutil.Process(house.processes["audit"].pid), "callers": psutil.Process()}
            each = images + 2 * callers  # with those that warm up
            fresh = _different(columns, rows)
            for _ in range(ROUNDS):
                alone.append(_asked(lambda: _pictures(assessor.assess_dicom(next(turn))), images, workers, 1))
                requests = iter(
                    [inference_pb2.AssessInstanceRequest(object=house.reference(next(fresh))) for _ in range(each)]
                )
                before = {name: _cpu(one) for name, one in others.items()}
                served.append(_asked(partial(_ask, stub, requests), images, callers, 1, process))
                told = [f"the {name} {1000 * (_cpu(one) - before[name]) / each:.1f}" for name, one in others.items()]
            print(f"beside it took, of the processor: {', '.join(told)} ms an image")
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
            print(f"service resident {process.memory_info().rss / 1e6:.0f} MB, at its peak {peak * 1024 / 1e6:.0f} MB")
        finally:
            house.close()
    return alone, served


def _ask(stub: Any, requests: Iterator[inference_pb2.AssessInstanceRequest]) -> None:
    stub.AssessInstance(next(requests), timeout=60)


@dataclass(frozen=True)
class Asked:
    """Throughput and latency of one way to have images answered, images a second and milliseconds."""

    images_per_second: float
    median: float
    slow: float
    cpu: float
    """Milliseconds of a processor for an image, of the process that answers: what a busy machine cannot spoil."""


def _asked(
    work: Callable[[], object], images: int, callers: int, per_call: int, answers: psutil.Process | None = None
) -> Asked:
    """`callers` threads ask for `images` images, `per_call` at once; `answers`: who does, by default this process."""
    took: list[float] = []
    process = answers or psutil.Process()

    def one(_: int) -> None:
        began = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - began))

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(one, range(2 * callers)))
        took.clear()
        before, began = _cpu(process), time.perf_counter()
        list(pool.map(one, range(images // per_call)))
        passed, used = time.perf_counter() - began, _cpu(process) - before
    done = len(took) * per_call
    return Asked(done / passed, float(np.median(took)), float(np.percentile(took, 95)), 1000 * used / done)


def _cpu(process: psutil.Process) -> float:
    """Seconds of processors that it has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def model(images: int, callers: int, batches: Sequence[int]) -> None:
    """Print throughput of the bare model and of the model over the Open Inference Protocol, beside each other."""
    bare = ort.InferenceSession(str(paths.MODEL / "student.int8.onnx"), _options(), providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as folder:
        house = House(Path(folder), workers=callers)  # as many threads as the bare model has
        try:
            house.start("audit")
            house.start("inference")
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(
                house.channel(Identity.INFERENCE, Identity.OPERATOR)
            )
            print(f"{images} images, {callers} callers; load average {psutil.getloadavg()[0]:.1f}")
            for size in batches:
                grids = np.random.default_rng(1).random((size, 1, 256, 256)).astype(np.float32)
                request = tensors.request_of(paths.MODEL.parent.name, "", grids, OUTPUTS)
                ways: dict[str, Callable[[], object]] = {
                    "bare": partial(bare.run, None, {"image": grids}),
                    "over gRPC": partial(stub.ModelInfer, request, timeout=30),
                }
                server = psutil.Process(house.processes["inference"].pid)
                found = {
                    way: _asked(work, images, callers, size, None if way == "bare" else server)
                    for way, work in ways.items()
                }
                for way, one in found.items():
                    print(
                        f"batch {size}  {way:10s} {one.images_per_second:7.1f} images/s   p50 {one.median:7.2f} ms"
                        f"   p95 {one.slow:7.2f} ms   CPU {one.cpu:6.2f} ms"
                    )
                served, alone = found["over gRPC"], found["bare"]
                print(
                    f"batch {size}  over gRPC {served.images_per_second / alone.images_per_second:.2f} of bare, and "
                    f"{alone.cpu / served.cpu:.2f} by processor time of the process that answers"
                )
        finally:
            house.close()


def batching(images: int, callers: int) -> None:
    """Print what dynamic batching gains or costs on this processor: the same calls with and without it."""
    grid = np.random.default_rng(1).integers(0, 255, (256, 256)).astype(np.uint8)
    for size, delay in ((1, 0), (2, 500), (4, 1000), (8, 2000)):
        served = load(paths.MODEL)
        served.batched(Batching(size, (size,), delay))
        found = _asked(partial(served.answer, grid), images, callers, 1)
        print(
            f"max_batch_size {size}, max_queue_delay {delay:4d} us: {found.images_per_second:7.1f} images/s"
            f"   p50 {found.median:7.2f} ms   p95 {found.slow:7.2f} ms"
        )
        served.close()


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--images", type=int, default=30)
    fast.add_argument("--columns", type=int, default=2048)
    fast.add_argument("--rows", type=int, default=2500)
    fast.add_argument("--callers", type=int, default=4)
    fast.add_argument("--workers", type=int, default=1, help="of the service (inference.workers), and of the engine")
    bare = commands.add_parser("model")
    bare.add_argument("--images", type=int, default=400)
    bare.add_argument("--callers", type=int, default=2)
    bare.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    together = commands.add_parser("batching")
    together.add_argument("--images", type=int, default=400)
    together.add_argument("--callers", type=int, default=8)
    chosen = parser.parse_args()
    as_served("benchmarks.inference")
    if chosen.command == "speed":
        speed(chosen.images, chosen.columns, chosen.rows, chosen.callers, chosen.workers)
    elif chosen.command == "model":
        model(chosen.images, chosen.callers, chosen.batch)
    else:
        batching(chosen.images, chosen.callers)


if __name__ == "__main__":
    main()
