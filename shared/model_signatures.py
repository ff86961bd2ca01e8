"""Who stands behind a released model: two people, two keys, one manifest."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURES: Final = "signatures.json"
"""Beside manifest.json in the folder of a release."""
ROLES: Final = ("trained_by", "approved_by")
"""Who made the model, and who, being somebody else, let it out."""
DEVELOPMENT_SIGNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "trained_by": ("R7neBpCZqcukd81NmqOSOira6Emhw4HMW+k/wlgSE+g=", "ajju0LI+ZBbp0jLTFiCa8lE+CQz4sn+Xs5fRRldSXmc="),
    "approved_by": ("v6bcSsAwy1rqmGfYFBMAsbCSb42pK8gGH+sG+5pRmtA=", "H5u00nOQ8siABU22lF9tbGQGchXJ3LnNe84yn0hECEo="),
}
"""Public keys (Ed25519, base64) of the shipped models. They are development keys: made for a release and thrown away
after it, so nobody vouches for the model with them. Who serves patients approves a release with a key of their own and
names it in the settings (`inference.model_signers`)."""

_CONTEXT: Final = b"stepwedge model release v1\n"


def signed_bytes(role: str, manifest: bytes) -> bytes:
    """What a role signs: the manifest, byte by byte, under the role's name; no signature serves for the other."""
    return _CONTEXT + role.encode() + b"\n" + manifest


def public(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public key as settings name it: 32 bytes in base64."""
    one = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return base64.b64encode(one.public_bytes_raw()).decode()


def signature(manifest: bytes, role: str, key: Ed25519PrivateKey) -> dict[str, str]:
    """One role's row of signatures.json."""
    signed = base64.b64encode(key.sign(signed_bytes(role, manifest))).decode()
    return {"role": role, "key": public(key), "signature": signed}


def sign(manifest: bytes, keys: Mapping[str, Ed25519PrivateKey]) -> bytes:
    """The content of signatures.json, by the roles of `keys` in their order: for a release, both of `ROLES`. Raises
    ValueError where one key is to sign for both."""
    if not set(keys) <= set(ROLES) or len({public(key) for key in keys.values()}) != len(keys):
        raise ValueError("a release is signed in two roles, by two different keys")
    rows = [signature(manifest, role, keys[role]) for role in ROLES if role in keys]
    return (json.dumps({"schema": 1, "signatures": rows}, indent=1) + "\n").encode()


def lacking(manifest: bytes, signatures: bytes, trusted: Mapping[str, Collection[str]]) -> str:
    """Why these signatures do not release this manifest, in words; empty where they do.

    `trusted`: the public keys of each role, base64. A key that is trusted in both roles counts in neither: one person
    may not approve their own work.
    """
    try:
        content = json.loads(signatures)
        rows: list[Any] = content["signatures"]
        if content["schema"] != 1 or [row["role"] for row in rows] != list(ROLES):
            return "the signatures are not those of both roles"
        found = {str(row["role"]): (str(row["key"]), _bytes(row["signature"])) for row in rows}
    except (ValueError, KeyError, TypeError, RecursionError):
        return "the signatures do not read"
    if len({key for key, _ in found.values()}) != len(ROLES):
        return "one key signed in both roles"
    for role, (key, signature) in found.items():
        others = {one for other in ROLES if other != role for one in trusted.get(other, ())}
        if key not in trusted.get(role, ()) or key in others:
            return f"the key that signed as {role} is not one of those that the settings trust"
        try:
            Ed25519PublicKey.from_public_bytes(_bytes(key)).verify(signature, signed_bytes(role, manifest))
        except (InvalidSignature, ValueError):
            return f"the signature as {role} is not one of this manifest"
    return ""


def _bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
