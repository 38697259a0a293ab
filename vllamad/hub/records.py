"""Small JSON documents in the state folder that nothing depends on (floor 2): one that is lost or damaged costs what
was known from it, so that is said once in the log, and it is begun anew. Blocking."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from vllamad.hub.solid import replace_file

T = TypeVar("T")


def read_record(
    path: Path, form: int, read: Callable[[dict[str, Any]], T], empty: T, name: str, log: logging.Logger
) -> T:
    """What ``read`` makes of a document of this format; ``empty`` if there is none. ``read`` may raise ValueError,
    KeyError, TypeError, AttributeError, RecursionError for what nobody can have written: then too, and ``name`` is how
    the log calls it."""
    try:
        document = cast(dict[str, Any], json.loads(path.read_bytes()))
        if document["format"] != form:
            raise ValueError(f"format {document['format']}: written by another version")
        return read(document)
    except FileNotFoundError:
        return empty
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s.unreadable path=%s why=%s: %s", name, path, type(error).__name__, error)
        return empty


def write_record(path: Path, form: int, content: dict[str, object]) -> None:
    """Write a document, whole or not at all. Raises OSError."""
    replace_file(path, encode_record(form, content))


def encode_record(form: int, content: dict[str, object]) -> bytes:
    """The bytes of a document."""
    return json.dumps({"format": form, **content}, indent=1).encode()
