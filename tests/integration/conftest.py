"""Daemons for tests: most tests share one that is healthy, the others start what they break."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.fakes.daemon import FAKE_PYTHON, Daemon, running
from vllamad.process import cgroup

Models = Mapping[str, Mapping[str, object]]


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    """A daemon with the model ``tiny``, shared by the tests of a module."""
    with running(models={"tiny": {}, "endless": {"tokens": 100_000, "token_delay_s": 0.01}}) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def leaves() -> Iterator[cgroup.Leaves]:
    """A real control group to make leaves in: what was delegated to us (then this process moves into a leaf as well),
    or, for root, a group of our own where we are."""
    if delegated := cgroup.settle():
        yield delegated
        return
    own = cgroup.group_of(Path("/proc/self"))
    place = cgroup.mounted(Path(own), Path("/proc")) if own else None
    if place is None:
        pytest.skip("no control groups of version 2 here")
    folder = place[0] / f"vllama-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group was delegated to this process, and none can be made: {error}")
    yield cgroup.Leaves(folder)
    folder.rmdir()


@pytest.fixture
def new_house() -> Iterator[Callable[..., Daemon]]:
    """Makes daemons of one's own; each is ended, and looked after, when the test is over. ``models`` maps names to the
    faults of their engines."""
    made: list[Daemon] = []

    def make(
        *arguments: str,
        start: bool = True,
        engine: Path = FAKE_PYTHON,
        models: Models | None = None,
        **environment: str,
    ) -> Daemon:
        daemon = Daemon(engine, environment, arguments)
        made.append(daemon)
        for name, faults in (models or {}).items():
            daemon.add_model(name, **faults)
        return daemon.start() if start else daemon

    yield make
    for daemon in made:
        daemon.close()
