"""`stepwedge model`: which models are served, and the record that one was released."""

from __future__ import annotations

from pathlib import Path

from cli import configuration, connect, proof, terminal
from shared.errors import ErrorCode, StepwedgeError

PROOF = "release.tlog-proof"
"""Beside the manifest, where inference looks for it."""


def release(folder: Path, file: Path | None, config: Path | None, *, json: bool) -> None:
    """Have inference record the release in `folder`, and write the proof of that record."""
    from shared.identity import Identity
    from shared.model_signatures import SIGNATURES
    from stepwedge.inference.v1 import inference_pb2, inference_pb2_grpc

    try:
        manifest, signatures = ((folder / name).read_bytes() for name in ("manifest.json", SIGNATURES))
    except OSError as error:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, f"{error.filename}: {error.strerror}") from None
    settings = configuration.load(config)
    with connect.channel(settings, "inference", Identity.OPERATOR) as link:
        stub = inference_pb2_grpc.InferenceServiceStub(link)
        request = inference_pb2.RecordReleaseRequest(manifest=manifest, signatures=signatures)
        done = connect.call(stub.RecordRelease, request)
    target = file or folder / PROOF
    size = proof.fetch(done.record_index, target, settings, Identity.OPERATOR)
    if json:
        told = {"model": done.model, "release_sha256": done.release_sha256, "index": done.record_index}
        terminal.emit({**told, "file": str(target)})
    else:
        terminal.note(f"{done.model} is record {done.record_index} in the log of {size}: released by two people")
        terminal.note(f"{target}: the proof; inference asks for it where require_release_record is set")


def listed(config: Path | None, *, json: bool) -> None:
    """Print the models that inference has loaded."""
    from shared.identity import Identity
    from stepwedge.inference.v1 import inference_pb2, inference_pb2_grpc

    settings = configuration.load(config)
    with connect.channel(settings, "inference", Identity.OPERATOR) as link:
        stub = inference_pb2_grpc.InferenceServiceStub(link)
        models = connect.call(stub.ListModels, inference_pb2.ListModelsRequest()).models
    for one in models:
        provider = one.execution_provider.partition(";")[0]
        if json:
            told = {"name": one.name, "version": one.version, "role": one.role, "provider": provider}
            terminal.emit({**told, "sha256": one.sha256, "release_sha256": one.release_sha256})
        else:
            terminal.note(f"{one.name}/{one.version}  {one.role:8s} {provider}  {one.sha256[:16]}")
