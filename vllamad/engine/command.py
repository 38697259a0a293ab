"""The engine's command line and environment (floor 2): the only module that knows vLLM's flags and variables.

Verified with vLLM 0.32; flags are used that 0.33 has too. Everything is computed from arguments: the daemon's own
environment comes in as a mapping.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllama.reasons import Reason
from vllamad.domain.errors import VllamaError
from vllamad.domain.footprint import EngineSettings
from vllamad.domain.loaders import Loader
from vllamad.domain.model import Capability, Model
from vllamad.domain.ports import NO_PLACE, Command, EnginePlace, EngineVersion, WorkerPlaces
from vllamad.engine import fast_path

ENTRY = "vllm.entrypoints.launchers.api_server.entry"
"""Unlike the ``vllm`` script it works for every distribution of vLLM; it never forks further API servers."""

GUARD = Path(__file__).with_name("guard")
GUARD_PLUGIN = "vllama_guard"
PREPARATION = Path(__file__).with_name("zygote") / "vllm_zygote.py"
"""What a zygote of the engine does before it is forked."""

SELF_TEST = Path(__file__).with_name("self_test") / "cpu_formats.py"
"""What tells how fast this processor is in each number format."""

LATE = frozenset(
    {
        "VLLM_RPC_BASE_PATH", "TMPDIR", "VLLM_PROCESS_NAME_PREFIX", "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "CUDA_VISIBLE_DEVICES",
    }
)  # fmt: skip
"""Variables that may be set after the engine's modules were imported: vLLM reads them when it needs them, or
``vllm_zygote.py`` sees to it; CUDA reads its own when it is initialised. They differ from worker to worker; every other
one counts as read at import, as these are known to be: HF_HUB_OFFLINE, VLLM_MAX_STOP_STRINGS, VLLM_LOGGING_*,
TORCH_COMPILE_DISABLE, and OMP_* by the libraries."""

MAX_SOCKET_PATH = 107
"""Bytes in ``sockaddr_un`` without the closing zero."""

ENGINE_SOCKET_NAME = 36
"""The engine names its inner sockets by UUIDs."""

CPU_MAX_NUM_BATCHED_TOKENS = 2048
"""The engine's default on CPU. What pays on a GPU would hold up everyone's next token for many seconds here."""

MAX_NUM_SEQS: Mapping[str, int] = {"cuda": 1024, "cpu": 128}
"""The engine's defaults for requests in one batch, by device: the larger one of those for GPUs."""

SHARE_DIGITS = 4
"""Of a share of a device's memory, rounded down: a ten-thousandth of 80 GiB is 8 MiB."""

SHARED_CORES = 16
"""Up to so many cores the model runs inside the engine core on CPU, see ``_cpu_environment``."""

QUANTIZATIONS: Mapping[str, tuple[str, ...]] = {"cuda": ("fp8",)}
"""By device: what the engine does to 16-bit weights while it loads them, without calibration."""

FAST_LOADERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "runai_streamer": ("runai-model-streamer", ("cuda", "cpu")),
    "fastsafetensors": ("fastsafetensors", ("cuda",)),
    "instanttensor": ("instanttensor", ("cuda",)),
}
"""By ``--load-format``: the package that has to be installed beside the engine, and the devices that it loads to. They
read safetensors only (vLLM 0.32, ``weight_utils.py``)."""

_NUMBER = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[kKmM]?)")
_UNITS: Mapping[str, int] = {"": 1, "k": 10**3, "K": 1 << 10, "m": 10**6, "M": 1 << 20}

TEMPLATE_FILE = "chat_template.jinja"
PROCESSOR_FILES = frozenset(
    {"processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json"}
)
"""What says that a model has a processor, whose template may be another one (transformers 5, ``ProcessorMixin``)."""

ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What the engine makes room for."""

ADAPTERS_AT_ONCE = 4
"""LoRA adapters in one batch; the engine keeps memory for each, and others wait for their turn."""

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"

_INHERITED = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH"})
_INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_")
_FORBIDDEN = frozenset(
    {
        # The service manager's: a child that speaks there would be taken for the daemon.
        "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
        # Secrets, and ways out: an engine loads from disk only.
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "VLLAMA_API_KEY",
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What holds for every model. ``inherited`` is the daemon's environment, of which an allow-list plus the names in
    ``env_names`` get through. ``enforce_eager`` None means: on CPU only. ``has_bfloat16`` tells if this CPU computes
    in bfloat16 at speed: by what it says of itself, or was seen to do."""

    python: Path
    cache_folder: Path
    inherited: Mapping[str, str]
    env_names: tuple[str, ...] = ()
    cpu_kv_bytes: int = 1024**3
    max_num_batched_tokens: int = 16384
    enforce_eager: bool | None = None
    cpu_count: int = 1
    has_bfloat16: bool = True
    zygote: str = "off"
    """Fork engines from a process that has imported vLLM: "on", "off", or "auto" for on CPU only."""
    sleep: bool = False
    """Have engines able to sleep, where they can: on CUDA."""
    fast_loaders: bool = False
    """Try other ways to read weights, where their packages are installed."""
    fast_path: bool = False
    """Have engines load the plugin that writes lines, see ``engine/fast_path.py``."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What was configured for one model; "" and 0 leave the choice to the model's files and the engine. ``args`` come
    last and win."""

    context_length: int = 0
    max_num_seqs: int = 0
    dtype: str = "auto"
    adapter_rank: int = 0
    """The largest rank of the LoRA adapters that belong to its files; 0 if there are none."""
    args: tuple[str, ...] = ()


def build_command(
    options: EngineOptions,
    chosen: ModelOptions,
    model: Model,
    places: WorkerPlaces,
    device: str,
    place: EnginePlace = NO_PLACE,
    loader: str = "",
) -> Command:
    """The command that serves ``model`` on ``device`` ("cpu" or "cuda"), on the GPUs of ``place``, its weights read by
    one of ``loaders_for``. Raises ENGINE_START_FAILED if a socket's path is longer than the kernel takes."""
    _check_places(model, places)
    is_cpu = device == "cpu"
    argv = [str(options.python), "-m", ENTRY]
    argv += ["--model", model.path, "--uds", str(places.socket)]
    argv += ["--served-model-name", *served_names(model)]
    argv += ["--disable-uvicorn-access-log", "--max-model-len", _max_model_len(chosen, model)]
    argv += _generate_flags(options, chosen, model, is_cpu=is_cpu) if _generates(model) else ["--runner", "pooling"]
    argv += _device_flags(options, chosen, place, is_cpu=is_cpu)
    if chosen.max_num_seqs:
        argv += ["--max-num-seqs", str(chosen.max_num_seqs)]
    if loader:
        argv += ["--load-format", loader]
    if template := _template_file(chosen, model):
        argv += ["--chat-template", template]
    argv += chosen.args
    late = _late_environment(model, places, place, has_adapters=bool(chosen.adapter_rank))
    environment = _environment(options, late, device)
    return Command(argv, environment, places.folder, model.name, zygote=zygote_command(options, device))


def zygote_command(options: EngineOptions, device: str) -> Command | None:
    """What runs the process that engines on this device are forked from; None where they are not. One for all: what is
    read at import is the same for every model."""
    if not _has_zygote(options, device):
        return None
    early = {name: value for name, value in _environment(options, {}, device).items() if name not in LATE}
    return Command([str(options.python), str(PREPARATION)], early, Path("/"), "the zygote")


def self_test_command(options: EngineOptions) -> Command:
    """What tests this processor, with the threads that an engine on it would have."""
    early = {name: value for name, value in _environment(options, {}, "cpu").items() if name not in LATE}
    return Command([str(options.python), str(SELF_TEST)], early, Path("/"), "self-test")


def _has_zygote(options: EngineOptions, device: str) -> bool:
    # On CUDA it awaits a run: nothing that is imported may touch the driver in a way that a fork does not survive.
    return options.zygote == "on" or (options.zygote == "auto" and device == "cpu")


def loaders_for(
    options: EngineOptions, chosen: ModelOptions, model: Model, version: EngineVersion
) -> tuple[Loader, ...]:
    """The ways to read the model's weights, the engine's own first. It stays alone where the user has chosen, where
    files are not plain safetensors, and where the engine does more with weights than to read them once: it quantises
    them, or sleeps at a level from which it reads them again."""
    engine = f"{version.distribution} {version.version}"
    own = Loader("", engine)
    names = [file.path for file in model.files]
    is_plain = any(name.endswith(".safetensors") for name in names) and not any(
        name.startswith("consolidated") for name in names
    )
    is_chosen = any(_given(chosen.args, flag) for flag in ("--load-format", "--model-loader-extra-config"))
    is_more = bool(model.recipe.quantize or _given(chosen.args, "--quantization")) or (
        options.sleep and version.device == "cuda"
    )
    if not options.fast_loaders or not is_plain or is_chosen or is_more:
        return (own,)
    return own, *(
        Loader(name, f"{version.extras[package]}, {engine}")
        for name, (package, devices) in FAST_LOADERS.items()
        if package in version.extras and version.device in devices
    )


def identity_of(model: Model, chosen: ModelOptions) -> str:
    """A digest of all that ``build_command`` takes from the model and what was chosen for it, names aside: the engine
    answers to any name."""
    parts = (model.path, model.tool_parser, model.reasoning_parser, _generates(model), model.recipe.quantize, chosen)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def memory_settings(options: EngineOptions, chosen: ModelOptions, model: Model, device: str) -> EngineSettings:
    """What of all this changes how much memory the engine takes, ``chosen.args`` included."""
    is_cpu = device == "cpu"
    args = chosen.args
    batched = _number_of(args, "--max-num-batched-tokens") or _max_num_batched_tokens(options, is_cpu=is_cpu)
    return EngineSettings(
        device=device,
        dtype=_given(args, "--dtype") or _dtype(options, chosen, is_cpu=is_cpu),
        kv_dtype=_given(args, "--kv-cache-dtype") or "auto",
        quantize=_given(args, "--quantization") or model.recipe.quantize,
        max_num_batched_tokens=batched or CPU_MAX_NUM_BATCHED_TOKENS,
        max_num_seqs=_number_of(args, "--max-num-seqs") or chosen.max_num_seqs or MAX_NUM_SEQS[device],
        is_eager=_is_eager(options, is_cpu=is_cpu) or "--enforce-eager" in args,
        adapters=ADAPTERS_AT_ONCE if chosen.adapter_rank else 0,
        adapter_rank=_adapter_rank(chosen) if chosen.adapter_rank else 0,
        has_bfloat16=options.has_bfloat16,
        is_forked=_has_zygote(options, device),
    )


def _given(args: Sequence[str], flag: str) -> str:
    """The value that a flag was given last, as ``--flag value`` or ``--flag=value``; "" if it was not."""
    found = ""
    for position, argument in enumerate(args):
        name, separator, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            found = value if separator else "".join(args[position + 1 : position + 2])
    return found


def _number_of(args: Sequence[str], flag: str) -> int:
    """The number that a flag was given, which may be short for one (``16k`` is 16,000, ``16K`` is 16,384); 0 if it was
    not, or if the engine will refuse it."""
    match = _NUMBER.fullmatch(_given(args, flag))
    return int(float(match["number"]) * _UNITS[match["unit"]]) if match else 0


def _max_num_batched_tokens(options: EngineOptions, *, is_cpu: bool) -> int:
    tokens = options.max_num_batched_tokens
    return min(tokens, CPU_MAX_NUM_BATCHED_TOKENS) if is_cpu else tokens


def _dtype(options: EngineOptions, chosen: ModelOptions, *, is_cpu: bool) -> str:
    if is_cpu and (chosen.dtype or "auto") == "auto" and not options.has_bfloat16:
        # Where the CPU cannot, the kernels fall back one multiplication at a time: 8 streams made 15 tokens/s in
        # bfloat16 and 45 in float32 (AVX2, two cores).
        return "float32"
    return chosen.dtype or "auto"


def _is_eager(options: EngineOptions, *, is_cpu: bool) -> bool:
    return is_cpu if options.enforce_eager is None else options.enforce_eager


def _adapter_rank(chosen: ModelOptions) -> int:
    return next(rank for rank in ADAPTER_RANKS if rank >= chosen.adapter_rank)


def served_names(model: Model) -> list[str]:
    """Every name that requests may carry; the first is the one that answers show."""
    name = model.name
    names = [name, name.removesuffix(":latest"), name.lower(), name.lower().removesuffix(":latest")]
    return list(dict.fromkeys([*names, *filter(None, [model.source.repository])]))


def _generates(model: Model) -> bool:
    return Capability.COMPLETION in model.capabilities or Capability.EMBEDDING not in model.capabilities


def _max_model_len(chosen: ModelOptions, model: Model) -> str:
    # "auto": the model's own maximum, or less if the memory for contexts cannot hold one such request; without it the
    # engine would refuse to start.
    if not chosen.context_length or not _generates(model):
        # An encoder may take less than its config.json says (sentence_bert_config.json: 256 of 512 in all-MiniLM), and
        # the engine ends at once when it is asked for more. Shorter contexts are the requests' own affair there.
        return "auto"
    # More than the model knows is refused by the engine as well.
    return str(min(chosen.context_length, model.details.context_length or chosen.context_length))


def _template_file(chosen: ModelOptions, model: Model) -> str:
    """The file of the model's chat template, where that is what the engine would come to anyway; "" to let it look.
    It looks for a processor of images or sound first, which takes a third of a second where there is none."""
    names = {file.path for file in model.files}
    has_processor = bool(names & PROCESSOR_FILES) or any(
        name.startswith("additional_chat_templates/") for name in names
    )
    is_other = any(_given(chosen.args, flag) for flag in ("--chat-template", "--tokenizer", "--tokenizer-mode"))
    if TEMPLATE_FILE not in names or has_processor or is_other or not _generates(model):
        return ""
    return str(Path(model.path) / TEMPLATE_FILE)


def _generate_flags(options: EngineOptions, chosen: ModelOptions, model: Model, *, is_cpu: bool) -> list[str]:
    flags = [
        # Else generation_config.json of the model silently changes what an omitted option means.
        "--generation-config", "vllm",
        # Without it weak models fill JSON with whitespace for ever. It needs a named backend; of the two that know
        # it, guidance takes more of JSON schema (xgrammar lacks multipleOf, uniqueItems, contains, most formats), but
        # cannot read the grammar that demanded tool calls come to (vLLM 0.32 answers 400 then).
        "--structured-outputs-config.backend", "xgrammar" if model.tool_parser else "guidance",
        "--structured-outputs-config.disable_any_whitespace", "true",
        # True durations and counts for the answers.
        "--enable-per-request-metrics", "--enable-prompt-tokens-details",
        "--enable-chunked-prefill", "--enable-prefix-caching",
    ]  # fmt: skip
    if tokens := _max_num_batched_tokens(options, is_cpu=is_cpu):
        flags += ["--max-num-batched-tokens", str(tokens)]
    if model.recipe.quantize:
        flags += ["--quantization", model.recipe.quantize]
    if model.tool_parser:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", model.tool_parser]
    if model.reasoning_parser:
        flags += ["--reasoning-parser", model.reasoning_parser]
    if chosen.adapter_rank:
        rank = str(_adapter_rank(chosen))
        flags += ["--enable-lora", "--max-lora-rank", rank, "--max-loras", str(ADAPTERS_AT_ONCE)]
    return flags


def _device_flags(options: EngineOptions, chosen: ModelOptions, place: EnginePlace, *, is_cpu: bool) -> list[str]:
    flags = ["--dtype", _dtype(options, chosen, is_cpu=is_cpu)]
    if _is_eager(options, is_cpu=is_cpu):
        flags += ["--enforce-eager"]
    if is_cpu:
        # An absolute size: the engine's default takes a share of all memory of the machine.
        return [*flags, "--kv-cache-memory-bytes", str(options.cpu_kv_bytes)]
    if len(place.devices) > 1:
        flags += ["--tensor-parallel-size", str(len(place.devices))]
    if place.cache_bytes:
        # In bytes it wins over the share, and the engine does not measure what is free beside others.
        flags += ["--kv-cache-memory-bytes", str(place.cache_bytes)]
    if place.share:
        # Still asked for then: the engine ends at once where less than this share is free (``request_memory``).
        share = math.floor(place.share * 10**SHARE_DIGITS) / 10**SHARE_DIGITS
        flags += ["--gpu-memory-utilization", str(share)]
    if options.sleep:
        # On CPU the first would be an error. The second takes back what the variable for the routes turns on as well:
        # traces of every refused request, with what was in it.
        flags += ["--enable-sleep-mode", "--no-log-error-stack"]
    return flags


def _late_environment(model: Model, places: WorkerPlaces, place: EnginePlace, *, has_adapters: bool) -> dict[str, str]:
    """What differs from worker to worker: names of ``LATE`` only."""
    folder = str(places.folder)
    ours = {
        # Everything that an engine leaves behind lies in its own folder, which goes with it.
        "VLLM_RPC_BASE_PATH": folder,
        "TMPDIR": folder,
        "VLLM_PROCESS_NAME_PREFIX": f"VLLAMA-{model.ref.slug}",
    }
    if has_adapters:
        # Adapters are taught to a running worker, over a socket that only the daemon can open.
        ours["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if place.devices:
        # By identifier, and instead of --device-ids: numbers move when a GPU is lost, and a GPU that an engine cannot
        # see gets no stray context of its.
        ours["CUDA_VISIBLE_DEVICES"] = ",".join(place.devices)
    return ours


def _environment(options: EngineOptions, late: Mapping[str, str], device: str) -> dict[str, str]:
    cache, is_cpu = options.cache_folder, device == "cpu"
    ours = {
        # No network: models come from the store.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Ollama models carry more stop words than the engine's 4.
        "VLLM_MAX_STOP_STRINGS": "64",
        # The daemon keeps idle connections for 60 s; the engine's 5 would close them under its hands.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        "VLLM_SKIP_MODEL_NAME_VALIDATION": "1",
        # What may be kept between starts.
        "XDG_CACHE_HOME": str(cache),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_CONFIG_ROOT": str(cache / "vllm-config"),
        "HF_HOME": str(cache / "huggingface"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        # GPUs by their place on the bus, as the driver counts them; else the fastest is number 0.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "FLASHINFER_WORKSPACE_BASE": str(cache),
        "VLLM_LOGGING_COLOR": "0",
        "NO_COLOR": "1",
        "VLLM_DISABLE_LOG_LOGO": "1",
        "PYTHONUNBUFFERED": "1",
        # ``-m`` would put the working folder before the engine's own modules.
        "PYTHONSAFEPATH": "1",
        "PYTHONNOUSERSITE": "1",
        # NumPy and SciPy start threads for it when they are imported, one a core; the engine computes with torch. And
        # a process with threads is not forked.
        "OPENBLAS_NUM_THREADS": "1",
    }
    if is_cpu:
        ours |= _cpu_environment(options)
    if options.sleep and not is_cpu:
        # The routes for sleep and wake, and others that could run anything in the engine, without any key. Nobody but
        # the daemon reaches them: the socket lies in a folder of mode 0700, and the HTTP face forwards a list of routes
        # (``dialects/passing.py``) that has none of them.
        ours["VLLM_SERVER_DEV_MODE"] = "1"
    inherited = inherited_environment(options)
    # Names that were asked for win over ours as well.
    asked = {name: value for name, value in inherited.items() if name in options.env_names}
    if "CUDA_VISIBLE_DEVICES" in late:
        asked.pop("CUDA_VISIBLE_DEVICES", None)  # but for where it was placed: the ledger would be untrue
    names = {"HOME": str(cache), **inherited, **ours, **late, **asked}
    folders, plugins = [str(GUARD)], [GUARD_PLUGIN]
    if options.fast_path:
        folders.append(str(fast_path.FOLDER))
        plugins += fast_path.PLUGINS
    names["PYTHONPATH"] = _joined([*folders, asked.get("PYTHONPATH", "")], ":")
    if "VLLM_PLUGINS" in names:
        # An allow-list for all plugins; ours are not in anybody's.
        names["VLLM_PLUGINS"] = _joined([names["VLLM_PLUGINS"], *plugins], ",")
    if is_cpu and _has_zygote(options, device) and names.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        # An engine core is forked from its API server as that is from the zygote, whose preparation sees to it that
        # vLLM takes this up; else it is not read on CPU. Workers with a process of their own have OpenMP bound by
        # variables that are read at import: those are executed.
        names.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    return names


def inherited_environment(options: EngineOptions) -> dict[str, str]:
    """What of the daemon's environment reaches the engine: an allow-list, and the names that were asked for."""
    found = {
        name: value
        for name, value in options.inherited.items()
        if (name in _INHERITED or name.startswith(_INHERITED_PREFIXES) or name in options.env_names)
        and name.upper() not in _FORBIDDEN
    }
    return {"PATH": DEFAULT_PATH} | found


def _cpu_environment(options: EngineOptions) -> dict[str, str]:
    # The first request for logprobs compiles a function otherwise, and everyone waits: 26 s, measured.
    names = {"TORCH_COMPILE_DISABLE": "1"} if options.enforce_eager is not False else {}
    if options.cpu_count <= SHARED_CORES:
        # The model runs inside the engine core instead of a process of its own. Measured on two cores: ready after 29
        # instead of 49 s (one import of torch less), 0.7 GB less, no 400 MB of queues in /dev/shm, the same tokens/s.
        # One thread is left for the API server and the core's own loop: threads on all cores spin against those (10
        # instead of 15 tokens/s). On large machines the engine's own binding to NUMA nodes matters more.
        names |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(max(1, options.cpu_count - 1))}
    return names


def _joined(parts: Iterable[str], separator: str) -> str:
    return separator.join(part for part in parts if part)


def _check_places(model: Model, places: WorkerPlaces) -> None:
    longest = max(len(bytes(places.socket)), len(bytes(places.folder)) + 1 + ENGINE_SOCKET_NAME)
    if longest > MAX_SOCKET_PATH:
        raise VllamaError(
            Reason.ENGINE_START_FAILED,
            f"cannot start {model.name}: the path of its socket would have {longest} bytes, "
            f"the kernel takes {MAX_SOCKET_PATH}",
            "choose a shorter runtime folder (runtime_dir)",
            bytes=longest,
        )
