"""The released ONNX file on CUDA through PyTorch: the same signed bytes, run by another library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.backends import OUTPUTS, Outputs, no_provider, other_face
from services.inference.preprocessing import GRID

Node = Callable[[list[Any], Mapping[str, Any]], Any]


class Torch:
    """The graph of a file in fp32, node by node, on one device.

    Parameters
    ----------
    model
        Content of an ONNX file.
    device
        "cuda"; "cpu" to compare with.

    Raises
    ------
    StepwedgeError
        PROVIDER_UNAVAILABLE where torch, onnx or the device is absent; MODEL_DIGEST_MISMATCH where the file holds a
        node that this backend does not run, or has another face.
    """

    platform = "pytorch_onnx"

    def __init__(self, model: bytes, device: str = "cuda") -> None:
        try:
            import onnx
            import torch
        except ImportError:
            raise no_provider() from None
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise no_provider()
        # As the reference computes: no products of 10 bits, no algorithm that sums in another order each time.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        self._torch, self._device = torch, torch.device(device)
        self.provider = f"Torch{self._device.type.upper()}"
        self.description = f"{self.provider};tf32=0;deterministic=1;torch={torch.__version__}"
        graph = onnx.load_from_string(model).graph
        if [one.name for one in graph.input] != ["image"] or not {one.name for one in graph.output} >= set(OUTPUTS):
            raise other_face()
        operations = _operations(torch)
        if unknown := {node.op_type for node in graph.node} - set(operations):
            raise other_face(f"the file has nodes that this backend does not run: {', '.join(sorted(unknown))}")
        constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        self._constants = {
            # Sizes and axes are read on the way and stay where they can be read.
            name: torch.from_numpy(np.array(value)).to(self._device if value.dtype.kind == "f" else "cpu")
            for name, value in constants.items()
        }
        self._nodes = [
            (
                operations[node.op_type],
                list(node.input),
                node.output[0],
                {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute},
            )
            for node in graph.node
        ]
        self._last_use = {name: i for i, (_, inputs, _, _) in enumerate(self._nodes) for name in inputs}

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """See `Backend.run`."""
        if images.shape[1:] != (1, GRID, GRID):
            raise other_face("images are of another size")
        values: dict[str, Any] = {**self._constants, "": None}
        with self._torch.inference_mode():
            values["image"] = self._torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
            for i, (operation, inputs, output, attributes) in enumerate(self._nodes):
                values[output] = operation([values[name] for name in inputs], attributes)
                for name in inputs:
                    if self._last_use[name] == i and name not in self._constants and name not in OUTPUTS:
                        values[name] = None
            return Outputs(*(values[name].cpu().numpy() for name in OUTPUTS))

    def close(self) -> None:
        """Give the weights back."""
        self._constants = {}


def _operations(torch: Any) -> Mapping[str, Node]:
    """ONNX operator -> what it is in torch, for the attributes that released graphs use."""
    functional = torch.nn.functional

    def conv(x: list[Any], a: Mapping[str, Any]) -> Any:
        data, pads = x[0], a.get("pads", [0] * 4)
        if pads[:2] != pads[2:]:
            data, pads = functional.pad(data, (pads[1], pads[3], pads[0], pads[2])), [0] * 4
        bias = x[2] if len(x) > 2 else None
        return functional.conv2d(
            data, x[1], bias, a.get("strides", 1), pads[:2], a.get("dilations", 1), a.get("group", 1)
        )

    def gemm(x: list[Any], a: Mapping[str, Any]) -> Any:
        weight = x[1].T if a.get("transB") else x[1]
        return a.get("alpha", 1.0) * (x[0] @ weight) + a.get("beta", 1.0) * x[2]

    def resize(x: list[Any], a: Mapping[str, Any]) -> Any:
        scales = [float(value) for value in x[2]]
        if a["mode"] != b"nearest" or scales[:2] != [1.0, 1.0]:
            raise other_face("the file resizes in a way that this backend does not")
        return functional.interpolate(x[0], scale_factor=scales[2:], mode="nearest")

    def shuffle(x: list[Any], a: Mapping[str, Any]) -> Any:
        if a.get("mode", b"DCR") != b"CRD":
            raise other_face("the file orders channels in a way that this backend does not")
        return functional.pixel_shuffle(x[0], a["blocksize"])

    return {
        "Conv": conv,
        "Gemm": gemm,
        "Resize": resize,
        "DepthToSpace": shuffle,
        "Relu": lambda x, _: functional.relu(x[0]),
        "Add": lambda x, _: x[0] + x[1],
        "Concat": lambda x, a: torch.cat(x, dim=a["axis"]),
        "ReduceMean": lambda x, a: x[0].mean(dim=x[1].tolist(), keepdim=bool(a.get("keepdims", 1))),
        "AveragePool": lambda x, a: functional.avg_pool2d(x[0], a["kernel_shape"], a.get("strides", 1)),
        "Reshape": lambda x, _: x[0].reshape(x[1].tolist()),
    }
