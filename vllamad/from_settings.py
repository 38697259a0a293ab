"""What each part of the house is told of the configuration (floor 5): settings in, options of adapters and services
out.

Read anew whenever the configuration is reloaded; everything here is computed from its arguments.
"""

import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from vllamad.config.settings import Settings
from vllamad.devices.cpu import has_bfloat16
from vllamad.domain.model import Model, with_parsers
from vllamad.domain.workload import Limits
from vllamad.engine.command import EngineOptions, ModelOptions
from vllamad.gate.gate import GateLimits, ModelRules
from vllamad.http.services import Policy
from vllamad.models.sizing import SizingRules
from vllamad.supervisor.limits import WorkerLimits

# --- for all models --------------------------------------------------------------------------------------------------


def engine_options(
    settings: Settings, python: Path, cache: Path, environ: Mapping[str, str], prefers_bfloat16: bool | None = None
) -> EngineOptions:
    """``python`` is the engine's interpreter, ``cache`` what engines may keep between starts, ``environ`` ours;
    ``prefers_bfloat16`` is what a self-test has shown of this CPU, None before there was one."""
    engine = settings.engine
    return EngineOptions(
        python=python,
        cache_folder=cache,
        inherited=environ,
        env_names=engine.env,
        cpu_kv_bytes=engine.cpu_kv_bytes,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        zygote=engine.zygote,
        fast_loaders=engine.fast_loaders,
        sleep=settings.scheduler.sleep == "auto",
        fast_path=engine.fast_path != "off",
        enforce_eager={"on": True, "off": False}.get(engine.enforce_eager),
        cpu_count=len(os.sched_getaffinity(0)),
        has_bfloat16=has_bfloat16() if prefers_bfloat16 is None else prefers_bfloat16,
    )


def worker_limits(settings: Settings) -> WorkerLimits:
    """Deadlines of workers."""
    engine = settings.engine
    return WorkerLimits(
        start_s=engine.start_timeout_s,
        term_s=engine.term_grace_s,
        kill_s=engine.kill_grace_s,
        release_s=engine.release_timeout_s,
        backoff_s=engine.backoff_s,
        attempts=engine.restart_attempts,
    )


def gate_limits(settings: Settings) -> GateLimits:
    """Bounds of queues, and how long one waits."""
    scheduler = settings.scheduler
    return GateLimits(
        Limits(
            max_loaded=scheduler.max_loaded_models,
            parallel=0 if settings.engine.max_num_seqs else scheduler.num_parallel,
            queue_per_model=scheduler.max_queue_per_model,
            queue=scheduler.max_queue,
        ),
        wait_s=scheduler.load_wait_s,
        idle_s=settings.models.keep_alive_s,
    )


def policy(settings: Settings, sockets: Sequence[socket.socket]) -> Policy:
    """What the HTTP face allows. ``sockets`` are those that the service manager listens on for us; none: the address is
    the configuration's."""
    return Policy(
        settings.server.origins,
        is_local(sockets) if sockets else is_loopback(settings.server.host),
        settings.server.max_body_bytes,
        settings.server.remote_images,
        settings.auth.api_keys,
    )


# --- for one model ---------------------------------------------------------------------------------------------------


def configured(settings: Settings, model: Model) -> Model:
    """The model with the parsers that were configured for it."""
    if not settings.model:  # no rows: asked a thousand times for a list of a thousand
        return model
    chosen = settings.for_model(*model.lineage)
    return with_parsers(model, chosen.tool_parser, chosen.reasoning_parser)


def model_options(settings: Settings, model: Model, adapter_rank: int) -> ModelOptions:
    """What its engine is told. ``adapter_rank`` is the largest of the adapters that belong to its files."""
    chosen = settings.for_model(*model.lineage)
    return ModelOptions(
        context_length=chosen.context_length,
        max_num_seqs=chosen.max_num_seqs,
        dtype=chosen.dtype,
        args=chosen.args,
        adapter_rank=adapter_rank,
    )


def model_rules(settings: Settings, model: Model) -> ModelRules:
    """What the gate goes by."""
    chosen = settings.for_model(*model.lineage)
    return ModelRules(chosen.keep_alive_s, chosen.is_pinned, chosen.priority)


def sizing_rules(settings: Settings, model: Model) -> SizingRules:
    """How much it gets, and where."""
    chosen = settings.for_model(*model.lineage)
    return SizingRules(
        context_length=chosen.context_length,
        cache_tokens=chosen.cache_tokens,
        cpu_kv_bytes=settings.engine.cpu_kv_bytes,
        devices=chosen.devices,
        tensor_parallel=chosen.tensor_parallel,
        replicas=chosen.replicas,
    )


# --- addresses -------------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """True if a server on this address is reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(sockets: Sequence[socket.socket]) -> bool:
    """True if nobody on another machine can reach any of them."""
    return all(each.family == socket.AF_UNIX or is_loopback(str(each.getsockname()[0])) for each in sockets)
