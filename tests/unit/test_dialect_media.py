"""Every place from which the engine would fetch something is found."""

from typing import Any

import pytest

from vllama.reasons import Reason
from vllamad.dialects.media import ONLY_DATA, addresses, refuse_address

FAR = "http://169.254.169.254/latest/meta-data"
DATA = "data:image/png;base64,aGk="


def content(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    "fields",
    [
        content({"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": FAR}}),
        content({"type": "image_url", "image_url": FAR}),
        content({"image_url": FAR}),
        content({"type": "text", "image_url": {"url": FAR}, "uuid": "1"}),
        content({"type": "input_image", "image_url": FAR}),
        content({"type": "image", "source": {"type": "url", "url": FAR}}),
        content({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": FAR}}]}),
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": FAR}]}]},
        {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": FAR}]}]},
        {"documents": {"content": [{"type": "image_url", "image_url": {"url": FAR}}]}, "query": "x"},
        {"system": [{"type": "image", "source": {"type": "url", "url": FAR}}]},
    ],
)
def test_an_image_is_found(fields: dict[str, Any]) -> None:
    (found,) = addresses(fields)
    assert (found.url, found.is_image) == (FAR, True)
    assert refuse_address(found).message == ONLY_DATA
    found.holder[found.key] = DATA
    assert addresses(fields) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", " http://x", "HTTP://x", "//x", "", "/etc/passwd"])
def test_whatever_is_no_data_url_is_an_address(url: str) -> None:
    assert [each.url for each in addresses(content({"type": "image_url", "image_url": {"url": url}}))] == [url]


@pytest.mark.parametrize("key", ["video_url", "audio_url", "file_url"])
def test_only_images_are_ever_fetched(key: str) -> None:
    (found,) = addresses(content({"type": key, key: {"url": FAR}}))
    assert not found.is_image
    error = refuse_address(found)
    assert error.reason is Reason.UNSUPPORTED and key in error.message


@pytest.mark.parametrize(
    "fields",
    [
        content({"type": "image_url", "image_url": {"url": DATA}}, {"type": "text", "text": FAR}),
        content({"type": "image_url", "image_url": {"url": "DATA:image/png;base64,aGk="}}),
        content({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}),
        content({"type": "tool_use", "id": "1", "name": "show", "input": {"image_url": FAR}}),
        {"input": [{"type": "function_call", "arguments": {"image_url": FAR}}]},
        {"messages": [], "tools": [{"function": {"parameters": {"properties": {"image_url": {"url": FAR}}}}}]},
        {"messages": [], "response_format": {"json_schema": {"schema": {"image_url": "x"}}}},
        {"messages": "nonsense", "input": 5},
    ],
)
def test_what_is_no_address_is_left_alone(fields: dict[str, Any]) -> None:
    assert addresses(fields) == []


def test_deep_bodies_need_no_stack() -> None:
    deep: Any = {"image_url": FAR}
    for _ in range(50_000):
        deep = [deep]
    assert len(addresses({"messages": deep})) == 1
