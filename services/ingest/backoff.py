"""How long to wait after failed attempts."""

import random
from datetime import timedelta
from typing import Final

_LONGEST_SECONDS: Final = 300.0
_SPREAD: Final = 0.25


def jitter() -> float:
    """A factor about one, so that what failed together is not tried again together."""
    return random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311 - spreads load, guards nothing


def backoff(attempts: int) -> timedelta:
    """How long to wait after so many failed attempts: 2, 4, 8 seconds and so on, spread, five minutes at most."""
    return timedelta(seconds=_seconds(attempts) * jitter())


def longest_pause(attempts: int) -> timedelta:
    """The longest that `backoff` may say; nothing after none."""
    return timedelta(seconds=_seconds(attempts) * (1 + _SPREAD)) if attempts else timedelta()


def _seconds(attempts: int) -> float:
    return min(_LONGEST_SECONDS, 2.0 ** min(attempts, 16))
