"""For every ring."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No example has a deadline: how long one takes is the machine's, not the code's.
settings.register_profile("whole", deadline=None)
settings.load_profile("whole")
# For `make test-quick`: a developer's loop. Everything else takes hypothesis's own number.
settings.register_profile("quick", max_examples=25, deadline=None)


def pytest_configure() -> None:
    """Let the keyboard's signals mean something to the programs that tests start: a shell's background job inherits
    that they are ignored, and hands it on to every child."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets: the kernel takes 107 bytes, and pytest's own folders
    may lie deep."""
    with tempfile.TemporaryDirectory(prefix="vl-") as name:
        yield Path(name)
