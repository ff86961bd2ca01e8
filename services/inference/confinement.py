"""What the inference process may open of the file system: its code, its model, its own certificate, and the zone of
de-identified objects; so that it cannot read an original even where the same user owns both."""

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from shared import confine, keys, paths, settings
from shared.errors import StepwedgeError
from shared.identity import Identity
from shared.settings import Settings

_CODE = ("shared", "services", "cli", "verifier", "protos", "stepwedge", "pyproject.toml")
"""Of the checkout: what is imported, and what the digest of the build covers."""
_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/bin", "/etc", "/run/systemd/resolve"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm", "/proc/driver"),
    *("/sys/devices/system", "/sys/fs/cgroup", "/sys/bus/pci", "/sys/module/nvidia"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/dev/tty")


def confined() -> bool:
    """Confine this process by the settings; False where the kernel cannot, or the settings do not read.

    Settings that are wrong are reported by what comes after, in one place for all services.
    """
    try:
        configuration = settings.load()
    except StepwedgeError:
        return False
    write = list(writable(configuration))
    for folder in write:
        if not folder.exists() and not str(folder).startswith("/dev"):
            folder.mkdir(parents=True, mode=0o750, exist_ok=True)
    return confine.confine(list(readable(configuration)), write)


def readable(configuration: Settings) -> Iterator[Path]:
    """Files and folders that may be read: not the folder of all data, and no certificate or key of another."""
    yield from (paths.ROOT / name for name in _CODE)
    inference = configuration.inference
    yield from (inference.model, *inference.open_inference.models, inference.release_proof)
    yield from (inference.remote.ca, inference.remote.certificate, inference.remote.key)
    if inference.shadow.model != Path():
        yield inference.shadow.model
    yield from (Path(place) for place in {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()})
    yield from (Path(place) for place in _SYSTEM)
    yield configuration.cluster.keys / keys.VERIFICATION  # public
    pki, own = configuration.cluster.pki, Identity.INFERENCE.value
    yield from (pki / name for name in ("ca.crt", f"{own}.crt", f"{own}.key"))
    for variable in (settings.FILE_VARIABLE, "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "SSL_CERT_FILE"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    if configuration.objects.s3_ca:
        yield Path(configuration.objects.s3_ca)


def writable(configuration: Settings) -> Iterator[Path]:
    """Files and folders that may be read and changed."""
    if configuration.objects.kind == "directory":
        yield Path(configuration.objects.deidentified)
    else:
        yield configuration.objects.scratch
    yield from (Path(device) for device in _DEVICES)
    yield from Path("/dev").glob("nvidia*")
