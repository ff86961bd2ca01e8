"""What a witness is told: arguments before a TOML file of its own, which knows nothing of the cluster's."""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Endpoint, Section


class WitnessSettings(Section):
    """The settings; relative paths start at the folder of the file, or at the working directory."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    listen: Endpoint = "127.0.0.1:7201"
    """Where HTTP is served, host:port; port 0 for any free one."""
    state: Path = Path("witness.state")
    """File that remembers the newest checkpoint of each log."""
    key: Path = Path("witness.key")
    """File of the private key, mode 0600."""
    logs: list[str] = Field(default_factory=list)
    """Verification keys of the logs that are witnessed ("name+hash+key"); the name is the log's origin."""
    rotations: list[Path] = Field(default_factory=list)
    """Files that `stepwedge log rotate-key` wrote, each the proof that a log changed its key (C2SP tlog-proof)."""
    certificate: Path | None = None
    """PEM file of the certificate chain for TLS; without it plain HTTP is served."""
    certificate_key: Path | None = None
    """PEM file of the certificate's private key."""

    @model_validator(mode="after")
    def _certificate_with_its_key(self) -> Self:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("certificate and certificate_key come together")
        return self


def load(file: Path | None, **given: object) -> WitnessSettings:
    """The settings of `file` with what is `given` (None: not given) before them. Raises CONFIGURATION."""
    values: dict[str, object] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            raise _wrong("the settings of the witness cannot be read") from None
        for name in ("state", "key", "certificate", "certificate_key"):
            if isinstance(value := values.get(name), str):
                values[name] = file.resolve().parent / Path(value).expanduser()
        if isinstance(listed := values.get("rotations"), list):
            values["rotations"] = [file.resolve().parent / Path(str(one)).expanduser() for one in listed]
    values.update((name, value) for name, value in given.items() if value is not None)
    try:
        return WitnessSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        raise _wrong(f"{key}: {first['msg']}") from None


def _wrong(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)
