"""Judgement of permissions (floor 4): what keeps the daemon's user from a file, from / down. Pure."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllamactl.doctor.facts import UNIT, Identity, Step, Unit, Way
from vllamactl.doctor.finding import Finding, State, fail, ok, skipped, warn

HOMES = ("/root", "/home", "/run/user")
"""What ProtectHome= hides."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """The first step that a user cannot pass, and the right that is lacking: "x", "w" or "r"."""

    step: Step
    right: str


def may(who: Identity, step: Step, right: str) -> bool:
    """What the mode bits say. Root may everything but execute what nobody may."""
    bit = {"r": 4, "w": 2, "x": 1}[right]
    if who.is_root:
        return right != "x" or stat.S_ISDIR(step.mode) or bool(step.mode & 0o111)
    if step.uid == who.uid:
        return bool(step.mode >> 6 & bit)
    if step.gid in who.all_groups:
        return bool(step.mode >> 3 & bit)
    return bool(step.mode & bit)


def barrier(way: Way, who: Identity, rights: str) -> Barrier | None:
    """What stops ``who`` from having ``rights`` on the end of a way: a folder on it that cannot be passed, or the end
    itself. Of a way that breaks off only what was seen counts."""
    is_whole = not way.missing and not way.unseen
    for number, step in enumerate(way.steps):
        is_end = is_whole and number == len(way.steps) - 1
        if is_end:
            lacking = next((right for right in rights if not may(who, step, right)), "")
        else:
            lacking = "" if not stat.S_ISDIR(step.mode) or may(who, step, "x") else "x"
        if lacking:
            return Barrier(step, lacking)
    return None


def judge_way(check: str, way: Way, who: Identity, rights: str, unit: Unit, *, is_made: bool = False) -> Finding:
    """Can the daemon's user use this? ``is_made``: the daemon, or systemd, makes it when it is not there."""
    what = f"{way.name} {way.path}"
    if hidden := _hidden(way, unit):
        return fail(
            check,
            f"{UNIT} does not see {hidden} (ProtectHome=), where {way.path} is",
            "put it elsewhere, as under /opt, and name that place to the unit or in config.toml",
        )
    # Folders above what is bound into the unit's view are made there, open to all.
    above = [step for step in way.steps if any(one.startswith(f"{step.path.rstrip('/')}/") for one in unit.bound)]
    found = barrier(replace(way, steps=tuple(step for step in way.steps if step not in above)), who, rights)
    if found is not None:
        return _stopped(check, way, who, found)
    if way.unseen:
        return skipped(check, f"{way.name}: you may not look into {way.unseen}", "sudo vllamactl doctor")
    if way.missing:
        if not is_made:
            return fail(
                check, f"{what}: there is no {way.missing}", f"ls -ld {way.steps[-1].path if way.steps else '/'}"
            )
        return _can_be_made(check, way, who, unit)
    return ok(check, f"{who.name} can use the {what}")


def _hidden(way: Way, unit: Unit) -> str:
    """The folder of homes that the unit hides and the way goes through; "" if it is not hidden."""
    if unit.manager != "system" or unit.get("ProtectHome") not in {"yes", "tmpfs"}:
        return ""
    for path in (way.path, *(step.path for step in way.steps)):
        home = next((home for home in HOMES if path == home or path.startswith(f"{home}/")), "")
        is_bound = any(path == one or path.startswith(f"{one}/") or one.startswith(f"{path}/") for one in unit.bound)
        if home and not is_bound:
            return home
    return ""


def _stopped(check: str, way: Way, who: Identity, found: Barrier) -> Finding:
    step = found.step
    mode = f"{stat.filemode(step.mode)} {step.owner} {step.group}".rstrip()
    verb = {"x": "pass" if stat.S_ISDIR(step.mode) else "execute", "w": "write to", "r": "read"}[found.right]
    is_end = step is way.steps[-1] and not way.missing and not way.unseen
    where = "" if is_end else f" on the way to {way.path}"
    text = f"{who.name} cannot {verb} {step.path} ({mode}){where}"
    if step.has_acl:
        return warn(check, f"{text}, unless its access list says so", f"getfacl {step.path}")
    if found.right == "w":
        return fail(check, text, f"sudo chown -R {who.name}: {step.path}")
    if any(step.path == home or step.path.startswith(f"{home}/") for home in HOMES):
        return fail(check, text, f"sudo chmod o+x {step.path}; better: move it under /opt")
    return fail(check, text, f"sudo chmod o+{'rx' if found.right == 'r' else 'x'} {step.path}")


def _can_be_made(check: str, way: Way, who: Identity, unit: Unit) -> Finding:
    parent = way.steps[-1] if way.steps else None
    if parent is not None and not stat.S_ISDIR(parent.mode):
        return fail(check, f"{way.name} {way.path}: {parent.path} is not a folder", f"ls -l {parent.path}")
    if unit.is_installed or (parent is not None and may(who, parent, "w")):
        return ok(check, f"{way.name} {way.path} is made at the first start")
    where = parent.path if parent else "/"
    return fail(
        check,
        f"{way.name}: there is no {way.missing}, and {who.name} cannot make it in {where}",
        f"sudo install -d -o {who.name} {way.path}",
    )


def judge_folders(ways: Sequence[tuple[Way, str]], who: Identity, unit: Unit) -> Finding:
    """State, runtime, cache, models and what is in them, each with the rights that are needed: the worst of them."""
    found = [judge_way("folders", way, who, rights, unit, is_made=True) for way, rights in ways]
    if not found:
        return skipped("folders", "where they lie is not known without the configuration")
    worst = min(found, key=lambda one: list(_SEVERITY).index(one.state))
    if worst.state is State.OK:
        return ok("folders", f"{who.name} can use {', '.join(_tops([way.path for way, _rights in ways]))}")
    return worst


def _tops(paths: Sequence[str]) -> list[str]:
    """Without those that lie in another one."""
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


_SEVERITY = (State.FAIL, State.WARN, State.SKIPPED, State.OK)
