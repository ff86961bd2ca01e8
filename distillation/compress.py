"""From the trained student to the file that is served: ONNX, static 8-bit integers, parity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from distillation.data import Pool
from distillation.measures import dice
from distillation.models import contiguous
from distillation.runtime import OUTPUTS, answer, session, upsampled


def export(model: nn.Module, path: Path) -> None:
    """fp32 ONNX, opset 18, dynamic batch, batch norm folded."""
    example = torch.rand(2, 1, 256, 256)  # a batch of one would be frozen into the graph
    program = torch.onnx.export(
        contiguous(model).eval(),
        (example,),
        dynamo=True,
        input_names=["image"],
        output_names=list(OUTPUTS),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        opset_version=18,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter gave no program")
    program.save(str(path))
    strip(path)


def strip(path: Path) -> None:
    """Takes out what the exporter noted about this machine (stack traces with its paths); the function stays."""
    model = onnx.load(path)
    del model.metadata_props[:], model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    graph = model.graph
    parts: list[Any] = [*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, grids: NDArray[np.uint8]) -> None:
        self.batches: Iterator[NDArray[np.uint8]] = iter(np.split(grids, range(8, len(grids), 8)))

    def get_next(self) -> dict[str, Any] | None:
        grids = next(self.batches, None)
        return None if grids is None else {"image": grids[:, None].astype(np.float32) / np.float32(255)}


def quantise(
    source: Path, path: Path, grids: NDArray[np.uint8], exclude: tuple[str, ...] = (), per_channel: bool = True
) -> None:
    """Static QDQ: unsigned activations, signed weights a channel (fast with VNNI, slow otherwise in ORT's default)."""
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            _Reader(grids),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            calibrate_method=CalibrationMethod.MinMax,
        )
    strip(path)


def calibration_grids(pool: Pool, count: int, seed: int) -> NDArray[np.uint8]:
    """Grids balanced over the sources, a few of them inverted and turned, as they may come."""
    rng = np.random.default_rng(seed)
    sources = sorted({item.source for item in pool.radiographs})
    rows = np.concatenate([rng.choice(pool.rows_of(source), count // len(sources)) for source in sources])
    grids = pool.grids[rows].copy()
    for i in range(0, len(grids), 10):
        grids[i] = 255 - grids[i] if i % 20 else np.rot90(grids[i])
    return np.asarray(grids)


def parity(first: Path, second: Path, grids: NDArray[np.uint8]) -> dict[str, float]:
    """How far two files of the same model are apart on the same grids."""
    a, b = (answer(session(path), grids) for path in (first, second))
    masks = [[upsampled(logits) > 0 for logits in one.logits] for one in (a, b)]
    agreement = [dice(x, y) for many, other in zip(*masks, strict=True) for x, y in zip(many, other, strict=True)]
    return {
        "images": len(grids),
        "largest_logit_difference": round(float(np.abs(a.logits - b.logits).max()), 6),
        "mean_logit_difference": round(float(np.abs(a.logits - b.logits).mean()), 6),
        "mask_agreement_dice": round(float(np.mean(agreement)), 5),
        "largest_flag_difference": round(float(np.abs(a.flags - b.flags).max()), 6),
    }
