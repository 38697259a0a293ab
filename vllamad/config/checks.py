"""What certain strings in the configuration must look like (floor 2). Each raises Refused with the reason."""

import re

from vllamad.config.kinds import Refused
from vllamad.domain.errors import VllamaError
from vllamad.domain.names import ModelRef

ORIGIN_SCHEMES = (
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
)
"""Ollama's list for origins without a wildcard."""

_DAEMONS_OWN = re.compile(r"NOTIFY_SOCKET|LISTEN_.*|WATCHDOG_.*|HF_TOKEN|VLLAMA_.*|CREDENTIALS_DIRECTORY")


def check_host(text: str) -> None:
    """A name or an address; IPv6 without brackets."""
    if text.count(":") == 1:
        raise Refused("the port is a setting of its own, server.port")
    if not re.fullmatch(r"[A-Za-z0-9_.:%-]+", text):
        raise Refused


def check_origin(text: str) -> None:
    """As Ollama's: at most one ``*``; without one, a scheme that it knows."""
    if text.count("*") > 1:
        raise Refused(f"more than one * in {text}")
    if "*" not in text and not text.startswith(ORIGIN_SCHEMES):
        raise Refused(f"{text} does not start with one of {' '.join(ORIGIN_SCHEMES)}")


def check_url(text: str) -> None:
    """An address of a web server."""
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise Refused


def check_model_name(text: str) -> None:
    """A name that could be a model's; whether there is one shows later."""
    try:
        ModelRef.parse(text)
    except VllamaError as error:
        raise Refused(f"{text}: {error.hint}") from error


def check_env_name(text: str) -> None:
    """A variable's name, and none that would give the engine the daemon's own business."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise Refused
    if _DAEMONS_OWN.fullmatch(text):
        raise Refused(f"{text} is the daemon's own and never reaches the engine")


def check_api_key(text: str) -> None:
    """What can stand in a header, and cannot be guessed by trying. The key itself is not shown."""
    if not re.fullmatch(r"[!-~]{16,}", text):
        raise Refused("a key has at least 16 characters, letters, digits and signs without blanks")


OWN_FLAGS: dict[str, str] = {
    "--gpu-memory-utilization": "engine.gpu_memory_utilization bounds all engines of a GPU together",
    "--device-memory-utilization": "engine.gpu_memory_utilization bounds all engines of a GPU together",
    "--kv-cache-memory-bytes": "set cache_tokens in [models] or in a [[model]] row, on CPU engine.cpu_kv_bytes",
    "--tensor-parallel-size": "set tensor_parallel in a [[model]] row",
    "-tp": "set tensor_parallel in a [[model]] row",
    "--device-ids": "set devices in a [[model]] row",
    "--pipeline-parallel-size": "models are spread by tensor_parallel only",
    "-pp": "models are spread by tensor_parallel only",
    "--data-parallel-size": "set replicas in a [[model]] row",
    "-dp": "set replicas in a [[model]] row",
    "--num-gpu-blocks-override": "set cache_tokens in [models] or in a [[model]] row",
    "--cpu-offload-gb": "what lies in the host's memory would not be accounted for",
    "--kv-offloading-size": "what lies in the host's memory would not be accounted for",
    "--config": "its flags would not be seen; write them into args",
}
"""Flags of the engine that are the planner's: what two engines on one device may take is not theirs to guess."""


def check_engine_argument(text: str) -> None:
    """A flag that says where an engine runs, or how much memory it takes, would make the ledger untrue."""
    flag = text.partition("=")[0].replace("_", "-")
    if flag in OWN_FLAGS:
        raise Refused(f"{flag} is set for each engine by the daemon: {OWN_FLAGS[flag]}")
