"""The name in an answer is replaced whatever the cuts, and nothing else changes."""

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vllamad.dialects.renaming import Renamer

SERVED, ASKED = "smollm2:135m", "gpt-4o"
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"smollm2:135m","choices":[]}\n\n'
)

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,30}", fullmatch=True)
texts = st.text(st.sampled_from('"model:{}smolu2135,\\ é\n'), max_size=30)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def renamed(chunks: Sequence[bytes], served: str = SERVED, asked: str = ASKED) -> list[bytes]:
    renamer = Renamer(served, asked)
    return [*(renamer.feed(chunk) for chunk in chunks), renamer.flush()]


@given(names, names, st.lists(texts, max_size=4), st.lists(st.integers(0, 2000), max_size=12))
def test_any_cut_gives_the_same_bytes_with_the_other_name(
    served: str, asked: str, said: list[str], places: list[int]
) -> None:
    """What a model says is in strings, where a quote is escaped: it cannot look like the field."""
    frames = [{"id": "x", "model": served, "choices": [{"delta": {"content": text}}]} for text in said]
    stream = b"".join(b"data: " + json.dumps(f, separators=(",", ":")).encode() + b"\n\n" for f in frames)
    others = [frame | {"model": asked} for frame in frames]
    wanted = b"".join(b"data: " + json.dumps(f, separators=(",", ":")).encode() + b"\n\n" for f in others)
    assert b"".join(renamed(cut(stream, places), served, asked)) == wanted


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_cuts_make_no_difference_to_any_bytes(data: bytes, places: list[int]) -> None:
    data = data.replace(b"\x00", b'"model":"smollm2:135m"').replace(b"\x01", b'"model":"smol')
    assert b"".join(renamed(cut(data, places))) == data.replace(b'"model":"smollm2:135m"', b'"model":"gpt-4o"')


def test_a_whole_event_never_waits() -> None:
    first, second, rest = renamed([EVENT, EVENT])
    assert first == second == EVENT.replace(b"smollm2:135m", b"gpt-4o")
    assert rest == b""


def test_what_waits_is_shorter_than_the_field() -> None:
    renamer = Renamer(SERVED, ASKED)
    for end in range(1, len(EVENT)):
        renamer = Renamer(SERVED, ASKED)
        assert len(EVENT[:end]) - len(renamer.feed(EVENT[:end])) < len(b'"model":"smollm2:135m"')


def test_the_end_of_an_answer_is_not_kept() -> None:
    assert b"".join(renamed([b'{"a":"model', b'":"mod'])) == b'{"a":"model":"mod'
    assert renamed([b'{"model":"smollm2'])[-1] == b'"model":"smollm2'
