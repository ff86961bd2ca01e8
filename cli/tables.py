"""Write settings as TOML: the few kinds of value that the settings have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def dumps(settings: Mapping[str, Any]) -> str:
    """TOML 1.0 text of nested mappings of strings, numbers, booleans, lists and lists of mappings; None is left out."""
    return "\n".join(_table(settings, ())).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], name: tuple[str, ...], *, of_array: bool = False) -> list[str]:
    plain = {key: value for key, value in table.items() if value is not None and not _is_table(value)}
    lines: list[str] = []
    if name and (plain or of_array or not table):
        header = ".".join(name)
        lines += ["", f"[[{header}]]" if of_array else f"[{header}]"]
    lines += [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _table(value, (*name, key))
        elif _is_table(value):
            for item in value:
                lines += _table(item, (*name, key), of_array=True)
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped too.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
