"""Trains the text detector on written scenes; resumes from its checkpoint.

`python -m distillation.text.train DATA WORK`: DATA as in the data sets' README (`cxr`), WORK with `frames/*.png`, grey
frames of DICOM objects that show no text.
"""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from distillation.text.fonts import training_fonts
from distillation.text.network import TextNet
from distillation.text.scenes import scene
from shared.text_detector import tensor

BATCH: Final = 16
MINUTES: Final = float(os.environ.get("TEXT_MINUTES", "120"))
"""How long to train from here; the rate falls to nothing by then."""
RATE: Final = float(os.environ.get("TEXT_RATE", "6e-3"))
DECAY: Final = 0.998
"""Of the moving mean of the weights, a step."""

Weights = dict[str, torch.Tensor]
_pool: list[NDArray[np.uint8]] = []
_fonts: list[str] = []


def _begin(data: str, work: str) -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(7)
    with (Path(data) / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] not in ("test", "test_crossvendor", "val")]
    by_source = {source: [row for row in rows if row["source"] == source] for source in {row["source"] for row in rows}}
    for chosen in by_source.values():
        for index in rng.permutation(len(chosen))[:120]:
            image = cv2.imread(str(Path(data) / "images" / f"{chosen[int(index)]['id']}.jpg"), cv2.IMREAD_GRAYSCALE)
            if image is not None and min(image.shape) > 32:
                _pool.append(np.asarray(image, np.uint8))
    frames = [np.asarray(cv2.imread(str(path), 0), np.uint8) for path in sorted((Path(work) / "clean").glob("*.png"))]
    _pool.extend(frames * max(1, len(_pool) // max(1, len(frames))))  # as many of these as of radiographs
    _fonts.extend(training_fonts())


def _batch(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    scenes = [scene(rng, _pool, _fonts) for _ in range(BATCH)]
    seen = np.concatenate([tensor(grey.astype(np.float32)) for grey, _ in scenes])
    return seen, np.stack([cells for _, cells in scenes])


def _loss(logits: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Cross entropy, text counting for more (a leak is worse than a blank), and the overlap."""
    judged, wanted = (cells != 2).float(), (cells == 1).float()
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, wanted, pos_weight=torch.tensor(2.0), reduction="none"
    )
    crossed = (each * judged).sum() / judged.sum()
    likely = torch.sigmoid(logits) * judged
    overlap = 1 - (2 * (likely * wanted).sum() + 1) / (likely.sum() + wanted.sum() + 1)
    return crossed + 0.3 * overlap


def _keep(path: Path, net: TextNet, mean: Weights, optimizer: torch.optim.Optimizer, step: int) -> None:
    new = path.with_suffix(".new")
    state = {"net": net.state_dict(), "mean": mean, "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, new)
    new.replace(path)


def _follow(mean: Weights, net: TextNet) -> None:
    """The moving mean of the weights (and of the statistics of the layers) that is released."""
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            mean[name].lerp_(value.detach(), 1 - DECAY)
        else:
            mean[name].copy_(value)


def main(data: str, work: str) -> None:
    """Train until the time is over; the checkpoint is written every minute."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    checkpoint = Path(work) / "text.pt"
    net = TextNet().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-3)
    step, smooth, saved = 0, 1.0, time.monotonic()
    begun = saved
    state: dict[str, Any] = {}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    mean: Weights = {name: value.clone() for name, value in state.get("mean", net.state_dict()).items()}
    with ProcessPoolExecutor(1, initializer=_begin, initargs=(data, work)) as workers:
        ahead = [workers.submit(_batch, 1000 + step + n) for n in range(6)]
        while (passed := (time.monotonic() - begun) / (60 * MINUTES)) < 1:
            seen, cells = ahead.pop(0).result()
            ahead.append(workers.submit(_batch, 1000 + step + 6))
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * passed)) + 1e-5
            pixels = torch.from_numpy(seen).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = net(pixels)
            loss = _loss(logits[:, 0].float(), torch.from_numpy(cells))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            _follow(mean, net)
            step += 1
            smooth += (float(loss.detach()) - smooth) * 0.03
            if step % 20 == 0:
                print(step, round(smooth, 4), round(time.monotonic()), flush=True)  # noqa: T201
            if time.monotonic() - saved > 60:
                saved = time.monotonic()
                _keep(checkpoint, net, mean, optimizer, step)
        _keep(checkpoint, net, mean, optimizer, step)
        for pending in ahead:
            pending.cancel()


if __name__ == "__main__":
    main(*sys.argv[1:3])
