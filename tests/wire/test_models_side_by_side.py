"""Several models: served side by side, a candidate in the shadow, going back to the one before, releases on record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import model as command
from shared.errors import StepwedgeError
from shared.identity import Identity
from shared.model_signatures import DEVELOPMENT_SIGNERS
from shared.paths import MODEL
from stepwedge.audit.v1 import audit_pb2
from stepwedge.inference.v1 import inference_pb2
from stepwedge.open_inference.v2 import open_inference_pb2 as oip
from stepwedge.open_inference.v2 import open_inference_pb2_grpc
from tests.wire.inference_house import House, chest

BEFORE = MODEL.with_name("0.4.0")
SERVED, BESIDE = f"{MODEL.parent.name}/{MODEL.name}", f"{MODEL.parent.name}/{BEFORE.name}"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The released model, the one before beside it, and that one in its shadow too."""
    folder = tmp_path_factory.mktemp("models")
    built = House(
        folder,
        shadow={"model": str(BEFORE)},
        open_inference={"models": [str(BEFORE)]},
        release_proof=str(folder / "proof"),
    )
    assert built.start("audit").startswith("ready audit ")
    assert built.start("inference").startswith("ready inference "), built.errors.read_text()
    try:
        yield built
    finally:
        built.close()


def _until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def _leaves(house: House, kind: audit_pb2.RecordKind.ValueType) -> list[dict[str, Any]]:
    return [json.loads(one.leaf) for one in house.entries(kind=kind)]


def test_models_side_by_side_are_listed_and_asked_by_version(house: House) -> None:
    listed = house.inference(Identity.OPERATOR).ListModels(inference_pb2.ListModelsRequest(), timeout=10).models
    assert [(f"{one.name}/{one.version}", one.role) for one in listed] == [
        (BESIDE, "beside"),
        (BESIDE, "shadow"),
        (SERVED, "served"),
    ]
    ask = open_inference_pb2_grpc.GRPCInferenceServiceStub(house.channel(Identity.INFERENCE, Identity.OPERATOR))
    index = ask.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=10).models
    assert [f"{one.name}/{one.version}" for one in index] == [BESIDE, SERVED]
    name = MODEL.parent.name
    meant = ask.ModelMetadata(oip.ModelMetadataRequest(name=name), timeout=10)
    assert list(meant.versions) == [MODEL.name, BEFORE.name]
    configured = {
        version: ask.ModelConfig(oip.ModelConfigRequest(name=name, version=version), timeout=10)
        .config.parameters["model_sha256"]
        .string_value
        for version in ("", MODEL.name, BEFORE.name)
    }
    assert configured[""] == configured[MODEL.name] != configured[BEFORE.name]


def test_what_a_candidate_sees_is_recorded_beside_the_assessment_and_not_used(house: House) -> None:
    answer = house.assess(house.reference(chest(5, 55)))
    (shadowed,) = _until(
        lambda: [
            one
            for one in _leaves(house, audit_pb2.RECORD_KIND_SHADOWED)
            if one["event"]["assessed_index"] == answer.record_index
        ]
    )
    assert shadowed["pins"]["model"] == BESIDE
    assert shadowed["pins"]["model_sha256"] != answer.assessment.model.sha256
    assert shadowed["instance"] == answer.instance
    assert len(shadowed["event"]["findings"]) == len(answer.assessment.findings)
    assert 0.9 < float(shadowed["event"]["agreement"]) <= 1
    assert shadowed["event"]["changed"] >= 0
    (assessed,) = [one for one in house.entries(kind=3) if one.index == answer.record_index]
    assert json.loads(assessed.leaf)["pins"]["model"] == SERVED


def test_a_release_becomes_a_record_whose_proof_the_next_start_asks_for(house: House) -> None:
    proof = Path(house.settings.inference.release_proof)
    told = _until(lambda: _leaves(house, audit_pb2.RECORD_KIND_MODEL_SERVED))
    assert [(one["pins"]["model"], one["event"]["shadow"]) for one in told] == [(SERVED, BESIDE)]
    assert "released_index" not in told[0]["event"]
    command.release(MODEL, proof, house.file, json=True)
    command.release(MODEL, proof, house.file, json=True)  # the same act is the same record
    (released,) = _leaves(house, audit_pb2.RECORD_KIND_MODEL_RELEASED)
    event = released["event"]
    assert (released["producer"], released["pins"]["model"], event["requested_by"]) == ("inference", SERVED, "operator")
    assert (event["trained_by"], event["approved_by"]) == tuple(DEVELOPMENT_SIGNERS[role][-1] for role in _ROLES)
    assert event["gates"] == len(json.loads((MODEL / "manifest.json").read_text())["gates"]["outcomes"])
    _require(house)
    house.stop("inference")
    assert house.start("inference").startswith("ready inference "), house.errors.read_text()
    told = _until(lambda: _leaves(house, audit_pb2.RECORD_KIND_MODEL_SERVED)[1:])
    assert told[0]["event"]["released_index"] == released["index"]


_ROLES = ("trained_by", "approved_by")


def _require(house: House, **changed: str) -> None:
    """Change settings of inference in the house's file."""
    lines = house.file.read_text().splitlines()
    start = lines.index("[inference]")
    wanted = {"require_release_record": "true", **changed}
    kept = [line for line in lines if line.partition(" = ")[0] not in wanted]
    start = kept.index("[inference]")
    kept[start + 1 : start + 1] = [f"{name} = {value}" for name, value in wanted.items()]
    house.file.write_text("\n".join(kept) + "\n")


def test_going_back_to_a_model_whose_release_is_not_on_record_is_refused_where_that_is_asked_for(house: House) -> None:
    house.stop("inference")
    _require(house, model=json.dumps(str(BEFORE)))
    assert house.start("inference") == ""
    process = house.processes.pop("inference")
    assert process.wait(30) == 1
    assert json.loads(house.errors.read_text().splitlines()[-1])["error"] == "MODEL_DIGEST_MISMATCH"
    _require(house, model=json.dumps(str(BEFORE)), require_release_record="false")
    assert house.start("inference").startswith("ready inference "), house.errors.read_text()
    models = _until(lambda: [one["pins"]["model"] for one in _leaves(house, audit_pb2.RECORD_KIND_MODEL_SERVED)][2:])
    assert models == [BESIDE]
    assert house.assess(house.reference(chest(6, 66))).assessment.model.version == BEFORE.name


def test_a_release_that_strangers_signed_is_not_recorded(house: House, tmp_path: Path) -> None:
    for name in ("manifest.json", "signatures.json"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    (tmp_path / "manifest.json").write_bytes((MODEL / "manifest.json").read_bytes() + b" ")
    before = len(_leaves(house, audit_pb2.RECORD_KIND_MODEL_RELEASED))
    with pytest.raises(StepwedgeError) as caught:
        command.release(tmp_path, None, house.file, json=True)
    assert caught.value.name == "MODEL_DIGEST_MISMATCH"
    assert len(_leaves(house, audit_pb2.RECORD_KIND_MODEL_RELEASED)) == before
