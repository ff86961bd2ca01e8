"""The workshop needs its extra: without it every test here says so and skips."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `training` where torch is missing."""
    if importlib.util.find_spec("torch") is None:
        skip = pytest.mark.skip(reason="needs torch: pip install -e '.[train]'")
        for item in items:
            if "training" in item.keywords:
                item.add_marker(skip)
