"""A model that Triton, KServe or another cluster holds, asked by the Open Inference Protocol over mutual TLS."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from services.inference import tensors
from services.inference.backends import OUTPUTS, Outputs, Remote, other_face
from services.inference.preprocessing import GRID
from shared.calling import MAX_MESSAGE_BYTES
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.open_inference.v2 import open_inference_pb2 as oip
from stepwedge.open_inference.v2 import open_inference_pb2_grpc

STATED: Final = "model_sha256"
"""Parameter of an answer by which a server of ours states which file answered."""

_SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "inference.GRPCInferenceService"}],  # every method asks and changes nothing
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }
)


class OpenInference:
    """A model on another server. What it is, is asked once; an answer of another version is refused.

    Parameters
    ----------
    remote
        Where it is.
    manifest
        Of the release that it must be.

    Raises
    ------
    StepwedgeError
        DEPENDENCY_UNAVAILABLE where the server does not answer; MODEL_NOT_FOUND where it has no such model;
        MODEL_DIGEST_MISMATCH where that takes or gives other tensors, or is said to be of another file.
    """

    provider = "OpenInference"

    def __init__(self, remote: Remote, manifest: Mapping[str, Any]) -> None:
        self._timeout = remote.timeout_seconds
        self._model = remote.model or str(manifest["name"])
        self._version = remote.version
        self._digests = {str(said["sha256"]) for said in manifest["files"].values()}
        self._channel = _channel(remote)
        self._stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            server = self._call("ServerMetadata", oip.ServerMetadataRequest())
            said = self._call("ModelMetadata", oip.ModelMetadataRequest(name=self._model, version=self._version))
            _check_face(said)
            self.platform = said.platform or "unknown"
            blank = np.zeros((1, 1, GRID, GRID), np.float32)
            first = self._infer(blank)
        except BaseException:
            self.close()
            raise
        self._answers = first.model_version
        self.sha256 = self._stated(first)
        self.description = ";".join(
            [
                self.provider,
                f"model={_word(self._model)}",
                f"version={_word(self._answers) or 'unstated'}",
                f"server={_word(server.name)}-{_word(server.version)}",
                f"platform={_word(self.platform)}",
                f"file={'stated' if self.sha256 else 'unstated'}",
            ]
        )[:200]

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """See `Backend.run`. DEPENDENCY_UNAVAILABLE where the server does not answer in time."""
        response = self._infer(images)
        if response.model_version != self._answers or self._stated(response) != self.sha256:
            raise other_face("another model answers than the one that was tested; start again to test that one")
        try:
            return Outputs(*tensors.of_response(response, OUTPUTS, len(images)))
        except ValueError:
            raise other_face("the remote model's answer does not read") from None

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _infer(self, images: NDArray[np.float32]) -> Any:
        response = self._call("ModelInfer", tensors.request_of(self._model, self._version, images, OUTPUTS))
        if response.model_name != self._model:
            raise other_face("another model answers than the one that was asked")
        return response

    def _stated(self, response: Any) -> str:
        """The file that the server says has answered; empty where it says nothing."""
        stated = str(response.parameters[STATED].string_param) if STATED in response.parameters else ""
        if stated and stated not in self._digests:
            raise other_face("the remote server says that it serves a file that is none of this release")
        return stated

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _failure(error) from None


def _failure(error: grpc.RpcError) -> StepwedgeError:
    """What a call's status means here; the words of the other server are not ours to pass on."""
    status = error.code()
    words = f"the server that holds the model answered {status.name}"
    if status is grpc.StatusCode.NOT_FOUND:
        return StepwedgeError(ErrorCode.ERROR_CODE_MODEL_NOT_FOUND, words)
    if status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED):
        return other_face(words)
    if status in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words)
    return StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, words)


def _channel(remote: Remote) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        remote.ca or None, private_key=remote.key or None, certificate_chain=remote.certificate or None
    )
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", 16 * MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", 16 * MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config", _SERVICE_CONFIG),
    ]
    if remote.server_name:
        options.append(("grpc.ssl_target_name_override", remote.server_name))
    return grpc.secure_channel(remote.address, credentials, options=options)


def _check_face(said: Any) -> None:
    """Hold what a server says of its model to what the release takes and gives; -1 is any size."""
    inputs = {one.name: (one.datatype, list(one.shape)) for one in said.inputs}
    outputs = {one.name: one.datatype for one in said.outputs}
    datatype, shape = inputs.get("image", ("", []))
    fits = len(shape) == 4 and all(size in (-1, want) for size, want in zip(shape[1:], (1, GRID, GRID), strict=True))
    if len(inputs) != 1 or datatype != tensors.FP32 or not fits:
        raise other_face("the remote model takes other tensors than the release")
    if any(outputs.get(name) != tensors.FP32 for name in OUTPUTS):
        raise other_face("the remote model gives other tensors than the release")


def _word(text: str) -> str:
    """As a record takes it."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text)[:32]
