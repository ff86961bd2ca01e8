"""Free ports for servers that are told theirs before they listen."""

import random
import socket
from typing import Final

# Below the range from which the kernel takes ports of outgoing connections: nobody is given one between now and then.
_RANGE: Final = range(10_240, 32_000)
_CHANCE: Final = random.SystemRandom()


def port() -> int:
    """A port on the loopback address that nobody listens on."""
    while True:
        number = _CHANCE.choice(_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            return number
