"""Sockets from the service manager (floor 2): systemd's socket activation, see sd_listen_fds(3).

Whoever holds them outside keeps their queue while the daemon restarts, so that no connection is refused meanwhile. They
come as descriptors from 3 on, in an order that changes between starts: only their names (``FileDescriptorName=``) tell
what they are.
"""

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

FIRST = 3
HTTP = "http"
"""The name of the sockets of the HTTP face."""
_NAMES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class Passed:
    """What was handed over. ``http`` listens already; ``warnings`` tell what was turned away, and why."""

    http: tuple[socket.socket, ...] = ()
    warnings: tuple[str, ...] = ()


def take_sockets(environ: MutableMapping[str, str], first: int = FIRST) -> Passed:
    """Take over the descriptors that are meant for this process, and remove the variables: no child may take them for
    its own. Call it once, before anything else opens or inherits a file. ``first`` is for tests.

    What is not a listening stream socket named "http" is closed, with a warning: nobody would ever accept from it.
    """
    pid, count, names = (environ.pop(name, "") for name in _NAMES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return Passed()
    kept: list[socket.socket] = []
    warnings: list[str] = []
    given = names.split(":") if names else []
    for position in range(int(count)):
        name = given[position] if position < len(given) else ""
        taken = _take(first + position, name)
        if isinstance(taken, socket.socket):
            kept.append(taken)
        else:
            warnings.append(taken)
    return Passed(tuple(kept), tuple(warnings))


def _take(descriptor: int, name: str) -> socket.socket | str:
    """The socket, or why it was closed."""
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        return f"the service manager passed descriptor {descriptor} ({name}), which is no socket: {error.strerror}"
    if name != HTTP:
        taken.close()
        return (
            f'the service manager passed a socket named "{name}", which is not used: sockets for HTTP need '
            f"FileDescriptorName={HTTP}"
        )
    if taken.type != socket.SOCK_STREAM or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        taken.close()
        return f'the socket "{name}" of the service manager does not listen: it needs ListenStream= and Accept=no'
    taken.set_inheritable(False)
    taken.setblocking(False)
    return taken
