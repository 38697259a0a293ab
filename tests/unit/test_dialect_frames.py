"""Server-sent events in any cut."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from vllamad.dialects.frames import EventParser

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
PAYLOADS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30).map(str.encode)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(at)]


def feed_all(chunks: list[bytes]) -> list[bytes]:
    parser = EventParser()
    return [payload for chunk in chunks for payload in parser.feed(chunk)]


@settings(max_examples=40)
@given(st.lists(PAYLOADS, max_size=8), ENDS, st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cut_and_any_end_of_line_gives_the_same_payloads(
    payloads: list[bytes], end: bytes, places: list[int]
) -> None:
    stream = b"".join(b"data: " + payload + end + end for payload in payloads)
    assert feed_all(cut(stream, places)) == payloads


@settings(max_examples=40)
@given(st.lists(st.tuples(PAYLOADS, ENDS, ENDS), max_size=6), st.lists(st.integers(0, 10_000), max_size=8))
def test_mixed_ends_comments_and_other_fields(events: list[tuple[bytes, bytes, bytes]], places: list[int]) -> None:
    stream = b"".join(
        b": a comment" + first + b"event: x" + first + b"data:" + b" " + payload + first + b"id: 7" + second + second
        for payload, first, second in events
    )
    assert feed_all(cut(stream, places)) == [payload for payload, _, _ in events]


def test_several_data_lines_are_one_payload() -> None:
    assert feed_all([b"data: a\ndata: b\ndata\n\n"]) == [b"a\nb\n"]


def test_a_comment_between_events_is_no_event() -> None:
    assert feed_all([b": keep-alive\n\ndata: x\n\n: again\n\n"]) == [b"x"]


def test_an_event_without_its_blank_line_never_comes() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\n\ndata: b\n") == [b"a"]
    assert parser.has_rest
    assert parser.feed(b"\n") == [b"b"]
    assert not parser.has_rest
