"""Makes a release of the text detector: ONNX with its digest, manifest and card.

`python -m distillation.text.release CHECKPOINT FOLDER THRESHOLD [EVALUATION.json]`: the evaluation as
`benchmarks/text_detection.py --json` prints it of the same file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from distillation.text.network import TextNet

CARD = """# Text detector {version}

Finds text in medical pictures; does not read it. Fully convolutional, {parameters} parameters, fp32 ONNX; one score for
every 4 by 4 pixels. Served by `shared/text_detector.py`, whose `tensor` is also the preprocessing that trained it.

- Trained from nothing on {steps} batches of 16 written scenes (`distillation/text`): radiographs of the training splits
  (Kermany CC BY 4.0, wingspan MIT, COVID-19 Hannover CC BY 3.0), nine textless frames or parts of frames of pydicom's
  test data (MIT), made backgrounds; outline, stroke and bitmap fonts of the machine.
- Judged on other images, other objects and other fonts (`benchmarks/text_detection.py`; figures in `evaluation.json`).
- Threshold {threshold}: a leak is worse than a blank.
- Not for: handwriting, scripts other than Latin (not trained, not measured), letters under 8 or above 160 pixels, text
  of less than about 15 grey levels' contrast.
"""


def main(checkpoint: str, folder: str, threshold: str, evaluation: str = "") -> None:
    """Write the release."""
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    net = TextNet()
    net.load_state_dict(state.get("mean", state["net"]))
    net.eval()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        net, (torch.zeros(1, 2, 384, 384),), str(target / "detector.onnx"), input_names=["image"],
        output_names=["logits"], dynamic_axes={"image": {2: "height", 3: "width"}}, dynamo=False, opset_version=17,
    )  # fmt: skip
    parameters = sum(one.numel() for one in net.parameters())
    card = CARD.format(
        version=target.name, parameters=f"{parameters:,}", steps=f"{state['step']:,}", threshold=threshold
    )
    (target / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    if evaluation:
        (target / "evaluation.json").write_bytes(Path(evaluation).read_bytes())
    names = [name for name in ("detector.onnx", "evaluation.json", "MODEL_CARD.md") if (target / name).exists()]
    files = {name: {"sha256": hashlib.sha256((target / name).read_bytes()).hexdigest()} for name in names}
    manifest = {"schema": 1, "name": "text-detector", "version": target.name, "served": "detector.onnx",
                "threshold": float(threshold), "steps": state["step"], "files": files}  # fmt: skip
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
