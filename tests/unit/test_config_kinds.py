"""Values of settings: what each kind takes, what it refuses, and that what it writes reads back."""

import math
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from vllamad.config.checks import check_env_name, check_host, check_model_name, check_origin, check_url
from vllamad.config.kinds import (
    Boolean,
    Choice,
    Duration,
    Fraction,
    Integer,
    Kind,
    Refused,
    Size,
    Text,
    TextList,
    TextTable,
    write_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("300ms", 0.3),
        ("2h45m10s", 9910),
        (".5s", 0.5),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("+5s", 5),
        ("300", 300),
        ("0.5", 0.5),
        ("0", 0),
        ("0s", 0),
        (" 5m ", 300),
        ("-1", math.inf),
        ("-5m", math.inf),
        ("forever", math.inf),
        ("Forever", math.inf),
    ],
)
def test_durations_are_go_strings_numbers_or_forever(text: str, seconds: float) -> None:
    assert Duration().from_text(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "abc", "5x", "5m!", "m5", "1h 30m", "--5m", "5 m", "1e3", "inf", True, [], math.nan]
)
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(Refused):
        Duration().from_toml(value)


@pytest.mark.parametrize("value", [-1, -0.5, "forever", "-5m", math.inf])
def test_a_duration_that_must_end_refuses_forever(value: object) -> None:
    with pytest.raises(Refused):
        Duration(can_be_forever=False).from_toml(value)
    assert Duration().from_toml(value) == math.inf


def test_a_duration_above_zero_refuses_zero() -> None:
    with pytest.raises(Refused):
        Duration(can_be_zero=False).from_toml("0s")


@given(st.one_of(st.integers(0, 10**9).map(float), st.integers(0, 10**7).map(lambda n: n / 1000), st.just(math.inf)))
def test_durations_read_back_as_written(seconds: float) -> None:
    assert Duration().from_text(write_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        (0, 0),
        (4096, 4096),
        ("1GiB", 2**30),
        ("256MiB", 2**28),
        ("8G", 2**33),
        ("8g", 2**33),
        ("512k", 2**19),
        ("2GB", 2 * 10**9),
        ("100B", 100),
        ("1234", 1234),
        ("1.5GiB", 3 * 2**29),
        ("2 TiB", 2**41),
    ],
)
def test_sizes_know_both_families_of_units(value: object, size_bytes: int) -> None:
    assert Size().from_toml(value) == size_bytes


@pytest.mark.parametrize("value", ["", "big", "1PiB", "-1", -1, 1.5, True, "1iB", "0x10", []])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(Refused):
        Size().from_toml(value)


@pytest.mark.parametrize("text", ["abc", "", "1.0", "0x10", "1_000", "٣", "1e3", "9" * 30])
def test_text_that_is_no_plain_integer_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        Integer(0).from_text(text)


@pytest.mark.parametrize("value", [True, "1", 1.0, -1, 65536, None])
def test_an_integer_has_a_type_and_a_range(value: object) -> None:
    with pytest.raises(Refused):
        Integer(0, 65535).from_toml(value)


@pytest.mark.parametrize("text", ["0", "1.01", "-0.5", "nan", "inf", "x"])
def test_a_fraction_is_above_zero_and_at_most_one(text: str) -> None:
    with pytest.raises(Refused):
        Fraction().from_text(text)


def test_a_switch_takes_truth_values_a_choice_does_not() -> None:
    switch = Choice("auto", "on", "off", is_switch=True)
    assert [switch.from_toml(value) for value in (True, False, "ON", "auto")] == ["on", "off", "on", "auto"]
    assert [switch.from_text(text) for text in ("1", "false")] == ["on", "off"]
    with pytest.raises(Refused):
        Choice("on", "off").from_toml(True)
    with pytest.raises(Refused):
        switch.from_toml(1)


def test_lists_come_by_commas_or_as_a_command_line() -> None:
    assert TextList().from_text("a, b,,c") == ("a", "b", "c")
    args = TextList(is_command_line=True)
    assert args.from_text("--chat-template 'a b' -O2") == ("--chat-template", "a b", "-O2")
    with pytest.raises(Refused, match="quotation"):
        args.from_text("--x 'open")


@pytest.mark.parametrize("value", ["a", [1], [""], ["a\0"], None])
def test_a_list_holds_strings_only(value: object) -> None:
    with pytest.raises(Refused):
        TextList().from_toml(value)


def test_tables_come_by_commas_and_equals_signs() -> None:
    table = TextTable("names", check_model_name)
    assert table.from_text("gpt-4o=qwen3:8b, x = y,,") == (("gpt-4o", "qwen3:8b"), ("x", "y"))
    assert table.from_toml({"gpt-4o": "qwen3:8b"}) == (("gpt-4o", "qwen3:8b"),)
    for value in ([], "x", {"a": 1}, {"a": ""}, {"": "a"}, {"a": "b\0"}, {"a b": "c"}, {"a": "b c"}):
        with pytest.raises(Refused):
            table.from_toml(value)
    with pytest.raises(Refused, match="no = in gpt-4o"):
        table.from_text("gpt-4o")


def test_switches_are_read_as_people_write_them() -> None:
    assert [Boolean().from_text(word) for word in ("true", "1", "On", "false", "0", "OFF")] == [True] * 3 + [False] * 3
    with pytest.raises(Refused):
        Boolean().from_text("maybe")


STRINGS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
KINDS: list[tuple[Kind[Any], st.SearchStrategy[Any]]] = [
    (Text(), STRINGS),
    (TextList(), st.lists(STRINGS).map(tuple)),
    (TextTable("x"), st.dictionaries(STRINGS, STRINGS).map(lambda table: tuple(table.items()))),
    (Integer(-(2**62)), st.integers(-(2**62), 2**62)),
    (Size(), st.integers(0, 2**60)),
    (Fraction(), st.floats(0, 1, exclude_min=True)),
    (Boolean(), st.booleans()),
    (Duration(), st.integers(0, 10**7).map(float)),
]


@given(st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(st.just(kind[0]), kind[1])))
def test_every_kind_reads_the_toml_it_writes(case: tuple[Kind[Any], Any]) -> None:
    kind, value = case
    assert kind.from_toml(tomli.loads(f"x = {kind.to_toml(value)}")["x"]) == value


def test_checks_tell_what_is_wrong() -> None:
    for good in ("127.0.0.1", "::1", "fe80::1%eth0", "gpu-box.local"):
        check_host(good)
    with pytest.raises(Refused, match=r"server\.port"):
        check_host("localhost:80")
    with pytest.raises(Refused):
        check_host("a b")
    for good in ("*", "https://*.example.org", "http://a", "moz-extension://x"):
        check_origin(good)
    with pytest.raises(Refused, match=r"more than one \*"):
        check_origin("https://*.*.org")
    with pytest.raises(Refused, match="does not start with"):
        check_origin("example.org")
    check_url("https://hub.example.org:8443/mirror")
    with pytest.raises(Refused):
        check_url("hub.example.org")
    check_model_name("hf.co/org/repo:main")
    with pytest.raises(Refused, match="family:tag"):
        check_model_name("a//b")
    check_env_name("CUDA_VISIBLE_DEVICES")
    with pytest.raises(Refused):
        check_env_name("A=1")
    with pytest.raises(Refused, match="never reaches the engine"):
        check_env_name("NOTIFY_SOCKET")
