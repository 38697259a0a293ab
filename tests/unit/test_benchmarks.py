"""The benchmarks' arithmetic, and how they read streamed answers; what they measure is not tested here."""

import json
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from benchmarks.answers import BadAnswer, read_answer
from benchmarks.plots import pictures
from benchmarks.report import Row, table
from benchmarks.samples import Samples, pair_ratios, turns


def test_samples_know_their_middle_and_their_ends() -> None:
    samples = Samples.of([3.0, 1.0, 10.0, 2.0])
    assert (samples.median, samples.least, samples.most, len(samples)) == (2.5, 1.0, 10.0, 4)


def test_nothing_measured_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Samples.of([])


def test_neighbours_are_compared_so_that_drift_falls_out() -> None:
    # The machine became twice as slow in between; one side is always a tenth slower than the other.
    slower, faster = Samples.of([90.0, 45.0, 45.0]), Samples.of([100.0, 50.0, 50.0])
    assert pair_ratios(slower, faster).values == pytest.approx([0.9, 0.9, 0.9])
    with pytest.raises(ValueError, match="shorter"):
        pair_ratios(slower, Samples.of([1.0, 1.0]))


def test_each_side_goes_first_as_often() -> None:
    assert list(turns(4)) == [(0, 1), (1, 0), (0, 1), (1, 0)]


def test_a_table_shows_median_ends_and_ratio() -> None:
    one, other = Samples.of([1.0, 3.0, 2.0]), Samples.of([2.0, 2.0, 2.0])
    lines = table([Row("a", "s", one, "b", other, pair_ratios(one, other)), Row("c", "MB", Samples.of([61.234]))])
    _, _, first, second = lines.splitlines()
    assert re.split("  +", first) == ["a", "3", "2.00 s (1.00 to 3.00)", "b 2.00 s", "1.00 (0.500 to 1.50)"]
    assert second.split() == ["c", "1", "61.2", "MB"]


def test_a_document_keeps_single_numbers() -> None:
    row = Row("a", "s", Samples.of([1.0, 3.0]), "b", Samples.of([2.0])).document()
    assert row["measured"] == {"median": 2.0, "min": 1.0, "max": 3.0, "samples": [1.0, 3.0]}
    assert row["compared"]["median"] == 2.0
    assert "ratio" not in row
    json.dumps(row)


OLLAMA = (
    b'{"message":{"role":"assistant","content":"Hel"},"done":false}\n',
    b'{"message":{"role":"assistant","content":"lo"},"done":false}\n',
    b'{"message":{"role":"assistant","content":""},"done":true,"eval_count":7}\n',
)
OPENAI = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"lo"}}],"usage":null}\n\n',
    b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n',
)


def test_tokens_are_the_engines_count_and_not_the_chunks() -> None:
    for answer in (read_answer("ollama", _reads(OLLAMA)), read_answer("openai", _reads(OPENAI))):
        assert (answer.tokens, answer.text) == (7, "Hello")


def test_the_first_token_is_there_when_its_line_is_whole() -> None:
    head, first, *rest = OPENAI
    reads = [(0.1, head + first[:9]), (0.2, first[9:-1]), (0.3, first[-1:]), *((0.4, line) for line in rest)]
    assert read_answer("openai", reads).first_s == 0.2  # the line is whole; the empty one behind it says nothing
    assert read_answer("ollama", [(0.5, b"".join(OLLAMA))]).first_s == 0.5


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (OLLAMA[:2], "without a count"),
        ((*OLLAMA[:1], b'{"error":"the engine failed"}\n'), "the engine failed"),
        ((), "without a count"),
    ],
)
def test_half_an_answer_is_no_measurement(lines: tuple[bytes, ...], why: str) -> None:
    with pytest.raises(BadAnswer, match=why):
        read_answer("ollama", _reads(lines))


def _reads(lines: Sequence[bytes]) -> list[tuple[float, bytes]]:
    return [(float(at), line) for at, line in enumerate(lines)]


def test_a_picture_shows_every_number_of_its_rows() -> None:
    one, other = Samples.of([30.0, 20.0, 25.0]), Samples.of([10.0, 11.0, 12.0])
    rows = [
        Row("fast source tokens alone, 16 streams: CPU of Ollama face", "µs/token", one, "a bare pipe", other),
        Row("/api/chat, 1 stream", "tokens/s", other, "the worker <directly>", one),
        Row("something else", "s", one),
    ]
    made = pictures(rows)
    assert set(made) == {"cpu-alone.svg", "engine.svg"}
    for picture in made.values():
        texts = [each.text for each in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
        assert any("25.0" in (text or "") for text in texts) and any("11.0" in (text or "") for text in texts)
    assert "the worker &lt;directly&gt;" in made["engine.svg"]
    assert pictures([rows[2]]) == {}
