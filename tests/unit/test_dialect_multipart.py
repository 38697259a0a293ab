"""One field of a form is found wherever it stands, and next to nothing is kept meanwhile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamad.dialects.multipart import MAX_HEAD_BYTES, FieldFinder, boundary_of
from vllamad.domain.errors import VllamaError

BOUNDARY = "x7-Boundary"


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def file_part(content: bytes) -> bytes:
    return part("file", content, '; filename="name=model.wav"\r\nContent-Type: audio/wav')


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def find(data: bytes, places: list[int] | None = None, field: str = "model") -> FieldFinder:
    finder = FieldFinder(BOUNDARY.encode(), field)
    ends = sorted({place % (len(data) + 1) for place in places or []})
    for a, b in zip([0, *ends], [*ends, len(data)], strict=True):
        finder.feed(data[a:b])
    return finder


contents = st.binary(max_size=300).map(lambda data: data.replace(b"\x07", b"\r\n--x7-").replace(b"\x08", b"\r\n"))


@given(contents, st.booleans(), st.lists(st.integers(0, 2000), max_size=20))
def test_any_order_and_any_cut(content: bytes, is_last: bool, places: list[int]) -> None:
    parts = [file_part(content), part("language", b"en"), part("model", b"whisper:base")]
    finder = find(form(*(parts if is_last else reversed(parts))), places)
    assert finder.value == "whisper:base"


@given(contents, st.lists(st.integers(0, 2000), max_size=20))
def test_a_form_without_the_field_has_an_end(content: bytes, places: list[int]) -> None:
    finder = find(form(file_part(content), part("language", b"en")), places)
    assert finder.value is None and finder.is_over


def test_a_field_may_be_empty_and_may_be_written_differently() -> None:
    assert find(form(part("model", b""))).value == ""
    bare = f"--{BOUNDARY}\r\ncontent-disposition:form-data;name=model\r\n\r\nm\r\n".encode()
    assert find(form(bare)).value == "m"
    preamble = b"to be ignored\r\n"
    assert find(preamble + form(part("model", b"m"))).value == "m"


def test_a_long_file_is_not_kept() -> None:
    finder = FieldFinder(BOUNDARY.encode(), "model")
    finder.feed(form(file_part(b""))[: -len(f"\r\n--{BOUNDARY}--\r\n")])
    for _ in range(200):
        finder.feed(b"\r\n-" * 5000)
        assert len(finder._data) < 100  # pyright: ignore[reportPrivateUsage]
    finder.feed(b"\r\n" + form(part("model", b"m")))
    assert finder.value == "m"


@pytest.mark.parametrize(
    ("content_type", "told"),
    [
        ("application/json", "request Content-Type isn't multipart/form-data"),
        ("", "request Content-Type isn't multipart/form-data"),
        ("multipart/form-data", "no multipart boundary param in Content-Type"),
        ("multipart/form-data; boundary=" + "x" * 300, "no multipart boundary param in Content-Type"),
    ],
)
def test_what_is_no_form_is_refused_in_ollamas_words(content_type: str, told: str) -> None:
    with pytest.raises(VllamaError, match=f"failed to parse multipart form: {told}") as caught:
        boundary_of(content_type)
    assert caught.value.reason is Reason.INVALID_REQUEST


def test_boundaries_with_and_without_quotes() -> None:
    assert boundary_of('multipart/form-data; charset=utf-8; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Form-Data; Boundary=abc") == b"abc"


@pytest.mark.parametrize(
    "data",
    [
        b"--x7-Boundary\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES,
        b"--x7-Boundary" + b"z" * (MAX_HEAD_BYTES + 10),
        part("model", b"m" * 10_000),
    ],
)
def test_heads_and_values_without_end_are_refused(data: bytes) -> None:
    with pytest.raises(VllamaError):
        find(data)
