"""The evaluation as one page that stands alone: tables, curves, and pictures of the best, middling and worst masks."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from distillation import charts, evaluate
from distillation.data import read_image, read_index
from distillation.gates import Outcome
from distillation.runtime import answer, session, upsampled
from services.inference.preprocessing import preprocess

_STYLE = """body{font:14px/1.45 sans-serif;max-width:1020px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}td,th{border-bottom:1px solid #ddd;padding:.2em .6em;text-align:left}
.no{color:#b00020;font-weight:bold}figure{display:inline-block;margin:.3em}figcaption{font-size:12px}"""
_OUTLINES = ((0, (60, 60, 255)), (1, (60, 200, 60)), (2, (255, 140, 0)), (3, (0, 220, 255)))  # BGR


def render(report: Mapping[str, Any], outcomes: Sequence[Outcome], pictures: Iterable[tuple[str, bytes]]) -> str:
    """The page; `report` as `evaluate.report` gives it, pictures as caption and PNG."""
    served = report["served"]
    parts = [
        f"<h1>Evaluation on {escape(', '.join(served['splits']))}</h1><p>SHA-256 {served['sha256']}</p>",
        "<h2>Gates</h2>" + _gates(outcomes),
        "<h2>Masks against people</h2>" + _masks(served["masks"], report["reference"]["masks"]),
        "<h3>Labels that keep the convention</h3>" + _masks(served["labels_of_the_convention"], {}),
        "<h2>Pictures</h2><p>People's outlines on the left, the model's on the right.</p>"
        + "".join(map(_figure, pictures)),
        "<h2>Faults never trained on</h2>" + _faults(served["faults"]),
        "<h2>Calibration</h2>" + "".join(_calibration(served["calibration"])),
        "<h2>Selective prediction</h2>" + _selective(served["selective"]),
        "<h2>Not a chest</h2>" + _flat({k: v for k, v in served["not_a_chest"].items() if isinstance(v, dict)}),
        "<h2>Cardiothoracic ratio</h2>" + _flat({"all": _plain(served["cardiothoracic_ratio"])}),
        "<h2>Subgroups</h2>" + "".join(_subgroups(served["subgroups"])),
        "<h2>Speed</h2><p>Joules are modelled.</p>",
        _flat({"8 bits": served["speed"], "fp32": report["reference"]["speed"]}),
    ]
    if "beside" in report:
        parts.append("<h2>Beside another model</h2>" + _flat(report["beside"]["differences"]))
    head = f'<!doctype html><meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
    return head + "".join(parts) + "\n"


def pictures(folder: Path, data: Path, splits: tuple[str, ...], each: int = 2) -> list[tuple[str, bytes]]:
    """The worst, middling and best images of every source and split by Dice of the lungs: caption and PNG."""
    model = session(folder / "student.int8.onnx")
    groups: dict[str, list[tuple[float, str, bytes]]] = {}
    for item in read_index(data):
        if item.split not in splits or not item.convention:
            continue
        prepared = preprocess(read_image(data, item))
        truth = evaluate.people_of(data, item, prepared.geometry)
        masks = upsampled(answer(model, prepared.grid[None]).logits[0]) > 0
        values = evaluate.against_people(item, truth, masks)
        dice = values.get("lung_fields", values.get("lungs_full", 0.0))
        both = np.hstack(
            [_drawn(prepared.grid, truth.masks), _drawn(prepared.grid, {c: masks[c] for c in truth.masks})]
        )
        _, png = cv2.imencode(".png", both)
        groups.setdefault(f"{item.source}/{item.split}", []).append((dice, item.id, png.tobytes()))
    chosen = []
    for group, found in groups.items():
        found.sort(key=lambda one: one[0])
        middle = len(found) // 2
        some = {*range(each), *range(middle, middle + each), *range(len(found) - each, len(found))}
        chosen += [
            (f"{group} {found[i][1]}: {found[i][0]:.3f}", found[i][2]) for i in sorted(some) if 0 <= i < len(found)
        ]
    return chosen


def _drawn(grid: NDArray[np.uint8], masks: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    image = cv2.cvtColor(grid, cv2.COLOR_GRAY2BGR)
    for channel, colour in _OUTLINES:
        if channel in masks:
            outlines, _ = cv2.findContours(masks[channel].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(image, outlines, -1, colour, 1)
    return np.asarray(image, np.uint8)


def _figure(one: tuple[str, bytes]) -> str:
    data = base64.b64encode(one[1]).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt=""><figcaption>{escape(one[0])}</figcaption></figure>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = "".join("<tr>" + "".join(f"<td>{one}</td>" for one in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _gates(outcomes: Sequence[Outcome]) -> str:
    def row(one: Outcome) -> Sequence[str]:
        held = "held" if one.held else '<span class="no">not held</span>'
        target = f"{one.target:g}" if one.on_target else f'<span class="no">{one.target:g} missed</span>'
        value = "not measured" if one.value is None else f"{one.value:.4g}"
        return escape(one.name), value, f"{'at least' if one.least else 'at most'} {one.bar:g}", held, target

    return _table(("gate", "reached", "bar", "", "target"), map(row, outcomes))


def _masks(masks: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(group),
            escape(name),
            str(v["n"]),
            f"{v['mean']:.4f}",
            f"{v['low']:.4f} to {v['high']:.4f}",
            f"{v['p5']:.4f}",
            f"{reference[group][name]['mean']:.4f}" if group in reference else "",
        )
        for group, table in masks.items()
        for name, v in table.items()
        if v["n"]
    ]
    return _table(("images", "measure", "n", "mean", "95 % interval", "5th percentile", "fp32"), rows)


def _faults(faults: Mapping[str, Any]) -> str:
    series = {name: [(row["severity"], row["dice_lost"]) for row in rows] for name, rows in faults.items()}
    silent = {name: [(row["severity"], row["silent_failures"]) for row in rows] for name, rows in faults.items()}
    return charts.lines(series, "Dice lost", "severity", "Dice") + charts.lines(
        silent, "Silent failures", "severity", "share"
    )


def _calibration(calibration: Mapping[str, Any]) -> Iterable[str]:
    for group, v in calibration.items():
        points = [(said, true) for said, true, n in v["band"]["curve"] if n]
        title = f"{group}, about the outline: ECE {v['band']['ece']:.3f} (whole {v['ece_whole']:.3f})"
        yield charts.lines({"": points}, title, "probability", "share true", diagonal=True)


def _selective(selective: Mapping[str, Any]) -> str:
    curves = {name: [(a, b) for a, b in v["curve"]] for name, v in selective.items()}
    return _flat({k: _plain(v) for k, v in selective.items()}) + charts.lines(
        curves, "Risk of what is kept", "coverage", "1 - Dice"
    )


def _subgroups(subgroups: Mapping[str, Any]) -> Iterable[str]:
    for kind, groups in subgroups.items():
        rows = [
            (escape(name), structure, str(v["n"]), f"{v['mean']:.4f}", f"{v['low']:.4f} to {v['high']:.4f}")
            for name, structures in groups.items()
            for structure, v in structures.items()
        ]
        yield _table((kind, "structure", "n", "mean Dice", "95 % interval"), rows)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without curves; an interval becomes its mean."""
    return {
        k: v["mean"] if isinstance(v, dict) and "mean" in v else v
        for k, v in values.items()
        if k != "curve" and not (isinstance(v, dict) and "mean" not in v)
    }


def _flat(rows: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return _table(("", *names), [(escape(k), *(escape(str(row.get(n, ""))) for n in names)) for k, row in rows.items()])
