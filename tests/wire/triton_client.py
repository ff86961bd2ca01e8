"""What a program with NVIDIA's own client does with a server: run as a process, for its descriptors bear the names of
ours. Prints one JSON object. `python triton_client.py HOST:PORT PKI [IDENTITY]`."""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException


def main(address: str, pki: Path, identity: str = "operator") -> dict[str, object]:
    """List, describe and infer."""
    client = triton.InferenceServerClient(
        address,
        ssl=True,
        root_certificates=str(pki / "ca.crt"),
        private_key=str(pki / f"{identity}.key"),
        certificate_chain=str(pki / f"{identity}.crt"),
        channel_args=[("grpc.ssl_target_name_override", "inference.stepwedge")],
    )
    try:
        told: dict[str, object] = {"live": client.is_server_live(), "ready": client.is_server_ready()}
    except InferenceServerException as error:
        return {"refused": error.status()}
    index = client.get_model_repository_index(as_json=True)["models"]
    name, version = index[0]["name"], index[0]["version"]
    told |= {
        "index": index,
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata(name, version, as_json=True),
        "config": client.get_model_config(name, as_json=True)["config"],
        "model_ready": [client.is_model_ready(name), client.is_model_ready(name, "0"), client.is_model_ready("other")],
    }
    images = np.random.default_rng(1).random((3, 1, 256, 256)).astype(np.float32)
    asked = triton.InferInput("image", list(images.shape), "FP32")
    asked.set_data_from_numpy(images)
    answer = client.infer(name, [asked], model_version=version, request_id="seven")
    one = client.infer(name, [asked], outputs=[triton.InferRequestedOutput("flags")], compression_algorithm="gzip")
    response = answer.get_response()
    told |= {
        "shapes": {key: list(answer.as_numpy(key).shape) for key in ("logits", "flags", "features")},
        "id": response.id,
        "pins": {key: value.string_param for key, value in response.parameters.items()},
        "flags": answer.as_numpy("flags").tolist(),
        "only_flags": [[output.name for output in one.get_response().outputs], one.as_numpy("flags").tolist()],
        "statistics": client.get_inference_statistics(name, as_json=True)["model_stats"],
        "refusals": [
            _refusal(lambda: client.infer("other", [asked])),
            _refusal(lambda: client.infer(name, [asked], model_version="99")),
            _refusal(lambda: client.infer(name, [asked], outputs=[triton.InferRequestedOutput("masks")])),
            _refusal(
                lambda: client.infer(name, [asked], outputs=[triton.InferRequestedOutput("flags", class_count=2)])
            ),
            _refusal(lambda: client.infer(name, [_of(np.zeros((1, 1, 256, 255), np.float32))])),
            _refusal(lambda: client.infer(name, [_of(np.zeros((9, 1, 256, 256), np.float32))])),
            _refusal(lambda: client.infer(name, [_of(np.full((1, 1, 256, 256), 255.0, np.float32))])),
            _refusal(lambda: client.load_model(name)),
            _refusal(lambda: client.unload_model(name)),
            _refusal(lambda: client.register_system_shared_memory("a", "/a", 8)),
        ],
    }
    return told


def _of(images: np.ndarray) -> triton.InferInput:
    asked = triton.InferInput("image", list(images.shape), "FP32")
    asked.set_data_from_numpy(images)
    return asked


def _refusal(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except InferenceServerException as error:
        return str(error.status())
    return "answered"


def contract() -> dict[str, object]:
    """Names, numbers and types of every field of NVIDIA's files."""
    told: dict[str, object] = {}
    for file in (service_pb2, model_config_pb2):
        proto = descriptor_pb2.FileDescriptorProto()
        file.DESCRIPTOR.CopyToProto(proto)
        told[file.DESCRIPTOR.name] = proto.SerializeToString().hex()
    return told


if __name__ == "__main__":
    found = contract() if len(sys.argv) == 1 else main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
    sys.stdout.write(json.dumps(found))
