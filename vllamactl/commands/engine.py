"""`vllamactl engine`: installs the engine, and chooses between installed ones.

The only verb that works on this machine's disk instead of asking the daemon, which is closed against its own engines
and needs no index of packages (decision 0027). Whoever may write to the state folder may do it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from vllamactl import human
from vllamactl.console import CYAN, Console
from vllamactl.engine_environment import NotMade, Step, detect_device, is_complete, make, python_version
from vllamactl.engines import CURRENT, NEEDED_BYTES, PREVIOUS, Engine, Engines, environment_name, recipe
from vllamactl.exits import CtlError, Reported, exit_status, explain
from vllamactl.invocation import Invocation, Verb
from vllamactl.places import state_folder
from vllamactl.progress import LiveLine
from vllamactl.render import Column, cut, table

COLUMNS = (Column("NAME", is_elastic=True), Column("DEVICE", drop=2), Column("VERSION", drop=1), Column("SIZE"),
           Column("INSTALLED", drop=3), Column("USE"))  # fmt: skip

state_dir = click.option(
    "--state-dir",
    metavar="PATH",
    default="",
    help="State folder of the daemon (VLLAMA_STATE_DIR); default: /var/lib/vllama for root and where a service is.",
)


class Group(click.Group):
    """Verbs below a verb; each takes the global options by itself."""

    command_class = Verb


@click.group("engine", cls=Group, short_help="Install the engine, choose between installed ones.")
def command() -> None:
    """Install vLLM, and choose between installed ones.

    An engine is a virtual environment in the folder engines of the daemon's state folder. The daemon takes the one in
    use when it starts, unless its setting engine.python names another interpreter.
    """


# --- install ---------------------------------------------------------------------------------------------------------


@command.command("install")
@click.option("--cuda", "device", flag_value="cuda", help="For NVIDIA GPUs; the default where nvidia-smi finds one.")
@click.option("--cpu", "device", flag_value="cpu", help="For the CPU; the default elsewhere.")
@click.option("--version", default="", metavar="X", help="Another version of vLLM than the one that came with vllama.")
@click.option("--lock", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A lock file of your own.")
@click.option("--python", type=click.Path(path_type=Path), help="Python that it is made for; default: vllamactl's own.")
@state_dir
@click.pass_obj
def install(
    invocation: Invocation, device: str | None, version: str, lock: Path | None, python: Path | None, state_dir: str
) -> None:
    """Install the engine, and have the daemon use it from its next start on.

    The versions are those of the lock file that came with vllama; with --version they are what pip finds now, which
    nobody has tried. A failed install changes nothing. Several GB are fetched, with pip as it is configured.
    """
    invocation.doing = "install the engine"
    console = invocation.console
    wanted = recipe(device or detect_device(), version, lock)
    python = python or Path(sys.executable)
    try:
        name = environment_name(wanted, python_version(python))
    except ValueError as problem:
        raise CtlError("UNSUPPORTED", str(problem), "or name another Python: --python PATH") from problem
    engines = Engines(Path(state_folder(state_dir)))
    folder = engines.folder / name
    if wanted.lock is None:
        console.say(f"vllama has no lock for version {version}: pip chooses what goes with it", "•")
    with engines.held(0 if is_complete(folder) else NEEDED_BYTES[wanted.device]):
        if is_complete(folder):
            console.say(f"{name} is installed already", "•")
        else:
            console.say(f"installing {name} into {folder}", "→")
            try:
                with _Progress(console) as progress:
                    make(folder, wanted, python=python, keep_downloads=False, watch=progress.update)
            except NotMade as problem:
                raise _failed(console, problem, invocation.doing) from problem
        engines.use(name)
    engine = engines.find(name)
    if console.is_json:
        console.document(engine.plain())
    elif console.is_quiet:
        console.data(name)
    console.done(f"{name} is in use ({human.size(engine.size_bytes)})")
    _tell_about_daemon(invocation, engines)


def _failed(console: Console, problem: NotMade, doing: str) -> Reported:
    """The failure with pip's last lines, which a person needs to see."""
    for line in problem.lines:
        console.warn(f"  {line}")
    error = CtlError("HUB_UNREACHABLE", problem.message, problem.hint, {"log": str(problem.log)})
    for line in [*explain(error, doing), f"log: {problem.log}"]:
        console.warn(line)
    if console.is_json:
        console.document({"error": error.plain()})
    return Reported(exit_status(error.reason))


class _Progress:
    """A line on a terminal, a word for each phase elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = LiveLine(console)
        self._said = ""

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._line.clear()

    def update(self, step: Step) -> None:
        if step.is_unpacking:
            phase, facts = "unpacking", f"{step.total} packages" if step.total else ""
        elif step.done:
            phase, facts = "downloading", f"{step.done}/{step.total or '?'}  {step.package}"
        else:
            phase, facts = "preparing", ""
        if phase != self._said and not self._console.is_err_terminal:
            self._console.say(f"{phase} {facts if step.is_unpacking else ''}".rstrip(), "→")
        self._said = phase
        self._line.draw(
            lambda frame, width: f"{self._console.paint_err(frame, CYAN)} {cut(f'{phase} {facts}', width - 2)}"
        )


@dataclass(frozen=True, slots=True)
class _Daemon:
    """The daemon of a state folder: ``python`` is the engine it has; ``told`` how engine.python is set, "" if not."""

    python: str
    told: str


def _ask_daemon(invocation: Invocation, engines: Engines) -> _Daemon | None:
    """Return the daemon whose engines these are; None if it does not run, or may not be asked by this user."""
    from vllamactl.client import Client

    found: _Daemon | None = None

    async def ask(client: Client) -> None:
        nonlocal found
        status = await client.get_status()
        if Path(status.state_folder) == engines.folder.parent:
            (setting,) = [each for each in await client.get_config() if each.key == "engine.python"]
            told = "" if setting.source == "default" else f"{setting.value} ({setting.source})"
            found = _Daemon(status.engine.python, told)

    try:
        invocation.run(invocation.doing, ask, wait_s=0)
    except CtlError as problem:
        if problem.reason != "DAEMON_UNREACHABLE":
            invocation.console.say(f"the daemon was not asked which engine it has: {problem.message}", "•")
    return found


def _tell_about_daemon(invocation: Invocation, engines: Engines) -> None:
    """Say what is left to do: a daemon that runs has another engine; one that is told another by a setting keeps it."""
    daemon = _ask_daemon(invocation, engines)
    if daemon is None:
        return
    if daemon.told:
        invocation.console.say(f"the daemon does not take it: engine.python is set to {daemon.told}", "•")
    elif not daemon.python.startswith(f"{engines.folder / engines.target(CURRENT)}/"):
        invocation.console.say("the daemon takes it when it starts again: systemctl restart vllamad", "→")


# --- the others ------------------------------------------------------------------------------------------------------


@command.command("list")
@state_dir
@click.pass_obj
def list_(invocation: Invocation, state_dir: str) -> None:
    """List the installed engines, the newest first, and which one is in use."""
    invocation.doing = "list the engines"
    console = invocation.console
    engines = Engines(Path(state_folder(state_dir))).all()
    if console.is_json:
        console.document({"engines": [engine.plain() for engine in engines]})
        return
    if console.is_quiet:
        lines = [engine.name for engine in engines]
    else:
        import time

        now = time.time()
        cells = [
            (
                each.name,
                each.device,
                each.version,
                human.size(each.size_bytes),
                human.instant(each.made_time, now),
                each.use,
            )
            for each in engines
        ]
        lines = table(COLUMNS, cells, console.width)
    for line in lines:
        console.data(line)


@command.command("use")
@click.argument("name")
@state_dir
@click.pass_obj
def use(invocation: Invocation, name: str, state_dir: str) -> None:
    """Have the daemon use the installed engine NAME from its next start on. The beginning of a name is enough."""
    invocation.doing = f"use the engine {name}"
    engines = Engines(Path(state_folder(state_dir)))
    _switch(invocation, engines, engines.find(name))


@command.command("rollback")
@state_dir
@click.pass_obj
def rollback(invocation: Invocation, state_dir: str) -> None:
    """Go back to the engine that was in use before. A second rollback undoes the first."""
    invocation.doing = "go back to the engine before"
    engines = Engines(Path(state_folder(state_dir)))
    before = engines.target(PREVIOUS)
    if not before:
        raise CtlError("NOT_FOUND", "no other engine was in use before", "see what there is: vllamactl engine list")
    _switch(invocation, engines, engines.find(before))


def _switch(invocation: Invocation, engines: Engines, engine: Engine) -> None:
    with engines.held():
        engines.use(engine.name)
    if invocation.console.is_json:
        invocation.console.document(engines.find(engine.name).plain())
    invocation.console.done(f"{engine.name} is in use")
    _tell_about_daemon(invocation, engines)


@command.command("remove")
@click.argument("name")
@state_dir
@click.pass_obj
def remove(invocation: Invocation, name: str, state_dir: str) -> None:
    """Remove the engine NAME from the disk. The one in use is refused, and one that a running daemon still has."""
    invocation.doing = f"remove the engine {name}"
    engines = Engines(Path(state_folder(state_dir)))
    engine = engines.find(name)
    daemon = _ask_daemon(invocation, engines)
    if daemon and daemon.python.startswith(f"{engine.folder}/"):
        raise CtlError(
            "INVALID_REQUEST",
            f"the daemon runs {engine.name}",
            "have it use another: vllamactl engine use NAME, restart",
        )
    with engines.held():
        engines.remove(engine)
    if invocation.console.is_json:
        invocation.console.document(engine.plain())
    invocation.console.done(f"removed {engine.name}, freed {human.size(engine.size_bytes)}")
