"""``vllamad``: arguments, configuration, lock, then the daemon in the foreground (floor 5)."""

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from vllama.reasons import ROWS, Reason
from vllamad.config.flags import argv_values, build_parser
from vllamad.config.load import load
from vllamad.config.loaded import Loaded
from vllamad.domain.errors import VllamaError
from vllamad.domain.handover import Handover, decode
from vllamad.host.activation import Passed, take_sockets
from vllamad.host.folders import (
    RUNTIME_MODE,
    STATE_MODE,
    make_folder,
    make_private_folder,
    share_with_group,
)
from vllamad.host.lock import FolderLock
from vllamad.host.logs import configure, event, pick_format
from vllamad.host.open_files import raise_open_files
from vllamad.host.succession import become, note_signals, own_program, take_document

log = logging.getLogger("vllamad.daemon")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon and return its exit status: 0 after a clean stop, 78 for a bad configuration (the service manager
    must not try that again), else the status of the table of reasons."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not arguments.check and (arguments.json or arguments.system):
        parser.error("--json and --system need --check")
    # The watchdog of a service manager ends a daemon that hangs with SIGABRT: then its log shows where it hung.
    faulthandler.enable()

    def reread() -> Loaded:
        return load(argv_values(arguments), os.environ, is_system_service=True if arguments.system else None)

    try:
        handed = _taken_from_predecessor()
        loaded = reread()
        if arguments.check:
            return _look(loaded) if arguments.json else _report(loaded)
        return _run(loaded, reread, take_sockets(os.environ), handed)
    except VllamaError as error:
        return _refuse(error) if arguments.check and arguments.json else _fail(error)
    except KeyboardInterrupt:
        return ROWS[Reason.CANCELLED].exit


def _run(loaded: Loaded, reread: Callable[[], Loaded], passed: Passed, handed: Handover | None) -> int:
    settings, places = loaded.settings, loaded.places
    configure(pick_format(settings.logging.format, os.environ, sys.stderr.fileno()), settings.logging.level)
    for warning in (*loaded.warnings, *passed.warnings):
        event(log, logging.WARNING, "config.warning", text=warning)
    raise_open_files()
    make_folder(places.state, STATE_MODE, "state folder", "--state-dir")
    make_folder(places.runtime, RUNTIME_MODE, "runtime folder", "--runtime-dir")
    with contextlib.ExitStack() as held:
        locks: list[FolderLock] = []
        for path, flag in ((places.lock, "--state-dir"), (places.runtime / places.lock.name, "--runtime-dir")):
            lock = FolderLock.inherit(path, handed.locks[str(path)]) if handed else FolderLock.take(path, flag)
            held.callback(lock.release)
            locks.append(lock)
        # Why the folder stays with this user is said once, for the socket.
        share_with_group(places.runtime, settings.control.group, RUNTIME_MODE)
        make_folder(places.socket.parent, RUNTIME_MODE, "folder of the control socket", "--socket")
        make_private_folder(places.worker_sockets, "folder of worker sockets", "--runtime-dir")
        while True:
            try:
                handed, noted = _serve(loaded, reread, passed, handed)
            except* VllamaError as group:
                raise _first(group) from group
            if handed is None:
                return 0
            handed = replace(handed, locks={str(lock.path): lock.descriptor for lock in locks})
            try:
                become(own_program(), os.environ, handed.encoded(), handed.descriptors, noted)
            except OSError as error:
                # Everything is there to go on with, for ourselves as well. Nobody took over.
                handed = replace(handed, count=handed.count - 1)
                event(log, logging.ERROR, "daemon.not_upgraded", why=error.strerror, program=own_program()[0])


def _taken_from_predecessor() -> Handover | None:
    document = take_document(os.environ)
    if document is None:
        return None
    try:
        return decode(document)
    except ValueError as error:
        why = f"cannot take over: what the daemon before this one has left cannot be read: {error}"
        raise VllamaError(Reason.INTERNAL, why, "models are loaded again by the next start") from error


def _serve(
    loaded: Loaded, reread: Callable[[], Loaded], passed: Passed, handed: Handover | None
) -> tuple[Handover | None, Sequence[int]]:
    """Run a daemon; what it has handed over (None if it was asked to stop), and the signals that come from then on."""
    # Only now: a refusal of the configuration or a lock should not wait for these imports.
    import uvloop

    from vllamad.app import Daemon

    async def serve() -> tuple[Handover | None, Sequence[int]]:
        daemon = Daemon(loaded, os.environ, reread, passed.http, handed, own_program())
        left = await daemon.run()
        if left is None:
            return None, ()
        noted = note_signals()
        if daemon.is_asked_to_stop:  # too late for it to end what it has handed over: its successor does
            noted.append(signal.SIGTERM)
        return left, noted

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())


def _first(group: BaseExceptionGroup[VllamaError]) -> VllamaError:
    """The failure that ended the daemon; others followed from it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, VllamaError)
    return error


def _report(loaded: Loaded) -> int:
    for warning in loaded.warnings:
        sys.stderr.write(f"vllamad: warning: {warning}\n")
    files = ", ".join(str(path) for path in loaded.files) or "none"
    sys.stdout.write(f"vllamad: configuration is valid (files: {files})\n")
    return 0


def _look(loaded: Loaded) -> int:
    from vllamad import checkup

    return checkup.run(loaded)


def _refuse(error: VllamaError) -> int:
    from vllamad import checkup

    checkup.emit(checkup.refused(error))
    return error.row.exit


def _fail(error: VllamaError) -> int:
    sys.stderr.write(f"vllamad: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    return error.row.exit


if __name__ == "__main__":
    sys.exit(main())
