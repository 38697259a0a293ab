"""Our plugin for lines, as the fake engine has it loaded: from PYTHONPATH, as vLLM does. Pure.

What vLLM's writer would send becomes lines up to the end, and behind the mark what it sends when all tokens come at
once.
"""

import importlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from engine_answers import sse

ROUTE = "/vllama/lines"
MARK = b"\x1e"


def told(*, thinks: bool, is_other: bool) -> dict[str, Any]:
    """The handshake's answer."""
    plugin: Any = importlib.import_module("vllama_lines")
    lines = plugin.Lines()
    answer = {"version": plugin.VERSION, "digest": "0" if is_other else lines._digest}
    return answer | {"objection": "a parser for thinking reads its answers" if thinks else ""}


def written(events: Iterable[bytes], line: list[str]) -> Iterator[bytes]:
    """The stream that the plugin makes of vLLM's events."""
    plugin: Any = importlib.import_module("vllama_lines")
    before_time, before_text, after = line
    ids: list[int] = []
    prompt_ids: list[int] = []
    rest: list[bytes] = []
    stamp = plugin.Stamp()
    for event in events:
        (choice,) = json.loads(event.removeprefix(b"data: "))["choices"] or [{}]
        text = choice.get("delta", {}).get("content")
        ids += choice.get("token_ids") or []
        prompt_ids += choice.get("prompt_token_ids") or []
        if text:
            yield f"{before_time}{stamp(time.time_ns())}{before_text}{plugin.quoted(text)}{after}".encode()
        else:
            rest.append(event)
    if ids:
        choice = {"index": 0, "delta": {"content": ""}, "token_ids": ids, "prompt_token_ids": prompt_ids}
        rest.insert(1, sse({"choices": [choice]}))
    yield MARK + b"".join(rest)
