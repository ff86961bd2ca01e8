"""The model on a device: throughput, latency, and parity with the processor, for every backend that is there.

`python -m benchmarks.gpu` prints a table and exits with 1 where a backend that is there is further from the processor
than a release allows, or 2 where no device is. Backends: ONNX Runtime with the CUDA and TensorRT providers (package
onnxruntime-gpu instead of onnxruntime), PyTorch on CUDA (extra `torch`). Each loads the release through the registry,
golden self-test and all, so that what is measured is what would serve. `--anyway` measures the processor alone.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from services.inference.backends import Execution
from services.inference.registry import Model, load
from shared import paths, phantom
from shared.errors import ErrorCode, StepwedgeError

REFERENCE = Execution()
DEVICES: Mapping[str, Execution] = {
    "onnxruntime, CUDA": Execution(provider="CUDAExecutionProvider"),
    "onnxruntime, TensorRT": Execution(provider="TensorrtExecutionProvider"),
    "torch, CUDA": Execution(backend="torch"),
}
LEAST_AGREEMENT = 0.999
"""Dice of the masks, by a device and by the processor in fp32."""


def images(count: int) -> NDArray[np.float32]:
    """Phantoms as the model takes them, float32 [count, 1, 256, 256]."""
    from services.inference.preprocessing import preprocess

    made = [preprocess(phantom.chest(seed, columns=512, rows=512).image).tensor[0] for seed in range(min(count, 16))]
    return np.stack([made[i % len(made)] for i in range(count)])


def throughput(model: Model, batch: NDArray[np.float32], seconds: float) -> tuple[float, float, float]:
    """Images a second, and median and 99th percentile of a run, milliseconds; after a warm-up."""
    for _ in range(5):
        model.run(batch)
    took: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        one = time.perf_counter()
        model.run(batch)
        took.append(1000 * (time.perf_counter() - one))
    passed = time.perf_counter() - began
    return len(took) * len(batch) / passed, float(np.median(took)), float(np.percentile(took, 99))


def parity(model: Model, reference: Model, batch: NDArray[np.float32]) -> tuple[float, float, float]:
    """Largest difference of a logit and of a flag, and Dice of the masks, against the reference."""
    ours, theirs = model.run(batch), reference.run(batch)
    one, other = ours.logits > 0, theirs.logits > 0
    total = int(one.sum()) + int(other.sum())
    dice = 2 * int((one & other).sum()) / total if total else 1.0
    return float(np.abs(ours.logits - theirs.logits).max()), float(np.abs(ours.flags - theirs.flags).max()), dice


def device() -> str:
    """The device in words; empty where there is none."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def main() -> int:
    """Measure what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each backend and batch")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--anyway", action="store_true", help="measure the processor where no device is")
    chosen = parser.parse_args()
    print(
        f"device: {device() or 'none'}; processor: {platform.processor() or platform.machine()}; ort {ort.__version__}"
    )
    reference, served = load(paths.MODEL, whole=True), load(paths.MODEL)
    worst, found = 1.0, 0
    ways: dict[str, Model] = {"processor, fp32": reference, "processor, as served": served}
    for name, execution in DEVICES.items():
        began = time.perf_counter()
        try:
            ways[name] = load(paths.MODEL, execution=execution)
        except StepwedgeError as error:
            if error.code != ErrorCode.ERROR_CODE_PROVIDER_UNAVAILABLE:
                raise
            print(f"{name}: not here ({error.name})")
            continue
        found += 1
        print(f"{name}: self-test {ways[name].self_test}, ready after {time.perf_counter() - began:.1f} s")
    if not found and not chosen.anyway:
        print("no device: nothing was measured")
        return 2
    for name, model in ways.items():
        logit, flag, dice = parity(model, reference, images(16))
        if name in DEVICES:
            worst = min(worst, dice)
        print(f"{name}: {model.execution_provider}")
        print(f"    against the processor in fp32: logits {logit:.2e}, flags {flag:.2e}, Dice of masks {dice:.5f}")
        for size in chosen.batch:
            rate, median, slow = throughput(model, images(size), chosen.seconds)
            print(f"    batch {size:3d}: {rate:9.1f} images/s   p50 {median:7.2f} ms   p99 {slow:7.2f} ms")
    return 0 if worst >= LEAST_AGREEMENT else 1


if __name__ == "__main__":
    sys.exit(main())
