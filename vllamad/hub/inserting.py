"""Filling in the middle (floor 2, pure but for reading a file): how a model that was trained for it wants its prompt.

A tokenizer that has the marks as tokens of their own belongs to such a model. The marks are those of the families that
have published them; the order of prompt and suffix differs.
"""

import json
from pathlib import Path
from typing import Any, cast

_FORMATS = (
    "<|fim_prefix|>{prompt}<|fim_suffix|>{suffix}<|fim_middle|>",  # Qwen coder, CodeGemma
    "<fim_prefix>{prompt}<fim_suffix>{suffix}<fim_middle>",  # StarCoder, Granite code
    "<fim-prefix>{prompt}<fim-suffix>{suffix}<fim-middle>",  # SantaCoder
    "<｜fim▁begin｜>{prompt}<｜fim▁hole｜>{suffix}<｜fim▁end｜>",  # DeepSeek coder
    "[SUFFIX]{suffix}[PREFIX]{prompt}",  # Codestral
    "▁<PRE>{prompt}▁<SUF>{suffix}▁<MID>",  # Code Llama, whose tokens begin with the mark of a blank
)
_MARKS_OF = {each: each.replace("{prompt}", " ").replace("{suffix}", " ").split() for each in _FORMATS}
_WRITTEN = {_FORMATS[-1]: "<PRE> {prompt} <SUF>{suffix} <MID>"}
_LARGEST_BYTES = 128 << 20


def insert_format(folder: Path) -> str:
    """The prompt with ``{prompt}`` and ``{suffix}`` in their places, or "" if the tokenizer has no such marks."""
    tokens = _special_tokens(folder)
    for form, marks in _MARKS_OF.items():
        if tokens.issuperset(marks):
            return _WRITTEN.get(form, form)
    return ""


def _special_tokens(folder: Path) -> set[str]:
    """The tokens that a tokenizer's files name as added; Code Llama's are part of its vocabulary."""
    found: set[str] = set()
    for name in ("tokenizer_config.json", "added_tokens.json", "tokenizer.json"):
        path = folder / name
        if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
            continue
        try:
            document = cast(dict[str, Any], json.loads(path.read_bytes()))
        except ValueError:
            continue  # the engine will say more about it than we can
        if name == "added_tokens.json":
            found.update(document)
        elif name == "tokenizer_config.json":
            added = cast(dict[str, Any], document.get("added_tokens_decoder") or {})
            found.update(str(each.get("content")) for each in added.values())
        else:
            listed = cast(list[dict[str, Any]], document.get("added_tokens") or [])
            found.update(str(each.get("content")) for each in listed)
            model = cast(dict[str, Any], document.get("model") or {})
            vocabulary = cast(dict[str, Any], model.get("vocab") or {})
            found.update(mark for mark in _MARKS_OF[_FORMATS[-1]] if mark in vocabulary)
    return found
