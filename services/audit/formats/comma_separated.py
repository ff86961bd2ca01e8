"""Records as CSV (RFC 4180), a row each, in columns that stay where they are, safe to open in a spreadsheet."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from services.audit import record
from services.audit.formats.facts import Event
from shared.spreadsheet import guard

_RECORD = (
    *("index", "id", "leaf_hash", "schema", "kind", "outcome", "producer", "recorded_at", "occurred_at"),
    *("subject", "study", "series", "instance", "trace_id", "key", "incarnation", "sequence", "repeats"),
)
_PINS = (
    *("input_commitment", "deidentified_sha256", "model_sha256", "model", "preprocessing", "preprocessed_sha256"),
    *("policy_sha256", "calibration_sha256", "profile_sha256", "profile_edition", "execution_provider"),
    *("software_build", "output_sha256"),
)
_IN_THE_LOG = ("first_index", "entries")
_ASKED = ("requested_by", "person", "purpose")
_EVENTS: Mapping[str, tuple[str, ...]] = {
    "received": ("channel", "sop_class_uid", "transfer_syntax_uid", "size_bytes", "conflict"),
    "redacted": ("actions", "method_codes", "burned_in_text_possible", "residual_hits", "refusal"),
    "assessed": ("findings", "measurements", "confidence"),
    "decided": ("verdict", "reasons", "revision", "previous_index", "instances", "attachment"),
    "delivered": ("destination", "objects", "revision"),
    "failed": ("step", "error", "permanent", "attempts"),
    "requeued": ("requested_by",),
    "alert": ("code", "about", "incarnation", "first_sequence", "last_sequence", "clock_step_ms", *_IN_THE_LOG),
    "erased": (*_ASKED, "reference", "keys", "identities", "tokens", "master_key", "refusal"),
    "hold": ("act", "hold", *_ASKED, "reference"),
    "pruned": ("requested_by", "person", "before", "classes", "removed", "ranges", "held", "refusal", "attachment"),
    "identity_looked_up": (*_ASKED, "reference", "index", "found"),
    "reviewed": (
        *("verdict", "decided", "revision", "decided_index", "reason", "reviewer", "role", "note_commitment"),
    ),
    "viewed": ("person", "role", "what"),
    "authenticated": ("person", "role", "act", "method", "by"),
    "key_rotated": ("old_key", "new_key", "from_size"),
    "read": ("reader", "method", "filters", "entries", "more", "refusal"),
    "refused_call": ("caller", "certificate_sha256", "method", "error", "count", "window_ms"),
}
_LATER_OF_REDACTION = ("key_id", "second_opinion", "blanked", "blanked_boxes")
_LATER_EVENTS = {
    "decided": ("findings", "measurements", "sites", "missing_instances", "missing_series", "unmet_rules", "forced_by"),
    "constancy": (
        *("baseline_sha256", "baseline_version", "baseline_set", "compared", "drifted", "values", "decided_index"),
        "requested_by",
    ),
    "delivered": ("contents", "routes", "shadow"),
    "model_released": (
        *("release_sha256", "trained_by", "approved_by", "gates_sha256", "gates", "targets_missed", "requested_by"),
    ),
    "model_served": ("release_sha256", "self_test", "shadow", "released_index"),
    "shadowed": ("assessed_index", "findings", "measurements", "confidence", "changed", "agreement"),
    "assessed": ("rungs",),
    "redacted": ("attributes",),
    "committed": ("request_commitment", "held", "missing", "received_indexes"),
    "requeued": ("person",),
    "viewed": ("studies", "more_studies"),
}
_LATER = ("retention", "identity_sha256", "clock.source", "clock.offset_us", "clock.max_error_us")
COLUMNS: tuple[str, ...] = (
    *_RECORD,
    *(f"pins.{name}" for name in _PINS),
    *(f"{kind}.{name}" for kind, names in _EVENTS.items() for name in names),
    *_LATER,
    *(f"redacted.{name}" for name in _LATER_OF_REDACTION),
    "read.person",
    *(f"{kind}.{name}" for kind, names in _LATER_EVENTS.items() for name in names),
    "other",
)
"""The columns, in order; new ones come at the end. Members that have none stand in `other` as canonical JSON."""


def header() -> bytes:
    """The first line."""
    return _line(COLUMNS)


def row(event: Event) -> bytes:
    """A record's line. Text and numbers stand as they are, lists as canonical JSON, an absent member as nothing.

    A cell that would begin with = + - @ tab CR LF or ' has an apostrophe before it, so that no spreadsheet takes it for
    a formula (a clock step back is '-5000); removing one leading apostrophe gives the value back.
    """
    cells, rest = dict(event.members), {}
    kind = event.members["kind"].lower()
    cells["leaf_hash"] = event.leaf_hash
    for path, name in (("event", kind), ("pins", "pins"), ("clock", "clock")):
        cells.update({f"{name}.{member}": value for member, value in cells.pop(path, {}).items()})
    rest = {name: value for name, value in cells.items() if name not in _KNOWN}
    if rest:
        cells["other"] = rest
    return _line([guard(_text(cells.get(name))) for name in COLUMNS])


_KNOWN = frozenset(COLUMNS)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return record.encode(value).decode()


def _line(cells: Any) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().encode()
