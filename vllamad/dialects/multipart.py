"""Finding one field in a multipart body while it passes (floor 1).

Parts come in any order, and a file may be long: nothing of a part is kept but the value that is looked for. What is
held at any time is one part's head, one short value, or the end of a chunk in which a boundary may begin.
"""

import re

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError

MAX_HEAD_BYTES = 16 * 1024
MAX_VALUE_BYTES = 4 * 1024
MAX_BOUNDARY = 200
"""RFC 2046 allows 70."""

_PARAMETER = re.compile(r';\s*([A-Za-z0-9_*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))')
_PRINTABLE = re.compile(r"[!-~ ]+")


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names. Raises INVALID_REQUEST in Ollama's words."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise _wrong("request Content-Type isn't multipart/form-data")
    boundary = _parameters(content_type).get("boundary", "")
    if len(boundary) > MAX_BOUNDARY or not _PRINTABLE.fullmatch(boundary):
        raise _wrong("no multipart boundary param in Content-Type")
    return boundary.encode()


class FieldFinder:
    """Looks for the value of ``field``. ``value`` is None until it was found; ``is_over`` is true once the closing
    boundary was seen."""

    __slots__ = ("_data", "_field", "_is_wanted", "_mark", "_state", "is_over", "value")

    def __init__(self, boundary: bytes, field: str) -> None:
        self.value: str | None = None
        self.is_over = False
        self._mark = b"\r\n--" + boundary
        self._field = field
        self._is_wanted = False
        self._data = b"\r\n"  # the first boundary has no line before it
        self._state = self._skip

    def feed(self, chunk: bytes) -> None:
        """Look through the next bytes. Raises INVALID_REQUEST for what is no multipart body, or a value too long."""
        self._data += chunk
        while not self.is_over and self.value is None and self._state():
            pass
        if self.is_over or self.value is not None:
            self._data = b""

    # Each state takes what it can from the data, and says whether it got on to another.

    def _skip(self) -> bool:
        """In a part's content, or before the first one."""
        at = self._data.find(self._mark)
        if at < 0:
            if self._is_wanted:
                if len(self._data) > MAX_VALUE_BYTES + len(self._mark):
                    raise _wrong(f"the field {self._field} is longer than {MAX_VALUE_BYTES} bytes")
            else:
                self._data = self._data[-len(self._mark) :]
            return False
        if self._is_wanted:
            self.value = self._data[:at].decode("utf-8", "replace")
            return True
        self._data = self._data[at + len(self._mark) :]
        self._state = self._after_mark
        return True

    def _after_mark(self) -> bool:
        """Behind a boundary: two hyphens end the body, a line feed begins a part."""
        if self._data.startswith(b"--"):
            self.is_over = True
            return True
        end = self._data.find(b"\r\n")
        if end < 0:
            if len(self._data) > MAX_HEAD_BYTES:
                raise _wrong("what follows a boundary is no part")
            return False
        if self._data[:end].strip(b" \t"):
            # A longer boundary that begins like ours: content.
            self._state = self._skip
            return True
        self._data = self._data[end:]
        self._state = self._head
        return True

    def _head(self) -> bool:
        """In the lines that say what a part is."""
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD_BYTES:
            if len(self._data) > MAX_HEAD_BYTES:
                raise _wrong("the head of a part is too long")
            return False
        self._is_wanted = _field_name(self._data[:end].decode("utf-8", "replace")) == self._field
        self._data = self._data[end + 4 :]
        self._state = self._skip
        return True


def _field_name(head: str) -> str:
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return _parameters(value).get("name", "")
    return ""


def _parameters(value: str) -> dict[str, str]:
    """The parameters of a header's value, names in lower case."""
    return {name.lower(): bare or quoted for name, quoted, bare in _PARAMETER.findall(value)}


def _wrong(why: str) -> VllamaError:
    return VllamaError(
        Reason.INVALID_REQUEST,
        f"failed to parse multipart form: {why}",
        'send multipart/form-data with the fields "model" and "file"',
    )
