"""How the settings have the model run."""

from __future__ import annotations

from pathlib import Path

from services.inference.backends import REMOTE, Execution, Remote
from services.inference.batching import Batching
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import DynamicBatching, Inference


def execution(section: Inference) -> Execution:
    """As `registry.load` takes it. Raises CONFIGURATION where a file of `remote` cannot be read."""
    remote = section.remote
    return Execution(
        backend=section.backend,
        provider=section.provider,
        threads=section.threads,
        remote=Remote(
            address=remote.address,
            model=remote.model,
            version=remote.version,
            server_name=remote.server_name,
            ca=_read("ca", remote.ca),
            certificate=_read("certificate", remote.certificate),
            key=_read("key", remote.key),
            timeout_seconds=remote.timeout_seconds,
        )
        if section.backend == REMOTE
        else None,
    )


def batching(section: DynamicBatching) -> Batching:
    """As `registry.Model.batched` takes it."""
    return Batching(
        section.max_batch_size,
        tuple(section.preferred_batch_size),
        section.max_queue_delay_microseconds,
        section.max_queue_size,
    )


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        words = f"the file of inference.remote.{name} cannot be read"
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words) from None
