"""JSON log lines on stderr that cannot name a patient: an allow-list of fields, and no text that we did not write.

A line holds a constant phrase (`event`), the service, the trace, and fields out of `ALLOWED_FIELDS`. Exceptions are
logged as their types and frames, never with their words, since those may quote a value. Lines of libraries keep their
logger, level and place; their text is withheld for the same reason.
"""

import asyncio
import logging
import re
import sys
import threading
import traceback
import types
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from shared.paths import displayed
from shared.tracing import current_trace_id

ALLOWED_FIELDS: frozenset[str] = frozenset(
    {
        # where and when
        *("event", "level", "logger", "timestamp", "service", "trace_id", "place", "build", "address", "pid"),
        # what was called, by whom, and how it ended
        *("method", "peer", "code", "error", "permanent", "duration_seconds", "outcome", "signal"),
        # errors
        *("error_type", "frames", "causes", "detail"),
        # what it was about: pseudonyms, digests and positions only
        *("subject", "study", "series", "instance", "sha256", "zone", "key", "index", "sequence", "revision"),
        # states and numbers
        *("state", "step", "attempt", "attempts", "verdict", "reason", "count", "size_bytes", "seconds"),
        # parts of the cluster
        *("dependency", "destination", "provider", "model", "database", "worker", "dropped_fields"),
    }
)
"""The only keys that reach a log line."""

_OURS = ("shared", "services", "cli", "__main__")
# A constant phrase: words of ours. No digit (so no number or date), no caret (so no DICOM person name).
_PHRASE = re.compile(r"[A-Za-z][A-Za-z ,;:'()./_-]{0,119}")
_WITHHELD = "withheld: an event is a constant phrase"
# What a field's text may look like: names of ours, pseudonyms, digests, addresses; no blank, so no sentence.
_TOKEN = re.compile(r"[A-Za-z0-9_.:/+@\[\]=-]{0,200}")
# Fields with a shape of their own, so that an original UID or number is not taken for its pseudonym.
_SHAPES: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys(("study", "series", "instance"), re.compile(r"(?:2\.25\.[0-9]{1,39})?")),
    "subject": re.compile(r"(?:SW-[A-Z2-7]{24}|[0-9a-f]{64})?"),
    "sha256": re.compile(r"(?:[0-9a-f]{64})?"),
}


def configure(service: str, level: str = "INFO") -> None:
    """Send every log line of this process to stderr as JSON; call once, first thing.

    Parameters
    ----------
    service
        Name that each line bears.
    level
        Least severe level that is written: "DEBUG", "INFO", "WARNING" or "ERROR".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in _OURS:
        logging.getLogger(ours).setLevel(level)
    # pynetdicom logs whole datasets below WARNING, and installs handlers of its own.
    for library in ("pydicom", "pynetdicom", "sqlalchemy", "alembic", "grpc", "boto3", "botocore", "urllib3"):
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
        logger.propagate = True
    logging.captureWarnings(True)
    logging.raiseExceptions = False
    _take_over_hooks()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of the module `name`; fields not in `ALLOWED_FIELDS` are dropped from its lines."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Log what goes wrong in `loop` outside any call, without values."""

    def handler(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        exception = context.get("exception")
        get_logger(__name__).error("unhandled error in the event loop", **describe(exception) if exception else {})

    loop.set_exception_handler(handler)


def describe(exception: BaseException) -> dict[str, Any]:
    """Return what may be logged of an exception: its type, its frames, and the types of its causes.

    Frames are "file:line", innermost last, at most 12. The text is left out: it may quote a value. A
    `StepwedgeError` adds its code, since its words are ours.
    """
    causes: list[str] = []
    cause = exception.__cause__ or exception.__context__
    while cause is not None and len(causes) < 8:
        causes.append(_type_name(cause))
        cause = cause.__cause__ or cause.__context__
    frames = [
        f"{displayed(frame.f_code.co_filename)}:{line}" for frame, line in traceback.walk_tb(exception.__traceback__)
    ]
    fields: dict[str, Any] = {"error_type": _type_name(exception), "frames": frames[-12:]}
    if causes:
        fields["causes"] = causes
    name = getattr(exception, "name", None)
    if type(exception).__name__ == "StepwedgeError" and isinstance(name, str):
        fields["error"] = name
    return fields


def _type_name(exception: BaseException) -> str:
    return f"{type(exception).__module__}.{type(exception).__qualname__}"


def _formatter(service: str) -> structlog.stdlib.ProcessorFormatter:
    def name_the_service(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        fields["service"] = service
        trace = current_trace_id()
        if trace:
            fields.setdefault("trace_id", trace)
        return fields

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_withhold_foreign_text],
        processors=[
            _exceptions_without_words,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            name_the_service,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            keep_allowed,
            structlog.processors.JSONRenderer(),
        ],
    )


def _withhold_foreign_text(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep of a library's line who said it, how grave it is and where; its text may quote a value."""
    record: logging.LogRecord = fields["_record"]
    fields["event"] = "message of a library"
    fields["logger"] = record.name
    fields["level"] = record.levelname.lower()
    fields["place"] = f"{displayed(record.pathname)}:{record.lineno}"
    return fields


def _exceptions_without_words(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record: logging.LogRecord | None = fields.get("_record")
    info = fields.pop("exc_info", None) or (record.exc_info if record is not None else None)
    if record is not None:
        # The formatter of the standard library would append the traceback, words and all.
        record.exc_info = None
        record.exc_text = None
        record.stack_info = None
    fields.pop("stack_info", None)
    exception = _exception_of(info)
    if exception is not None:
        fields.update(describe(exception))
    return fields


def _exception_of(info: object) -> BaseException | None:
    if isinstance(info, BaseException):
        return info
    if isinstance(info, tuple):
        return info[1] if len(info) == 3 and isinstance(info[1], BaseException) else None
    return sys.exc_info()[1] if info else None


def keep_allowed(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop every field that is not in `ALLOWED_FIELDS`; repair the event and the values of the rest."""
    dropped = sum(1 for key in fields if key not in ALLOWED_FIELDS)
    kept: dict[str, Any] = {
        key: _safe(value, _SHAPES.get(key, _TOKEN)) for key, value in fields.items() if key in ALLOWED_FIELDS
    }
    event = fields.get("event")
    kept["event"] = event if isinstance(event, str) and _PHRASE.fullmatch(event) else _WITHHELD
    if dropped:
        kept["dropped_fields"] = dropped
    return kept


class Words(str):
    """Text of ours that may be logged as it is, as the message of a StepwedgeError when a process refuses to start."""

    __slots__ = ()


def _safe(value: object, shape: re.Pattern[str] = _TOKEN) -> object:
    if isinstance(value, Words):
        return str(value)[:500]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        text = str(value)
        return text if shape.fullmatch(text) else "[withheld]"
    if isinstance(value, list | tuple):
        return [_safe(item, shape) for item in value[:32]]
    return f"[{type(value).__name__}]"


def _take_over_hooks() -> None:
    """Replace the interpreter's own printers of tracebacks, which print the words."""
    logger = get_logger(__name__)

    def uncaught(_: type[BaseException], exception: BaseException, __: types.TracebackType | None) -> None:
        if isinstance(exception, KeyboardInterrupt):
            return
        logger.critical("uncaught error", **describe(exception))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            logger.critical("uncaught error in a thread", **describe(args.exc_value))

    def unraisable(args: Any) -> None:
        if args.exc_value is not None:
            logger.error("error that could not be raised", **describe(args.exc_value))

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


# Lines go through the standard library, and nowhere before `configure` was called: a command that only uses our code
# must not find our lines in its output.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=False,
)
for _name in _OURS:
    logging.getLogger(_name).addHandler(logging.NullHandler())
