"""One and the same bytes for one and the same value: RFC 8785 (JCS), without floating-point numbers."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from shared.errors import ErrorCode, StepwedgeError

# I-JSON (RFC 7493 2.2): integers beyond this are not exact in every reader.
_LARGEST = 2**53 - 1
_DEEPEST = 100


def canonical_json(obj: object) -> bytes:
    """Return the canonical form of `obj` as UTF-8.

    Objects (with string keys), arrays, strings, integers within +-(2**53 - 1), booleans and null. Keys are sorted by
    UTF-16 code units (RFC 8785 3.2.3); strings are escaped as in RFC 8785 3.2.2.2.

    Raises
    ------
    StepwedgeError
        INVALID_REQUEST for a float, an integer out of range, a lone surrogate, or any other type.
    """
    pieces: list[str] = []
    _write(obj, pieces, 0)
    return "".join(pieces).encode("utf-8")


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _refuse(what: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, f"no canonical form: {what}")


def _write(obj: object, out: list[str], depth: int) -> None:
    if depth > _DEEPEST:
        raise _refuse("nested too deep")
    if obj is None or isinstance(obj, bool):
        out.append({None: "null", True: "true", False: "false"}[obj])
    elif isinstance(obj, int):
        if abs(obj) > _LARGEST:
            raise _refuse("an integer that JSON readers do not keep exact")
        out.append(str(int(obj)))
    elif isinstance(obj, str):
        out.append(_string(obj))
    elif isinstance(obj, Mapping):
        _write_object(obj, out, depth)
    elif isinstance(obj, Sequence) and not isinstance(obj, bytes | bytearray | memoryview):
        for position, item in enumerate(obj):
            out.append("," if position else "[")
            _write(item, out, depth + 1)
        out.append("]" if len(obj) else "[]")
    else:
        raise _refuse(f"a value of type {type(obj).__name__}")


def _write_object(obj: Mapping[object, object], out: list[str], depth: int) -> None:
    members: list[tuple[bytes, str, object]] = []
    for key, value in obj.items():
        if not isinstance(key, str):
            raise _refuse("a key that is not a string")
        name = _string(key)
        members.append((key.encode("utf-16-be"), name, value))
    members.sort(key=lambda member: member[0])
    out.append("{")
    for position, (_, name, value) in enumerate(members):
        out.append(f",{name}:" if position else f"{name}:")
        _write(value, out, depth + 1)
    out.append("}")


def _string(text: str) -> str:
    # Python's own escapes for the two quotes and the controls are those of RFC 8785 3.2.2.2; U+007F stays as it is.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _refuse("a lone surrogate")
    return json.dumps(str(text), ensure_ascii=False)


def decimal(value: float) -> str:
    """A number as the log takes it: plain decimal, at most six digits after the point, no trailing zeros."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
