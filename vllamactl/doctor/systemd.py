"""What systemd knows (floor 4), asked through systemctl, which works for every user."""

import re
import shlex
from dataclasses import replace

from vllamactl.doctor.facts import SYSTEM, UNIT, USER, Unit
from vllamactl.doctor.machine import Machine, fields

BOOTED = "/run/systemd/system"
"""There if systemd runs the machine, see sd_booted(3)."""

PROPERTIES = (
    "Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "ExecMainStatus", "ExecMainCode",
    "NRestarts", "MainPID", "User", "Group", "SupplementaryGroups", "ExecStart", "Environment", "EnvironmentFiles",
    "NeedDaemonReload", "ProtectHome", "BindPaths", "BindReadOnlyPaths", "StateDirectory", "CacheDirectory",
    "RuntimeDirectory", "LimitNOFILESoft", "LimitMEMLOCKSoft", "ControlGroup",
)  # fmt: skip
UNITS = (UNIT, "vllamad.socket", "ollama.service")

_ARGV = re.compile(r"argv\[\]=(.*?) ; ")


async def look(machine: Machine) -> Unit:
    """Ask for the unit of the system, then for the user's own."""
    if not machine.path(BOOTED).exists():
        return Unit(unasked="systemd does not run this machine: vllamad is started by hand")
    unit = await _ask(machine, SYSTEM)
    if not unit.unasked and not unit.is_installed and machine.environ.get("XDG_RUNTIME_DIR"):
        own = await _ask(machine, USER)
        # Ollama is asked for as a service of the system.
        return replace(own, ollama_state=unit.ollama_state) if own.manager else unit
    return unit


async def _ask(machine: Machine, manager: str) -> Unit:
    whose = ["--user"] if manager == USER else []
    done = await machine.run("systemctl", *whose, "show", *UNITS, "--no-pager", f"--property={','.join(PROPERTIES)}")
    if done.status != 0:
        return Unit(unasked=f"systemctl says: {done.last_words}")
    return read(manager, done.out)


def read(manager: str, text: str) -> Unit:
    """Read the answer of ``systemctl show``: a block a unit, separated by an empty line."""
    blocks = [fields(block.splitlines(), "=") for block in text.split("\n\n")]
    by_name = {block.get("Id", ""): block for block in blocks}
    service, socket, ollama = (by_name.get(name, dict[str, str]()) for name in UNITS)
    is_there = service.get("LoadState", "not-found") != "not-found"
    return Unit(manager if is_there else "", "", service, _state(socket), _state(ollama), _is_enabled(socket))


def _is_enabled(block: dict[str, str]) -> bool:
    return block.get("UnitFileState") == "enabled"


def _state(block: dict[str, str]) -> str:
    return block.get("ActiveState", "") if block.get("LoadState", "not-found") != "not-found" else ""


def command(unit: Unit) -> tuple[str, ...]:
    """The command line of ExecStart=, () if there is none."""
    found = _ARGV.search(unit.get("ExecStart"))
    return tuple(found[1].split()) if found else ()


def environment(unit: Unit) -> dict[str, str]:
    """What the unit itself puts into the environment, and the folders that systemd makes for it."""
    try:
        words = shlex.split(unit.get("Environment"))
    except ValueError:
        words = []
    folders = {
        f"{name}_DIRECTORY": f"{base}/{unit.get(f'{name.title()}Directory')}"
        for name, base in (("STATE", "/var/lib"), ("CACHE", "/var/cache"), ("RUNTIME", "/run"))
        if unit.manager == SYSTEM and unit.get(f"{name.title()}Directory")
    }
    return folders | fields(words, "=")
