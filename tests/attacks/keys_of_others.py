"""Keys that are not the log's."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.transparency.cosignature import Cosigner
from shared.transparency.note import Signer
from tests.attacks.scene import ORIGIN

STRANGER = Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
"""Somebody who signs under the log's name."""

ONE_KEY = Ed25519PrivateKey.from_private_bytes(b"\x42" * 32)
TWINS = Cosigner("witness.example/a", ONE_KEY), Cosigner("witness.example/b", ONE_KEY)
"""Two witnesses by name, one by key."""
