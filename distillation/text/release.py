"""Makes a release of the text detector: ONNX with its digest, manifest and card.

`python -m distillation.text.release CHECKPOINT FOLDER THRESHOLD [EVALUATION.json] [TRAINED_BY.pem APPROVED_BY.pem]`

The evaluation is what `benchmarks/text_detection.py --json` prints of the same weights. Without keys (Ed25519) two are
made and thrown away; their public halves, which `shared.text_detector.SIGNERS` must name, are printed.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from distillation.text.network import TextNet
from shared.model_signatures import SIGNATURES, public, sign
from shared.text_detector import Detector

CARD = """# Text detector {version}

Finds text in medical pictures; does not read it. Fully convolutional, {parameters} parameters, fp32 ONNX; one score for
every 4 by 4 pixels. Served by `shared/text_detector.py`, whose `tensor` is also the preprocessing that trained it.

- Trained from nothing on {steps} batches of 16 written scenes (`distillation/text`): radiographs of the training splits
  (Kermany CC BY 4.0, wingspan MIT, COVID-19 Hannover CC BY 3.0), eleven textless frames or parts of frames of
  pydicom's test data (MIT), made backgrounds; outline, stroke and bitmap fonts of the machine.
  The weights are the moving mean of the last steps.
- Judged on other images, other objects and other fonts (`benchmarks/text_detection.py`; figures in `evaluation.json`).
  What 0.1.0 blanked for nothing on these backgrounds, with other seeds, was looked at before the scenes were changed.
- Threshold {threshold}: a leak is worse than a blank.
- Not for: handwriting, scripts other than Latin (not trained, not measured), letters under 8 or above 160 pixels, text
  of less than about 15 grey levels' contrast.
"""


def golden(detector: Detector) -> bytes:
    """A picture with writing in it, made here, and what the detector sees in it."""
    rng = np.random.default_rng(11)
    image = cv2.GaussianBlur(rng.normal(90, 60, (224, 320)).astype(np.float32), (0, 0), 6)
    image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    for n, (text, size, value) in enumerate(
        (("DOE^JANE", 0.6, 235), ("1960-12-31", 0.45, 20), ("MRN 00417", 0.9, 140))
    ):
        cv2.putText(image, text, (20 + 40 * n, 45 + 65 * n), cv2.FONT_HERSHEY_DUPLEX, size, value, 1, cv2.LINE_AA)
    seen = detector.look(image)
    boxes = np.array([[one.left, one.top, one.width, one.height] for one in seen.found], np.int32)
    out = io.BytesIO()
    np.savez_compressed(out, image=image, scores=seen.scores[0].astype(np.float16), boxes=boxes)
    return out.getvalue()


def _key(path: str) -> Ed25519PrivateKey:
    if not path:
        return Ed25519PrivateKey.generate()
    key = load_pem_private_key(Path(path).read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise SystemExit("a key is not one of Ed25519")
    return key


def main(
    checkpoint: str, folder: str, threshold: str, evaluation: str = "", trained_by: str = "", approved_by: str = ""
) -> None:
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
    served = (target / "detector.onnx").read_bytes()
    (target / "golden.npz").write_bytes(golden(Detector("text-detector", target.name, served, float(threshold))))
    names = [
        name for name in ("detector.onnx", "golden.npz", "evaluation.json", "MODEL_CARD.md") if (target / name).exists()
    ]
    files = {name: {"sha256": hashlib.sha256((target / name).read_bytes()).hexdigest()} for name in names}
    manifest = {
        "schema": 1,
        "name": "text-detector",
        "version": target.name,
        "served": "detector.onnx",
        "golden": "golden.npz",
        "threshold": float(threshold),
        "steps": state["step"],
        "files": files,
    }
    signed = (json.dumps(manifest, indent=1) + "\n").encode()
    (target / "manifest.json").write_bytes(signed)
    keys = {"trained_by": _key(trained_by), "approved_by": _key(approved_by)}
    (target / SIGNATURES).write_bytes(sign(signed, keys))
    print({role: public(key) for role, key in keys.items()})  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
