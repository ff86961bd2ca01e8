"""Every code has a class, every method of the contracts its callers."""

import pickle
from importlib import import_module
from pkgutil import iter_modules

import grpc
import pytest
from google.rpc import error_details_pb2

from shared import access
from shared.errors import MEANING, ErrorCode, StepwedgeError, to_status
from shared.identity import Identity

CONTRACTS = ("audit", "redaction", "inference", "ingest")


def _methods() -> dict[str, bool]:
    """Full name of each method of the contracts -> whether either side streams."""
    found = {}
    for name in CONTRACTS:
        package = import_module(f"stepwedge.{name}.v1")
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("_pb2"):
                continue
            for service in import_module(module.name).DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    found[f"/{service.full_name}/{method.name}"] = method.client_streaming or method.server_streaming
    return found


@pytest.mark.parametrize("code", [number for _, number in ErrorCode.items()])
def test_every_code_has_a_status_and_travels_as_error_info(code: ErrorCode.ValueType) -> None:
    error = StepwedgeError(code, "words")
    status, rich = to_status(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not grpc.StatusCode.OK
    assert rich.code == status.value[0]
    assert rich.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("stepwedge", error.name)
    assert info.metadata["permanent"] == ("true" if error.permanent else "false")
    assert "ERROR_CODE" not in error.name


def test_every_code_is_said_in_plain_words() -> None:
    assert set(MEANING) == {number for _, number in ErrorCode.items()}
    assert len(set(MEANING.values())) == len(MEANING)
    assert not any("_" in words or words.endswith(".") for words in MEANING.values())


def test_an_error_comes_back_from_a_child_process_as_it_was() -> None:
    error = StepwedgeError(ErrorCode.ERROR_CODE_NOT_DICOM, "words", permanent=False)
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.message, again.permanent) == (error.code, error.message, False)


def test_every_method_of_the_contracts_names_its_callers_and_the_table_names_no_other() -> None:
    ours = {method for method in access.METHODS if method.startswith("/stepwedge.")}
    assert ours == set(_methods())
    assert all(access.METHODS.values())


def test_only_the_front_door_and_the_log_are_open_to_anyone_but_services() -> None:
    people = {Identity.OPERATOR, Identity.AUDITOR, Identity.PACS, Identity.CONSOLE}
    for method, callers in access.METHODS.items():
        if method.endswith(("/RedactInstance", "/AssessInstance", "/Append", "/AppendStream")):
            # The console is a service too: it records what people do in it.
            assert not callers & people - ({Identity.CONSOLE} if "/Append" in method else set()), method
        if Identity.PACS in callers:
            assert method.startswith(("/stepwedge.ingest.v1.", "/grpc.health.v1."))


def test_the_channel_retries_only_unary_methods_that_exist() -> None:
    methods = _methods()
    for method in access.RETRIED:
        assert methods[method] is False
