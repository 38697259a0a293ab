"""Whether an engine writes plain streams as lines itself (floor 2): the handshake with our plugin in its API server.

The plugin, ``lines/vllama_lines.py``, is a file of ours that runs in the engine's interpreter. Whatever does not match
is a reason to ask the engine's own route, which is always there.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).with_name("lines")
"""On PYTHONPATH it is all the installation that the plugin needs."""

PLUGINS = ("vllama_lines_admission", "vllama_lines")
PROGRAM = FOLDER / "vllama_lines.py"
ROUTE = "/vllama/lines"
VERSION = 1


def objection(status: int, body: bytes) -> str:
    """Why lines are not to be asked for, by what ``GET`` of the route answered; "" if they are."""
    if status != 200:
        return "the engine has not loaded the plugin"
    try:
        told = cast("dict[str, Any]", json.loads(body))
        version, digest, reason = told["version"], told["digest"], str(told["objection"])
    except (ValueError, LookupError, TypeError):
        return "the plugin's answer cannot be read"
    if version != VERSION or digest != hashlib.sha256(PROGRAM.read_bytes()).hexdigest():
        return "the engine has loaded another version of the plugin"
    return reason
