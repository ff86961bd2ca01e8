"""What is left out while the service is loaded, and only then."""

from __future__ import annotations

import importlib
import sys

import pytest

from services.inference.__main__ import without


def test_a_module_that_is_left_out_counts_as_absent_and_can_be_imported_later() -> None:
    sys.modules.pop("colorsys", None)
    with without(("colorsys",)), pytest.raises(ModuleNotFoundError):
        importlib.import_module("colorsys")
    assert importlib.import_module("colorsys").rgb_to_hsv


def test_a_module_that_is_loaded_already_stays() -> None:
    with without(("json",)):
        assert importlib.import_module("json") is sys.modules["json"]
