"""Which software this is: the version, and a digest of the sources that run."""

import functools
import hashlib

from shared.paths import ROOT

VERSION = "0.1.0"

_ROOTS = ("shared", "services", "cli", "verifier", "protos")
_SUFFIXES = frozenset({".py", ".proto", ".toml", ".csv", ".json"})


@functools.cache
def software_build() -> str:
    """Return "<version>+<first 16 hexadecimal digits of the digest of the sources>".

    The digest covers the name and the bytes of every source file that a service can run, so that it names what really
    ran, also in a checkout with changes and in a container without git.
    """
    digest = hashlib.sha256()
    for path in sorted(
        (path for root in _ROOTS for path in (ROOT / root).rglob("*") if path.suffix in _SUFFIXES and path.is_file()),
        key=lambda path: path.relative_to(ROOT).as_posix(),
    ):
        name = path.relative_to(ROOT).as_posix().encode()
        digest.update(len(name).to_bytes(4, "big") + name)
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{VERSION}+{digest.hexdigest()[:16]}"
