"""The pure part of `vllamactl bench`: what is asked and when, how answers are read, what the numbers say."""

import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamactl.bench.answers import Api, Exchange, Fault, Sample, body, read_exchange, read_refusal
from vllamactl.bench.comparing import FEWEST_PAIRS, Comparison, Row, compare
from vllamactl.bench.figures import Limits, Played, Spread, figures, least_count, percentile, worst_reason
from vllamactl.bench.http import Target, base_url
from vllamactl.bench.options import Options
from vllamactl.bench.plan import Level, arrivals, turns
from vllamactl.bench.report import page, rate, seconds
from vllamactl.bench.running import Bench, Record, Results
from vllamactl.bench.view import BenchView
from vllamactl.bench.workload import BadWorkload, Workload, marks, question, read_rows, stories
from vllamactl.console import Console
from vllamactl.exits import CtlError

FINITE = st.floats(0, 1e6, allow_nan=False)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_rows_are_prompts_or_conversations_with_limits_of_their_own() -> None:
    text = '{"prompt": "a\u2028b"}\n\n{"messages": [{"role": "system", "content": "s"}], "max_tokens": 7}\n'
    first, second = read_rows(text, 40)
    assert first == question("a\u2028b", 40)
    assert (second.messages, second.max_tokens) == (({"role": "system", "content": "s"},), 7)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "line 2: is no JSON"),
        ('["x"]', "line 2: is no object"),
        ('{"promt": "x"}', "line 2: 'promt' is not known: rows have prompt, messages, max_tokens"),
        ('{"max_tokens": 4}', "line 2: needs either prompt or messages"),
        ('{"prompt": "x", "messages": []}', "line 2: needs either prompt or messages"),
        ('{"prompt": " "}', "line 2: prompt must be a text"),
        ('{"prompt": "x", "max_tokens": true}', "line 2: max_tokens must be a whole number from 1 on, not True"),
        ('{"messages": []}', "line 2: messages must be a list"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "line 2: a message must have a role"),
        ('{"messages": [{"role": "user", "content": "x", "images": []}]}', "nothing else"),
    ],
)
def test_a_wrong_row_is_told_by_its_line_and_field(line: str, says: str) -> None:
    with pytest.raises(BadWorkload) as refused:
        read_rows(f'{{"prompt": "x"}}\n{line}', 8)
    assert says in str(refused.value)


def test_a_workload_without_rows_is_refused() -> None:
    with pytest.raises(BadWorkload, match="has no rows"):
        read_rows("\n \n", 8)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_distinct_prompts_differ_from_their_beginning_on(nonce: int, count: int) -> None:
    asks = Workload(stories(8), "", is_distinct=True).round(0, count, marks(nonce))
    beginnings = [ask.messages[0]["content"][:10] for ask in asks]
    assert len(set(beginnings)) == count


def test_a_round_goes_on_where_the_last_one_ended_and_knows_what_repeats() -> None:
    asks = tuple(question(text, 8) for text in "abc")
    same = Workload(asks, "", is_distinct=False)
    assert [ask.messages[0]["content"] for ask in same.round(2, 4, marks(0))] == ["c", "a", "b", "c"]
    assert [same.repeats(count) for count in (2, 3, 5)] == [0, 0, 2]
    assert Workload(asks, "", is_distinct=True).repeats(5) == 0


# --- when ------------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 1000), st.integers(1, 200), st.integers(0, 100))
def test_arrivals_are_those_of_the_seed_and_in_order(rate_: float, count: int, seed: int) -> None:
    instants = arrivals(rate_, count, seed)
    assert instants == arrivals(rate_, count, seed)
    assert len(instants) == count
    assert instants == sorted(instants)
    assert instants[0] >= 0


def test_arrivals_come_at_the_rate_and_do_not_know_of_each_other() -> None:
    gaps = [later - earlier for earlier, later in pairwise([0.0, *arrivals(4.0, 20_000, 1)])]
    assert statistics.mean(gaps) == pytest.approx(1 / 4, rel=0.03)
    # Of exponential gaps deviation and mean are the same; of even ones the deviation is none.
    assert statistics.stdev(gaps) == pytest.approx(1 / 4, rel=0.03)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True), st.integers(1, 6), st.integers(1, 2))
def test_both_sides_are_asked_the_same_and_neither_always_goes_first(users: list[int], rounds: int, sides: int) -> None:
    levels = tuple(Level(users=count) for count in users)
    plan = list(turns(levels, tuple(users), rounds, sides))
    assert len(plan) == rounds * len(levels) * sides
    beside = [plan[at : at + sides] for at in range(0, len(plan), sides)]
    for turn in beside:
        assert len({(each.round, each.level, each.requests, each.first_request) for each in turn}) == 1
        assert {each.side for each in turn} == set(range(sides))
    for level in levels:
        first = [turn[0].side for turn in beside if turn[0].level == level]
        assert first == [(first[0] + at) % sides for at in range(rounds)], "they take turns at each level"
    numbers = [range(turn[0].first_request, turn[0].first_request + turn[0].requests) for turn in beside]
    assert [number for each in numbers for number in each] == list(range(rounds * sum(users)))


def test_a_level_is_users_or_a_rate() -> None:
    assert [Level(users=1).label, Level(users=4).label, Level(rate=2.5).label] == ["1 user", "4 users", "2.5/s"]
    for wrong in ({}, {"users": 1, "rate": 1.0}):
        with pytest.raises(ValueError, match="either"):
            Level(**wrong)


# --- answers ---------------------------------------------------------------------------------------------------------


def ollama(*texts: str, tokens: int = 0, **last: Any) -> list[bytes]:
    lines: list[dict[str, Any]] = [{"message": {"content": text}, "done": False} for text in texts]
    lines.append({"message": {"content": ""}, "done": True, "eval_count": tokens or len(texts), **last})
    return [json.dumps(line).encode() + b"\n" for line in lines]


def openai(*texts: str, tokens: int = 0, finish: str = "length", ends: bool = True) -> list[bytes]:
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    chunks += [{"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in texts]
    chunks.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens or len(texts)}})
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    return [*events, b"data: [DONE]\n\n"] if ends else events


def read(api: Api, chunks: Sequence[bytes], status: int = 200, fault: Fault | None = None) -> Sample:
    """The chunks arrive a second apart, the first a second after the request, which was half a second late."""
    reads = [(2.5 + at, chunk) for at, chunk in enumerate(chunks)]
    return read_exchange(api, Exchange(3, 1.0, 1.5, 1.5 + len(chunks), status, reads, fault))


def test_an_ollama_answer_is_counted_by_the_server_and_timed_from_when_it_was_due() -> None:
    sample = read("ollama", ollama("Hel", "lo", tokens=5, prompt_eval_count=7, done_reason="length"))
    assert (sample.index, sample.tokens, sample.prompt_tokens, sample.ending) == (3, 5, 7, "length")
    assert sample.fault is None
    assert (sample.first_token_s, sample.latency_s) == (1.5, 3.5)
    assert sample.per_token_s == pytest.approx(2 / 4)


def test_an_openai_answer_begins_with_text_not_with_its_role() -> None:
    sample = read("openai", openai("a", "b", "c", finish="stop"))
    assert (sample.tokens, sample.prompt_tokens, sample.ending, sample.fault) == (3, 9, "stop", None)
    assert sample.first_token_s == 2.5


def test_an_end_without_a_reason_is_not_taken_for_the_models_will() -> None:
    sample = read("ollama", ollama("a"))
    assert (sample.fault, sample.ending) == (None, "unknown")
    assert figures([played(sample)], Limits()).stopped == 0


def test_thinking_is_what_a_client_sees_first() -> None:
    lines = [b'{"message": {"content": "", "thinking": "hm"}, "done": false}\n', *ollama("a", done_reason="stop")]
    assert read("ollama", lines).first_token_s == 1.5
    event = b'data: {"choices": [{"delta": {"reasoning": "hm"}}]}\n\n'
    assert read("openai", [event, *openai("a")]).first_token_s == 1.5


@given(st.data())
def test_how_the_bytes_are_cut_changes_no_count(data: st.DataObject) -> None:
    api: Api = data.draw(st.sampled_from(["ollama", "openai"]))
    texts = data.draw(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=5))
    stream = b"".join(ollama(*texts, done_reason="length") if api == "ollama" else openai(*texts))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    cut, whole = read(api, chunks), read(api, [stream])
    assert (cut.tokens, cut.text, cut.ending, cut.fault) == (whole.tokens, whole.text, whole.ending, None)


@pytest.mark.parametrize(
    ("api", "chunks", "kind"),
    [
        ("ollama", ollama("a", done_reason="stop")[:-1], "broken off"),
        ("ollama", [], "broken off"),
        ("ollama", [*ollama("a", "b")[:-1], b'{"error": "the engine died"}\n'], "told in the answer"),
        ("ollama", [b"<html>"], "not understood"),
        ("ollama", [b'{"done": true}\n'], "not understood"),
        ("openai", openai("a", ends=False), "broken off"),
        ("openai", [b'data: {"error": {"message": "it died"}}\n\n', b"data: [DONE]\n\n"], "told in the answer"),
        ("openai", [*openai("a")[:-2], b"data: [DONE]\n\n"], "not counted"),
        ("openai", [b"data: 7\n\n"], "not understood"),
    ],
)
def test_what_is_no_whole_answer_is_a_failure(api: Api, chunks: list[bytes], kind: str) -> None:
    fault = read(api, chunks).fault
    assert fault is not None
    assert fault.kind == kind
    assert fault.reason in Reason.__members__
    assert fault.words


def test_a_connection_that_broke_is_a_failure_unless_the_answer_was_whole() -> None:
    broken = Fault("broken off", "ENGINE_DIED", "reset")
    assert read("ollama", ollama("a")[:1], fault=broken).fault == broken
    assert read("ollama", ollama("a", done_reason="stop"), fault=broken).fault is None


@pytest.mark.parametrize(
    ("status", "content", "reason", "words"),
    [
        (404, b'{"error": "model \'x\' not found"}', "MODEL_NOT_FOUND", "model 'x' not found"),
        (500, b'{"error": {"message": "no", "code": "engine_start_failed"}}', "ENGINE_START_FAILED", "no"),
        (400, b'{"error": {"message": "no", "code": 400}}', "INVALID_REQUEST", "no"),
        (503, b"busy", "QUEUE_FULL", "busy"),
        (502, b'["x"]', "ENGINE_DIED", '["x"]'),
        (418, b"", "INVALID_REQUEST", ""),
    ],
)
def test_refusals_have_a_reason_of_the_table(status: int, content: bytes, reason: str, words: str) -> None:
    assert read_refusal(status, content) == Fault(f"status {status}", reason, words)


def test_both_apis_are_asked_for_the_same_work() -> None:
    asks = [json.loads(body(api, "m", question("q", 5))) for api in ("ollama", "openai")]
    assert [ask["messages"] for ask in asks] == [[{"role": "user", "content": "q"}]] * 2
    assert asks[0]["options"] == {"temperature": 0, "repeat_penalty": 1.0, "num_predict": 5}
    assert (asks[1]["temperature"], asks[1]["max_tokens"]) == (0, 5)
    assert asks[1]["stream_options"] == {"include_usage": True}


# --- figures ---------------------------------------------------------------------------------------------------------


@given(st.lists(FINITE, min_size=1, max_size=200), st.floats(0.5, 100))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in values
    share = percent / 100 * len(values)
    assert sum(value <= found for value in values) >= share - 1e-9
    smaller = [value for value in values if value < found]
    assert len(smaller) < share + 1e-9


@given(st.lists(FINITE, min_size=1, max_size=250))
def test_a_percentile_is_not_told_of_too_few_values(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread is not None
    assert (spread.at(90) is None) == (len(values) < 10)
    assert (spread.at(99) is None) == (len(values) < 100)
    assert spread.least <= spread.median <= spread.most


def test_how_many_values_a_percentile_takes() -> None:
    assert [least_count(percent) for percent in (50, 90, 99, 99.9)] == [2, 10, 100, 1000]
    assert Spread.of([]) is None


def sample(index: int = 0, first_s: float = 0.1, end_s: float = 1.1, tokens: int = 11, **more: Any) -> Sample:
    fields: dict[str, Any] = {"intended_s": 0.0, "sent_s": 0.0, "prompt_tokens": 9, "ending": "length", "text": "t"}
    return Sample(index=index, first_s=first_s, end_s=end_s, tokens=tokens, **fields | more)


DIED = Fault("broken off", "ENGINE_DIED", "it died")


def played(*samples: Sample, duration_s: float = 2.0, unfinished: int = 0) -> Played:
    return Played(samples, duration_s, 0.1, 1, unfinished)


def test_errors_are_never_fast_answers() -> None:
    quick = sample(1, 0.0, 0.001, fault=DIED)
    found = figures([played(sample(0), quick)], Limits(ttft_s=0.2))
    assert (found.answered, found.failed, found.requests_per_s, found.tokens_per_s) == (1, 1, 0.5, 5.5)
    assert found.latency == Spread((1.1,)) and found.first_token == Spread((0.1,))
    assert (found.good, found.good_share, found.good_per_s) == (1, 0.5, 0.5)
    assert found.faults == (("broken off", 1),)
    assert worst_reason([sample(), quick]) == "ENGINE_DIED"
    assert worst_reason([sample()]) == ""


def test_rounds_are_taken_together_over_all_their_time() -> None:
    found = figures([played(sample(), duration_s=1.0), played(sample(), sample(1), duration_s=2.0)], Limits())
    assert (found.answered, found.requests_per_s, found.tokens_per_s) == (3, 1.0, 11.0)
    nothing = figures([], Limits())
    assert (nothing.requests_per_s, nothing.latency, nothing.good_share) == (0.0, None, 0.0)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("ttft:200", Limits(ttft_s=0.2)),
        ("ttft:200,tpot:50", Limits(0.2, 0.05)),
        ("latency:1500.5, tpot:1", Limits(None, 0.001, 1.5005)),
    ],
)
def test_limits_as_typed(text: str, limits: Limits) -> None:
    assert Limits.parse(text) == limits


@pytest.mark.parametrize("text", ["", "ttft", "ttft:x", "ttft:0", "ttft:-1", "ttft:inf", "e2e:5", "ttft:1,ttft:2"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match=r"limit|number|above|twice"):
        Limits.parse(text)


def test_all_limits_must_be_kept() -> None:
    one = sample(first_s=0.1, end_s=1.1, tokens=11)  # 0.1 s a token
    assert Limits(0.1, 0.2, 1.1).are_kept_by(one)
    assert not Limits(ttft_s=0.09).are_kept_by(one)
    assert not Limits(tpot_s=0.09).are_kept_by(one)
    assert not Limits(latency_s=1.0).are_kept_by(one)
    assert Limits(tpot_s=0.001).are_kept_by(sample(tokens=1)), "one token has no time between tokens"
    assert not Limits().are_kept_by(sample(fault=DIED))


def test_a_queue_that_grows_shows_in_the_last_third() -> None:
    growing = [sample(n, n + 0.1, n + 0.1 * n, intended_s=float(n)) for n in range(1, 13)]
    found = figures([played(*growing)], Limits()).trend
    assert found is not None and found[1] > 3 * found[0]
    assert figures([played(*growing[:11])], Limits()).trend is None


# --- one against the other -------------------------------------------------------------------------------------------

NAMES = ("vllama", "ollama")


def pair(one: Sequence[Sample], other: Sequence[Sample]) -> tuple[Played, Played]:
    return tuple(played(*side, duration_s=max(s.end_s for s in side)) for side in (one, other))  # type: ignore[return-value]


def rows(found: Comparison) -> dict[str, Row]:
    return {row.measure.name: row for row in found.rows}


def test_neighbours_are_compared_so_that_drift_falls_out() -> None:
    # The machine became slower from round to round; one side always needs twice as long.
    pairs = [pair([sample(0, 0.2 * n, 2.0 * n)], [sample(0, 0.1 * n, 1.0 * n)]) for n in range(1, FEWEST_PAIRS + 1)]
    found = rows(compare(pairs, None, NAMES))
    assert set(found) == {"requests", "tokens", "latency", "first token", "per token"}
    latency, tokens = found["latency"].ratio, found["tokens"].ratio
    assert latency is not None and tokens is not None
    assert latency.pairs == pytest.approx([2.0] * FEWEST_PAIRS)
    assert tokens.median == pytest.approx(0.5)
    assert [row.better for row in found.values()] == [1] * 5
    assert "goodput" in rows(compare(pairs, Limits(ttft_s=1.0), NAMES))


def test_nobody_is_called_better_by_few_pairs_or_by_some() -> None:
    pairs = [pair([sample(0, 0.1, 1.0)], [sample(0, 0.1, 2.0)])] * (FEWEST_PAIRS - 1)
    assert rows(compare(pairs, None, NAMES))["latency"].better is None
    turned = [*pairs, pair([sample(0, 0.1, 2.0)], [sample(0, 0.1, 1.0)])]
    assert rows(compare(turned, None, NAMES))["latency"].better is None
    assert rows(compare([*pairs, pairs[0]], None, NAMES))["latency"].better == 0


def test_answers_of_other_lengths_are_not_comparable() -> None:
    found = compare([pair([sample(tokens=100)], [sample(tokens=60)])], None, NAMES)
    words = {name: row.why for name, row in rows(found).items()}
    assert words["latency"] == words["requests"] == words["tokens"] == "not comparable"
    assert words["first token"] == words["per token"] == ""
    (note,) = found.notes
    assert note.startswith("not comparable where answers count whole: 1 of 1 answers are not of the same length (100.0")


def test_lengths_that_differ_by_next_to_nothing_are_comparable_and_those_that_cancel_out_are_not() -> None:
    assert compare([pair([sample(tokens=100)], [sample(tokens=99)])], None, NAMES).notes == ()
    one, other = [sample(0, tokens=100), sample(1, tokens=50)], [sample(0, tokens=50), sample(1, tokens=100)]
    crossed = compare([pair(one, other)], None, NAMES)
    assert "2 of 2 answers" in crossed.notes[0]


def test_who_fails_is_not_compared() -> None:
    found = compare([pair([sample(0)], [sample(0), sample(1, fault=DIED)])], None, NAMES)
    assert {row.why for row in found.rows} == {"not comparable"}
    assert found.notes == ("not comparable: 1 of ollama's requests failed, and who fails has less to do",)


def test_prompts_that_are_counted_otherwise_are_told_and_same_texts_counted() -> None:
    found = compare([pair([sample(0), sample(1)], [sample(0, prompt_tokens=30), sample(1, text="u")])], None, NAMES)
    assert found.same_texts == 0.5
    assert found.notes == ()
    found = compare([pair([sample()], [sample(prompt_tokens=30)])], None, NAMES)
    assert found.notes[0].startswith("the same prompts are 9 tokens for vllama and 30 for ollama")


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 ms"), (0.00001, "0.010 ms"), (0.00052, "0.52 ms"), (0.0123, "12.3 ms"), (0.21, "210 ms"),
        (0.99951, "1.00 s"), (12.345, "12.3 s"), (99.96, "100 s"), (1210.4, "1210 s"),
    ],
)  # fmt: skip
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


@given(st.floats(0, 1e7))
def test_numbers_show_three_digits_that_mean_something(value: float) -> None:
    shown = rate(value)
    assert float(shown) == pytest.approx(value, rel=0.006, abs=0.0051 if value > 0.1 else 0.00051)
    assert len(shown) <= 5 or "." not in shown


def results(targets: Sequence[str], *, rounds: int = 1, limits: Limits | None = None) -> Results:
    sides = tuple(Target(name, "ollama", f"http://127.0.0.1:{at + 1}", "m") for at, name in enumerate(targets))
    workload = Workload((question("q", 11),), "one prompt", is_distinct=True)
    return Results(Bench(sides, workload, (Level(users=1),), (1,), rounds, None, limits, 600.0, 0, 7))


def record(into: Results, *all_played: Played) -> None:
    bench = into.bench
    plan = turns(bench.levels, bench.requests, bench.rounds, len(bench.targets))
    into.records += [Record(turn, each) for turn, each in zip(plan, all_played, strict=False)]


def details(**values: str) -> dict[str, Any]:
    return {"version": "0.1", "details": values}


def test_few_requests_show_their_largest_value_and_no_percentile() -> None:
    found = results(["vllama"], limits=Limits(ttft_s=0.2))
    found.facts.append(details(quantization_level="BF16", parameter_size="135M"))
    record(found, played(*(sample(n) for n in range(3))))
    lines = page(found)
    assert lines[:2] == ["vllama 0.1", "  m (BF16, 135M) at http://127.0.0.1:1/api/chat"]
    assert [line.split()[0] for line in lines[2:] if line.startswith("  ")] == ["1", "max", "max", "max"]
    assert "goodput                100 %, 1.50/s" in lines
    assert not any("p90" in line or "p99" in line or "note" in line for line in lines)


def test_the_page_tells_what_a_reader_must_know() -> None:
    found = results(["vllama", "ollama"], rounds=2)
    found.facts += [details(quantization_level="BF16"), details(quantization_level="Q4_0")]
    early = sample(ending="stop")
    record(found, played(early), played(sample(tokens=30)))
    found.is_partial = True
    text = "\n".join(page(found))
    assert "PARTIAL: interrupted before the end" in text
    assert "different precision: vllama has BF16, ollama Q4_0" in text
    assert "fewer than 5 pairs" in text
    assert "vllama, 1 user: 1 of 1 answers were ended by the model, not by their limit" in text
    assert "not comparable where answers count whole" in text
    found.facts[1]["details"] = None
    assert "ollama does not tell its precision" in "\n".join(page(found))


def test_failures_and_repeated_prompts_are_told() -> None:
    found = results(["vllama"])
    record(found, played(sample(0), sample(1, fault=DIED), sample(2, fault=DIED)))
    text = "\n".join(page(found))
    assert "answered               1 of 3\n" in text
    assert "note: 1 user: 2 failed: broken off" in text
    same = Workload((question("q", 1),), "one prompt", is_distinct=False)
    repeating = replace(found.bench, workload=same, requests=(4,))
    assert "3 of 4 prompts were asked before in this run" in "\n".join(page(Results(repeating)))


def test_nothing_measured_is_said_and_not_divided_by() -> None:
    text = "\n".join(page(results(["vllama", "ollama"])))
    assert "vllama: nothing was measured" in text
    assert "no round was played by both sides" in text


@given(st.integers(20, 200), st.integers(0, 3), st.integers(0, 400))
def test_the_moving_line_fits_the_terminal(width: int, over: int, failed: int) -> None:
    view = BenchView(Console(io.StringIO(), io.StringIO(), {}))
    view.begin("16 users, round 3 of 5, ollama", 3)
    for number in range(over):
        view.note(Exchange(number, 0, 0, 1, 500 if number < failed else 200, ()))
    line = view.text("x", width)
    assert len(line) <= width
    assert f"{over}/3" in line or width < 40


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"users": (1,), "rates": (1.0,)}, "--rate and --concurrency do not go together"),
        ({"repeat": 2}, "--repeat needs --start"),
        ({"is_start": True, "against": ("ollama", "x")}, "--against does not go with --start"),
        ({"is_start": True, "max_tokens": 5}, "--max-tokens does not go with --start"),
        ({"seed": 5}, "--seed needs --rate"),
        ({"against_model": "x"}, "--against-model needs --against"),
        ({"timeout_s": 0.0}, "--timeout must be more than nothing"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(CtlError, match=says) as refused:
        Options(**options).check()
    assert refused.value.reason == "INVALID_REQUEST"


def test_prompts_are_distinct_unless_they_are_somebodys_workload(tmp_path: Any) -> None:
    file = tmp_path / "w.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert Options().asked().is_distinct
    assert Options(prompt="x").asked().is_distinct
    assert not Options(prompt="x", is_distinct=False).asked().is_distinct
    brought = Options(workload=str(file))
    assert not brought.asked().is_distinct
    assert Options(workload=str(file), is_distinct=True).asked().is_distinct
    assert brought.bench([Target("a", "ollama", "http://x", "m")], brought.asked()).requests == (2,)
    for wrong in ({"prompt": " "}, {"workload": "/nowhere"}, {"prompt": "x", "workload": str(file)}):
        with pytest.raises(CtlError):
            Options(**wrong).asked()


@pytest.mark.parametrize(
    ("api", "typed", "url"),
    [
        ("ollama", "localhost:11434/", "http://localhost:11434"),
        ("openai", "https://h/v1/", "https://h"),
        ("openai", "http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_addresses_as_typed(api: Api, typed: str, url: str) -> None:
    assert base_url(typed, api) == url


@pytest.mark.parametrize("typed", ["", "ftp://x", "http://", "http://x:99999", "http://x/?q=1"])
def test_what_is_no_address(typed: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        base_url(typed, "ollama")


def test_the_daemon_is_asked_where_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLAMA_API_KEY", "k")
    assert Options().target("m", "http://0.0.0.0:11434") == Target(
        "vllama", "ollama", "http://127.0.0.1:11434", "m", "k"
    )
    assert Options(url="h:1").target("m", "").name == "h:1"
    assert Options(url="h:1").target("m", "http://x:2").name == "vllama"
    with pytest.raises(CtlError, match="does not say where it listens"):
        Options().target("m", "")
