"""The Open Inference Protocol: NVIDIA's own client against our server, and our service against a server of it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from services.inference.registry import load
from shared.identity import Identity
from shared.paths import MODEL
from stepwedge.audit.v1 import audit_pb2
from stepwedge.open_inference.v2 import open_inference_pb2 as oip
from stepwedge.open_inference.v2 import open_inference_pb2_grpc
from tests.wire.inference_house import House

CLIENT = Path(__file__).with_name("triton_client.py")
MANIFEST = json.loads((MODEL / "manifest.json").read_text())
NAME, VERSION = MANIFEST["name"], MANIFEST["version"]
IMAGES = np.random.default_rng(1).random((3, 1, 256, 256)).astype(np.float32)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for the tests of this file."""
    built = House(tmp_path_factory.mktemp("oip"))
    assert built.start("audit").startswith("ready audit ")
    assert built.start("inference").startswith("ready inference "), built.errors.read_text()
    try:
        yield built
    finally:
        built.close()


def _triton(*arguments: str) -> Any:
    """What NVIDIA's client says, in a process of its own."""
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("pip install tritonclient brings the client")
    done = subprocess.run([sys.executable, str(CLIENT), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _asked(house: House, identity: Identity = Identity.OPERATOR) -> Any:
    return open_inference_pb2_grpc.GRPCInferenceServiceStub(house.channel(Identity.INFERENCE, identity))


def test_the_client_of_triton_lists_describes_and_infers(house: House) -> None:
    address = house.settings.inference.address
    told = _triton(address, str(house.settings.cluster.pki))
    assert (told["live"], told["ready"]) == (True, True)
    assert told["index"] == [{"name": NAME, "version": VERSION, "state": "READY"}]
    assert told["server"]["name"] == "stepwedge"
    assert told["model"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": ["-1", "1", "256", "256"]}]
    assert [one["name"] for one in told["model"]["outputs"]] == ["logits", "flags", "features"]
    assert told["config"]["max_batch_size"] == 8
    assert told["config"]["output"][0] == {"name": "logits", "data_type": "TYPE_FP32", "dims": ["4", "128", "128"]}
    assert told["model_ready"] == [True, False, False]
    assert told["id"] == "seven"
    # The same answers as the engine's, and its pins.
    model = load(MODEL)
    expected = model.run(IMAGES)
    assert told["shapes"] == {name: list(values.shape) for name, values in expected._asdict().items()}
    assert np.array_equal(np.array(told["flags"], np.float32), expected.flags)
    assert told["only_flags"] == [["flags"], told["flags"]]
    pins = told["pins"]
    assert pins["model_sha256"] == model.sha256
    assert pins["execution_provider"] == model.execution_provider
    assert pins["input_sha256"] == hashlib.sha256(IMAGES.tobytes()).hexdigest()
    (statistics,) = told["statistics"]
    assert (statistics["inference_count"], statistics["execution_count"]) == ("6", "2")
    assert told["refusals"] == [
        "StatusCode.NOT_FOUND",
        "StatusCode.NOT_FOUND",
        *["StatusCode.INVALID_ARGUMENT"] * 5,
        *["StatusCode.FAILED_PRECONDITION"] * 2,
        "StatusCode.UNIMPLEMENTED",
    ]


def test_who_is_not_named_in_the_settings_is_refused_and_that_is_recorded(house: House) -> None:
    told = _triton(house.settings.inference.address, str(house.settings.cluster.pki), "pacs")
    assert told == {"refused": "StatusCode.PERMISSION_DENIED"}
    with pytest.raises(grpc.RpcError) as caught:  # one whom the settings could name and do not
        _asked(house, Identity.CONSOLE).ServerLive(oip.ServerLiveRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    def refused() -> list[Any]:
        found = house.entries(kind=audit_pb2.RECORD_KIND_REFUSED_CALL)
        return [one for one in found if b"inference.GRPCInferenceService/ServerLive" in one.leaf]

    _until(refused)


def _until(condition: Callable[[], Any]) -> None:
    import time

    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_of_a_raw_answer_is_taken_for_a_decision(house: House) -> None:
    before = len(house.entries(kind=audit_pb2.RECORD_KIND_ASSESSED))
    _asked(house).ModelInfer(_request(), timeout=10)
    assert len(house.entries(kind=audit_pb2.RECORD_KIND_ASSESSED)) == before


def _request(**changed: Any) -> oip.ModelInferRequest:
    image = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[1, 1, 256, 256])
    request = oip.ModelInferRequest(model_name=NAME, inputs=[image], raw_input_contents=[IMAGES[:1].tobytes()])
    for field, value in changed.items():
        request.ClearField(field)  # type: ignore[arg-type]
        getattr(request, field).extend(value) if isinstance(value, list) else setattr(request, field, value)
    return request


def _typed(**contents: Any) -> oip.ModelInferRequest:
    request = _request(raw_input_contents=[])
    for name, values in contents.items():
        getattr(request.inputs[0].contents, name).extend(values)
    return request


def test_lists_of_numbers_are_answered_like_raw_bytes(house: House) -> None:
    ask = _asked(house)
    raw = ask.ModelInfer(_request(), timeout=10)
    typed = ask.ModelInfer(_typed(fp32_contents=IMAGES[:1].ravel().tolist()), timeout=10)
    assert raw == typed


def _of(datatype: str = "FP32", shape: tuple[int, ...] = (1, 1, 256, 256), name: str = "image") -> list[Any]:
    return [oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)]


def _placed() -> oip.ModelInferRequest:
    request = _request()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


_NAN = np.full((1, 1, 256, 256), np.nan, np.float32)
BAD: dict[str, oip.ModelInferRequest] = {
    "no input": _request(inputs=[], raw_input_contents=[]),
    "two inputs": _request(inputs=_of() * 2, raw_input_contents=[IMAGES[:1].tobytes()] * 2),
    "another input": _request(inputs=_of(name="picture")),
    "another data type": _request(inputs=_of("UINT8")),
    "no data type": _request(inputs=_of("")),
    "another rank": _request(inputs=_of(shape=(1, 256, 256))),
    "another size": _request(inputs=_of(shape=(1, 1, 256, 128))),
    "no image": _request(inputs=_of(shape=(0, 1, 256, 256)), raw_input_contents=[b""]),
    "a negative batch": _request(inputs=_of(shape=(-1, 1, 256, 256))),
    "a batch beyond the largest": _request(inputs=_of(shape=(9, 1, 256, 256))),
    "a batch beyond all numbers": _request(inputs=_of(shape=(2**62, 1, 256, 256))),
    "raw bytes too few": _request(raw_input_contents=[IMAGES[:1].tobytes()[:-4]]),
    "raw bytes too many": _request(raw_input_contents=[IMAGES[:2].tobytes()]),
    "raw bytes twice": _request(raw_input_contents=[IMAGES[:1].tobytes()] * 2),
    "no contents": _typed(),
    "contents too few": _typed(fp32_contents=[0.5]),
    "contents of another type": _typed(int_contents=[0] * 65536),
    "raw bytes and contents": (lambda request: (request.inputs[0].contents.fp32_contents.append(1), request)[1])(
        _request()
    ),
    "no numbers": _request(raw_input_contents=[_NAN.tobytes()]),
    "values beyond 1": _request(raw_input_contents=[(IMAGES[:1] * 255).tobytes()]),
    "an output that there is not": _request(outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="x")]),
    "an output twice": _request(outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="flags")] * 2),
    "shared memory": _placed(),
}


@pytest.mark.parametrize("what", BAD)
def test_a_request_that_does_not_fit_the_model_is_an_invalid_argument(house: House, what: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _asked(house).ModelInfer(BAD[what], timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _fields(message: descriptor_pb2.DescriptorProto, place: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for field in message.field:
        kind = (field.name, field.type, field.type_name.lstrip("."), field.label)
        yield f"{place}.{message.name}#{field.number}", kind
    for nested in message.nested_type:
        yield from _fields(nested, f"{place}.{message.name}")


def _contract(files: list[bytes]) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    fields: dict[str, Any] = {}
    methods: dict[str, Any] = {}
    values: dict[str, int] = {}
    for data in files:
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        for message in file.message_type:
            fields |= dict(_fields(message, file.package))
        for enum in file.enum_type:
            values |= {f"{enum.name}.{one.name}": one.number for one in enum.value}
        for service in file.service:
            for one in service.method:
                kind = (one.input_type, one.output_type, one.client_streaming, one.server_streaming)
                methods[f"{file.package}.{service.name}/{one.name}"] = kind
    return fields, methods, values


def test_every_name_and_number_of_our_contract_is_that_of_triton() -> None:
    theirs = _contract([bytes.fromhex(data) for data in _triton().values()])
    ours = _contract([oip.DESCRIPTOR.serialized_pb])
    for mine, other in zip(ours, theirs, strict=True):
        assert mine
        assert mine.items() <= other.items()
