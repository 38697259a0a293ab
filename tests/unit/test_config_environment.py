"""The environment: Ollama's variables by Ollama's rules, ours by ours."""

import math
from pathlib import Path

import pytest

from vllamad.config.environment import parse_address
from vllamad.config.load import load
from vllamad.config.loaded import Loaded
from vllamad.domain.errors import VllamaError


def loaded(tmp_path: Path, **environ: str) -> Loaded:
    return load({}, {"HOME": str(tmp_path), **environ}, is_system_service=True, cwd=tmp_path, etc=tmp_path / "etc")


ADDRESSES = [
    ("1.2.3.4", "1.2.3.4", 11434),
    ("example.com", "example.com", 11434),
    ("localhost", "localhost", 11434),
    ("1.2.3.4:1234", "1.2.3.4", 1234),
    (":1234", "", 1234),
    ("0.0.0.0", "0.0.0.0", 11434),
    ("::", "::", 11434),
    ("[::]:1", "::", 1),
    ("::1", "::1", 11434),
    ("[::1]", "::1", 11434),
    ("[::1]:99", "::1", 99),
    ("http://host", "host", 80),
    ("http://host:1234/path", "host", 1234),
    ("host:0", "host", 0),
    ("host:65535", "host", 65535),
    (' "1.2.3.4" ', "1.2.3.4", 11434),
    ("'1.2.3.4:5'", "1.2.3.4", 5),
    ("example.com/", "example.com", 11434),
]


@pytest.mark.parametrize("name", ["OLLAMA_HOST", "VLLAMA_HOST"])
@pytest.mark.parametrize(("text", "host", "port"), ADDRESSES)
def test_an_address_is_read_as_by_ollama(tmp_path: Path, name: str, text: str, host: str, port: int) -> None:
    found = loaded(tmp_path, **{name: text})
    assert (found.settings.server.host, found.settings.server.port) == (host, port)
    assert found.warnings == ()


BAD_ADDRESSES = [
    ("1.2.3.4:66000", "1.2.3.4", 11434),
    ("1.2.3.4:abc", "1.2.3.4", 11434),
    ("1.2.3.4:", "1.2.3.4", 11434),
    ("http://host:x", "host", 80),
    ("https://host", "host", 443),
    ("gopher://host", "127.0.0.1", 11434),
    ("a b", "127.0.0.1", 11434),
]


@pytest.mark.parametrize(("text", "host", "port"), BAD_ADDRESSES)
def test_a_bad_address_is_a_warning_for_ollamas_name_and_a_problem_for_ours(
    tmp_path: Path, text: str, host: str, port: int
) -> None:
    found = loaded(tmp_path, OLLAMA_HOST=text)
    assert (found.settings.server.host, found.settings.server.port) == (host, port)
    assert found.warnings[0].startswith(f'OLLAMA_HOST="{text}" is not taken as it stands: ')
    with pytest.raises(VllamaError, match=r"VLLAMA_HOST: server\.host: found"):
        loaded(tmp_path, VLLAMA_HOST=text)


def test_without_a_port_the_address_leaves_the_port_alone(tmp_path: Path) -> None:
    server = loaded(tmp_path, VLLAMA_HOST="0.0.0.0", VLLAMA_SERVER_PORT="8080").settings.server
    assert (server.host, server.port) == ("0.0.0.0", 8080)
    assert parse_address("0.0.0.0").port is None


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("OLLAMA_ORIGINS", "https://a,https://*.b", "server.origins", ("https://a", "https://*.b")),
        ("OLLAMA_KEEP_ALIVE", "300", "models.keep_alive", 300),
        ("OLLAMA_KEEP_ALIVE", "1h", "models.keep_alive", 3600),
        ("OLLAMA_KEEP_ALIVE", "-1", "models.keep_alive", math.inf),
        ("OLLAMA_KEEP_ALIVE", "0", "models.keep_alive", 0),
        ("OLLAMA_MAX_QUEUE", "7", "scheduler.max_queue", 7),
        ("OLLAMA_MAX_LOADED_MODELS", "3", "scheduler.max_loaded_models", 3),
        ("OLLAMA_MAX_LOADED_MODELS", "0", "scheduler.max_loaded_models", 0),
        ("OLLAMA_NUM_PARALLEL", "4", "scheduler.num_parallel", 4),
        ("OLLAMA_LOAD_TIMEOUT", "90", "engine.start_timeout", 90),
        ("OLLAMA_LOAD_TIMEOUT", "15m", "engine.start_timeout", 900),
        ("OLLAMA_LOAD_TIMEOUT", "0", "engine.start_timeout", math.inf),
        ("OLLAMA_LOAD_TIMEOUT", "-1", "engine.start_timeout", math.inf),
        ("OLLAMA_CONTEXT_LENGTH", "8192", "models.context_length", 8192),
        ("OLLAMA_DEBUG", "1", "logging.level", "debug"),
        ("OLLAMA_DEBUG", "true", "logging.level", "debug"),
        ("OLLAMA_DEBUG", "2", "logging.level", "debug"),
        ("OLLAMA_DEBUG", ' "1" ', "logging.level", "debug"),
    ],
)
def test_aliases(tmp_path: Path, name: str, text: str, key: str, value: object) -> None:
    setting = loaded(tmp_path, **{name: text}).values[key]
    assert (setting.value, setting.source) == (value, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OLLAMA_DEBUG", "0"),
        ("OLLAMA_DEBUG", "False"),
        ("OLLAMA_MAX_QUEUE", "0"),
        ("OLLAMA_KEEP_ALIVE", ""),
        ("OLLAMA_HOST", ""),
        ("OLLAMA_FLASH_ATTENTION", "1"),
        ("VLLAMA_SERVER_PORT", ""),
        ("VLLAMA_SERVER_PORT", "  "),
    ],
)
def test_what_says_nothing_changes_nothing(tmp_path: Path, name: str, text: str) -> None:
    found = loaded(tmp_path, **{name: text})
    assert {setting.source for setting in found.values.values()} == {"default"}
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OLLAMA_KEEP_ALIVE", "soon"),
        ("OLLAMA_MAX_QUEUE", "-1"),
        ("OLLAMA_NUM_PARALLEL", "many"),
        ("OLLAMA_LOAD_TIMEOUT", "x"),
        ("OLLAMA_ORIGINS", "example.org"),
    ],
)
def test_a_senseless_alias_is_ignored_with_a_warning(tmp_path: Path, name: str, text: str) -> None:
    found = loaded(tmp_path, **{name: text})
    assert {setting.source for setting in found.values.values()} == {"default"}
    assert found.warnings[0].startswith(f'{name}="{text}" is ignored')


def test_names_of_other_programs_are_below_ours(tmp_path: Path) -> None:
    found = loaded(tmp_path, HF_ENDPOINT="https://a", VLLAMA_MODELS_HUB_ENDPOINT="https://b")
    setting = found.values["models.hub_endpoint"]
    assert (setting.value, setting.source) == ("https://b", "VLLAMA_MODELS_HUB_ENDPOINT")
    assert (setting.overrode[0].value, setting.overrode[0].source) == ("https://a", "HF_ENDPOINT")
