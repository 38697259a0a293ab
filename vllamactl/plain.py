"""Protobuf messages as JSON for scripts (floor 4).

Field names are the proto's. Unlike protobuf's own JSON, 64-bit numbers are numbers, spans are seconds (and say so:
``load_duration`` becomes ``load_duration_s``), and every field is there: unset ones are empty, or null.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

Plain = dict[str, Any]


def plain(message: Message) -> Plain:
    """Return a message as a dict that json can write."""
    result: Plain = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            result[field.name] = dict(value)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            result[field.name] = [_one(field, item) for item in cast(Sequence[Any], value)]
        elif field.containing_oneof is not None and not message.HasField(field.name):
            continue  # of alternatives only the one that holds; unset optional fields likewise
        elif kind is not None and kind.full_name == "google.protobuf.Duration":
            result[field.name + "_s"] = _one(field, value) if message.HasField(field.name) else None
        elif kind is not None and not message.HasField(field.name):
            result[field.name] = None
        else:
            result[field.name] = _one(field, value)
    return result


def _one(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return datetime.fromtimestamp(seconds_of(value), UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Duration):
        return seconds_of(value)
    if isinstance(value, Message):
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value


def seconds_of(value: Timestamp | Duration) -> float:
    """Return an instant as seconds since the epoch, or a span as seconds."""
    return value.seconds + value.nanos / 1e9
