"""Ollama's chat templates: Go's text/template as far as they use it, and the prompts that they make."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamad.dialects.go_templates.lexer import KEYWORDS
from vllamad.dialects.go_templates.parser import MAX_DEPTH, MAX_SOURCE, MAX_VARIABLES
from vllamad.dialects.go_templates.prompt import render_prompt
from vllamad.dialects.go_templates.template import Template, parse
from vllamad.dialects.go_templates.values import Bounds, JsonList, JsonMap, Struct, TemplateError, TypeNames, float_text

TODAY = "2026-03-01"


def message(role: str, content: str) -> Struct:
    fields = {"Role": role, "Content": content}
    return Struct("api.Message", fields, {"role": role, "content": content})


DATA: dict[str, Any] = {
    "Prompt": "é?",
    "Empty": "",
    "Zero": 0,
    "N": 3,
    "Half": 0.5,
    "Million": 1_000_000.0,
    "Yes": True,
    "Nil": None,
    "Words": ["a", "b", "c"],
    "None": [],
    "Map": {"b": 2, "a": "x", "n": None},
    "Mixed": [1, "x", None, 2.5, False],
    "Messages": [message("user", "hi"), message("assistant", "<yo>"), message("user", "bye")],
    "Arguments": JsonMap({"z": [1, 2.0], "a": "<b>"}),
    "Tools": JsonList([{"name": "f"}]),
    "Types": [TypeNames(), TypeNames(["string"]), TypeNames(["string", "null"])],
}


def render(text: str, data: dict[str, Any] | None = None) -> str:
    return parse(text).render(DATA if data is None else data, today=TODAY)


def refusal(text: str) -> str:
    with pytest.raises(TemplateError) as caught:
        render(text)
    assert caught.value.reason is Reason.INVALID_REQUEST
    return caught.value.message


# What follows was compared with Go 1.19 where it is not Ollama's own.


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("", ""),
        ("a }} b { c", "a }} b { c"),
        ("a {{ 1 }} b", "a 1 b"),
        ("a \n\t{{- 1 -}} \r\n b", "a1b"),
        ("a {{-1}} b", "a -1 b"),
        ("a {{- 1}} b {{2 -}} c", "a1 b 2c"),
        ("a {{-\n1\n-}} b", "a1b"),
        ("a\u00a0{{- 1 -}}\u00a0b", "a\u00a01\u00a0b"),
        ("a {{/* x */}} b", "a  b"),
        ("a {{- /* x\n}} */ -}} b", "ab"),
        ("a {{- /* x */}} b", "a b"),
        (" {{- \"\" -}} {{- /**/ -}} \n{{- if true -}} \n x \n {{- end -}} \n", "x"),
        ("{{ 1 }}{{ 2 }}", "12"),
        ("{{1}}}}", "1}}"),
    ],
)  # fmt: skip
def test_trimming(text: str, rendered: str) -> None:
    assert render(text) == rendered


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ('"a\\tb\\"\\\\"', 'a\tb"\\'),
        ('"\\x41\\101\\u00e9\\U0001F600\\xc3\\xa9"', "AAé\U0001f600é"),
        ("`a\\n`", "a\\n"),
        ("`a\nb`", "a\nb"),
        ("-3", "-3"),
        ("0x1F", "31"),
        ("0b11", "3"),
        ("017", "15"),
        ("1_000", "1000"),
        ("1.50", "1.5"),
        ("1e3", "1000"),
        (".5", "0.5"),
        ("'a'", "97"),
        ("'\\n'", "10"),
        ("'\\''", "39"),
        ("true", "true"),
    ],
)
def test_literals(expression: str, shown: str) -> None:
    assert render(f"{{{{ {expression} }}}}") == shown


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        (".Prompt", "é?"),
        (".N", "3"),
        (".Half", "0.5"),
        (".Million", "1e+06"),
        (".Yes", "true"),
        (".Nil", "<no value>"),
        (".Nope", "<no value>"),
        ("print .Nope", "<nil>"),
        (".Words", "[a b c]"),
        (".None", "[]"),
        (".Map", "map[a:x b:2 n:<nil>]"),
        (".Mixed", "[1 x <nil> 2.5 false]"),
        ("index .Messages 0", "{user hi}"),
        (".Arguments", '{"a":"\\u003cb\\u003e","z":[1,2]}'),
        (".Tools", '[{"name":"f"}]'),
        (".Types", "[ string [string null]]"),
    ],
)
def test_printing(expression: str, shown: str) -> None:
    assert render(f"{{{{ {expression} }}}}") == shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "-0"), (100000.0, "100000"), (1234567.0, "1.234567e+06"), (0.0001, "0.0001"),
        (0.00001, "1e-05"), (1e21, "1e+21"), (-2.5, "-2.5"), (float("inf"), "+Inf"), (float("nan"), "NaN"),
    ],
)  # fmt: skip
def test_floats(value: float, text: str) -> None:
    assert float_text(value) == text


@settings(max_examples=40)
@given(st.floats(allow_nan=False))
def test_float_text_means_the_number(value: float) -> None:
    assert float(float_text(value)) == value


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{ if .Yes }}a{{ end }}", "a"),
        ("{{ if .Zero }}a{{ else }}b{{ end }}", "b"),
        ("{{ if .Empty }}a{{ else if .None }}b{{ else if .N }}c{{ else }}d{{ end }}", "c"),
        ("{{ if .Nope }}a{{ end }}", ""),
        ("{{ if .Messages }}{{ if index .Messages 0 }}a{{ end }}{{ end }}", "a"),
        ("{{ with .Prompt }}{{ . }}{{ $.N }}{{ else }}b{{ end }}", "é?3"),
        ("{{ with .Empty }}a{{ else }}{{ .N }}{{ end }}", "3"),
        ("{{ with .Empty }}a{{ else with .Words }}{{ len . }}{{ else }}c{{ end }}", "3"),
        ("{{ with $x := .N }}{{ $x }}{{ end }}", "3"),
        ("{{ range .Words }}<{{ . }}>{{ end }}", "<a><b><c>"),
        ("{{ range .None }}a{{ else }}{{ .N }}{{ end }}", "3"),
        ("{{ range .Nope }}a{{ else }}b{{ end }}", "b"),
        ("{{ range $x := .Words }}{{ $x }}{{ end }}", "abc"),
        ("{{ range $i, $x := .Words }}{{ $i }}{{ $x }}{{ end }}", "0a1b2c"),
        ("{{ range $k, $v := .Map }}{{ $k }}={{ $v }} {{ end }}", "a=x b=2 n=<no value> "),
        ("{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}", "user: hi\nassistant: <yo>\nuser: bye\n"),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ("{{ range $i := 2 }}{{ $i }}{{ end }}", "01"),
        ("{{ range 0 }}a{{ else }}b{{ end }}", "b"),
        ("{{ range $i, $x := .Words }}{{ if eq $i 1 }}{{ continue }}{{ end }}{{ $x }}{{ end }}", "ac"),
        ("{{ range $i, $x := .Words }}{{ if eq $i 1 }}{{ break }}{{ end }}{{ $x }}{{ else }}z{{ end }}", "a"),
        ("{{ range .Words }}{{ range $.Words }}{{ break }}{{ end }}{{ . }}{{ end }}", "abc"),
    ],
)
def test_control(text: str, rendered: str) -> None:
    assert render(text) == rendered


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{ $x := 1 }}{{ $x }}", "1"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ $x := 1 }}{{ $x := 2 }}{{ $x }}", "2"),
        ('{{ $l := "" }}{{ range .Words }}{{ $l = . }}{{ end }}{{ $l }}', "c"),
        ("{{ $i := 0 }}{{ $x := 0 }}{{ range $i, $x = .Words }}{{ end }}{{ $i }}{{ $x }}", "2c"),
        ("{{ range .Words }}{{ $x := . }}{{ end }}{{ $.N }}", "3"),
        ("{{ $m := index .Messages 1 }}{{ $m.Role }}", "assistant"),
        ("{{ (index .Messages 1).Content }}", "<yo>"),
        ("{{ $.Map.a }}{{ .Map.zzz }}", "x<no value>"),
        ("{{ $x := .Nope }}{{ $x.Foo }}", "<no value>"),
        ("{{ $x:=1 }}{{$x}}", "1"),
    ],
)
def test_variables(text: str, rendered: str) -> None:
    assert render(text) == rendered


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("and 1 0 .Nope.Foo", "0"),
        ("and 1 2", "2"),
        ('or 0 "" "x" .Nope.Foo', "x"),
        ("or 0 .Empty", ""),
        ("1 | and 2", "1"),
        ("not .Empty", "true"),
        ("eq .N 3", "true"),
        ("eq .N 1 2 3", "true"),
        ('eq "a" "b"', "false"),
        ("eq .Nil nil", "true"),
        ('eq .Nil "x"', "false"),
        ("ne 1 2", "true"),
        ("lt 1 2", "true"),
        ("le 2 2", "true"),
        ('gt "b" "a"', "true"),
        ("ge 1.5 2.5", "false"),
        ("len .Words", "3"),
        ("len .Map", "3"),
        ("len .Prompt", "3"),
        ("index .Words 1", "b"),
        ('index .Map "a"', "x"),
        ('index .Map "zz"', "<no value>"),
        ("index .Prompt 0", "195"),
        ("slice .Words 1", "[b c]"),
        ("slice .Words 1 2", "[b]"),
        ("slice .Words", "[a b c]"),
        ("slice .Words 0 1 2", "[a]"),
        ("slice .Prompt 2", "?"),
        ("slice .Prompt 1", "\ufffd?"),
        ('print 1 2 "a" "b" 3', "1 2ab3"),
        ('println 1 "a"', "1 a\n"),
        ('printf "%s-%d" "a" 2', "a-2"),
        ('2 | printf "%s-%d" "a"', "a-2"),
        ("json .Map", '{"a":"x","b":2,"n":null}'),
        ("json .Messages", '[{"role":"user","content":"hi"},{"role":"assistant","content":"\\u003cyo\\u003e"},'
         '{"role":"user","content":"bye"}]'),
        ("json .Types", '[[],"string",["string","null"]]'),
        (".Words | len | eq 3", "true"),
        ("(len (slice .Words 1)) | printf `%03d`", "002"),
        ("currentDate", "2026-03-01"),
        ('currentDate "%d"', "2026-03-01"),
        ("yesterdayDate", "2026-02-28"),
        ("toTypeScriptType .N", "any"),
    ],
)  # fmt: skip
def test_functions(expression: str, shown: str) -> None:
    assert render(f"{{{{ {expression} }}}}") == shown


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('"%5d|%-5s|%q|%v|%x|%05.1f|%T" 3 "a" "q" .Words "hi" 2.5 1', '    3|a    |"q"|[a b c]|6869|002.5|int'),
        ('"%+d|% d|%06d|%#x|%o|%b|%c|%U|%q" 5 5 -5 255 8 5 65 66 67', "+5| 5|-00005|0xff|10|101|A|U+0042|'C'"),
        ('"%e|%.2f|%g|%.3g|%8.2f|" 1234.5 1.5 0.00001 1234.5 1.5', "1.234500e+03|1.50|1e-05|1.23e+03|    1.50|"),
        ('"%t|%v|%5t" true false true', "true|false| true"),
        ('"%s|%d|%v|%q" .Words .Mixed .Map .Words',
         '[a b c]|[1 %!d(string=x) <nil> %!d(float64=2.5) %!d(bool=false)]|map[a:x b:2 n:<nil>]|["a" "b" "c"]'),
        ('"%10.3s|% x|%X" "abcdef" "abc" "é"', "       abc|61 62 63|C3A9"),
        ('"%v %s %d" nil nil .Nil', "<nil> %!s(<nil>) %!d(<nil>)"),
        ('"%d %s %z" "a" 1 3', "%!d(string=a) %!s(int=1) %!z(int=3)"),
        ('"%d%%"', "%!d(MISSING)%"),
        ('"a" 1 nil', "a%!(EXTRA int=1, <nil>)"),
        ('"%"', "%!(NOVERB)"),
        ('"%s" .Tools', '[{"name":"f"}]'),
    ],
)  # fmt: skip
def test_printf(arguments: str, shown: str) -> None:
    assert render(f"{{{{ printf {arguments} }}}}") == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ .Prompt", ":1: unclosed action"),
        ("{{ .Nope", ":1: unclosed action"),
        ("a\n{{", ":2: unclosed action"),
        ("{{ .A\n\n", ":3: unclosed action started at :1"),
        ("{{ if\n\"a }}", ":2: unterminated quoted string in action started at :1"),
        ("a\n{{ if .X }}\n", ":3: unexpected EOF"),
        ("{{ range .X }}", ":1: unexpected EOF"),
        ("{{ .Prompt } }}", ':1: unexpected "}" in operand'),
        ("{{ .Prompt }", ':1: unexpected "}" in operand'),
        ("{{ 'a }}", ":1: unterminated character constant"),
        ("{{ `a }}", ":1: unterminated raw quoted string"),
        ("{{ foo }}", ':1: function "foo" not defined'),
        ("{{ $y }}", ':1: undefined variable "$y"'),
        ("{{ with $x := 1 }}{{ end }}{{ $x }}", ':1: undefined variable "$x"'),
        ("{{ end }}", ":1: unexpected {{end}}"),
        ("{{ else }}", ":1: unexpected {{else}}"),
        ("{{ if .A }}{{ else }}{{ else }}{{ end }}", ":1: expected end; found {{else}}"),
        ("{{ range .A }}{{ else if .A }}{{ end }}", ":1: unexpected <if> in input"),
        ("{{ if }}x{{ end }}", ":1: missing value for if"),
        ("{{ }}", ":1: missing value for command"),
        ("{{ ( ) }}", ":1: missing value for parenthesized pipeline"),
        ("{{ (1 }}", ":1: unclosed left paren"),
        ("{{ 1 ) }}", ':1: unexpected ")" in command'),
        ("{{ 12 | false }}", ":1: non executable command in pipeline stage 2"),
        ("{{ true.any }}", ':1: unexpected . after term "true"'),
        ("{{ `x`3 }}", ':1: unexpected "3" in operand'),
        ("{{ a# }}", ":1: bad character U+0023 '#'"),
        ("{{ \x01 }}", ":1: unrecognized character in action: U+0001"),
        ("{{ :x }}", ":1: expected :="),
        ("{{ $a, $b := 1 }}", ":1: too many declarations in command"),
        ("{{ range $a, 1 }}{{ end }}", ":1: range can only initialize variables"),
        ("{{ break }}", ":1: {{break}} outside {{range}}"),
        ("{{ end x }}", ':1: unexpected "x" in end'),
        ("{{ if 1 }}{{ end x }}", ':1: unexpected "x" in end'),
        ("{{/* a", ":1: unclosed comment"),
        ("{{/* a */ }}", ":1: comment ends before closing delimiter"),
        ("{{ 3x }}", ':1: bad number syntax: "3x"'),
        ("{{ 0xi }}", ':1: illegal number syntax: "0xi"'),
        ("{{ 09 }}", ':1: illegal number syntax: "09"'),
        ("{{ 99999999999999999999 }}", ':1: integer overflow: "99999999999999999999"'),
        ("{{ 'ab' }}", ":1: malformed character constant: 'ab'"),
        ('{{ "\\q" }}', ":1: invalid syntax"),
        ('{{ define "x" }}{{ end }}', ":1: {{define}} is not supported"),
        ('{{ template "x" }}', ":1: {{template}} is not supported"),
        ('{{ block "x" . }}{{ end }}', ":1: {{block}} is not supported"),
        ("{{ html .A }}", ':1: function "html" not defined'),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_read(text: str, message: str) -> None:
    assert refusal(text) == f"template: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ (index .Messages 0).Nope }}", ":1:22: executing \"\" at <(index .Messages 0).Nope>: "
         "can't evaluate field Nope in type api.Message"),
        ("é\né{{ range .Messages }}{{ .Tools }}{{ end }}",
         ":2:26: executing \"\" at <.Tools>: can't evaluate field Tools in type api.Message"),
        ("{{ .N.X }}", ":1:5: executing \"\" at <.N.X>: can't evaluate field X in type int"),
        ("{{ .Nope.Foo }}", ':1:8: executing "" at <.Nope.Foo>: nil pointer evaluating interface {}.Foo'),
        ("{{ $x = 1 }}", ':1:3: executing "" at <$x = 1>: undefined variable: $x'),
        ("{{ nil }}", ':1:3: executing "" at <nil>: nil is not a command'),
        ("{{ 1 2 }}", ":1:3: executing \"\" at <1>: can't give argument to non-function 1"),
        ("{{ .Prompt 1 }}", ':1:3: executing "" at <.Prompt>: Prompt is not a method but has arguments'),
        ("{{ range .Prompt }}{{ end }}", ":1:9: executing \"\" at <.Prompt>: range can't iterate over é?"),
        ("{{ not }}", ':1:3: executing "" at <not>: wrong number of args for not: want 1 got 0'),
        ("{{ index }}", ':1:3: executing "" at <index>: wrong number of args for index: want at least 1 got 0'),
        ("{{ and }}", ':1:3: executing "" at <and>: wrong number of args for and: want at least 1 got 0'),
        ("{{ eq 1 }}", ':1:3: executing "" at <eq 1>: error calling eq: missing argument for comparison'),
        ("{{ eq .N 3.0 }}", ':1:3: executing "" at <eq .N 3.0>: error calling eq: incompatible types for comparison'),
        ("{{ lt .Words 1 }}", ':1:3: executing "" at <lt .Words 1>: error calling lt: invalid type for comparison'),
        ("{{ lt true false }}", ':1:3: executing "" at <lt true false>: error calling lt: invalid type for comparison'),
        ("{{ index .Words 9 }}", ':1:3: executing "" at <index .Words 9>: error calling index: index out of range: 9'),
        ("{{ index nil 1 }}", ':1:3: executing "" at <index nil 1>: error calling index: index of untyped nil'),
        ("{{ slice .Words 2 1 }}",
         ':1:3: executing "" at <slice .Words 2 1>: error calling slice: invalid slice index: 2 > 1'),
        ("{{ len .Nil }}", ':1:3: executing "" at <len .Nil>: error calling len: len of nil pointer'),
        ("{{ len 1 }}", ':1:3: executing "" at <len 1>: error calling len: len of type int'),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_run(text: str, message: str) -> None:
    assert refusal(text) == f"template: {message}"


def test_a_day_that_is_none_is_refused() -> None:
    with pytest.raises(TemplateError):
        parse("{{ yesterdayDate }}").render({}, today="today")
    with pytest.raises(TemplateError):
        parse("{{ yesterdayDate }}").render({}, today="0001-01-01")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ range 1000000000 }}{{ end }}", "too many steps"),
        ("{{ range 1000000000 }}{{ $x := eq $.Long $.Long }}{{ end }}", "too many steps"),
        ('{{ $x := "aaaaaaaa" }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}', "too long"),
        ('{{ range 1000 }}{{ $x := printf "%99999d" 1 }}{{ end }}', "too long"),
        ("{{ range 1000 }}{{ $.Long }}{{ end }}", "too long"),
        ("{{ printf `%1000000d` 1 }}", "width or precision"),
        ("{{ " + "(" * (MAX_DEPTH + 1) + "1", "nested deeper"),
        ("{{ if 1 }}" * (MAX_DEPTH + 1), "nested deeper"),
        ("{{ if 1 }}" + "{{ else if 1 }}" * MAX_DEPTH, "nested deeper"),
        ("x" * (MAX_SOURCE + 1), "longer than"),
        ("".join(f"{{{{ $x{number} := 1 }}}}" for number in range(MAX_VARIABLES)), "variables"),
        ("{{ .Deep }}", "too deep"),
        ("{{ json .Deep }}", "too deep"),
        ("{{ .Odd }}", "unsupported type"),
        ("{{ json .Odd }}", "not JSON serializable"),
        ("{{ json .Huge }}", "64-bit"),
    ],
)
def test_what_would_not_end_is_refused(text: str, why: str) -> None:
    deep: list[Any] = []
    deep.append(deep)
    data = {"Long": "x" * 100_000, "Deep": deep, "Odd": object(), "Huge": 2**70}
    with pytest.raises(TemplateError, match=why):
        parse(text).render(data, today=TODAY, bounds=Bounds(steps=20_000, size=1_000_000))


def test_the_deepest_template_runs() -> None:
    blocks = MAX_DEPTH // 2
    parentheses = MAX_DEPTH - blocks
    text = (
        "{{ if 1 }}" * blocks + "{{ " + "(not " * parentheses + "1" + ")" * parentheses + " }}" + "{{ end }}" * blocks
    )
    assert render(text) == "true"


def test_used_fields_are_known() -> None:
    template = parse(
        "{{ if .A }}{{ range $x := $.B }}{{ (index .C.D 0).E }}{{ else }}{{ $x.F | len }}{{ end }}{{ end }}"
    )
    assert template.fields == set("ABCDEF")
    assert template.uses("A")
    assert not template.uses("Messages")
    assert not parse("Messages {{/* .Messages */}}").uses("Messages")


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("a{{ .R }}b", "ar"),
        ("a{{ if .Y }}b{{ .R }}c{{ end }}d", "abr"),
        ("a{{ if .N }}b{{ .R }}c{{ else }}x{{ end }}d", "ax"),
        ("a{{ if .R }}b{{ end }}c{{ .R }}d", "abcr"),
        ("a{{ with .R }}b{{ . }}{{ end }}c", "abrc"),
        ("a{{ print .R }}b{{ .R }}", "ar"),
        ("a{{ $.R }}b", "ar"),
    ],
)
def test_cutting_after_a_field(text: str, rendered: str) -> None:
    assert parse(text).cut_after("R").render({"R": "r", "Y": 1}, today=TODAY) == rendered


def test_a_field_can_follow_a_text_that_ends_in_a_brace() -> None:
    assert parse("a{").followed_by("R").render({"R": "r"}, today=TODAY) == "a{r"


WORDS = st.sampled_from(
    [
        "{{", "}}", "{{-", "-}}", " ", "\n", "/*", "*/", "(", ")", "|", ",", ":=", "=", "$", "$x", ".", ".Messages",
        ".Content", ".Map", ".Nope", '"a"', "`", "'b'", '"%d%v"', "0", "1", "-2.5", "0x", "1e", "true", "nil", "é",
        "len", "index", "slice", "printf", "print", "json", "and", "or", "not", "eq", "lt", "toTypeScriptType",
        "yesterdayDate", *sorted(KEYWORDS),
    ]
)  # fmt: skip
ACTIONS = st.lists(WORDS, max_size=6).map(lambda words: "{{ " + " ".join(words) + " }}")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(
    st.one_of(
        st.text(),
        st.lists(WORDS | st.text(max_size=3), max_size=25).map("".join),
        st.lists(ACTIONS | st.just("{{ if .Map }}") | st.just("{{ end }}"), max_size=8).map("".join),
    ),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("Messages", "Content", "Map"), VALUES)),
)
def test_any_text_renders_or_is_refused(text: str, data: dict[str, Any]) -> None:
    try:
        template = parse(text)
        template.cut_after("Content").render(data, today=TODAY, bounds=Bounds(steps=10_000, size=100_000))
        template.render(data, today=TODAY, bounds=Bounds(steps=10_000, size=100_000))
    except TemplateError as error:
        assert error.message.startswith("template: ")


@settings(max_examples=100)
@given(st.text().filter(lambda text: "{{" not in text))
def test_text_renders_to_itself(text: str) -> None:
    assert render(text) == text


@settings(max_examples=100)
@given(st.sampled_from(["printf", "print", "json", "index .", "slice .", "len", "eq 1", "lt 1", "not"]), VALUES, VALUES)
def test_functions_take_any_value_or_refuse_it(function: str, first: Any, second: Any) -> None:
    for arguments in (".A", ".A .B", '"%5.2d %s %q %x %v %+g %c" .A .A .A .A .A .A .A', "(.A | print) .B"):
        try:
            render(f"{{{{ {function} {arguments} }}}}", {"A": first, "B": second})
        except TemplateError as error:
            assert error.message.startswith("template: ")


# Prompts. The formats are those that the models were trained on, as templates of the kind that Ollama ships.

CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
LLAMA2 = """[INST] {{ if .System }}<<SYS>>
{{ .System }}
<</SYS>>

{{ end }}{{ .Prompt }} [/INST] """
LLAMA3 = (
    "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>"
    "{{- end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = """{{- range .Messages }}
{{- if or (eq .Role "user") (eq .Role "system") }}<start_of_turn>user
{{ .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
"""
GEMMA_OLD = """<start_of_turn>user
{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}<end_of_turn>
<start_of_turn>model
{{ .Response }}<end_of_turn>
"""
PHI3 = """{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
"""
FIM = "{{- if .Suffix }}<fim_prefix>{{ .Prompt }}<fim_suffix>{{ .Suffix }}<fim_middle>{{ else }}{{ .Prompt }}{{ end }}"
MISTRAL = """{{- range $i, $_ := .Messages }}
{{- $isLast := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}
{{- if and $isLast $.Tools }}[AVAILABLE_TOOLS] {{ $.Tools }}[/AVAILABLE_TOOLS]
{{- end }}[INST] {{ if and $isLast $.System }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if .Content }} {{ .Content }}</s>
{{- else if .ToolCalls }}[TOOL_CALLS] [
{{- range $n, $call := .ToolCalls }}{{ if $n }}, {{ end -}}
{"name": "{{ $call.Function.Name }}", "arguments": {{ $call.Function.Arguments }}}
{{- end }}]</s>
{{- end }}
{{- else if eq .Role "tool" }}[TOOL_RESULTS] {"content": {{ .Content }}}[/TOOL_RESULTS]
{{- end }}
{{- end }}"""
QWEN25 = """{{- if or .System .Tools }}<|im_start|>system
{{ .System }}
{{- if .Tools }}

# Tools

<tools>
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
</tools>
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Content }}{{ .Content }}
{{- else if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{ end }}</tool_call>
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}"""
QWEN3 = """{{- $lastUser := -1 -}}
{{- range $i, $m := .Messages -}}
{{- if eq $m.Role "user" }}{{ $lastUser = $i }}{{ end -}}
{{- end -}}
{{- range $i, $m := .Messages }}<|im_start|>{{ .Role }}
{{- if and (eq .Role "assistant") .Thinking (gt $i $lastUser) }}
<think>
{{ .Thinking }}
</think>
{{- end }}
{{ .Content }}
{{- if and $.IsThinkSet (eq $i $lastUser) }}
{{- if $.Think }} /think{{ else }} /no_think{{ end }}
{{- end }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ if and $.IsThinkSet (not $.Think) }}<think>

</think>

{{ end }}"""

SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi!"}
WHY = {"role": "user", "content": "Why?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome","at":1}'}}
    ],
}
RESULT = {"role": "tool", "content": '"sunny"', "tool_call_id": "c1"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now>",
        "parameters": {
            "required": ["city"],
            "additionalProperties": False,
            "properties": {
                "city": {"description": "Where", "type": "string", "minLength": 1},
                "at": {"type": ["integer", "null"], "enum": [1, 2]},
            },
            "type": "object",
        },
    },
}
WEATHER_FUNCTION = (
    '{"name":"weather","description":"The weather \\u003cnow\\u003e","parameters":{"type":"object","required":["city"],'
    '"properties":{"at":{"type":["integer","null"],"enum":[1,2]},"city":{"type":"string","description":"Where",'
    '"minLength":1}},"additionalProperties":false}}'
)


@pytest.mark.parametrize(
    ("text", "messages", "prompt"),
    [
        (CHATML, [HELLO], "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"),
        (
            CHATML,
            [SYSTEM, HELLO, HI, WHY],
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!"
            "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (CHATML, [HELLO, HI], "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!"),
        (
            CHATML,
            [HELLO, SYSTEM, WHY],
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (LLAMA2, [SYSTEM, HELLO], "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello [/INST] "),
        (LLAMA2, [HELLO, HI, WHY], "[INST] Hello [/INST] Hi![INST] Why? [/INST] "),
        (
            LLAMA3,
            [SYSTEM, HELLO],
            "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            GEMMA,
            [HELLO, HI, WHY],
            "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi!<end_of_turn>\n"
            "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            GEMMA_OLD,
            [SYSTEM, HELLO],
            "<start_of_turn>user\nBe kind. Hello<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            PHI3,
            [SYSTEM, HELLO, HI, WHY],
            "<|system|>\nBe kind.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi!<|end|>\n"
            "<|user|>\nWhy?<|end|>\n<|assistant|>\n",
        ),
        (MISTRAL, [SYSTEM, HELLO, HI, WHY], "[INST] Hello[/INST] Hi!</s>[INST] Be kind.\n\nWhy?[/INST]"),
        (QWEN25, [HELLO], "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"),
        (QWEN25, [HELLO, HI], "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!"),
    ],
)
def test_prompts(text: str, messages: list[dict[str, Any]], prompt: str) -> None:
    assert render_prompt(parse(text), messages, today=TODAY) == prompt


def test_mistral_with_tools() -> None:
    prompt = render_prompt(parse(MISTRAL), [HELLO, CALL, RESULT, HI, WHY], tools=[WEATHER], today=TODAY)
    assert prompt == (
        '[INST] Hello[/INST][TOOL_CALLS] [{"name": "weather", "arguments": {"at":1,"city":"Rome"}}]</s>'
        '[TOOL_RESULTS] {"content": "sunny"}[/TOOL_RESULTS] Hi!</s>'
        f'[AVAILABLE_TOOLS] [{{"type":"function","function":{WEATHER_FUNCTION}}}][/AVAILABLE_TOOLS][INST] Why?[/INST]'
    )


def test_qwen_with_tools() -> None:
    prompt = render_prompt(parse(QWEN25), [SYSTEM, WHY, CALL, RESULT, RESULT], tools=[WEATHER], today=TODAY)
    assert prompt == (
        "<|im_start|>system\nBe kind.\n\n# Tools\n\n<tools>\n"
        f'{{"type": "function", "function": {WEATHER_FUNCTION}}}\n</tools><|im_end|>\n'
        "<|im_start|>user\nWhy?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"at":1,"city":"Rome"}}\n</tool_call>'
        "<|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n"sunny"\n</tool_response><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n"sunny"\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("think", "asked", "opened"),
    [(None, "", ""), (True, " /think", ""), ("high", " /think", ""), (False, " /no_think", "<think>\n\n</think>\n\n")],
)
def test_qwen_thinking(think: bool | str | None, asked: str, opened: str) -> None:
    thought = {"role": "assistant", "content": "Hi!", "reasoning": "Hm."}
    assert render_prompt(parse(QWEN3), [thought, WHY, thought], think=think, today=TODAY) == (
        f"<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nWhy?{asked}<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\nHm.\n</think>\nHi!<|im_end|>\n<|im_start|>assistant\n{opened}"
    )


def test_infill() -> None:
    assert render_prompt(parse(FIM), [], prompt="a = ", suffix="\n", today=TODAY) == (
        "<fim_prefix>a = <fim_suffix>\n<fim_middle>"
    )
    assert render_prompt(parse(FIM), [], prompt="a = ", today=TODAY) == "a = "


def test_a_suffix_stands_alone_with_its_prompt() -> None:
    text = "{{ .System }}{{ len .Messages }}{{ .Prompt }}|{{ .Suffix }}"
    assert render_prompt(parse(text), [HELLO], prompt="p", suffix="s", system="x", today=TODAY) == "0p|s"


def test_system_and_prompt_are_the_first_and_the_last_message() -> None:
    text = "{{ .System }}{{ range .Messages }}[{{ .Role }} {{ .Content }}]{{ end }}"
    assert render_prompt(parse(text), [HELLO, HI], system="S", prompt="P", today=TODAY) == (
        "S[system S][user Hello][assistant Hi!][user P]"
    )


def prompt_of(text: str, messages: list[dict[str, Any]], **more: Any) -> str:
    return render_prompt(parse(text), messages, today=TODAY, **more)


SHOW = "{{ .System }}|{{ range .Messages }}[{{ .Role }} {{ .Content }} {{ .Thinking }} {{ len .ToolCalls }}]{{ end }}"


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ([HELLO, WHY], "|[user Hello\n\nWhy?  0]"),
        ([SYSTEM, HELLO, SYSTEM], "Be kind.\n\nBe kind.|[system Be kind.  0][user Hello  0][system Be kind.  0]"),
        ([SYSTEM, SYSTEM], "Be kind.\n\nBe kind.|[system Be kind.\n\nBe kind.  0]"),
        ([RESULT, RESULT], '|[tool "sunny"  0][tool "sunny"  0]'),
        ([HI | {"reasoning": "a"}, CALL | {"reasoning": "b"}], "|[assistant Hi!\n\n a\n\nb 1]"),
        ([{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "x"}]}], "|[user x  0]"),
        ([{"role": "assistant", "content": None}], "|[assistant   0]"),
    ],
)
def test_messages_are_collated(messages: list[dict[str, Any]], shown: str) -> None:
    assert prompt_of(SHOW, messages) == shown


def test_messages_are_not_changed_by_rendering() -> None:
    messages = [dict(HELLO), dict(WHY)]
    prompt_of(SHOW, messages)
    assert messages == [HELLO, WHY]


def test_tool_calls_and_results_know_each_other() -> None:
    text = (
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .ID }} {{ .Function.Index }} {{ .Function.Name }} "
        "{{ .Function.Arguments.city }} {{ range $k, $v := .Function.Arguments }}{{ $k }}:{{ $v }};{{ end }}"
        "{{ json . }}{{ end }}|{{ .ToolName }} {{ .ToolCallID }}|{{ end }}"
    )
    assert prompt_of(text, [CALL, RESULT]) == (
        "c1 0 weather Rome at:1;city:Rome;"
        '{"id":"c1","function":{"index":0,"name":"weather","arguments":{"at":1,"city":"Rome"}}}|'
        " ||weather c1|"
    )


def test_a_tools_parameters_can_be_walked() -> None:
    text = (
        "{{ if .Messages }}{{ range .Tools }}{{ .Type }} {{ .Function.Name }} {{ .Function.Parameters.Required }} "
        "{{- range $name, $p := .Function.Parameters.Properties }}"
        "\n{{ $name }}: {{ $p.Type }}, {{ toTypeScriptType $p }}, {{ $p.Description }}, {{ $p.Enum }}"
        "{{ end }}{{ end }}{{ end }}"
    )
    assert prompt_of(text, [HELLO], tools=[WEATHER]) == (
        "function weather [city]\nat: [integer null], number | null, , [1 2]\ncity: string, string, Where, []"
    )


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"type": "string"}, "string"),
        ({"type": "array", "items": {"type": "string"}}, "any[]"),
        ({"type": ["number", "boolean"]}, "number | boolean"),
        ({"anyOf": [{"type": "object"}, {"type": "null"}]}, "Record<string, any> | null"),
        ({"type": "date"}, "any"),
        ({}, "any"),
        (True, "any"),
    ],
)
def test_typescript_types(schema: Any, name: str) -> None:
    tool = {"function": {"name": "f", "parameters": {"properties": {"p": schema}}}}
    text = "{{ if .Messages }}{{ (index .Tools 0).Function.Parameters.Properties.p | toTypeScriptType }}{{ end }}"
    assert prompt_of(text, [HELLO], tools=[tool]) == name


def test_thinking_levels() -> None:
    text = "{{ if .Messages }}{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}{{ end }}"
    shown = [prompt_of(text, [HELLO], think=think) for think in (None, False, True, "low")]
    assert shown == ["false  false", "false  true", "true medium true", "true low true"]


def test_an_unknown_field_of_a_message_is_an_error() -> None:
    with pytest.raises(TemplateError, match=r"can't evaluate field Nope in type api\.Message"):
        prompt_of("{{ range .Messages }}{{ .Nope }}{{ end }}", [HELLO])


@pytest.mark.parametrize("arguments", ["{", "[]", "1", 5, ["a"]])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    with pytest.raises(TemplateError, match="invalid tool call arguments"):
        prompt_of(SHOW, [call])


def test_turns_share_their_bounds() -> None:
    text = "{{ range 60 }}{{ $.Prompt }}{{ end }}{{ .Response }}"
    long = {"role": "user", "content": "x" * 100_000}
    assert len(prompt_of(text, [long, HI, long])) == 12_000_003
    with pytest.raises(TemplateError, match="too long"):
        prompt_of(text, [long, HI, long, HI, long])


TEMPLATES = st.sampled_from(
    [parse(text) for text in (CHATML, LLAMA2, LLAMA3, GEMMA, PHI3, FIM, MISTRAL, QWEN25, QWEN3)]
)
PARTS = VALUES | st.sampled_from(["user", "assistant", "system", "tool", "text", "{}"])
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": PARTS},
        optional={
            "content": PARTS | st.lists(st.dictionaries(st.sampled_from(["type", "text"]), PARTS), max_size=2),
            "reasoning": PARTS,
            "tool_calls": VALUES | st.lists(st.fixed_dictionaries({"function": VALUES}), max_size=2),
            "tool_call_id": PARTS,
            "name": PARTS,
        },
    ),
    max_size=4,
)
SCHEMAS = st.dictionaries(st.sampled_from(["type", "properties", "anyOf", "items", "enum", "x"]), VALUES, max_size=4)
TOOLS = st.lists(
    VALUES | st.fixed_dictionaries({"function": st.fixed_dictionaries({"parameters": SCHEMAS})}), max_size=2
)


@settings(max_examples=150)
@given(TEMPLATES, MESSAGES, TOOLS, st.text(max_size=2), st.none() | st.booleans() | st.just("low"))
def test_any_conversation_renders_or_is_refused(
    template: Template, messages: list[dict[str, Any]], tools: list[Any], prompt: str, think: bool | str | None
) -> None:
    try:
        render_prompt(template, messages, tools=tools, prompt=prompt, think=think, today=TODAY)
    except TemplateError as error:
        assert error.message
