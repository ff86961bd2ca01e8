"""A request to the DICOMweb door that was let in."""

from dataclasses import dataclass

from starlette.requests import Request

from services.ingest.dicomweb.house import House
from services.ingest.dicomweb.tokens import Client
from shared import dicom
from shared.errors import ErrorCode, StepwedgeError


@dataclass(frozen=True, slots=True)
class Call:
    """The request, who makes it, and what answers it."""

    request: Request
    house: House
    client: Client

    def uid(self, name: str) -> str:
        """A UID of the address; empty where the address has none. Raises INVALID_REQUEST where it is no UID."""
        value = str(self.request.path_params.get(name, ""))
        if value and not dicom.is_uid(value):
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, f"the {name} in the address is no UID")
        return value
