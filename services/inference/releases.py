"""The release of a model as an act in the log: what is recorded of it, and the proof that it was recorded.

Two people release a model by their signatures; inference, which serves it, holds the signatures to the keys of its
settings and vouches for them in the log. The proof of that record (C2SP tlog-proof) lies beside the model, so that the
next start needs neither the log nor a right to read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from services.inference.registry import Model
from shared.build import software_build
from shared.errors import ErrorCode, StepwedgeError
from shared.model_signatures import ROLES, lacking
from shared.transparency import merkle
from shared.transparency.note import BadSignatureError, MalformedNoteError, VerificationKey
from shared.transparency.tlog_proof import TlogProof
from stepwedge.audit.v1 import audit_pb2

MAX_BYTES: Final = 2 << 20
"""Longest manifest, list of signatures and proof."""


def released(
    manifest: bytes, signatures: bytes, signers: Mapping[str, Collection[str]], requested_by: str
) -> tuple[audit_pb2.ModelReleasedEvent, audit_pb2.Pins]:
    """What the log is told of a release.

    Parameters
    ----------
    manifest, signatures
        Content of the files of these names.
    signers
        The public keys trusted in each role.
    requested_by
        Whose certificate asked.

    Raises
    ------
    StepwedgeError
        MODEL_DIGEST_MISMATCH where the manifest is not signed in both roles by keys of `signers`, or is of no model.
    """
    if max(len(manifest), len(signatures)) > MAX_BYTES:
        raise _mismatch("the manifest or its signatures are longer than any of a model")
    if reason := lacking(manifest, signatures, signers):
        raise _mismatch(reason)
    keys = {row["role"]: str(row["key"]) for row in json.loads(signatures)["signatures"]}
    try:
        said: Mapping[str, Any] = json.loads(manifest)
        outcomes = said.get("gates", {}).get("outcomes", [])
        event = audit_pb2.ModelReleasedEvent(
            release_sha256=hashlib.sha256(manifest).hexdigest(),
            **{role: keys[role] for role in ROLES},
            gates_sha256=said.get("gates", {}).get("sha256", ""),
            gates=sum(bool(one["held"]) for one in outcomes),
            targets_missed=sum(not one["on_target"] for one in outcomes),
            requested_by=requested_by,
        )
        pins = audit_pb2.Pins(
            model=f"{said['name']}/{said['version']}",
            model_sha256=said["files"][said["served"]]["sha256"],
            preprocessing=said["preprocessing_version"],
            calibration_sha256=said["files"]["calibration.json"]["sha256"],
            software_build=software_build(),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _mismatch("the manifest is not one of a model that can be served here") from None
    return event, pins


def served(model: Model, shadow: Model | None, index: int | None) -> tuple[audit_pb2.ModelServedEvent, audit_pb2.Pins]:
    """What the log is told when a model begins to be served; `index`: of the record of its release, where proved."""
    event = audit_pb2.ModelServedEvent(
        release_sha256=model.release_sha256,
        self_test=model.self_test,
        shadow=f"{shadow.name}/{shadow.version}" if shadow else "",
        released_index=index,
    )
    pins = audit_pb2.Pins(
        model=f"{model.name}/{model.version}",
        model_sha256=model.sha256,
        preprocessing=model.preprocessing,
        calibration_sha256=model.calibration.sha256,
        execution_provider=model.execution_provider,
        software_build=software_build(),
    )
    return event, pins


def proved(proof: Path, keys: Path, release_sha256: str) -> int:
    """Index of the record of a release, by its proof.

    Parameters
    ----------
    proof
        File of the proof, with the record in it.
    keys
        File of the log's public keys, one a line.
    release_sha256
        Of the manifest.

    Raises
    ------
    StepwedgeError
        MODEL_DIGEST_MISMATCH, in words that say why the proof is none of this release.
    """
    try:
        trusted = [VerificationKey.parse(line) for line in _read(keys).decode("ascii").splitlines() if line]
        found = TlogProof.parse(_read(proof))
        found.note.verify(trusted)
    except OSError:
        raise _mismatch("there is no proof that the release is in the log, or no key of the log") from None
    except (MalformedNoteError, BadSignatureError, ValueError):
        raise _mismatch("the proof of the release is not one of this log") from None
    if found.extra is None or not found.proves(merkle.leaf_hash(found.extra)):
        raise _mismatch("the proof of the release proves nothing")
    try:
        leaf = json.loads(found.extra)
        of_this = leaf["kind"] == "MODEL_RELEASED" and leaf["event"]["release_sha256"] == release_sha256
        of_this = of_this and (leaf["outcome"], leaf["producer"]) == ("SUCCESS", "inference")
    except (ValueError, KeyError, TypeError):
        of_this = False
    if not of_this:
        raise _mismatch("the proof is of another record than this release's")
    return found.index


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError("too long")
    return path.read_bytes()


def _mismatch(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_MODEL_DIGEST_MISMATCH, words)
