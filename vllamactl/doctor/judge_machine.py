"""Judgement of the machine (floor 4): disk, memory, limits, port, clock, hub, neighbours, leftovers. Pure."""

import re
from collections.abc import Sequence

from vllamactl import human
from vllamactl.doctor.facts import (
    Clock,
    Disk,
    Leftovers,
    Limits,
    Listener,
    Memory,
    Part,
    Process,
    Reach,
    Service,
    Unit,
)
from vllamactl.doctor.finding import Finding, State, fail, ok, skipped, warn

GIB = 1 << 30

FULL_BYTES = 10**9
LOW_BYTES = 20 * 10**9
"""A model of eight thousand million weights is 16 GB to pull."""
FEW_FILES = 1000

OPEN_FILES = 65_536
"""Engines warn below that; every client takes one here and one to its worker."""
LOCKED_BYTES = 64 << 20
SHM_BYTES = GIB
"""Engines on several GPUs keep hundreds of MiB each in /dev/shm; a container's usual 64 MiB end them with SIGBUS."""
LOW_MEMORY_BYTES = GIB
LITTLE_MEMORY_BYTES = 4 * GIB
NEVER_OVERCOMMIT = 2

SKEW_S = 60.0
BROKEN_SKEW_S = 300.0
"""Beyond it certificates that are just issued, and tokens, count as not yet valid."""

WILDCARDS = ("0.0.0.0", "::", "")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def judge_disk(disks: Sequence[Disk], unseen: str = "") -> Finding:
    """Is there room for models and caches?"""
    if not disks:
        return skipped("disk", unseen or "where models lie is not known without the configuration")
    tight = min(disks, key=lambda disk: disk.free_bytes)
    room = f"{human.size(tight.free_bytes)} free of {human.size(tight.total_bytes)} for {tight.name} in {tight.path}"
    if tight.free_bytes < FULL_BYTES:
        return fail("disk", f"full: {room}", f"vllamactl list; vllamactl rm MODEL; or du -xhd1 {tight.path}")
    if few := next((disk for disk in disks if disk.free_files < FEW_FILES), None):
        return fail("disk", f"{few.path} has room for {few.free_files} more files only", f"df -i {few.path}")
    if tight.free_bytes < LOW_BYTES:
        return warn("disk", room, f"vllamactl list; vllamactl rm MODEL; or du -xhd1 {tight.path}")
    return ok("disk", room)


def judge_limits(limits: Limits, unit: Unit, engine: Part) -> Finding:
    """May the daemon open enough files, and pin memory for GPUs?"""
    if not limits.source:
        return skipped("limits", "no daemon is seen, and there is no unit: it gets those of its shell")
    edit = "systemctl --user edit vllamad" if unit.manager == "user" else "sudo systemctl edit vllamad"
    files, locked = limits.open_files, limits.locked_bytes
    if files is not None and files < OPEN_FILES:
        text = f"{limits.source}: at most {files} open files; {OPEN_FILES} are advised"
        how = f"{edit}: [Service] LimitNOFILE=524288" if unit.is_installed else "ulimit -n 65536, then start vllamad"
        if unit.number("LimitNOFILESoft") >= OPEN_FILES:
            how = "the unit allows more, the container around it does not: raise it there"
        return warn("limits", text, how)
    if engine.text("device") == "cuda" and locked is not None and locked < LOCKED_BYTES:
        text = f"{limits.source}: at most {human.memory(locked)} of locked memory; pinned memory for GPUs needs more"
        how = f"{edit}: [Service] LimitMEMLOCK=infinity" if unit.is_installed else "ulimit -l unlimited"
        return warn("limits", text, how)
    shown = "any number of" if files is None else str(files)
    return ok("limits", f"{limits.source}: {shown} open files")


def judge_memory(memory: Memory) -> Finding:
    """Does the machine, or the container, leave engines what they need?"""
    if not memory.total_bytes:
        return skipped("memory", "the kernel does not tell: /proc/meminfo cannot be read")
    free = f"{human.memory(memory.available_bytes)} of {human.memory(memory.total_bytes)} available"
    if 0 < memory.shm_bytes < SHM_BYTES:
        text = f"/dev/shm holds {human.memory(memory.shm_bytes)} only: engines end with 'Bus error'"
        return warn("memory", text, "sudo mount -o remount,size=50% /dev/shm; container: --ipc=host or --shm-size")
    if memory.shm_bytes and memory.shm_free_bytes * 10 < memory.shm_bytes:
        return warn("memory", f"/dev/shm is full: {human.memory(memory.shm_free_bytes)} free", "ls -lS /dev/shm | head")
    if 0 < memory.group_limit_bytes < LITTLE_MEMORY_BYTES:
        text = f"a control group limits it to {human.memory(memory.group_limit_bytes)}; the machine: {free}"
        return warn("memory", text, "systemctl show vllamad -p MemoryMax; container: --memory")
    if memory.overcommit == NEVER_OVERCOMMIT:
        text = "vm.overcommit_memory is 2: engines reserve more than they use, and are refused it"
        return warn("memory", text, "sudo sysctl vm.overcommit_memory=0")
    if memory.available_bytes < LOW_MEMORY_BYTES:
        return warn("memory", free, "ps -eo rss,pid,user,comm --sort=-rss | head")
    swap = f", swap {human.memory(memory.swap_bytes)}" if memory.swap_bytes else ", no swap"
    limit = f", limited to {human.memory(memory.group_limit_bytes)}" if memory.group_limit_bytes else ""
    return ok("memory", f"{free}{limit}{swap}; /dev/shm {human.memory(memory.shm_bytes)}")


# --- the network -----------------------------------------------------------------------------------------------------


def judge_port(listeners: Sequence[Listener], config: Part, reach: Reach, unit: Unit) -> Finding:
    """Is the HTTP port the daemon's, or free for it?"""
    if reach.status is not None:
        return ok("port", f"{reach.status['http_url']} is the daemon's")
    if config.missing or not config.told.get("port"):
        return skipped("port", "which port is meant is not known without the configuration")
    host, port = config.text("host"), int(config.told["port"])
    taken = next((one for one in listeners if one.port == port and _meet(one.address, host)), None)
    if taken is None:
        return ok("port", f"{host or '*'}:{port} is free")
    own = reach.connected
    is_unit = unit.number("MainPID") == taken.pid != 0
    if is_unit or taken.program == "vllamad" or (own is not None and own.pid == taken.pid != 0):
        return ok("port", f"{host or '*'}:{port} is held by vllamad (pid {taken.pid})")
    if unit.socket_state == "active" and taken.pid in {0, 1} and taken.uid == 0:
        return ok("port", f"{host or '*'}:{port} is held by systemd for vllamad (vllamad.socket)")
    who = f"{taken.program} (pid {taken.pid}, user {taken.user})" if taken.pid else f"a process of user {taken.user}"
    text = f"{host or '*'}:{port} is taken by {who}"
    if taken.program == "ollama":
        return fail("port", text, "sudo systemctl disable --now ollama; or server.port in config.toml")
    find = f"sudo ss -ltnp 'sport = :{port}'" if not taken.pid else f"sudo kill {taken.pid}"
    return fail("port", text, f"{find}; or another server.port in config.toml")


def _meet(address: str, host: str) -> bool:
    """Whether listening on both collides. A host's name may mean anything."""
    is_literal = host in LOOPBACK or host.replace(".", "").isdecimal() or ":" in host
    if address in WILDCARDS or host in WILDCARDS or not is_literal:
        return True
    return address == host or (host == "localhost" and address in LOOPBACK)


def judge_ollama(processes: Sequence[Process], unit: Unit) -> Finding:
    """Does Ollama run too? Both want port 11434, and the GPUs' memory."""
    is_service = unit.ollama_state in {"active", "activating"}
    if not processes and not is_service:
        return ok("ollama", "Ollama does not run here")
    names = [f"pid {one.pid}" for one in processes[:1]] + ["ollama.service"] * is_service
    remedy = "sudo systemctl disable --now ollama" if is_service else f"kill {processes[0].pid}"
    text = f"Ollama runs too ({', '.join(names)}): it takes memory, and clients may mean it"
    return warn("ollama", text, remedy)


def judge_hub(hub: Part, service: Service) -> Finding:
    """Does the hub answer, and take the token? Being offline is no failure: models that are here are served."""
    if hub.missing:
        return skipped("hub", hub.missing)
    endpoint, problem, status = hub.text("endpoint"), hub.text("problem"), int(hub.told.get("status") or 0)
    if problem:
        why = re.sub(r"^\[Errno -?\d+\] ", "", problem)
        text = f"{endpoint} does not answer: {why}; models that are here are served"
        return warn("hub", text, f"curl -sI {endpoint}; settings: HTTPS_PROXY, HF_ENDPOINT")
    if status >= 500 or status == 429:
        return warn("hub", f"{endpoint} answers with status {status}", f"try again later: curl -sI {endpoint}")
    if not hub.told.get("has_token"):
        if service.unseen:
            return ok("hub", f"{endpoint} answers; its token is not known here: {service.unseen} was not seen")
        return ok("hub", f"{endpoint} answers; no token is set: public models only")
    source = hub.text("token_source")
    if status in {401, 403}:
        text = f"{endpoint} refuses the token of {source}"
        return fail("hub", text, "make a new one at huggingface.co/settings/tokens, put it there, restart vllamad")
    if status == 200 and hub.text("user"):
        return ok("hub", f"{endpoint} answers, and knows the token of {hub.text('user')}")
    return ok("hub", f"{endpoint} answers; it does not say if the token is valid (status {status})")


def judge_clock(clock: Clock) -> Finding:
    """Is it right? A clock that is far off breaks certificates, and so pulls."""
    ahead = clock.ahead_s
    remedy = "timedatectl status; sudo timedatectl set-ntp true"
    if ahead is not None and abs(ahead) > SKEW_S:
        text = f"{human.span(abs(ahead)).lower()} {'ahead of' if ahead > 0 else 'behind'} the hub's clock"
        return (fail if abs(ahead) > BROKEN_SKEW_S else warn)("clock", text, remedy)
    if clock.is_synchronized:
        return ok("clock", "synchronised")
    if ahead is not None:
        return ok("clock", f"within {SKEW_S:.0f} s of the hub's; whether it is kept so is not known")
    if clock.is_synchronized is None:
        return skipped("clock", "nobody here tells if it is right")
    return warn("clock", "not synchronised with any time server", remedy)


# --- what others left ------------------------------------------------------------------------------------------------


def judge_leftovers(left: Leftovers, is_running: bool, unit: Unit) -> Finding:
    """Is anything there of a daemon that is gone? The next start ends and removes it."""
    stuck = [one for one in left.processes if one.state == "D"]
    if stuck:
        text = f"pid {stuck[0].pid} ({stuck[0].name}) of an earlier daemon hangs in the kernel, in a driver or a disk"
        return fail("leftovers", text, f"sudo cat /proc/{stuck[0].pid}/stack; if it stays: sudo reboot")
    found = [
        f"{count} {word}"
        for count, word in (
            (len(left.processes), "processes"),
            (len(left.workers), "worker folders"),
            (len(left.shared_files), f"files in /dev/shm ({human.size(left.shared_bytes)})"),
            (len(left.groups), "control groups"),
        )
        if count
    ]
    again = "restart" if is_running else "start"
    if found:
        first = f", such as pid {left.processes[0].pid} ({left.processes[0].name})" if left.processes else ""
        text = f"left by an earlier daemon: {', '.join(found)}{first}"
        how = f"{unit.systemctl} {again} vllamad" if unit.is_installed else "vllamad"
        return warn("leftovers", text, f"{how}: a start removes them")
    if left.unseen:
        return skipped("leftovers", left.unseen, "sudo vllamactl doctor")
    return Finding("leftovers", State.OK, "nothing is left of an earlier daemon")
