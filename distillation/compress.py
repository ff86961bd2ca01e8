"""From the trained student to the file that is served: ONNX, static 8-bit integers, parity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from distillation.data import Pool
from distillation.measures import dice
from distillation.models import contiguous
from distillation.runtime import OUTPUTS, answer, session, upsampled
from services.inference.masks import GROUPS
from services.inference.preprocessing import GRID


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
    source: Path,
    path: Path,
    grids: NDArray[np.uint8],
    exclude: Sequence[str] = (),
    per_channel: bool = True,
    narrow: bool = False,
    method: CalibrationMethod = CalibrationMethod.MinMax,
) -> None:
    """Static QDQ: unsigned activations, signed weights a channel (fast with VNNI, slow otherwise in ORT's default).

    narrow: weights of 7 bits, whose sums of pairs do not saturate in 16 bits: for x86 processors without VNNI.
    """
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        double_by_copying(prepared)
        quantize_static(
            str(prepared),
            str(path),
            _Reader(grids),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            reduce_range=narrow,
            calibrate_method=method,
        )
    strip(path)
    shorten(path)


def shorten(path: Path) -> None:
    """Gives everything but inputs and outputs a short name: the names of 8-bit tensors take a twentieth of the file."""
    model = onnx.load(path)
    graph = model.graph
    del graph.value_info[:]
    names = {one.name: one.name for one in (*graph.input, *graph.output)} | {"": ""}

    def short(name: str) -> str:
        return names.setdefault(name, f"{len(names):x}")

    for one in graph.initializer:
        one.name = short(one.name)
    for number, node in enumerate(graph.node):
        node.name = f"{number:x}"
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    onnx.save(model, path)


def double_by_copying(path: Path) -> None:
    """Writes every nearest-neighbour Resize to twice the size as Gathers of rows and of columns, channels last: the
    same values, copied in long runs, where ONNX Runtime's Resize works out each place of 8-bit values by itself. Needs
    the shapes that `quant_pre_process` infers."""
    model = onnx.load(path)
    shapes = {one.name: [d.dim_value for d in one.type.tensor_type.shape.dim] for one in model.graph.value_info}
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type != "Resize" or not _doubles(node, shapes):
            nodes.append(node)
            continue
        name, (_, _, rows, columns) = node.name, shapes[node.input[0]]
        last, tall, wide = (f"{name}_{step}" for step in ("channels_last", "rows", "columns"))
        for axis, count in ((tall, rows), (wide, columns)):
            model.graph.initializer.append(numpy_helper.from_array(np.arange(2 * count) // 2, f"{axis}_twice"))
        nodes += [
            helper.make_node("Transpose", [node.input[0]], [last], last, perm=[0, 2, 3, 1]),
            helper.make_node("Gather", [last, f"{tall}_twice"], [tall], tall, axis=1),
            helper.make_node("Gather", [tall, f"{wide}_twice"], [wide], wide, axis=2),
            helper.make_node("Transpose", [wide], [node.output[0]], name, perm=[0, 3, 1, 2]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [one for one in model.graph.initializer if one.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, path)


def _doubles(node: Any, shapes: Mapping[str, list[int]]) -> bool:
    """Whether a Resize takes each cell of a plane of known size twice, both ways."""
    before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return (
        given.get("mode", b"nearest") == b"nearest"
        and given.get("coordinate_transformation_mode") == b"asymmetric"
        and given.get("nearest_mode") == b"floor"
        and len(before) == 4
        and min(before[2:]) > 0
        and after[2:] == [2 * size for size in before[2:]]
    )


def calibration_grids(pool: Pool, count: int, seed: int) -> NDArray[np.uint8]:
    """Grids balanced over the sources, a few of them inverted and turned, as they may come."""
    rng = np.random.default_rng(seed)
    sources = sorted({item.source for item in pool.radiographs})
    rows = np.concatenate([rng.choice(pool.rows_of(source), count // len(sources)) for source in sources])
    grids = pool.grids[rows].copy()
    for i in range(0, len(grids), 10):
        grids[i] = 255 - grids[i] if i % 20 else np.rot90(grids[i])
    return np.asarray(grids)


def choose_exclusions(
    source: Path, folder: Path, grids: NDArray[np.uint8], judged: NDArray[np.uint8], gain: float = 2e-4
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Which convolutions stay in fp32, by validation: the first and the last two of those that make the masks are left
    out in turn, and stay out where the masks then agree with those of fp32 better by at least `gain` (Dice, on
    `judged`), or where they agree as well and an image takes 5 % less time. Returns their names, and a row a trial."""
    convolutions = _leading_to(onnx.load(source).graph, "logits")
    agreement, trial = _agreement(source, judged), folder / "trial.onnx"
    kept: list[str] = []
    rows: list[dict[str, Any]] = []
    best, quickest = -1.0, folder / "quickest.onnx"
    for candidate in ("", convolutions[0], convolutions[-1], convolutions[-2]):
        exclude = [*kept, candidate] if candidate else []
        quantise(source, trial, grids, exclude)
        reached, longer = agreement(trial), _slower(trial, quickest) if candidate else 1.0
        row = {"in fp32": exclude, "agreement": round(reached, 5), "time": longer, "bytes": trial.stat().st_size}
        rows.append(row)
        if reached >= best + gain or (reached >= best and longer <= 0.95):
            best, kept = reached, exclude
            trial.replace(quickest)
    trial.unlink(missing_ok=True)
    quickest.unlink()
    return tuple(kept), rows


def _leading_to(graph: Any, output: str) -> list[str]:
    """Names of the convolutions that an output depends on, in their order."""
    wanted, found = {output}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            found += [node.name] * (node.op_type == "Conv")
    return found[::-1]


def _agreement(source: Path, grids: NDArray[np.uint8]) -> Callable[[Path], float]:
    whole = answer(session(source), grids).logits > 0

    def of(path: Path) -> float:
        small = answer(session(path), grids).logits > 0
        return float(np.mean([dice(a, b) for a, b in zip(whole, small, strict=True)]))

    return of


FORMS: dict[str, dict[str, Any]] = {
    "8 bits a channel": {},
    "8 bits a channel, percentile 99.99": {"method": CalibrationMethod.Percentile},
    "7-bit weights a channel (without VNNI)": {"narrow": True},
    "8 bits a tensor": {"per_channel": False},
}


def compare_forms(
    source: Path, folder: Path, grids: NDArray[np.uint8], val: Pool, narrower: Mapping[str, nn.Module]
) -> list[dict[str, Any]]:
    """Smaller forms of the same student side by side, on validation images: bytes, mean time of an image on one thread
    over that of the first 8-bit form (in turns), agreement with fp32's masks, and Dice with people's.

    narrower: students with fewer channels, by name; measured in 8 bits.
    """
    agreement, path = _agreement(source, val.grids), folder / "trial.onnx"
    rows = [{"form": "fp32", "bytes": source.stat().st_size, "agreement": 1.0, **_overlap(source, val)}]
    first = folder / "first.onnx"
    quantise(source, first, grids)
    rows[0]["time"] = _slower(source, first)

    def measured(form: str) -> dict[str, Any]:
        found = {"form": form, "bytes": path.stat().st_size, "time": _slower(path, first)}
        return {**found, "agreement": round(agreement(path), 5), **_overlap(path, val)}

    for form, options in FORMS.items():
        quantise(source, path, grids, **options)
        rows.append(measured(form))
    for form, student in narrower.items():
        whole = folder / "narrow.onnx"
        export(student, whole)
        quantise(whole, path, grids)
        rows.append(measured(f"{form}, 8 bits a channel"))
        whole.unlink()
    path.unlink()
    first.unlink()
    return rows


def _overlap(path: Path, val: Pool) -> dict[str, float]:
    """Mean Dice with people's masks by structure, every source counting the same, on maps of 128."""
    masks = answer(session(path), val.grids).logits > 0
    found: dict[str, dict[str, list[float]]] = {name: {} for name in GROUPS}
    for i, item in enumerate(val.radiographs):
        for name, channels in GROUPS.items():
            if val.complete[i, list(channels)].all():
                known = (val.weights[i] > 127)[..., list(channels)].all(-1)
                people = (val.targets[i] > 127)[..., list(channels)].any(-1)
                ours = masks[i, list(channels)].any(0)
                found[name].setdefault(item.source, []).append(dice(ours & known, people & known))
    return {name: round(float(np.mean([np.mean(v) for v in own.values()])), 4) for name, own in found.items() if own}


def _slower(path: Path, than: Path, rounds: int = 200) -> float:
    """Time of an image on one thread over that of another file, in turns; of both the quickest tenth, which a busy
    machine disturbs least."""
    image = np.random.default_rng(1).random((1, 1, GRID, GRID), np.float32)
    sessions, times = [session(path), session(than)], np.zeros((2, rounds))
    for i in range(rounds):
        for which, one in enumerate(sessions):
            began = time.perf_counter()
            one.run(None, {"image": image})
            times[which, i] = time.perf_counter() - began
    ours, theirs = np.sort(times)[:, : rounds // 10].mean(1)
    return round(float(ours / theirs), 2)


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
