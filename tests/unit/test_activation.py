"""Sockets that a service manager hands over."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from vllamad.host.activation import Passed, take_sockets

Give = Callable[[Sequence[socket.socket | int]], int]


@pytest.fixture
def give() -> Iterator[Give]:
    """Puts descriptors side by side, as systemd does; returns the first."""
    placed: list[int] = []

    def place(given: Sequence[socket.socket | int]) -> int:
        # Far from everything that this process has open.
        first = 500
        for position, one in enumerate(given):
            os.dup2(one if isinstance(one, int) else one.fileno(), first + position)
            placed.append(first + position)
        return first

    yield place
    for descriptor in placed:
        try:
            os.close(descriptor)
        except OSError:
            continue  # taken over, and closed


def variables(count: int, names: str, pid: int = 0) -> dict[str, str]:
    return {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names, "PATH": "/bin"}


def close(passed: Passed) -> None:
    for each in passed.http:
        each.close()


def test_names_tell_what_a_socket_is_and_the_variables_go(give: Give) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        environ = variables(2, "http:http")
        passed = take_sockets(environ, give([one, two]))
        assert [each.getsockname() for each in passed.http] == [one.getsockname(), two.getsockname()]
        assert not any(each.get_inheritable() for each in passed.http)
        assert environ == {"PATH": "/bin"}
        assert passed.warnings == ()
        close(passed)


def test_what_nobody_would_accept_from_is_turned_away_and_told(give: Give) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket() as idle,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        open(os.devnull) as plain,  # noqa: PTH123
    ):
        first = give([server, idle, datagrams, plain.fileno(), server])
        passed = take_sockets(variables(5, "vllamad.socket:http:http:http:http"), first)
        assert len(passed.http) == 1
        told = "\n".join(passed.warnings)
        assert 'named "vllamad.socket", which is not used: sockets for HTTP need FileDescriptorName=http' in told
        assert told.count("does not listen") == 2
        assert "which is no socket" in told
        close(passed)


@pytest.mark.parametrize(
    "environ",
    [{}, variables(1, "http", pid=1), {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}],
    ids=["none", "for another process", "nonsense"],
)
def test_nothing_is_taken_that_was_not_given(environ: dict[str, str]) -> None:
    assert take_sockets(environ) == Passed()
    assert not any(name.startswith("LISTEN_") for name in environ)
