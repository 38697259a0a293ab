"""Every decision of the engine's command line and environment."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability, Model, ModelDetails, ModelFile, Recipe, Source, SourceKind
from vllamad.domain.names import ModelRef
from vllamad.domain.ports import Command, EnginePlace, EngineVersion, WorkerPlaces
from vllamad.engine import fast_path
from vllamad.engine.command import (
    GUARD,
    LATE,
    PREPARATION,
    SELF_TEST,
    EngineOptions,
    ModelOptions,
    build_command,
    loaders_for,
    memory_settings,
    self_test_command,
    served_names,
    zygote_command,
)

PLACES = WorkerPlaces(Path("/run/vllama/workers/1-1/s"), Path("/run/vllama/workers/1-1"))
OPTIONS = EngineOptions(Path("/engine/bin/python"), Path("/var/lib/vllama/cache"), {"PATH": "/bin"}, cpu_count=4)


def make_model(name: str = "qwen3:0.6b", **more: Any) -> Model:
    defaults: dict[str, Any] = {"source": Source(SourceKind.HUB, "Qwen/Qwen3-0.6B")}
    defaults["details"] = ModelDetails(context_length=40960)
    defaults |= {"files": (), "path": "/models/q"}
    return Model(ref=ModelRef.parse(name), digest="0" * 64, modified_time=0.0, **(defaults | more))


def build(
    device: str = "cuda", options: EngineOptions = OPTIONS, chosen: ModelOptions | None = None, **model: Any
) -> Command:
    return build_command(options, chosen or ModelOptions(), make_model(**model), PLACES, device)


def value(command: Command, flag: str) -> str:
    """The word after a flag that is there exactly once."""
    assert command.argv.count(flag) == 1, command.argv
    return command.argv[command.argv.index(flag) + 1]


def test_it_serves_the_model_on_its_socket_by_the_interpreter() -> None:
    command = build()
    assert command.argv[:3] == ["/engine/bin/python", "-m", "vllm.entrypoints.launchers.api_server.entry"]
    assert value(command, "--model") == "/models/q"
    assert value(command, "--uds") == "/run/vllama/workers/1-1/s"
    assert command.cwd == PLACES.folder
    assert command.title == "qwen3:0.6b"
    assert not {"--host", "--port", "--api-key"} & set(command.argv)


def test_every_known_name_is_served_and_the_display_form_is_shown() -> None:
    assert served_names(make_model()) == ["qwen3:0.6b", "Qwen/Qwen3-0.6B"]
    assert served_names(make_model("Org/Repo", source=Source(SourceKind.FOLDER))) == [
        "Org/Repo:latest", "Org/Repo", "org/repo:latest", "org/repo",
    ]  # fmt: skip


def test_cuda_has_the_defaults_that_matter_there() -> None:
    command = build("cuda")
    assert value(command, "--max-num-batched-tokens") == "16384"
    assert value(command, "--dtype") == "auto"
    assert "--enable-chunked-prefill" in command.argv and "--enable-prefix-caching" in command.argv
    assert not {"--enforce-eager", "--max-num-seqs"} & set(command.argv)
    assert "OMP_NUM_THREADS" not in command.env and "TORCH_COMPILE_DISABLE" not in command.env


def test_an_engine_on_gpus_gets_its_bytes_and_sees_no_others() -> None:
    def placed(place: EnginePlace) -> Command:
        return build_command(OPTIONS, ModelOptions(), make_model(), PLACES, "cuda", place)

    two = placed(EnginePlace(("GPU-a", "GPU-b"), 0.45678, 7 << 30))
    assert value(two, "--tensor-parallel-size") == "2"
    assert value(two, "--kv-cache-memory-bytes") == str(7 << 30)
    assert value(two, "--gpu-memory-utilization") == "0.4567", "rounded down: the engine asks for this much to be free"
    assert two.env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    encoder = placed(EnginePlace(("GPU-a",), 0.1))
    assert not {"--tensor-parallel-size", "--kv-cache-memory-bytes"} & set(encoder.argv)
    inherited = replace(OPTIONS, inherited={"CUDA_VISIBLE_DEVICES": "0,1"})
    command = build_command(inherited, ModelOptions(), make_model(), PLACES, "cuda", EnginePlace(("GPU-b",), 0.1))
    assert command.env["CUDA_VISIBLE_DEVICES"] == "GPU-b"


def test_what_changes_memory_is_read_from_settings_and_from_further_flags() -> None:
    plain = memory_settings(OPTIONS, ModelOptions(), make_model(), "cuda")
    assert (plain.max_num_batched_tokens, plain.max_num_seqs, plain.kv_dtype, plain.is_eager) == (
        16384,
        1024,
        "auto",
        False,
    )
    args = ("--kv-cache-dtype", "fp8", "--max-num-seqs=7", "--dtype", "float16", "--enforce-eager")
    flags = memory_settings(OPTIONS, ModelOptions(args=args, adapter_rank=10), make_model(), "cuda")
    assert (flags.kv_dtype, flags.max_num_seqs, flags.dtype, flags.is_eager) == ("fp8", 7, "float16", True)
    assert (flags.adapters, flags.adapter_rank) == (4, 16)
    cpu = memory_settings(replace(OPTIONS, has_bfloat16=False), ModelOptions(), make_model(), "cpu")
    assert (cpu.dtype, cpu.max_num_batched_tokens, cpu.max_num_seqs, cpu.is_eager) == ("float32", 2048, 128, True)


def test_cpu_is_eager_and_bounded() -> None:
    command = build("cpu", replace(OPTIONS, cpu_kv_bytes=123))
    assert "--enforce-eager" in command.argv
    assert value(command, "--kv-cache-memory-bytes") == "123"
    assert value(command, "--max-num-batched-tokens") == "2048"
    assert "--gpu-memory-utilization" not in command.argv
    assert "VLLM_CPU_KVCACHE_SPACE" not in command.env
    assert command.env["TORCH_COMPILE_DISABLE"] == "1"


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "1"), (4, "3"), (16, "15")])
def test_on_few_cores_the_model_runs_in_the_engine_core_and_leaves_one_core(cores: int, threads: str) -> None:
    env = build("cpu", replace(OPTIONS, cpu_count=cores)).env
    assert (env["VLLM_ENABLE_V1_MULTIPROCESSING"], env["OMP_NUM_THREADS"]) == ("0", threads)


def test_on_many_cores_the_engine_binds_by_itself() -> None:
    env = build("cpu", replace(OPTIONS, cpu_count=64)).env
    assert not {"VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS"} & env.keys()


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "chosen", "dtype"),
    [
        ("cpu", True, "auto", "auto"),
        ("cpu", False, "auto", "float32"),
        ("cpu", False, "", "float32"),
        ("cpu", False, "bfloat16", "bfloat16"),
        ("cuda", False, "auto", "auto"),
        ("cuda", True, "float16", "float16"),
    ],
)
def test_number_format(device: str, has_bfloat16: bool, chosen: str, dtype: str) -> None:
    options = replace(OPTIONS, has_bfloat16=has_bfloat16)
    assert value(build(device, options, ModelOptions(dtype=chosen)), "--dtype") == dtype


@pytest.mark.parametrize(
    ("device", "setting", "is_eager"),
    [("cpu", None, True), ("cuda", None, False), ("cpu", False, False), ("cuda", True, True)],
)
def test_eager_by_device_or_as_set(device: str, setting: bool | None, is_eager: bool) -> None:
    command = build(device, replace(OPTIONS, enforce_eager=setting))
    assert ("--enforce-eager" in command.argv) is is_eager
    assert ("TORCH_COMPILE_DISABLE" in command.env) is (device == "cpu" and is_eager)


@pytest.mark.parametrize(
    ("device", "is_asked", "can_sleep"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False), ("cpu", False, False)],
)
def test_it_can_sleep_on_cuda_if_it_is_asked_to(device: str, is_asked: bool, can_sleep: bool) -> None:
    command = build(device, replace(OPTIONS, sleep=is_asked))
    assert ("--enable-sleep-mode" in command.argv) is can_sleep
    assert (command.env.get("VLLM_SERVER_DEV_MODE") == "1") is can_sleep
    # The variable also makes it log what refused requests had in them.
    assert ("--no-log-error-stack" in command.argv) is can_sleep


@pytest.mark.parametrize(
    ("asked", "known", "flag"),
    [(0, 40960, "auto"), (4096, 40960, "4096"), (99999, 40960, "40960"), (99999, 0, "99999")],
)
def test_context_length(asked: int, known: int, flag: str) -> None:
    command = build(chosen=ModelOptions(context_length=asked), details=ModelDetails(context_length=known))
    assert value(command, "--max-model-len") == flag


def test_parsers_only_where_the_model_has_them() -> None:
    assert not {"--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser"} & set(build().argv)
    command = build(tool_parser="hermes", reasoning_parser="qwen3")
    assert "--enable-auto-tool-choice" in command.argv
    assert value(command, "--tool-call-parser") == "hermes"
    assert value(command, "--reasoning-parser") == "qwen3"


def test_demanded_tool_calls_get_the_backend_that_reads_their_grammar() -> None:
    backend = "--structured-outputs-config.backend"
    assert value(build(), backend) == "guidance"
    assert value(build(tool_parser="hermes"), backend) == "xgrammar"


def test_embedding_models_get_the_pooling_runner_and_nothing_of_generation() -> None:
    command = build(capabilities=(Capability.EMBEDDING,), tool_parser="hermes")
    assert value(command, "--runner") == "pooling"
    generation = {"--generation-config", "--enable-prefix-caching", "--tool-call-parser", "--max-num-batched-tokens"}
    assert not generation & set(command.argv)
    assert "--runner" not in build(capabilities=(Capability.COMPLETION, Capability.EMBEDDING)).argv


def test_embedding_models_take_what_the_engine_finds_their_length_to_be() -> None:
    command = build(chosen=ModelOptions(context_length=4096), capabilities=(Capability.EMBEDDING,))
    assert value(command, "--max-model-len") == "auto"


def test_settings_of_the_model_come_last_and_win() -> None:
    command = build(chosen=ModelOptions(max_num_seqs=7, args=("--seed", "1")))
    assert value(command, "--max-num-seqs") == "7"
    assert command.argv[-2:] == ["--seed", "1"]


def test_zero_batched_tokens_leaves_the_engines_default() -> None:
    options = replace(OPTIONS, max_num_batched_tokens=0)
    assert "--max-num-batched-tokens" not in build("cuda", options).argv + build("cpu", options).argv


def test_environment_is_an_allow_list() -> None:
    inherited = {
        "PATH": "/bin", "HOME": "/home/u", "LANG": "C.UTF-8", "LC_TIME": "C", "CUDA_VISIBLE_DEVICES": "1",
        "NVIDIA_VISIBLE_DEVICES": "all", "SECRET": "s", "LD_PRELOAD": "x.so", "PYTHONSTARTUP": "x", "MY_CHOICE": "m",
        "VLLM_API_KEY": "k", "TMPDIR": "/else",
    }  # fmt: skip
    env = build(options=replace(OPTIONS, inherited=inherited, env_names=("MY_CHOICE", "ABSENT"))).env
    passed = {"PATH", "HOME", "LANG", "LC_TIME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "MY_CHOICE"}
    assert {name: env[name] for name in passed} == {name: inherited[name] for name in passed}
    assert not {"SECRET", "LD_PRELOAD", "PYTHONSTARTUP", "VLLM_API_KEY", "ABSENT"} & env.keys()
    assert env["TMPDIR"] == env["VLLM_RPC_BASE_PATH"] == "/run/vllama/workers/1-1"


@pytest.mark.parametrize(
    "name", ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "HF_TOKEN", "HTTPS_PROXY", "https_proxy"]
)
def test_some_names_never_get_through_even_if_asked_for(name: str) -> None:
    assert name not in build(options=replace(OPTIONS, inherited={name: "x"}, env_names=(name,))).env


def test_engine_goes_to_no_network_and_keeps_its_files_in_our_folders() -> None:
    env = build().env
    assert env["HF_HUB_OFFLINE"] == env["TRANSFORMERS_OFFLINE"] == env["VLLM_NO_USAGE_STATS"] == "1"
    caches = ["VLLM_CACHE_ROOT", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"]
    assert all(env[name].startswith("/var/lib/vllama/cache") for name in caches)
    assert env["HOME"] == "/var/lib/vllama/cache"
    assert build(options=replace(OPTIONS, inherited={})).env["PATH"]
    assert int(env["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > 60 and int(env["VLLM_MAX_STOP_STRINGS"]) >= 64


def test_names_that_are_asked_for_win_except_over_the_guard() -> None:
    inherited = {"VLLM_MAX_STOP_STRINGS": "99", "PYTHONPATH": "/mine", "VLLM_PLUGINS": "mine"}
    env = build(options=replace(OPTIONS, inherited=inherited, env_names=tuple(inherited))).env
    assert env["VLLM_MAX_STOP_STRINGS"] == "99"
    assert env["PYTHONPATH"] == f"{GUARD}:/mine"
    assert env["VLLM_PLUGINS"] == "mine,vllama_guard"
    assert "VLLM_PLUGINS" not in build().env


def test_the_fast_path_is_a_folder_and_names() -> None:
    options = replace(OPTIONS, fast_path=True)
    assert build(options=options).env["PYTHONPATH"] == f"{GUARD}:{fast_path.FOLDER}"
    assert "VLLM_PLUGINS" not in build(options=options).env, "the plugin names itself, beside all that is there"
    inherited = {"VLLM_PLUGINS": "mine"}
    env = build(options=replace(options, inherited=inherited, env_names=tuple(inherited))).env
    assert env["VLLM_PLUGINS"] == "mine,vllama_guard,vllama_lines_admission,vllama_lines"
    assert str(fast_path.FOLDER) not in build().env["PYTHONPATH"]


def test_guard_is_a_plugin_that_python_finds_on_its_folder() -> None:
    from importlib.metadata import distributions

    (guard,) = distributions(path=[str(GUARD)])
    (entry,) = guard.entry_points
    assert (entry.group, entry.name, entry.value) == ("vllm.general_plugins", "vllama_guard", "vllama_guard:install")
    assert (GUARD / "vllama_guard.py").is_file()


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    folder = Path("/run") / ("x" * 70)
    with pytest.raises(VllamaError) as caught:
        build_command(OPTIONS, ModelOptions(), make_model(), WorkerPlaces(folder / "s", folder), "cpu")
    assert caught.value.reason is Reason.ENGINE_START_FAILED
    assert "112 bytes" in caught.value.message and caught.value.hint and "runtime" in caught.value.hint


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        (("--max-num-batched-tokens", "16k"), 16_000),
        (("--max-num-batched-tokens=16K",), 16_384),
        (("--max_num_batched_tokens", "4096"), 4096),
        (("--max-num-batched-tokens", "1.5K"), 1536),
        (("--max-num-batched-tokens", "many"), 16_384),  # the engine itself says what is wrong with it
    ],
)
def test_numbers_are_read_as_the_engine_reads_them(args: tuple[str, ...], tokens: int) -> None:
    settings = memory_settings(OPTIONS, ModelOptions(args=args), make_model(), "cuda")
    assert settings.max_num_batched_tokens == tokens


def test_all_engines_on_cpu_are_forked_from_one_zygote() -> None:
    options = replace(OPTIONS, zygote="auto")
    plain, adapted = build("cpu", options), build("cpu", options, ModelOptions(adapter_rank=8), name="other:1b")
    zygote = zygote_command(options, "cpu")
    assert zygote is not None and plain.zygote == adapted.zygote == zygote
    assert zygote.argv == ["/engine/bin/python", str(PREPARATION)] and PREPARATION.is_file()
    # What differs between them, and from it, may be set late; all else is there from the beginning.
    for command in (plain, adapted):
        assert {name for name, _ in command.env.items() - zygote.env.items()} <= LATE
        assert not zygote.env.keys() - command.env.keys() and not zygote.env.keys() & LATE
    assert {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "TMPDIR"} <= adapted.env.keys()


def test_names_that_were_asked_for_are_part_of_the_zygotes_environment() -> None:
    inherited = {"LD_PRELOAD": "/lib/libtcmalloc.so", "TMPDIR": "/scratch"}
    options = replace(OPTIONS, zygote="auto", inherited=inherited, env_names=("LD_PRELOAD", "TMPDIR"))
    command = build("cpu", options)
    assert command.zygote is not None
    assert command.zygote.env["LD_PRELOAD"] == "/lib/libtcmalloc.so" and command.env["TMPDIR"] == "/scratch"


@pytest.mark.parametrize(
    ("setting", "device", "is_forked"),
    [
        ("auto", "cpu", True),
        ("auto", "cuda", False),
        ("on", "cuda", True),
        ("off", "cpu", False),
        ("off", "cuda", False),
    ],
)
def test_where_engines_are_forked(setting: str, device: str, is_forked: bool) -> None:
    options = replace(OPTIONS, zygote=setting)
    assert (build(device, options).zygote is not None) == is_forked
    assert memory_settings(options, ModelOptions(), make_model(), device).is_forked == is_forked


def test_the_engine_core_is_forked_only_where_the_model_runs_in_it() -> None:
    options = replace(OPTIONS, zygote="auto")
    assert build("cpu", options).env["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"
    for other, device in (
        (replace(options, cpu_count=32), "cpu"),
        (replace(options, zygote="on"), "cuda"),
        (OPTIONS, "cpu"),
    ):
        assert "VLLM_WORKER_MULTIPROC_METHOD" not in build(device, other).env


# --- loaders ---------------------------------------------------------------------------------------------------------

EXTRAS = {"runai-model-streamer": "0.17.0", "fastsafetensors": "0.5.0", "instanttensor": "0.2.2"}
WITH_EXTRAS = EngineVersion("python", "vllm", "0.33.0", "cuda", extras=EXTRAS)
FILES = (ModelFile("config.json", "0" * 64, 1), ModelFile("model-00001-of-00002.safetensors", "1" * 64, 1))


def loader_names(
    options: EngineOptions = OPTIONS,
    chosen: ModelOptions | None = None,
    version: EngineVersion = WITH_EXTRAS,
    **model: Any,
) -> list[str]:
    model = {"files": FILES} | model
    found = loaders_for(replace(options, fast_loaders=True), chosen or ModelOptions(), make_model(**model), version)
    assert found[0].name == ""
    return [loader.name for loader in found[1:]]


def test_loaders_that_are_installed_and_fit_the_device() -> None:
    assert loader_names() == ["runai_streamer", "fastsafetensors", "instanttensor"]
    assert loader_names(version=replace(WITH_EXTRAS, device="cpu")) == ["runai_streamer"]
    assert loader_names(version=replace(WITH_EXTRAS, extras={"instanttensor": "0.2.2"})) == ["instanttensor"]
    assert loader_names(version=replace(WITH_EXTRAS, extras={})) == []


def test_what_was_seen_of_a_loader_holds_for_its_version_and_the_engines() -> None:
    options = replace(OPTIONS, fast_loaders=True)
    own, runai, *_ = loaders_for(options, ModelOptions(), make_model(files=FILES), WITH_EXTRAS)
    assert own.key == "default vllm 0.33.0"
    assert runai.key == "runai_streamer 0.17.0, vllm 0.33.0"


@pytest.mark.parametrize(
    "args",
    [("--load-format", "pt"), ("--load-format=auto",), ("--load_format", "dummy"), ("--quantization", "fp8"),
     ("--model-loader-extra-config", "{}")],
)  # fmt: skip
def test_a_users_own_choice_is_not_competed_with(args: tuple[str, ...]) -> None:
    assert loader_names(chosen=ModelOptions(args=args)) == []


def test_loaders_only_where_weights_are_read_once_and_plainly() -> None:
    assert loader_names(files=(ModelFile("model.bin", "1" * 64, 1),)) == []
    assert loader_names(files=(*FILES, ModelFile("consolidated.safetensors", "1" * 64, 1))) == []
    assert loader_names(recipe=Recipe(quantize="fp8")) == []
    asleep = replace(OPTIONS, sleep=True)
    assert loader_names(asleep) == [], "the second level of sleep reads them again"
    assert loader_names(asleep, version=replace(WITH_EXTRAS, device="cpu")) == ["runai_streamer"]
    off = loaders_for(replace(OPTIONS, fast_loaders=False), ModelOptions(), make_model(files=FILES), WITH_EXTRAS)
    assert [loader.name for loader in off] == [""]


def test_the_loader_is_named_before_the_users_flags() -> None:
    chosen = ModelOptions(args=("--seed", "1"))
    command = build_command(OPTIONS, chosen, make_model(), PLACES, "cuda", loader="fastsafetensors")
    assert value(command, "--load-format") == "fastsafetensors"
    assert command.argv.index("--load-format") < command.argv.index("--seed")
    assert "--load-format" not in build().argv


# --- chat templates --------------------------------------------------------------------------------------------------


def files(*names: str) -> tuple[ModelFile, ...]:
    return tuple(ModelFile(name, "0" * 64, 1) for name in names)


def test_a_template_of_its_own_is_named_so_that_the_engine_need_not_look() -> None:
    command = build(files=files("config.json", "chat_template.jinja"))
    assert value(command, "--chat-template") == "/models/q/chat_template.jinja"


@pytest.mark.parametrize(
    ("names", "args", "capability"),
    [
        (("tokenizer_config.json",), (), Capability.COMPLETION),
        (("chat_template.jinja", "preprocessor_config.json"), (), Capability.COMPLETION),
        (("chat_template.jinja", "processor_config.json"), (), Capability.COMPLETION),
        (("chat_template.jinja", "additional_chat_templates/tool_use.jinja"), (), Capability.COMPLETION),
        (("chat_template.jinja",), ("--tokenizer-mode", "mistral"), Capability.COMPLETION),
        (("chat_template.jinja",), ("--tokenizer=/other",), Capability.COMPLETION),
        (("chat_template.jinja",), (), Capability.EMBEDDING),
    ],
)
def test_where_another_template_may_be_meant_the_engine_looks(
    names: tuple[str, ...], args: tuple[str, ...], capability: Capability
) -> None:
    command = build(chosen=ModelOptions(args=args), files=files(*names), capabilities=(capability,))
    assert "--chat-template" not in command.argv


def test_a_users_own_template_is_the_only_one() -> None:
    command = build(chosen=ModelOptions(args=("--chat-template", "/mine")), files=files("chat_template.jinja"))
    assert value(command, "--chat-template") == "/mine"


# --- the self-test ---------------------------------------------------------------------------------------------------


def test_the_self_test_has_the_engines_threads_and_nothing_of_a_worker() -> None:
    command = self_test_command(replace(OPTIONS, cpu_count=8))
    assert command.argv == ["/engine/bin/python", str(SELF_TEST)] and SELF_TEST.is_file()
    assert command.env["OMP_NUM_THREADS"] == "7"
    assert not LATE & command.env.keys()


# --- what is kept between starts -------------------------------------------------------------------------------------


def test_every_cache_lies_under_the_state_folder_and_is_the_same_for_all_models() -> None:
    caches = ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH",
              "FLASHINFER_WORKSPACE_BASE", "HF_HOME")  # fmt: skip
    one, other = build("cuda").env, build("cuda", name="llama3:8b", path="/models/l").env
    for name in caches:
        assert Path(one[name]).is_relative_to(OPTIONS.cache_folder), name
        # The engine keys what it keeps there by model, flags and versions; a folder for each would only hide it.
        assert one[name] == other[name], name
