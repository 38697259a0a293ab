"""``python -m vllamad.acceptors DESCRIPTOR``: an acceptor, started by the daemon only (floor 5). The descriptor is its
end of the channel."""

import asyncio
import socket
import sys

import uvloop

from vllamad.acceptors.acceptor import Acceptor


def main(descriptor: int) -> None:
    """Serve until the daemon says so, or is gone."""

    async def run() -> None:
        await Acceptor(socket.socket(fileno=descriptor)).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main(int(sys.argv[1]))
