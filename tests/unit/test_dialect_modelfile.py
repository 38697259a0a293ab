"""Modelfiles: read, written as Ollama's `show` prints them, and read again."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.reasons import Reason
from vllamad.dialects.modelfile import Modelfile, decode, parse, read_parameters, render, show_parameters
from vllamad.dialects.ollama_options import FLAG, INTEGER, OPTIONS, TEXTS
from vllamad.domain.errors import VllamaError

CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
TOOLS = """{{- if .Tools }}# Tools

{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
{{- end }}{{ .Prompt }}"""
COMMANDS = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", '
    '"parameter", "message", or "requires"'
)
ROLES = 'message role must be one of "system", "user", or "assistant"'
DEPRECATED = {
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
    "mirostat_eta",
}  # fmt: skip


def refused(call: Any, *args: Any) -> VllamaError:
    with pytest.raises(VllamaError) as caught:
        call(*args)
    assert caught.value.reason is Reason.INVALID_REQUEST
    return caught.value


def system_of(value: str) -> str:
    return parse(f"FROM m\nSYSTEM {value}\n").system


# Whole files


FULL = '''# A support agent, on top of a small model.
FROM qwen3:0.6b

  # a comment may be indented
TEMPLATE """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}<|im_start|>user
# not a comment: it is inside
{{ .Prompt }}<|im_end|>
<|im_start|>assistant
"""
system """
You are "Ada", terse and kind.
"""
ADAPTER ./lora/ada-v2
Adapter /srv/loras/house style.safetensors
PARAMETER temperature 0.7
PARAMETER num_ctx 8192
PARAMETER stop <|im_start|>
PARAMETER stop "<|im_end|>"
PARAMETER stop "User: "
PARAMETER use_mmap false
PARAMETER temperature 0.2
MESSAGE user Is Toronto in Canada?
MESSAGE assistant yes
MESSAGE user   """Is Sacramento
in "Canada"?"""
MESSAGE assistant no # really
LICENSE MIT
LICENSE """Apache License
Version 2.0
"""
RENDERER qwen3-coder
PARSER qwen3-coder
REQUIRES v0.14.0
DRAFT ./draft.gguf'''

FULL_READ = Modelfile(
    sources=("qwen3:0.6b",),
    adapters=("./lora/ada-v2", "/srv/loras/house style.safetensors"),
    template="{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n"
    "# not a comment: it is inside\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n",
    system='\nYou are "Ada", terse and kind.\n',
    licenses=("MIT", "Apache License\nVersion 2.0\n"),
    messages=(
        ("user", "Is Toronto in Canada?"),
        ("assistant", "yes"),
        ("user", 'Is Sacramento\nin "Canada"?'),
        ("assistant", "no # really"),
    ),
    parameters={
        "temperature": 0.2,
        "num_ctx": 8192,
        "stop": ("<|im_start|>", "<|im_end|>", "User: "),
        "use_mmap": False,
    },
    renderer="qwen3-coder",
    parser="qwen3-coder",
    requires="0.14.0",
    draft="./draft.gguf",
)


def test_a_whole_modelfile() -> None:
    assert parse(FULL) == FULL_READ
    assert parse(FULL).warnings == ()
    assert parse(render(FULL_READ)) == FULL_READ


def test_a_whole_modelfile_from_windows_keeps_the_line_breaks_inside_quotes() -> None:
    read = parse(FULL.replace("\n", "\r\n"))
    assert read.system == FULL_READ.system.replace("\n", "\r\n")
    assert read.licenses == ("MIT", "Apache License\r\nVersion 2.0\r\n")
    assert read.parameters == FULL_READ.parameters
    assert read.sources == FULL_READ.sources
    assert read.messages[0] == ("user", "Is Toronto in Canada?")
    assert parse(render(read)) == read


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("FROM m", ("m",)),
        ("from m", ("m",)),
        ("fRoM\tm\t \n", ("m",)),
        ("\n\n   FROM    a b    \n", ("a b",)),
        ('FROM "  a b "', ("  a b ",)),
        ("FROM ./model.gguf\rFROM mmproj.gguf\r", ("./model.gguf", "mmproj.gguf")),
        ("\ufeffFROM m", ("m",)),
        ("FROM m # no comment", ("m # no comment",)),
        ("FROM \nFROM m\n", ("m",)),
        ("SYSTEM last\nFROM m", ("m",)),
        ("FROM m\n# FROM other\n#", ("m",)),
        ("FROM modèle/\u200dx\u00a0", ("modèle/\u200dx\u00a0",)),
    ],
)
def test_sources(text: str, sources: tuple[str, ...]) -> None:
    assert parse(text).sources == sources


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("   blanks \t ", "blanks"),
        ('say "hi"', 'say "hi"'),
        ("'single'", "'single'"),
        ('"  kept  "   ', "  kept  "),
        ('""', ""),
        ('""""""', ""),
        ("", ""),
        ('" "', " "),
        ('"a" and "b"', 'a" and "b'),
        ('"two\nlines"', "two\nlines"),
        ('"\n"', "\n"),
        ('"open "here" still\nclosed"', 'open "here" still\nclosed'),
        ('"""one line"""', "one line"),
        ('"""\na\n\n  b\t\n"""', "\na\n\n  b\t\n"),
        ('"""a"""   \t', "a"),
        ('"""a "" b" c\n""""', 'a "" b" c\n"'),
        ('"""a """ b\nc"""', 'a """ b\nc'),
        ('"""quoted "word""""', 'quoted "word"'),
        ('"""a\r\nb"""\r', "a\r\nb"),
        ('"a\\n"', "a\\n"),
        ("first\nSYSTEM second", "second"),
    ],
)
def test_values(value: str, text: str) -> None:
    assert system_of(value) == text


def test_a_value_in_quotes_ends_where_a_line_ends_with_them() -> None:
    read = parse('FROM m\nSYSTEM "a"\nLICENSE """b\nc""" \nTEMPLATE "d"')
    assert (read.system, read.licenses, read.template) == ("a", ("b\nc",), "d")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("temperature 0.7", 0.7),
        ("temperature 1", 1.0),
        ("temperature .5", 0.5),
        ("top_p 1e-2", 0.01),
        ('top_p "0.9"', 0.9),
        ("presence_penalty -1.5", -1.5),
        ("num_ctx 4096", 4096),
        ("num_ctx    0004096  ", 4096),
        ("seed -1", -1),
        ("seed +42", 42),
        ("seed 9223372036854775807", 2**63 - 1),
        ("use_mmap true", True),
        ("use_mmap F", False),
        ("use_mmap 1", True),
        ("stop ### User:", ("### User:",)),
        ('stop "### User: "', ("### User: ",)),
        ('stop """a\n"""', ("a\n",)),
        ('stop ""', ()),
        ("tfs_z 0.5", 0.5),
    ],
)
def test_parameters(line: str, value: object) -> None:
    (read,) = parse(f"FROM m\nPARAMETER   {line}\n").parameters.values()
    assert (read, type(read)) == (value, type(value))


def test_an_empty_stop_word_adds_nothing() -> None:
    assert parse('FROM m\nPARAMETER stop ""\nPARAMETER stop a\nPARAMETER stop ""\n').parameters == {"stop": ("a",)}


def test_deprecated_parameters_are_skipped_with_a_warning() -> None:
    lines = "".join(f"PARAMETER {name} whatever\n" for name in sorted(DEPRECATED))
    read = parse(f"FROM m\n{lines}PARAMETER top_k 5\n")
    assert read.parameters == {"top_k": 5}
    assert read.warnings == tuple(f"parameter {name} is deprecated" for name in sorted(DEPRECATED))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("0.14.0", "0.14.0"), ("v0.14.0", "0.14.0"), ("1", "1"), ("1.2", "1.2"), ("0.33.0-rc2", "0.33.0-rc2"),
        ("1.0.0-0.x-y.01a+b.001", "1.0.0-0.x-y.01a+b.001"), ("1.0.0+01", "1.0.0+01"),
    ],
)  # fmt: skip
def test_versions(written: str, read: str) -> None:
    assert parse(f"FROM m\nREQUIRES {written}").requires == read


# Refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM line"),
        ("# FROM m\n", "no FROM line"),
        ("FROM ", "no FROM line"),
        ('FROM ""\n', "no FROM line"),
        ("SYSTEM hi\nPARAMETER top_k 1\n", "no FROM line"),
        ("FROM m\nBADCOMMAND x\n", f"(line 2): {COMMANDS}"),
        ("FROM m\r\n\r\nBADCOMMAND x\r\n", f"(line 3): {COMMANDS}"),
        ('FROM m\n# x\nSYSTEM """\na\n"""\n\nEMBED x\n', f"(line 7): {COMMANDS}"),
        ("FROM m\nSYSTEM\n", f"(line 2): {COMMANDS}"),
        ("FROM\u00a0m", f"(line 1): {COMMANDS}"),
        ("{{ .Prompt }}", f"(line 1): {COMMANDS}"),
        ('FROM m\nSYSTEM "a"\nb"\n', f"(line 3): {COMMANDS}"),
        ("FROM m\nMESSAGE tool hi\n", f"(line 2): {ROLES}"),
        ("FROM m\nMESSAGE User hi\n", f"(line 2): {ROLES}"),
        ("FROM m\nMESSAGE system\n", "unexpected EOF: system"),
        ("FROM m\nMESSAGE system", "unexpected EOF: system"),
        ("FROM m\nMESSAGE ", "unexpected EOF"),
        ("FROM m\nPARAMETER num_ctx\n", "unexpected EOF: num_ctx"),
        ("FROM m\nPARAMETER top-k 1\n", "unexpected EOF: top"),
        ("FROM m\nPARAMETER", "unexpected EOF"),
        ("FROM", "unexpected EOF"),
        ('FROM m\nSYSTEM "', "unexpected EOF"),
        ('FROM m\nSYSTEM "open\n', "unexpected EOF"),
        ('FROM m\nSYSTEM """', "unexpected EOF"),
        ('FROM m\nSYSTEM """""\n', "unexpected EOF"),
        ('FROM m\nSYSTEM """open"" \nPARAMETER top_k 1', "unexpected EOF"),
        ("FROM m\nPARAMETER foo 1", "unknown parameter 'foo'"),
        ("FROM m\nPARAMETER Temperature 1", "unknown parameter 'Temperature'"),
        ("FROM m\nPARAMETER temperature warm", "invalid float value [warm]"),
        ("FROM m\nPARAMETER temperature ", "invalid float value []"),
        ("FROM m\nPARAMETER temperature nan", "invalid float value [nan]"),
        ("FROM m\nPARAMETER temperature 1e39", "invalid float value [1e39]"),
        ("FROM m\nPARAMETER temperature 1_0", "invalid float value [1_0]"),
        ("FROM m\nPARAMETER temperature ٣", "invalid float value [٣]"),
        ("FROM m\nPARAMETER num_ctx 4096.0", "invalid int value [4096.0]"),
        ("FROM m\nPARAMETER num_ctx 9223372036854775808", "invalid int value [9223372036854775808]"),
        ("FROM m\nPARAMETER num_ctx " + "9" * 5000, f"invalid int value [{'9' * 5000}]"),
        ("FROM m\nPARAMETER use_mmap yes", "invalid bool value [yes]"),
        ("FROM m\nREQUIRES soon", "requires must be a valid semver (e.g. 0.14.0)"),
        ("FROM m\nREQUIRES 0.01.0", "requires must be a valid semver (e.g. 0.14.0)"),
        ("FROM m\nREQUIRES 1.0.0-rc.01", "requires must be a valid semver (e.g. 0.14.0)"),
        ("FROM m\nREQUIRES 1.0.0-01+b", "requires must be a valid semver (e.g. 0.14.0)"),
        ("FROM m\nREQUIRES 1-rc", "requires must be a valid semver (e.g. 0.14.0)"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    assert refused(parse, text).message == message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("FROM m\nSYSTEM\nhi", "SYSTEM and its value stand on one line"),
        ('FROM m\n\nSYSTEM """hi', 'the """ opened in line 3 is closed at no line\'s end'),
        ("FROM m\r\n\r\nPARAMETER top_k\r\n", "line 3 of the Modelfile is cut short: PARAMETER needs more after it"),
        ("FROM m\nPARAMETER top_k x", "line 2 of the Modelfile"),
        ("FROM m\nPARAMETER x 1", "line 2 of the Modelfile"),
    ],
)
def test_hints_say_where(text: str, hint: str) -> None:
    assert refused(parse, text).hint == hint


# Bytes


@pytest.mark.parametrize(
    "data",
    [
        "FROM m\nSYSTEM Grüße 🦙\n".encode(),
        b"\xef\xbb\xbf" + "FROM m\nSYSTEM Grüße 🦙\n".encode(),
        b"\xff\xfe" + "FROM m\nSYSTEM Grüße 🦙\n".encode("utf-16-le"),
        b"\xfe\xff" + "FROM m\nSYSTEM Grüße 🦙\n".encode("utf-16-be"),
    ],
)
def test_encodings(data: bytes) -> None:
    assert parse(decode(data)) == Modelfile(sources=("m",), system="Grüße 🦙")


@given(st.binary())
def test_any_bytes_are_a_text(data: bytes) -> None:
    for mark in (b"", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf"):
        decode(mark + data).encode()


# Printed as recorded from Ollama 0.33


@pytest.mark.parametrize(
    ("modelfile", "printed"),
    [
        (
            Modelfile(
                sources=(),
                template=CHATML,
                system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
                parameters={"stop": ("<|im_start|>", "<|im_end|>")},
            ),
            'TEMPLATE "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n'
            '{{ end }}<|im_start|>assistant\n"\n'
            "SYSTEM You are a helpful AI assistant named SmolLM, trained by Hugging Face\n"
            "PARAMETER stop <|im_start|>\nPARAMETER stop <|im_end|>\n",
        ),
        (
            Modelfile(
                sources=(),
                template=CHATML,
                system="Be brief.",
                parameters={"stop": ("<|im_start|>", "<|im_end|>"), "temperature": 0.5},
            ),
            f'TEMPLATE "{CHATML}"\nSYSTEM Be brief.\n'
            "PARAMETER stop <|im_start|>\nPARAMETER stop <|im_end|>\nPARAMETER temperature 0.5\n",
        ),
        (
            Modelfile(
                sources=(),
                template="{{ .Prompt }}",
                parameters={"stop": ("a", "b"), "temperature": 0.1},
                licenses=("MIT-like text",),
                messages=(("user", "q"), ("assistant", "a")),
            ),
            "TEMPLATE {{ .Prompt }}\nPARAMETER stop a\nPARAMETER stop b\nPARAMETER temperature 0.1\n"
            "LICENSE MIT-like text\nMESSAGE user q\nMESSAGE assistant a\n",
        ),
        (Modelfile(sources=(), template=TOOLS), f'TEMPLATE """{TOOLS}"""\n'),
        (
            Modelfile(sources=("/blobs/sha256-0a",), template="{{ .Prompt }}"),
            "FROM /blobs/sha256-0a\nTEMPLATE {{ .Prompt }}\n",
        ),
    ],
    ids=["show", "override-system", "created", "tools", "jinja"],
)
def test_recorded_printouts(modelfile: Modelfile, printed: str) -> None:
    assert render(modelfile) == printed


def test_the_order_of_all_commands() -> None:
    words = [line.split(" ")[0] for line in render(parse("FROM b\n" + FULL)).splitlines()]
    known = [word for word in words if word.isalpha() and word.isupper()]
    assert list(dict.fromkeys(known)) == [
        "FROM", "ADAPTER", "DRAFT", "TEMPLATE", "SYSTEM", "RENDERER", "PARSER", "REQUIRES", "PARAMETER", "LICENSE",
        "MESSAGE",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain", "plain"),
        ('say "hi"', 'say "hi"'),
        (" a", '" a"'),
        ("a\t", '"a\t"'),
        ("a\nb", '"a\nb"'),
        ("a\rb", '"a\rb"'),
        ('"a"\nb', '""""a"\nb"""'),
        ('"quoted" first', '""""quoted" first"""'),
        ('"""', '"""""""""'),
        ('a """ b\nc', '"""a """ b\nc"""'),
        ('a\nb"""', '"""a\nb""""""'),
        ("# no comment", "# no comment"),
    ],
)
def test_quotes(text: str, written: str) -> None:
    assert render(Modelfile(sources=("m",), system=text)) == f"FROM m\nSYSTEM {written}\n"
    assert system_of(written) == text


@pytest.mark.parametrize(
    ("modelfile", "message"),
    [
        (
            Modelfile(sources=("m",), template='def f():\n    """doc"""  \n    pass'),
            'cannot write TEMPLATE into a Modelfile: one of its lines ends with """',
        ),
        (
            Modelfile(sources=("m",), messages=(("user", '"""\n'),)),
            'cannot write MESSAGE user into a Modelfile: one of its lines ends with """',
        ),
        (Modelfile(sources=("m",), messages=(("tool", "22 C"),)), ROLES),
    ],
)
def test_what_cannot_be_written(modelfile: Modelfile, message: str) -> None:
    assert refused(render, modelfile).message == message


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({}, ""),
        ({"stop": ()}, ""),
        (
            {"stop": ("<|im_start|>", "<|im_end|>")},
            'stop                           "<|im_start|>"\nstop                           "<|im_end|>"',
        ),
        (
            {"stop": ("a", "b"), "temperature": 0.1},
            'stop                           "a"\nstop                           "b"\n'
            "temperature                    0.1",
        ),
        (
            {"temperature": 1.0, "num_ctx": 8192, "use_mmap": True, "top_p": 1e-5},
            "temperature                    1\nnum_ctx                        8192\n"
            "use_mmap                       true\ntop_p                          1e-05",
        ),
        (
            {"stop": ('\n\t"\\', "\x00\x7f\x1b\a", "é🦙 日本", "\u00a0\u200d\ufeff\U000e0001")},
            'stop                           "\\n\\t\\"\\\\"\n'
            'stop                           "\\x00\\x7f\\x1b\\a"\n'
            'stop                           "é🦙 日本"\n'
            'stop                           "\\u00a0\\u200d\\ufeff\\U000e0001"',
        ),
    ],
)
def test_shown_parameters(parameters: Any, shown: str) -> None:
    assert show_parameters(parameters) == shown


# The parameters of /api/create


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ({}, {}),
        ({"temperature": 0.1, "stop": ["a", "b"]}, {"temperature": 0.1, "stop": ("a", "b")}),
        ({"temperature": 1, "num_ctx": 4096.9, "seed": -1.5}, {"temperature": 1.0, "num_ctx": 4096, "seed": -1}),
        ({"stop": ["", "a"]}, {"stop": ("a",)}),
        ({"stop": []}, {"stop": ()}),
        ({"use_mmap": False, "top_k": None}, {"use_mmap": False}),
        (dict.fromkeys(DEPRECATED, "whatever"), {}),
    ],
)
def test_created_parameters(values: Any, read: object) -> None:
    parameters = read_parameters(values)
    assert parameters == read
    assert parse(render(Modelfile(sources=("m",), parameters=parameters))).parameters == read


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"temperature": 1e39}, 'option "temperature" must be of type float32'),
        ({"num_ctx": "4096"}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": True}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": 2**63}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": float("inf")}, 'option "num_ctx" must be of type integer'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": "a"}, 'option "stop" must be of type array'),
        ({"stop": ["a", 1]}, 'option "stop" must be of an array of strings'),
        ({"tempreature": 1}, "unknown parameter 'tempreature'"),
    ],
)
def test_refused_parameters(values: Any, message: str) -> None:
    assert refused(read_parameters, values).message == message


# There and back


def _values(kind: str) -> st.SearchStrategy[Any]:
    if kind == FLAG:
        return st.booleans()
    if kind == INTEGER:
        return st.integers(-(2**63), 2**63 - 1)
    if kind == TEXTS:
        return st.lists(TEXT.filter(bool)).map(tuple)
    return st.floats(width=32, allow_nan=False, allow_infinity=False)


TEXT = st.one_of(
    st.text(), st.lists(st.sampled_from(["a", '"', '""', "\n", "\r", " ", "\t", "#", "\u200d"])).map("".join)
)
SOME_TEXTS = st.lists(TEXT, max_size=3).map(tuple)
MODELFILES = st.builds(
    Modelfile,
    sources=st.lists(TEXT.filter(bool), min_size=1, max_size=3).map(tuple),
    adapters=SOME_TEXTS,
    template=TEXT,
    system=TEXT,
    licenses=SOME_TEXTS,
    messages=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=3).map(tuple),
    parameters=st.fixed_dictionaries(
        {}, optional={name: _values(row.kind) for name, row in OPTIONS.items() if name not in DEPRECATED}
    ),
    renderer=TEXT,
    parser=TEXT,
    requires=st.sampled_from(["", "0.14.0", "1.2.3-rc.1+5"]),
    draft=TEXT,
)


def _has_closing_line(text: str) -> bool:
    """Whether a line other than the last ends with three quotes; such a text cannot be written."""
    return any(line.rstrip(" \t").endswith('"""') for line in text.replace("\r", "\n").split("\n")[:-1])


def _all_texts(modelfile: Modelfile) -> list[str]:
    texts = [modelfile.template, modelfile.system, modelfile.renderer, modelfile.parser, modelfile.draft]
    stops = modelfile.parameters.get("stop", ())
    assert isinstance(stops, tuple)
    roles_texts = [text for _, text in modelfile.messages]
    return [*texts, *stops, *modelfile.sources, *modelfile.adapters, *modelfile.licenses, *roles_texts]


@given(MODELFILES)
def test_what_is_written_reads_the_same(modelfile: Modelfile) -> None:
    if any(map(_has_closing_line, _all_texts(modelfile))):
        assert "one of its lines ends with" in refused(render, modelfile).message
    else:
        assert parse(render(modelfile)) == modelfile


PIECES = st.sampled_from(
    [
        "FROM ", "from", "SYSTEM ", "MESSAGE ", "user ", "PARAMETER ", "stop ", "num_ctx ", "use_mmap ", "REQUIRES ",
        "LICENSE ", "1", "0.5", "x", '"', '"""', "\n", "\r\n", " ", "\t", "#", "\ufeff", "\0", "é",
    ]
)  # fmt: skip


@given(
    st.one_of(st.text(), st.lists(PIECES).map("".join), st.lists(PIECES).map(lambda some: "FROM m\n" + "".join(some)))
)
def test_any_text_is_a_modelfile_or_refused(text: str) -> None:
    try:
        read = parse(text)
    except VllamaError as error:
        assert error.reason is Reason.INVALID_REQUEST
        return
    assert parse(render(read)) == read


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


@given(
    st.dictionaries(
        st.sampled_from([*OPTIONS, "x"]),
        st.one_of(SCALARS, st.lists(SCALARS, max_size=3)),
        max_size=5,
    )
)
def test_any_json_is_parameters_or_refused(values: dict[str, Any]) -> None:
    try:
        parameters = read_parameters(values)
    except VllamaError as error:
        assert error.reason is Reason.INVALID_REQUEST
    else:
        show_parameters(parameters)


@pytest.mark.parametrize(
    "text",
    [
        "# c\n" * 200_000,
        "LICENSE x\n" * 30_000,
        'SYSTEM """' + 'a "\n' * 200_000,
        "SYSTEM " + '"' * 800_000,
        "\r\n" * 400_000,
    ],
)
def test_long_texts_are_read_in_linear_time(text: str) -> None:
    begin = time.process_time()
    refused(parse, text)
    assert time.process_time() - begin < 10
