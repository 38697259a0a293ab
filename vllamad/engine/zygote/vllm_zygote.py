"""What a zygote of vLLM has to know of it. Runs inside the engine, never inside the daemon: see ``process/zygote.py``.

Written for vLLM 0.32; what has moved in another version is skipped, and costs the time of its import in each worker.
Importing initialises no device: vLLM keeps to that itself, as it may be forked (``_maybe_force_spawn``), and
``objection`` makes sure.
"""

import importlib
import importlib.util
import multiprocessing.util
import os
import pickle
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Work = Callable[[], Any]

ESSENTIAL = ("vllm.platforms", "vllm.v1.engine.async_llm", "vllm.entrypoints.launchers.app")
"""Without one of these it is not the engine that we know."""

MODULES = (
    # The API server. Its entry itself is left out: ``-m`` runs it anew.
    "uvloop",
    "vllm.reasoning",
    "vllm.tool_parsers",
    "vllm.parser.engine.registered_adapters",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.launchers.launcher",
    "vllm.entrypoints.launchers.api_server.routers",
    "vllm.entrypoints.launchers.api_server.app_state",
    "vllm.entrypoints.serve.utils.api_utils",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.instrumentator.offline_docs",
    "vllm.entrypoints.serve.lora.api_router",
    "vllm.entrypoints.serve.profile.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "vllm.entrypoints.serve.sagemaker.api_router",
    "vllm.entrypoints.serve.elastic_ep.api_router",
    "vllm.entrypoints.openai.models.api_router",
    "vllm.entrypoints.generate.structured_decisions.api_router",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.scale_out.factories",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.scale_out.derender.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router",
    "vllm.entrypoints.pooling.factories",
    "model_hosting_container_standards.sagemaker",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "vllm.renderers.hf",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.configuration_llama",
    # The engine core.
    "setproctitle",
    "multiprocessing.popen_fork",
    "vllm.v1.engine.core",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen3",
)

CPU_MODULES = (
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.triton_utils.dispatcher",
    "vllm.utils.cpu_triton_utils",
)


def warm() -> None:
    """Import what a server needs whatever its model is."""
    for name in ESSENTIAL:
        importlib.import_module(name)
    is_cpu = _platform().is_cpu()
    for name in (*MODULES, *(CPU_MODULES if is_cpu else ())):
        try:
            importlib.import_module(name)
        except ImportError as error:
            sys.stderr.write(f"zygote: {name} is not imported beforehand: {error}\n")
    if is_cpu:
        _let_cores_be_forked()
        _configure_logging()


def objection() -> str:
    """Why it must not be forked: a device's context does not survive that."""
    return "CUDA is initialised in it" if _module("torch").cuda.is_initialized() else ""


def files() -> list[str]:
    """What shows that pip, or another interpreter, has replaced the engine. Asked before it is imported. (A folder of
    packages changes with every package that comes or goes.)"""
    origins = [spec.origin for name in ("vllm", "torch") if (spec := importlib.util.find_spec(name)) and spec.origin]
    packages = {str(Path(origin).parents[1]) for origin in origins}
    return [sys.executable, *origins, *sorted(packages)]


def begin(argv: list[str]) -> None:
    """Let go of what an interpreter that was executed would have found or made anew, and look like it."""
    # ``random`` does so by itself, and torch begins with the same seed in every process.
    _module("numpy").random.seed(random.SystemRandom().getrandbits(32))
    tempfile.tempdir = None
    # The prefix of titles is a default argument, so it was read at import.
    set_title = _module("vllm.utils.system_utils").set_process_title
    defaults: tuple[Any, ...] = set_title.__defaults__ or ()
    if defaults and isinstance(defaults[-1], str):
        set_title.__defaults__ = (*defaults[:-1], os.environ.get("VLLM_PROCESS_NAME_PREFIX", defaults[-1]))
    if importlib.util.find_spec("setproctitle"):
        # Cut off where there is no more room: before the marker of this worker, see ``process/zygote.py``.
        _module("setproctitle").setproctitle(" ".join(argv))
    # Python's handlers tell the event loop of a signal over a socket, which a forked engine core shares: what is sent
    # to that one would be handled by its API server as well.
    multiprocessing.util.register_after_fork(signal, lambda module: module.set_wakeup_fd(-1))
    registry = _module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = partial(_run_in_fork, registry._run_in_subprocess)


def _configure_logging() -> None:
    """As every server does it first of all, unless it is so already: each of some 400 loggers is told, and each then
    has all others forget what they know (60 ms). One that is told otherwise by its arguments does it anew. (With CUDA
    the same call also asks the driver which devices there are: not to be done before a fork.)"""
    try:
        configure = _module("vllm.logger").configure_logging_if_needed
        configure(_module("vllm.config.logging").LoggingConfig())
    except (ImportError, AttributeError) as error:
        sys.stderr.write(f"zygote: logging is not configured beforehand: {error}\n")


def _run_in_fork(otherwise: Callable[[Work], Any], work: Work) -> Any:
    """Look at a model's class in a process of its own, as vLLM does lest it initialises a device here; but with what
    is imported already, which saves ten seconds the first time that an architecture is loaded."""
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return otherwise(work)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(write_end, "wb") as answer:
                pickle.dump(work(), answer)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        found = answer.read()
    _pid, status = os.waitpid(child, 0)
    # What went wrong there is told by the original in its own words.
    return pickle.loads(found) if status == 0 else otherwise(work)


def _let_cores_be_forked() -> None:
    """Where the environment says that engine cores are forked, keep it so: on CPU, vLLM overwrites the variable on its
    way. (It does not do so for safety: there is no device, and elsewhere forking is its own default.)"""
    platform: Any = _platform().__class__
    check: Any = platform.check_and_update_config

    def check_and_keep(config: object) -> None:
        method = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD")
        check(config)
        if method == "fork":
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = method

    platform.check_and_update_config = staticmethod(check_and_keep)


def _platform() -> Any:
    return _module("vllm.platforms").current_platform


def _module(name: str) -> Any:
    return importlib.import_module(name)
