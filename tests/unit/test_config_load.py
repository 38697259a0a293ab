"""Layers of configuration: who wins, where a value came from, and what is said about mistakes."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from vllama.reasons import Reason
from vllamad.config.flags import argv_values, build_parser
from vllamad.config.lines import key_lines, line_of
from vllamad.config.load import load
from vllamad.config.loaded import Loaded
from vllamad.config.settings import FILE_ROWS, PLACE_ROWS, ROWS, Settings
from vllamad.domain.errors import VllamaError


class Machine:
    """A machine with configuration files, in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.etc = root / "etc"
        self.home = root / "home"
        self.cwd = root / "cwd"
        self.cwd.mkdir()

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def system(self, text: str) -> Path:
        return self.write(self.etc / "config.toml", text)

    def load(self, *flags: str, is_system_service: bool | None = False, uid: int = 1000, **environ: str) -> Loaded:
        return load(
            argv_values(build_parser().parse_args(flags)),
            {"HOME": str(self.home), **environ},
            is_system_service=is_system_service,
            cwd=self.cwd,
            etc=self.etc,
            uid=uid,
        )

    def problems(self, *flags: str, **environ: str) -> str:
        with pytest.raises(VllamaError) as caught:
            self.load(*flags, **environ)
        assert caught.value.reason is Reason.CONFIG_INVALID
        assert caught.value.hint == "correct it, then run: vllamad --check"
        return caught.value.message.replace(str(self.etc), "/etc/vllama")


@pytest.fixture
def machine(short_folder: Path) -> Machine:
    return Machine(short_folder)


def test_with_nothing_configured_everything_is_the_default(machine: Machine) -> None:
    loaded = machine.load()
    assert loaded.settings == Settings()
    assert {setting.source for setting in loaded.values.values()} == {"default"}
    assert set(loaded.values) == set(ROWS)
    assert (loaded.files, loaded.warnings) == ((), ())


def test_every_layer_wins_over_the_ones_below_and_remembers_them(machine: Machine) -> None:
    system = machine.system("[server]\nport = 1\n")
    second = machine.write(machine.etc / "config.d/10-a.toml", "[server]\nport = 2\n")
    third = machine.write(machine.etc / "config.d/20-b.toml", "\n[server]\nport = 3\n")
    user = machine.write(machine.home / ".config/vllama/config.toml", "[server]\nport = 4\n")
    local = machine.write(machine.cwd / "vllama.toml", "[server]\nport = 5\n")
    machine.write(machine.etc / "config.d/30-not-ours.bak", "nonsense")
    environ = {"OLLAMA_HOST": ":6", "VLLAMA_HOST": ":7", "VLLAMA_SERVER_PORT": "8"}

    loaded = machine.load("--port", "9", **environ)

    setting = loaded.values["server.port"]
    assert (setting.value, setting.source) == (9, "--port")
    assert [(lost.value, lost.source) for lost in setting.overrode] == [
        (8, "VLLAMA_SERVER_PORT"),
        (7, "VLLAMA_HOST"),
        (6, "OLLAMA_HOST"),
        (5, f"{local}:2"),
        (4, f"{user}:2"),
        (3, f"{third}:3"),
        (2, f"{second}:2"),
        (1, f"{system}:2"),
        (11434, "default"),
    ]
    assert loaded.settings.server.port == 9
    assert loaded.files == (system, second, third, user, local)


def test_peeling_layers_off_lets_the_next_one_win(machine: Machine) -> None:
    machine.system("[logging]\nlevel = 'error'\n")
    assert machine.load().settings.logging.level == "error"
    assert machine.load(OLLAMA_DEBUG="1").settings.logging.level == "debug"
    assert machine.load(OLLAMA_DEBUG="1", VLLAMA_LOG_LEVEL="info").settings.logging.level == "info"
    environ = {"VLLAMA_LOG_LEVEL": "info", "VLLAMA_LOGGING_LEVEL": "warning"}
    assert machine.load(**environ).settings.logging.level == "warning"
    assert machine.load("--log-level", "debug", **environ).settings.logging.level == "debug"


def test_a_system_service_reads_neither_the_users_file_nor_the_local_one(machine: Machine) -> None:
    machine.system("[server]\nport = 1\n")
    machine.write(machine.home / ".config/vllama/config.toml", "broken")
    machine.write(machine.cwd / "vllama.toml", "broken")
    loaded = machine.load(is_system_service=True)
    assert loaded.settings.server.port == 1
    assert loaded.is_system_service


def test_xdg_config_home_moves_the_users_file(machine: Machine, tmp_path: Path) -> None:
    machine.write(tmp_path / "xdg/vllama/config.toml", "[server]\nport = 4\n")
    assert machine.load(XDG_CONFIG_HOME=str(tmp_path / "xdg")).settings.server.port == 4
    assert machine.load(XDG_CONFIG_HOME="relative").settings.server.port == 11434


def test_config_replaces_the_search(machine: Machine) -> None:
    machine.system("[server]\nport = 1\n")
    named = machine.write(machine.cwd / "mine.toml", "[models]\nkeep_alive = 60\n")
    for loaded in (machine.load("--config", "mine.toml"), machine.load(VLLAMA_CONFIG=str(named))):
        assert loaded.files == (named,)
        assert loaded.settings.server.port == 11434
        assert loaded.settings.models.keep_alive_s == 60
    assert "nowhere.toml: there is no such file" in machine.problems("--config", "nowhere.toml")


def test_values_get_their_types(machine: Machine) -> None:
    machine.system(
        """
        [server]
        drain = "1m30s"
        max_body_bytes = "1GiB"
        [models]
        keep_alive = -1
        preload = ["qwen3:0.6b", "org/repo"]
        [engine]
        gpu_memory_utilization = 1
        enforce_eager = false
        args = ["--seed", "1"]
        """
    )
    settings = machine.load().settings
    assert settings.server.drain_s == 90
    assert settings.server.max_body_bytes == 2**30
    assert settings.models.keep_alive_s == math.inf
    assert settings.models.preload == ("qwen3:0.6b", "org/repo")
    assert settings.engine.gpu_memory_utilization == 1.0
    assert settings.engine.enforce_eager == "off"
    assert settings.engine.args == ("--seed", "1")
    with pytest.raises(FrozenInstanceError):
        settings.server.port = 1  # type: ignore[misc]


def test_every_key_can_come_from_its_variable(machine: Machine) -> None:
    samples = {
        "duration": "7s",
        "size": "2GiB",
        "integer": "12",
        "number": "0.5",
        "list of strings": "HOME",
        "path": "/x/y",
        "program": "/x/y",
        "string": "x",
        "boolean": "true",
        "table": "gpt-4o=qwen3:8b",
    }
    special = {
        "server.origins": "http://x",
        "models.hub_endpoint": "http://x",
        "auth.api_keys": "sk-0123456789abcdef",
    }
    for row in FILE_ROWS.values():
        options = getattr(row.kind, "options", None)
        sample = "false" if row.default is True else samples.get(row.kind.name, "")
        text = options[-1] if options else special.get(row.key, sample)
        name = f"VLLAMA_{row.section}_{row.name}".upper()
        setting = machine.load(**{name: text}).values[row.key]
        assert (setting.source, setting.value) == (name, row.kind.from_text(text)), row.key
        assert setting.value != row.default, row.key


def test_flags_of_the_contract_and_no_others() -> None:
    options = {option for action in build_parser()._actions for option in action.option_strings}  # pyright: ignore[reportPrivateUsage]
    names = "config host port socket state-dir runtime-dir log-format log-level preload check version help"
    # Beside the contract's, what says more about --check.
    assert options == {f"--{name}" for name in [*names.split(), "json", "system"]} | {"-h"}


def test_repeated_preload_replaces_the_list_of_the_file(machine: Machine) -> None:
    machine.system('[models]\npreload = ["a"]\n')
    assert machine.load("--preload", "b", "--preload", "c-d").settings.models.preload == ("b", "c-d")


def test_host_flag_may_bring_a_port_that_port_overrules(machine: Machine) -> None:
    server = machine.load("--host", "0.0.0.0:8080").settings.server
    assert (server.host, server.port) == ("0.0.0.0", 8080)
    for flags in (("--host", "[::1]:1", "--port", "2"), ("--port", "2", "--host", "[::1]:1")):
        server = machine.load(*flags).settings.server
        assert (server.host, server.port) == ("::1", 2)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1\n", "/etc/vllama/config.toml:2: unknown key server.prot: did you mean server.port?"),
        (
            "[server]\nkeep_alive = 1\n",
            "/etc/vllama/config.toml:2: unknown key server.keep_alive: did you mean models.keep_alive?",
        ),
        (
            "[control]\nqqq = 1\n",
            "/etc/vllama/config.toml:2: unknown key control.qqq; section [control] has socket, group",
        ),
        ("\n[sever]\nport = 1\n", "/etc/vllama/config.toml:2: unknown section [sever]: did you mean [server]?"),
        ("[models]\na.b = 1\n", "/etc/vllama/config.toml:2: unknown key models.a; section [models] has keep_alive,"),
        (
            "port = 1\n",
            "config.toml:1: unknown key port: keys stand in sections; did you mean server.port, in [server]?",
        ),
        (
            "state_dir = '/x'\n",
            "/etc/vllama/config.toml:1: state_dir: no file can set this; use --state-dir or VLLAMA_STATE_DIR",
        ),
        (
            "[limits]\nkeys = []\n",
            "/etc/vllama/config.toml:2: limits.keys: section [limits] has no settings in this version",
        ),
        ("limits = 1\n", "/etc/vllama/config.toml:1: limits: found 1; allowed: a table [limits]"),
        (
            "[server]\nport = 'abc'\n",
            '/etc/vllama/config.toml:2: server.port: found "abc"; allowed: an integer from 0 to 65535',
        ),
        (
            "[server]\nport = 70000\n",
            "/etc/vllama/config.toml:2: server.port: found 70000; allowed: an integer from 0 to 65535",
        ),
        ("[server]\nport = true\n", "server.port: found true; allowed: an integer"),
        ("[server]\nport = [1]\n", "server.port: found [1]; allowed: an integer"),
        ("[server]\nport = { a = 1 }\n", "server.port: found a table; allowed: an integer"),
        ("[server]\nhost = 'a:1'\n", "(the port is a setting of its own, server.port)"),
        ("[server]\norigins = ['*.*']\n", 'server.origins: found ["*.*"]; allowed: a list of origins like'),
        ("[engine]\ndevice = 'tpu'\n", 'engine.device: found "tpu"; allowed: one of "auto", "cuda", "cpu"'),
        ("[engine]\nterm_grace = 'forever'\n", 'engine.term_grace: found "forever"; allowed: a number of seconds'),
        ("[engine]\ncpu_kv_bytes = '1MiB'\n", 'found "1MiB"; allowed: bytes, or a string like'),
        ("[models]\nhub_token = 5\n", "models.hub_token: found a value that is not shown; allowed: a token"),
        (
            "[model]\nmatch = 'x'\n",
            "config.toml:1: model: found a table; allowed: rows, each headed [[model]]",
        ),
        (
            "[[model]]\nmatch = 'x'\nkeepalive = 1\n",
            "/etc/vllama/config.toml:3: unknown key keepalive in a [[model]] row: did you mean keep_alive?",
        ),
        ("[[model]]\nzzz = 1\nmatch = 'x'\n", "unknown key zzz in a [[model]] row: a row has match, keep_alive,"),
        (
            "[[model]]\nmatch = 'x'\n[[model]]\npin = true\n",
            "/etc/vllama/config.toml:3: [[model]] row without match: it names the models",
        ),
        ("[[model]]\nmatch = ''\n", '/etc/vllama/config.toml:2: model.match: found ""; allowed: a pattern'),
        ("[[model]]\nmatch = 'x'\npin = 1\n", "/etc/vllama/config.toml:3: model.pin: found 1; allowed: true or false"),
        ("[server\n", "/etc/vllama/config.toml: not TOML: "),
        ("[server]\nport = 1\nport = 2\n", "/etc/vllama/config.toml: not TOML: "),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_place_and_the_remedy(machine: Machine, text: str, said: str) -> None:
    machine.system(text)
    assert said in machine.problems()


def test_all_mistakes_come_out_together(machine: Machine) -> None:
    machine.system("[server]\nport = 'x'\nprot = 1\n")
    machine.write(machine.etc / "config.d/a.toml", "[[model]]\n")
    text = machine.problems("--log-level", "loud", VLLAMA_ENGINE_PYTON="x", VLLAMA_MAX="y")
    assert text.startswith("cannot load the configuration: 6 problems\n  ")
    for said in (
        "VLLAMA_ENGINE_PYTON: unknown variable: did you mean VLLAMA_ENGINE_PYTHON?",
        "VLLAMA_MAX: unknown variable",
        '--log-level: logging.level: found "loud"; allowed: one of',
        "config.toml:2: server.port",
        "config.toml:3: unknown key server.prot",
        "a.toml:1: [[model]] row without match",
    ):
        assert said in text, said


def test_one_mistake_reads_as_one_sentence(machine: Machine) -> None:
    said = machine.problems("--port", "abc")
    assert said == (
        'cannot load the configuration: --port: server.port: found "abc"; allowed: an integer from 0 to 65535'
    )


def test_files_that_cannot_be_read_are_problems(machine: Machine) -> None:
    (machine.etc / "config.toml").mkdir(parents=True)
    (machine.etc / "config.d").mkdir()
    (machine.etc / "config.d/a.toml").write_bytes(b"x = '\xff'")
    text = machine.problems()
    assert "/etc/vllama/config.toml: cannot read it: Is a directory" in text
    assert "/etc/vllama/config.d/a.toml: not UTF-8: byte 5" in text


def test_a_bom_and_windows_line_ends_do_no_harm(machine: Machine) -> None:
    machine.etc.mkdir()
    (machine.etc / "config.toml").write_bytes("\ufeff[server]\r\n\r\nport = 5\r\n".encode())
    setting = machine.load().values["server.port"]
    assert (setting.value, setting.source.rpartition(":")[2]) == (5, "3")


# --- secrets, rows, showing ------------------------------------------------------------------------------------------


def test_secrets_are_never_shown(machine: Machine) -> None:
    file = machine.system("[models]\nhub_token = 'hf_first'\n")
    loaded = machine.load(HF_TOKEN="hf_second")
    assert loaded.settings.models.hub_token == "hf_second"
    shown = {one.key: one for one in loaded.shown()}["models.hub_token"]
    assert (shown.value, shown.source) == ('"***"', "HF_TOKEN")
    assert shown.overrode == (f'{file}:2: "***"', 'default: ""')
    assert "hf_" not in "".join(str(one) for one in loaded.shown())


def test_a_secret_in_a_file_for_all_eyes_is_warned_of(machine: Machine) -> None:
    file = machine.system("[models]\nhub_token = 'hf_x'\n")
    file.chmod(0o640)
    assert "chmod 600" in machine.load().warnings[0]
    file.chmod(0o600)
    assert machine.load().warnings == ()


def test_a_credential_of_systemd_is_read(machine: Machine, tmp_path: Path) -> None:
    machine.system("[models]\nhub_token = 'hf_file'\n").chmod(0o600)
    machine.write(tmp_path / "cred/hub_token", "hf_cred\n")
    setting = machine.load(CREDENTIALS_DIRECTORY=str(tmp_path / "cred")).values["models.hub_token"]
    assert (setting.value, setting.source) == ("hf_cred", str(tmp_path / "cred/hub_token"))


def test_shown_values_are_toml_and_tell_their_history(machine: Machine) -> None:
    file = machine.system("[models]\nkeep_alive = 90\n")
    shown = {one.key: one for one in machine.load(VLLAMA_MODELS_KEEP_ALIVE="-1").shown()}["models.keep_alive"]
    assert shown.value == '"forever"'
    assert shown.source == "VLLAMA_MODELS_KEEP_ALIVE"
    assert shown.overrode == (f'{file}:2: "1m30s"', 'default: "5m"')
    assert shown.help == FILE_ROWS["models.keep_alive"].help
    assert shown.is_reloadable and shown.pending is None


def test_rows_merge_by_how_specific_they_are(machine: Machine) -> None:
    machine.system(
        """
        [engine]
        args = ["--base"]
        [[model]]
        match = "qwen3:0.6b"
        context_length = 1024
        args = ["--exact"]
        [[model]]
        match = "Qwen3*"
        context_length = 2048
        keep_alive = "1h"
        args = ["--family"]
        [[model]]
        match = "*"
        dtype = "float32"
        pin = true
        [[model]]
        match = "org/repo"
        max_num_seqs = 7
        pin = false
        """
    )
    settings = machine.load(VLLAMA_SCHEDULER_NUM_PARALLEL="3").settings
    exact = settings.for_model("qwen3:0.6b")
    assert exact.context_length == 1024
    assert exact.args == ("--base", "--family", "--exact")
    assert (exact.dtype, exact.is_pinned, exact.keep_alive_s, exact.max_num_seqs) == ("float32", True, math.inf, 3)
    other = settings.for_model("Org/Repo:latest")
    assert (other.max_num_seqs, other.is_pinned, other.keep_alive_s) == (7, False, 300)
    assert settings.for_model("qwen3:4b").context_length == 2048


def test_of_two_rows_for_the_same_pattern_the_later_wins_and_shows_it(machine: Machine) -> None:
    first = machine.system("[[model]]\nmatch = 'a*'\nkeep_alive = 1\n")
    second = machine.write(machine.cwd / "vllama.toml", "[[model]]\nmatch = 'a*'\nkeep_alive = 2\n")
    loaded = machine.load()
    assert loaded.settings.for_model("abc:latest").keep_alive_s == 2
    shown = {one.key: one for one in loaded.shown()}["model[a*].keep_alive"]
    assert (shown.value, shown.source, shown.overrode) == ('"2s"', f"{second}:3", (f'{first}:3: "1s"',))


def test_paths_are_absolute_from_where_they_were_written(machine: Machine) -> None:
    machine.system("[control]\nsocket = 'run/a.sock'\n[engine]\npython = '~/venv/bin/python'\n")
    loaded = machine.load("--state-dir", "state")
    assert loaded.settings.control.socket == str(machine.etc / "run/a.sock")
    assert loaded.settings.engine.python == str(machine.home / "venv/bin/python")
    assert loaded.settings.state_dir == str(machine.cwd / "state")
    assert machine.load(VLLAMA_ENGINE_PYTHON="python3.12").settings.engine.python == "python3.12"


def test_nothing_reads_the_real_environment(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLAMA_SERVER_PORT", "1")
    monkeypatch.setenv("OLLAMA_HOST", ":2")
    assert machine.load().settings.server.port == 11434


def test_names_that_our_own_scripts_use_do_not_stop_the_daemon(machine: Machine) -> None:
    root = Path(__file__).resolve().parents[2]
    texts = [path.read_text() for path in (root / "Makefile", *(root / "scripts").glob("*.py"))]
    names = {name for text in texts for name in re.findall(r"\bVLLAMA_[A-Z_]*[A-Z]\b", text)}
    settings = {name for row in ROWS.values() for name in row.env}
    assert machine.load(**dict.fromkeys(names - settings, "x")).settings == Settings()


# --- lines -----------------------------------------------------------------------------------------------------------


def test_lines_are_found_past_strings_arrays_and_comments() -> None:
    text = '''# [a]
x = """
y = 1
[z]
"""
"quoted key" = 'its'
[a]   # [b]
list = [ # ]
  "=", "[", { n = 1 },
  """]
""",
]
after = 1
d.e.f = {g = 1}
[[m]]
k = 1
[[m]]
k = 2
[m.sub]
q = 1
last = "no newline"'''
    lines = key_lines(text)
    assert {path: line for path, line in lines.items() if len(path) < 4} == {
        ("x",): 2,
        ("quoted key",): 6,
        ("a",): 7,
        ("a", "list"): 8,
        ("a", "after"): 13,
        ("a", "d"): 14,
        ("a", "d", "e"): 14,
        ("m", 0): 15,
        ("m", 0, "k"): 16,
        ("m", 1): 17,
        ("m", 1, "k"): 18,
        ("m", "sub"): 19,
        ("m", "sub", "q"): 20,
        ("m", "sub", "last"): 21,
    }
    assert line_of(lines, ("a", "d", "e", "f", "g")) == 14
    assert line_of(lines, ("nowhere",)) == 0


def test_places_are_no_file_settings() -> None:
    assert set(PLACE_ROWS) == {"config", "state_dir", "runtime_dir"}
    assert not set(PLACE_ROWS) & set(FILE_ROWS)


def test_environment_is_taken_as_any_mapping(machine: Machine) -> None:
    environ: Mapping[str, str] = os.environ
    kept = {name: value for name, value in environ.items() if not name.startswith(("VLLAMA_", "OLLAMA_", "HF_"))}
    loaded = load({}, kept, is_system_service=True, cwd=machine.cwd, etc=machine.etc)
    assert loaded.settings == Settings()
