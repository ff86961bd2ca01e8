"""Tensors of the Open Inference Protocol to arrays and back, every size and type held to what was said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import ErrorCode, StepwedgeError
from stepwedge.open_inference.v2 import open_inference_pb2 as oip

FP32: Final = "FP32"
DATATYPES: Final = frozenset(
    f"{kind}{bits}"
    for kind, sizes in {"UINT": (8, 16, 32, 64), "INT": (8, 16, 32, 64), "FP": (16, 32, 64)}.items()
    for bits in sizes
) | {"BOOL", "BF16", "BYTES"}
"""Every data type of the protocol."""


def of_request(request: oip.ModelInferRequest, name: str, shape: Sequence[int], most: int) -> NDArray[np.float32]:
    """The only input of a request.

    Parameters
    ----------
    request
        What came.
    name
        Of the input.
    shape
        Its sizes, -1 for that of the batch.
    most
        Largest batch.

    Returns
    -------
    float32 of the shape, values 0 to 1.

    Raises
    ------
    StepwedgeError
        INVALID_REQUEST, in words that say which rule the tensor breaks.
    """
    if [one.name for one in request.inputs] != [name]:
        raise _invalid(f"the model takes one input, {name}")
    (tensor,) = request.inputs
    _no_other_place(tensor.parameters)
    if tensor.datatype != FP32:
        known = "another data type" if tensor.datatype in DATATYPES else "a data type that the protocol does not have"
        raise _invalid(f"the input {name} is of {known} than {FP32}")
    given = tuple(tensor.shape)
    if len(given) != len(shape) or any(want not in (-1, got) for want, got in zip(shape, given, strict=True)):
        raise _invalid(f"the input {name} must be of the shape {list(shape)}")
    if not 1 <= given[0] <= most:
        raise _invalid(f"a batch holds 1 to {most} images")
    images = _elements(tensor, list(request.raw_input_contents), given)
    if not bool((images >= 0).all() and (images <= 1).all()):  # NaN compares false
        raise _invalid(f"the values of {name} lie between 0 and 1")
    return images


def _elements(tensor: Any, raw: list[bytes], shape: tuple[int, ...]) -> NDArray[np.float32]:
    count = math.prod(shape)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if raw:
        if filled:
            raise _invalid("a request holds its tensors raw or as lists, not both")
        if len(raw) != 1:
            raise _invalid("raw_input_contents must hold one item for each input")
        if len(raw[0]) != 4 * count:
            raise _invalid(f"{len(raw[0])} raw bytes are not the {4 * count} that shape and data type ask for")
        return np.frombuffer(raw[0], "<f4").reshape(shape)
    if filled not in ([], ["fp32_contents"]):
        raise _invalid(f"elements of {FP32} stand in fp32_contents")
    if len(tensor.contents.fp32_contents) != count:
        raise _invalid(f"{len(tensor.contents.fp32_contents)} elements are not the {count} that the shape asks for")
    return np.array(tensor.contents.fp32_contents, np.float32).reshape(shape)


def wanted(request: oip.ModelInferRequest, outputs: Sequence[str]) -> list[str]:
    """Names of the outputs that a request asks for, in its order; all where it names none."""
    names = [one.name for one in request.outputs]
    if len(set(names)) < len(names):
        raise _invalid("an output is asked for twice")
    if any(name not in outputs for name in names):
        raise _invalid(f"the model gives {', '.join(outputs)}")
    for one in request.outputs:
        _no_other_place(one.parameters)
        if "classification" in one.parameters:
            raise _invalid("outputs are given as they are, not as classes")
    return names or list(outputs)


def _no_other_place(parameters: Mapping[str, Any]) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise _invalid("tensors travel in the message, not in shared memory")


def request_of(model: str, version: str, images: NDArray[np.float32], outputs: Sequence[str]) -> oip.ModelInferRequest:
    """A request for images float32 [n, ...]."""
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype=FP32, shape=images.shape)
    return oip.ModelInferRequest(
        model_name=model,
        model_version=version,
        inputs=[tensor],
        outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[np.ascontiguousarray(images, "<f4").tobytes()],
    )


def of_response(response: oip.ModelInferResponse, outputs: Sequence[str], batch: int) -> list[NDArray[np.float32]]:
    """The outputs of a response in the order of `outputs`, each float32 [batch, ...]; raw or as lists.

    Raises ValueError where the response is not of one piece.
    """
    raw = list(response.raw_output_contents)
    if raw and len(raw) != len(response.outputs):
        raise ValueError("raw contents and outputs are not of one number")
    found: dict[str, NDArray[np.float32]] = {}
    for i, tensor in enumerate(response.outputs):
        if tensor.datatype != FP32:
            raise ValueError("an output is of another data type")
        shape = tuple(tensor.shape)
        if not shape or shape[0] != batch or min(shape) < 1:
            raise ValueError("an output has another shape")
        values = np.frombuffer(raw[i], "<f4") if raw else np.array(tensor.contents.fp32_contents, np.float32)
        found[tensor.name] = values.reshape(shape)
    if not set(outputs) <= set(found):
        raise ValueError("an output is missing")
    return [found[name] for name in outputs]


def response_of(
    model: str, version: str, request: oip.ModelInferRequest, outputs: Mapping[str, NDArray[np.float32]]
) -> oip.ModelInferResponse:
    """The response to a request, elements raw."""
    return oip.ModelInferResponse(
        model_name=model,
        model_version=version,
        id=request.id,
        outputs=[
            oip.ModelInferResponse.InferOutputTensor(name=name, datatype=FP32, shape=values.shape)
            for name, values in outputs.items()
        ],
        raw_output_contents=[np.ascontiguousarray(values, "<f4").tobytes() for values in outputs.values()],
    )


def _invalid(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
