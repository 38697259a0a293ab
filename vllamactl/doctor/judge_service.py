"""Judgement of the service (floor 4): unit, user, socket, daemon, version, configuration. Pure."""

import errno
import shlex

from vllamactl import human
from vllamactl.doctor.facts import UNIT, Account, Identity, Part, Reach, Service, Unit
from vllamactl.doctor.finding import Finding, fail, ok, skipped, warn

JOURNAL = "journalctl -u vllamad -e"

ENDINGS: dict[str, tuple[str, str]] = {
    "6": ("another vllamad has the folders", "stop that one: ps -C vllamad -o pid,user,args"),
    "78": ("the configuration is wrong", "vllamad --check --system"),
    "200": ("it cannot change to its folder", "sudo systemd-tmpfiles --create"),
    "203": ("the program cannot be executed", "see 'program' here"),
    "216": ("there is no such group", "sudo systemd-sysusers"),
    "217": ("there is no such user", "sudo systemd-sysusers"),
    "219": ("its control group could not be made: an old process hangs", "see systemd/examples/subgroup.conf"),
    "226": ("its namespace could not be made: a folder is missing", "sudo systemd-tmpfiles --create"),
    "233": ("its runtime folder could not be made", "ls -ld /run/vllama"),
    "238": ("its state folder could not be made", "ls -ld /var/lib/vllama"),
    "239": ("its cache folder could not be made", "ls -ld /var/cache/vllama"),
    "243": ("its credentials could not be read", "ls -l /etc/credstore"),
}
"""What an exit status of the unit means, and what to type: statuses of vllamad, and of systemd (systemd.exec(5))."""

RESULTS = {
    "oom-kill": "the kernel killed it for want of memory",
    "timeout": "it did not start or stop in time",
    "watchdog": "it hung, and the watchdog ended it",
    "core-dump": "it crashed",
    "signal": "it was killed",
    "start-limit-hit": "it failed too often in a row",
    "resources": "systemd lacked what it needs",
}


def judge_unit(unit: Unit, has_daemon: bool) -> Finding:
    """Is there a unit, and how is it? ``has_daemon``: some daemon answers, be it the unit's or not."""
    if unit.unasked:
        return skipped("unit", unit.unasked)
    if not unit.is_installed:
        if has_daemon:
            return skipped("unit", f"no unit {UNIT} is installed; vllamad was started by hand")
        return warn(
            "unit", f"no unit {UNIT} is installed", "sudo python3 scripts/install_units.py --vllamad $(which vllamad)"
        )
    ctl, load = unit.systemctl, unit.get("LoadState")
    if load == "masked":
        return fail("unit", f"{UNIT} is masked: it cannot be started", f"{ctl} unmask vllamad")
    if load != "loaded":
        return fail("unit", f"{UNIT} cannot be read: {load}", f"systemd-analyze verify {UNIT}")
    state, result = unit.get("ActiveState"), unit.get("Result")
    if state == "failed" or (state == "activating" and result not in {"", "success"}):
        return _ended_badly(unit)
    is_enabled = unit.get("UnitFileState") in {"enabled", "static", "linked", "alias", "generated", "enabled-runtime"}
    is_enabled = is_enabled or unit.is_socket_enabled
    if state == "active":
        if unit.get("NeedDaemonReload") == "yes":
            return warn("unit", f"{UNIT} was changed on disk since", f"{ctl} daemon-reload && {ctl} restart vllamad")
        if not is_enabled:
            return warn("unit", f"{UNIT} is active, but not enabled: a boot does not start it", f"{ctl} enable vllamad")
        return ok("unit", f"{UNIT} is active and enabled")
    if state == "inactive" and unit.socket_state == "active":
        return ok("unit", f"{UNIT} is inactive; vllamad.socket starts it at the first connection")
    if state == "inactive":
        text = f"{UNIT} is inactive" + ("" if is_enabled else " and not enabled")
        if has_daemon:
            return ok("unit", f"{text}; another daemon answers")
        return warn("unit", text, f"{ctl} {'start' if is_enabled else 'enable --now'} vllamad")
    return warn("unit", f"{UNIT} is {state} ({unit.get('SubState')})", f"systemctl status vllamad; {JOURNAL}")


def _ended_badly(unit: Unit) -> Finding:
    status, result = unit.get("ExecMainStatus"), unit.get("Result")
    # CLD_EXITED is 1: else the status is the number of a signal.
    is_exit = unit.get("ExecMainCode") in {"", "1"}
    restarts = unit.number("NRestarts")
    state = "has failed" if unit.get("ActiveState") == "failed" else f"fails again and again ({restarts} restarts)"
    restart = f"{unit.systemctl} reset-failed vllamad.socket vllamad; {unit.systemctl} restart vllamad"
    if is_exit and status in ENDINGS:
        meaning, remedy = ENDINGS[status]
        return fail("unit", f"{UNIT} {state}: {meaning} (status {status})", f"{remedy}; then: {restart}")
    why = RESULTS.get(result, result or "no reason told")
    number = f" ({'status' if is_exit else 'signal'} {status})" if status not in {"", "0"} else ""
    if result == "start-limit-hit":
        return fail("unit", f"{UNIT} {state}: {why}{number}", f"{JOURNAL}; then: {restart}")
    if result == "oom-kill":
        return fail("unit", f"{UNIT} {state}: {why}", "journalctl -k -g 'out of memory' -e")
    return fail("unit", f"{UNIT} {state}: {why}{number}", f"{JOURNAL}; then: {restart}")


def judge_user(account: Account | None) -> Finding:
    """Do the service's user and group exist, and the group of the socket? None: it runs as whoever starts it."""
    if account is None:
        return skipped("user", "the daemon runs as whoever starts it: no user of its own is needed")
    lacking = [
        f"{kind} {name}"
        for kind, name, is_there in (
            ("user", account.user, account.has_user),
            ("group", account.group, account.has_group),
        )
        if not is_there
    ]
    if lacking:
        return fail("user", f"there is no {' and no '.join(lacking)}, which {UNIT} names", "sudo systemd-sysusers")
    if not account.has_socket_group:
        name = account.socket_group
        return warn(
            "user",
            f"there is no group {name} (control.group): only {account.user} and root can use the socket",
            f"sudo groupadd --system {name} && sudo systemctl restart vllamad",
        )
    return ok("user", f"user {account.user} and group {account.group} exist")


def judge_socket(reach: Reach, me: Identity) -> Finding:
    """May this user talk to the daemon?"""
    knock = reach.connected
    if knock is not None:
        return ok("socket", f"{knock.path} is open to {me.name}")
    denied = next((k for k in reach.knocks if k.errno in {errno.EACCES, errno.EPERM}), None)
    if denied is not None:
        group = denied.group or "vllama"
        text = f"{me.name} may not open {denied.path}"
        if denied.gid in me.all_groups:
            return fail("socket", f"{text}, though in group {group}", f"ls -ld {_folder(denied.path)} {denied.path}")
        if denied.gid >= 0 and denied.gid in me.named:
            text += f": in group {group} now, but this shell is older"
            return fail("socket", text, f"newgrp {group}, or log in again")
        if not denied.is_shared:
            text += ": it is its owner's alone, no group vllama has it"
            return fail("socket", text, "sudo vllamactl, or control.group in the daemon's config.toml")
        remedy = f"sudo usermod -aG {group} {shlex.quote(me.name)}, then log in again"
        return fail("socket", f"{text}: not in group {group}", remedy)
    stale = next((k for k in reach.knocks if k.errno == errno.ECONNREFUSED), None)
    if stale is not None:
        return skipped("socket", f"{stale.path} was left by a daemon that is gone")
    strange = next((k for k in reach.knocks if k.errno not in {errno.ENOENT, errno.ENOTDIR}), None)
    if strange is not None:
        return fail("socket", f"{strange.path}: error {strange.errno}", f"ls -l {strange.path}")
    return skipped("socket", "there is none: no daemon runs where it is looked for")


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def judge_daemon(reach: Reach, unit: Unit, now: float) -> Finding:
    """Does the daemon answer, and does it serve? ``now`` is wall time in seconds."""
    from datetime import datetime

    status, knock = reach.status, reach.connected
    restart = f"{unit.systemctl} restart vllamad" if unit.is_installed else ""
    if status is None and knock is not None:
        text = f"pid {knock.pid} holds {knock.path} and does not answer: {reach.unanswered}"
        return fail("daemon", text, f"{JOURNAL}; then: {restart}" if restart else f"look at its log; kill {knock.pid}")
    if status is None:
        if any(k.errno in {errno.EACCES, errno.EPERM} for k in reach.knocks):
            return skipped("daemon", "cannot be asked without access to its socket", "sudo vllamactl doctor")
        if any(k.errno in {errno.EAGAIN, errno.ETIMEDOUT} for k in reach.knocks):
            text = "somebody listens on its socket and accepts nobody: it hangs"
            return fail("daemon", text, f"{JOURNAL}; then: {restart}" if restart else "look at its log")
        start = f"{unit.systemctl} start vllamad" if unit.is_installed else "vllamad"
        return fail("daemon", f"no daemon at {', '.join(k.path for k in reach.knocks)}", start)
    since = status.get("start_time")
    age = f" for {human.span(now - datetime.fromisoformat(since).timestamp()).lower()}" if since else ""
    state = str(status["state"]).lower()
    text = f"{state}{age}, pid {status['pid']}, {status['http_url']}"
    if state != "serving":
        return warn("daemon", text, "vllamactl status")
    failed = [worker for worker in status.get("workers", ()) if worker.get("state") == "FAILED"]
    if failed:
        model = failed[0]["model"]
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return warn("daemon", f"{text}; cannot load {model}{more}", f"vllamactl logs {shlex.quote(model)}")
    return ok("daemon", text)


def judge_version(mine: str, reach: Reach, config: Part, unit: Unit) -> Finding:
    """Are vllamactl, the running daemon and the program on disk of one version?"""
    running = str(reach.status["version"]) if reach.status else ""
    on_disk = config.text("version")
    if running and running != (on_disk or mine):
        text = f"vllamad {running} is running, {on_disk or mine} is installed"
        restart = f"{unit.systemctl} restart vllamad" if unit.is_installed else "stop vllamad and start it again"
        return warn("version", text, restart)
    there = running or on_disk
    if there and there != mine:
        return warn("version", f"vllamactl is {mine}, vllamad is {there}", "type -a vllamactl vllamad; use one of both")
    if not there:
        return skipped("version", f"vllamactl is {mine}; the daemon's is not known")
    return ok("version", f"vllamactl and vllamad are {mine}")


def judge_config(config: Part, service: Service) -> Finding:
    """Is the configuration valid, as the daemon reads it?"""
    if config.missing:
        return skipped("config", config.missing, "vllamad --check")
    problem = config.text("problem")
    who = service.who.name
    check = "vllamad --check --system" if service.is_system else "vllamad --check"
    if problem:
        lines = [line.strip() for line in problem.removeprefix("cannot load the configuration: ").splitlines()]
        # Of several the first line is only their number.
        first = lines[1] if len(lines) > 1 else lines[0]
        more = f" ({len(lines) - 2} more)" if len(lines) > 2 else ""
        if service.stand_in and "Permission denied" in problem:
            return skipped("config", f"{first}; it belongs to {who}", "sudo vllamactl doctor")
        return fail("config", f"{first}{more}", f"correct it; {check} shows all")
    files = ", ".join(config.told.get("files") or ()) or "none, all as built in"
    unseen = f"; not seen: {service.unseen}" if service.unseen else ""
    warnings = list(config.told.get("warnings") or ())
    if warnings:
        more = f" ({len(warnings) - 1} more)" if len(warnings) > 1 else ""
        return warn("config", f"{warnings[0]}{more}", check)
    return ok("config", f"valid; files: {files}{unseen}")
