"""THE settings table (floor 2): one row per setting.

The rows are the fields of the frozen dataclasses below, so that a row is also the type and the default of what the
daemon reads. From them come the parser of the files, the environment's names, the flags, ``packaging/config.toml``,
``docs/reference/settings.md`` and ``vllamactl config``. A field of a duration ends in ``_s``, its key in a file does
not: ``models.keep_alive`` is ``settings.models.keep_alive_s``.
"""

from dataclasses import dataclass
from typing import Any

from vllamad.config.checks import (
    check_api_key,
    check_engine_argument,
    check_env_name,
    check_host,
    check_model_name,
    check_origin,
    check_url,
)
from vllamad.config.kinds import Boolean, Choice, Duration, Fraction, Integer, Size, Text, TextList, TextTable
from vllamad.config.model_rows import ModelRow, ModelSettings, merge_rows
from vllamad.config.rows import Effect, Row, row, rows_of

EMPTY_SECTIONS = ("limits", "output")
"""Sections whose names are promised but that have no settings yet."""

_PATH = Text("a path", name="path")


@dataclass(frozen=True, slots=True)
class Server:
    """The HTTP side, where Ollama's, OpenAI's and Anthropic's clients connect."""

    host: str = row(
        Text("a host name or an IP address, without port", check_host),
        "127.0.0.1",
        "Address to listen on; empty: every interface.",
        "Without auth.api_keys whoever reaches the port can use the models.",
        short=("VLLAMA_HOST",),
        ollama="OLLAMA_HOST",
        flag="--host",
        metavar="HOST",
    )
    port: int = row(
        Integer(0, 65535),
        11434,
        "TCP port to listen on; 0: any free one.",
        "11434 is Ollama's, so that its clients need no setting.",
        short=("VLLAMA_HOST",),
        ollama="OLLAMA_HOST",
        flag="--port",
        metavar="PORT",
    )
    origins: tuple[str, ...] = row(
        TextList('a list of origins like "https://chat.example.org", at most one * in each', check_origin),
        (),
        "Web origins that may call the API, besides those of this machine.",
        "A browser sends the origin of the page that calls. Pages of localhost and desktop apps (app://, file://, "
        'tauri://, vscode-webview://) may always; "*" lets every page in.',
        ollama="OLLAMA_ORIGINS",
        effect=Effect.AT_ONCE,
    )
    max_body_bytes: int = row(
        Size(1024),
        64 * 1024**2,
        "Largest request body that is read.",
        "Images travel inside the JSON body, a third larger than the file.",
        unit="bytes",
        effect=Effect.AT_ONCE,
    )
    remote_images: bool = row(
        Boolean(),
        False,
        "Fetch images that requests name by an http or https address; false: refuse such requests.",
        "Only from the public internet: never from private, loopback or link-local addresses. Images as data: URLs "
        "always pass.",
        effect=Effect.AT_ONCE,
    )
    processes: int = row(
        Integer(1, 64),
        1,
        "Processes that take HTTP connections and answer requests; 1: the daemon itself.",
        "One fills its core with some 40,000 tokens a second that arrive one by one. Several share the connections "
        "beside the daemon, which then grants leases only; each takes about 45 MB.",
    )
    drain_s: float = row(
        Duration(),
        30.0,
        "How long requests in flight may finish when the daemon stops.",
        "Under systemd, TimeoutStopSec has to be longer than this plus engine.term_grace and engine.kill_grace.",
        unit="seconds",
        effect=Effect.AT_ONCE,
    )


@dataclass(frozen=True, slots=True)
class Control:
    """The control socket, where vllamactl connects."""

    socket: str = row(
        _PATH,
        "",
        "Path of the control socket; empty: vllamad.sock in the runtime folder.",
        "The kernel takes at most 107 bytes. Another path has to be told to vllamactl too.",
        short=("VLLAMA_SOCKET",),
        flag="--socket",
        metavar="PATH",
    )
    group: str = row(
        Text("the name of a group"),
        "vllama",
        "Group whose members may use the control socket.",
        "The permissions of the socket are the authorisation. Where there is no such group, or the daemon may not set "
        "it, only its own user and root can connect.",
    )


@dataclass(frozen=True, slots=True)
class Models:
    """Models and where they come from."""

    keep_alive_s: float = row(
        Duration(),
        300.0,
        "How long a model stays loaded after its last request.",
        "0 unloads it at once. A request may say otherwise with keep_alive, a [[model]] row by its own keep_alive.",
        unit="seconds",
        ollama="OLLAMA_KEEP_ALIVE",
        effect=Effect.AT_ONCE,
    )
    preload: tuple[str, ...] = row(
        TextList('a list of model names like "qwen3:0.6b"', check_model_name),
        (),
        "Models to load at start.",
        "The daemon is ready before they are. On the command line, --preload may be given several times; it replaces "
        "this list.",
        flag="--preload",
        metavar="MODEL",
        effect=Effect.AT_ONCE,
    )
    restore: bool = row(
        Boolean(),
        True,
        "Load again after a start what was loaded when the daemon ended.",
        "However it ended. What has expired meanwhile is left out; the one that was used last comes first, as many as "
        "there is room for. The daemon is ready before they are.",
        effect=Effect.AT_ONCE,
    )
    aliases: tuple[tuple[str, str], ...] = row(
        TextTable('a table of model names like {"gpt-4o" = "qwen3:8b"}', check_model_name),
        (),
        "Further names for models, for clients that insist on one.",
        'Also as a section, [models.aliases]. In the environment: "gpt-4o=qwen3:8b,other=qwen3:8b". They work on every '
        "route that uses a model; a model that really has the name wins.",
        effect=Effect.AT_ONCE,
    )
    context_length: int = row(
        Integer(0),
        0,
        "Longest context that models are loaded with; 0: the model's own, or what its cache holds.",
        "A model is placed only where its cache can hold one such context.",
        unit="tokens",
        ollama="OLLAMA_CONTEXT_LENGTH",
        effect=Effect.AT_LOAD,
    )
    cache_tokens: int = row(
        Integer(1),
        131_072,
        "Tokens of all contexts together that a model gets memory for on a GPU, if it can.",
        "More lets more long requests run at once and keeps more of what was asked before; less leaves room for "
        "other models. A rest of a GPU that is too small for others is used too. On CPU: engine.cpu_kv_bytes.",
        unit="tokens",
        effect=Effect.AT_LOAD,
    )
    hub_endpoint: str = row(
        Text("an http or https address", check_url),
        "",
        "Address of the hub that models are pulled from; empty: Hugging Face.",
        "For a mirror. HF_ENDPOINT is read too, as other programs do.",
        short=("HF_ENDPOINT",),
        effect=Effect.AT_ONCE,
    )
    hub_token: str = row(
        Text("a token"),
        "",
        "Token for gated or private models on the hub.",
        "Better than in a file that others can read: LoadCredential=hub_token:PATH in the unit, or HF_TOKEN. It is "
        "shown as ***, and engines never see it.",
        short=("HF_TOKEN",),
        is_secret=True,
        effect=Effect.AT_ONCE,
    )
    pull_workers: int = row(
        Integer(1, 64),
        4,
        "Files that a pull downloads at the same time.",
        effect=Effect.AT_ONCE,
    )


@dataclass(frozen=True, slots=True)
class Engine:
    """The inference server (vLLM) that workers run."""

    python: str = row(
        Text("the path of a Python interpreter, or a command on PATH", name="program"),
        "",
        "Interpreter that has the engine; empty: of what `vllamactl engine` installed, the one in use.",
        "If nothing is installed, the daemon's own if it has the engine, else PREFIX/engine/bin/python; PREFIX is the "
        "daemon's environment. The engine is executed, never imported, so both can be upgraded apart.",
    )
    device: str = row(
        Choice("auto", "cuda", "cpu"),
        "auto",
        "What models run on; auto: what the installed engine was built for.",
    )
    cpu_kv_bytes: int = row(
        Size(64 * 1024**2),
        1024**3,
        "Memory for the contexts of one model on CPU.",
        "The engine's own default is several GiB, which a small machine does not have.",
        unit="bytes",
        effect=Effect.AT_LOAD,
    )
    max_num_batched_tokens: int = row(
        Integer(0),
        16384,
        "Tokens that one step of the engine works on; 0: the engine's default.",
        "Larger lets long prompts through faster, smaller keeps the gaps between tokens of others short.",
        unit="tokens",
        effect=Effect.AT_LOAD,
    )
    max_num_seqs: int = row(
        Integer(0),
        0,
        "Requests that one model works on at once; 0: scheduler.num_parallel, else the engine's default.",
        effect=Effect.AT_LOAD,
    )
    gpu_memory_utilization: float = row(
        Fraction(),
        0.90,
        "Share of a GPU's memory that all its engines together may take.",
        "What each takes is reserved before it starts. The rest is for the driver and for what engines do not declare; "
        "what other programs are seen to hold is not given to engines either.",
    )
    cpu_memory_bytes: int = row(
        Size(0),
        0,
        "Memory that all engines on CPU together may take; 0: nine tenths of the machine's, or of its control group's.",
        "What a model takes is reserved before it is loaded. What other programs are seen to hold is not given.",
        unit="bytes",
    )
    enforce_eager: str = row(
        Choice("auto", "on", "off", is_switch=True),
        "auto",
        "Run without compiled graphs; auto: on for CPU, off for CUDA.",
        "Compiling takes minutes at each start on CPU and is worth it only where a model stays loaded for long.",
        effect=Effect.AT_LOAD,
    )
    dtype: str = row(
        Text("a number format of the engine"),
        "auto",
        "Number format of the weights in memory: auto, bfloat16, float16 or float32.",
        effect=Effect.AT_LOAD,
    )
    args: tuple[str, ...] = row(
        TextList(check=check_engine_argument, is_command_line=True),
        (),
        "More flags for the engine's command line.",
        "They come last and win over what the daemon sets. In the environment, they are split as by a shell. Flags "
        "that say where an engine runs or how much memory it takes are refused: the daemon has settings for them.",
        effect=Effect.AT_LOAD,
    )
    env: tuple[str, ...] = row(
        TextList("a list of names of environment variables, without values", check_env_name),
        (),
        "Names of variables of the daemon's environment that also reach the engine.",
        "The engine's environment is an allow-list: what is neither listed here nor needed by the engine stays out.",
        effect=Effect.AT_LOAD,
    )
    zygote: str = row(
        Choice("auto", "on", "off", is_switch=True),
        "auto",
        "Fork engines from a process that has imported vLLM already; auto: on CPU.",
        "Models load in seconds instead of half a minute, for half a GiB of memory that all engines share. On CUDA it "
        "is off until it has been tried there; on: try it, engines that cannot be forked are started as usual.",
    )
    self_test: bool = row(
        Boolean(),
        True,
        "Find out once which number format this CPU is quicker in, where engines compute on it and dtype is auto.",
        "Three seconds at the lowest priority, ten seconds after the last request; one that comes ends it. What was "
        "found is kept for this CPU and engine, and told by vllamactl status. Off: what the CPU says of itself holds.",
    )
    prefetch: bool = row(
        Boolean(),
        True,
        "Have weights read into the page cache while an engine starts.",
        "A disk that is asked for all of them at once gives more than one that is asked page by page. Left out where "
        "they are more than half of the memory that is available.",
        effect=Effect.AT_LOAD,
    )
    warm_up: str = row(
        Choice("before-ready", "after-ready", "off"),
        "after-ready",
        "When a loaded model answers a first short question of nobody's, so that the first of somebody is not slow.",
        "before-ready: a load takes longer by it. after-ready: only while nobody asks, so that a request that waited "
        "for the load does not wait for this too. The engine counts these questions among its requests.",
        effect=Effect.AT_LOAD,
    )
    fast_loaders: bool = row(
        Boolean(),
        True,
        "Try quicker ways to read weights, where their packages are installed beside the engine.",
        "runai-model-streamer; on CUDA also fastsafetensors and instanttensor. Each is tried once with every model, "
        "then the one that took least is kept; one that an engine does not start with is left out. --load-format in "
        "args wins.",
        effect=Effect.AT_LOAD,
    )
    fast_path: str = row(
        Choice("auto", "off"),
        "auto",
        "Have engines write plain streams of Ollama's routes themselves; auto: where they can.",
        "A plugin of ours in the engine's server spares a fifth of a token's processor time, the model's aside, where "
        "many stream. Where anything does not match, engines answer as usual; `vllamactl ps --json` says why.",
        effect=Effect.AT_LOAD,
    )
    start_timeout_s: float = row(
        Duration(can_be_zero=False),
        600.0,
        "How long a model may take to load.",
        "Large models on slow disks need more; a first start may also compile.",
        unit="seconds",
        ollama="OLLAMA_LOAD_TIMEOUT",
        effect=Effect.AT_ONCE,
    )
    term_grace_s: float = row(
        Duration(can_be_forever=False),
        20.0,
        "How long an engine may take to leave when asked, before it is killed.",
        unit="seconds",
        effect=Effect.AT_ONCE,
    )
    kill_grace_s: float = row(
        Duration(can_be_forever=False, can_be_zero=False),
        10.0,
        "How long the kernel may take to end killed processes, before the worker counts as stuck.",
        unit="seconds",
        effect=Effect.AT_ONCE,
    )
    release_timeout_s: float = row(
        Duration(can_be_forever=False),
        10.0,
        "How long device memory may take to return after an engine's end.",
        unit="seconds",
        effect=Effect.AT_ONCE,
    )
    restart_attempts: int = row(
        Integer(1, 100),
        3,
        "Crashes in a row before a model is given up.",
        "However long it served between them, the tenth within an hour is the last, unless this is more than 10. A "
        "model that is given up is tried again after a pause, when somebody asks for it.",
        effect=Effect.AT_ONCE,
    )
    backoff_s: float = row(
        Duration(can_be_forever=False),
        1.0,
        "Wait before the first restart after a crash; it doubles with each further one.",
        unit="seconds",
        effect=Effect.AT_ONCE,
    )
    log_lines: int = row(
        Integer(10, 1_000_000),
        2000,
        "Lines of an engine's output that are kept for vllamactl logs.",
        unit="lines",
    )


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Who may be loaded, and who waits."""

    max_loaded_models: int = row(
        Integer(0),
        0,
        "Models that may be loaded at the same time; 0: as many as their memory allows.",
        "For a new one idle ones leave, those first that cost least to bring back; requests in flight finish first.",
        ollama="OLLAMA_MAX_LOADED_MODELS",
        effect=Effect.AT_ONCE,
    )
    max_queue: int = row(
        Integer(1),
        512,
        "Requests that may wait for models; when there are more, the longest queue's newest is refused.",
        unit="requests",
        ollama="OLLAMA_MAX_QUEUE",
        effect=Effect.AT_ONCE,
    )
    max_queue_per_model: int = row(
        Integer(0),
        0,
        "Requests that may wait for one model; 0: no bound but max_queue.",
        unit="requests",
        effect=Effect.AT_ONCE,
    )
    num_parallel: int = row(
        Integer(0),
        0,
        "Requests that one model works on at once, where engine.max_num_seqs is 0; 0: the engine's default.",
        "Ollama's name for it. The engine batches hundreds of requests; a small number here only makes them wait.",
        ollama="OLLAMA_NUM_PARALLEL",
        effect=Effect.AT_LOAD,
    )
    load_wait_s: float = row(
        Duration(can_be_zero=False),
        900.0,
        "How long a request may wait for its model.",
        "Longer than engine.start_timeout, because another model may have to leave first.",
        unit="seconds",
        effect=Effect.AT_ONCE,
    )
    sleep: str = row(
        Choice("off", "auto"),
        "off",
        "Let idle models sleep instead of stopping them, where engines can (CUDA, one GPU); auto: where it pays.",
        "Waking is quicker than a start; weights may stay in the host's memory meanwhile. Off until it has run on a "
        "GPU: so far it was only tried on engines of our own that behave as vLLM's do.",
    )


@dataclass(frozen=True, slots=True)
class Auth:
    """Who may use the HTTP port. The control socket is guarded by its permissions."""

    api_keys: tuple[str, ...] = row(
        TextList("a list of keys", check=check_api_key),
        (),
        "Keys of which a request must send one, as Authorization: Bearer KEY or x-api-key; empty: none is asked for.",
        "Asked for on every route but /, /api/version and /health. Better than in a file that others can read: "
        "LoadCredential=api_keys:PATH in the unit, keys separated by commas. Shown as ***, and engines never see them.",
        is_secret=True,
        effect=Effect.AT_ONCE,
    )


@dataclass(frozen=True, slots=True)
class Logging:
    """What the daemon writes to standard error. Prompts and answers are never logged."""

    format: str = row(
        Choice("auto", "text", "json", "journal"),
        "auto",
        "Form of log lines; auto: journal if systemd's journal reads them, else text.",
        "journal sends each line with its fields, see the how-to on logs; where no journal listens, lines go to "
        "standard error with their priority in front, as <6>.",
        short=("VLLAMA_LOG_FORMAT",),
        flag="--log-format",
        metavar="FORMAT",
    )
    level: str = row(
        Choice("debug", "info", "warning", "error"),
        "info",
        "Least severe lines that are written.",
        short=("VLLAMA_LOG_LEVEL",),
        ollama="OLLAMA_DEBUG",
        flag="--log-level",
        metavar="LEVEL",
        effect=Effect.AT_ONCE,
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that was configured, frozen. ``Settings()`` is the built-in default."""

    server: Server = Server()
    control: Control = Control()
    models: Models = Models()
    engine: Engine = Engine()
    scheduler: Scheduler = Scheduler()
    auth: Auth = Auth()
    logging: Logging = Logging()
    model: tuple[ModelRow, ...] = ()
    config: str = row(
        _PATH,
        "",
        "The one configuration file to read, instead of searching for them.",
        short=("VLLAMA_CONFIG",),
        flag="--config",
        metavar="FILE",
    )
    state_dir: str = row(
        _PATH,
        "",
        "Folder for models and caches; empty: STATE_DIRECTORY of systemd (for caches CACHE_DIRECTORY), /var/lib/vllama "
        "for a system service, else vllama in XDG_DATA_HOME.",
        short=("VLLAMA_STATE_DIR",),
        flag="--state-dir",
        metavar="DIR",
    )
    runtime_dir: str = row(
        _PATH,
        "",
        "Folder for sockets; empty: RUNTIME_DIRECTORY of systemd, /run/vllama for a system service, else vllama in "
        "XDG_RUNTIME_DIR, else run in the state folder.",
        short=("VLLAMA_RUNTIME_DIR",),
        flag="--runtime-dir",
        metavar="DIR",
    )

    def for_model(self, *names: str) -> ModelSettings:
        """Merge the rows whose pattern fits the display form of a model's name. Of several names (a model's and those
        that it was made from) the rows of a later one win."""
        defaults = ModelSettings(
            keep_alive_s=self.models.keep_alive_s,
            context_length=self.models.context_length,
            max_num_seqs=self.engine.max_num_seqs or self.scheduler.num_parallel,
            dtype=self.engine.dtype,
            args=self.engine.args,
            cache_tokens=self.models.cache_tokens,
        )
        return merge_rows(defaults, self.model, names)


SECTIONS: dict[str, type[Any]] = {
    "server": Server,
    "control": Control,
    "models": Models,
    "engine": Engine,
    "scheduler": Scheduler,
    "auth": Auth,
    "logging": Logging,
}


PLACE_ROWS: dict[str, Row] = {each.key: each for each in rows_of("", Settings)}
"""What only the environment and the command line can set: it decides which files are read, and where things lie."""

FILE_ROWS: dict[str, Row] = {
    each.key: each for name, owner in SECTIONS.items() for each in rows_of(name, owner, has_full_name=True)
}

ROWS: dict[str, Row] = PLACE_ROWS | FILE_ROWS
"""Every setting by its key."""
