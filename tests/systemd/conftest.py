"""Boxes with vllamad as a service: installed from the repository's units, or by its package.

What the tests measure on the way is printed at the end.
"""

import shutil
from collections.abc import Iterator

import pytest

from tests.systemd.box import booted, why_not
from tests.systemd.packaged import Packages
from tests.systemd.service import Service

FIGURES = pytest.StashKey[list[str]]()


class Figures:
    """What was measured, for the end of the run: figures of this machine, and no thresholds."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def tell(self, line: str) -> None:
        self._lines.append(line)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash[FIGURES]:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    return Figures(pytestconfig.stash[FIGURES])


@pytest.fixture(scope="session")
def installed() -> Iterator[Service]:
    """The service in a box, installed and not started."""
    if reason := why_not():
        pytest.skip(reason)
    with booted() as box:
        service = Service(box)
        service.install()
        yield service


@pytest.fixture
def service(installed: Service) -> Iterator[Service]:
    """The same, serving with the model ``tiny``; stopped afterwards."""
    installed.start()
    yield installed
    installed.stop()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The Debian package, built from this checkout."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("a package is built by dpkg-deb, which is not installed")
    return Packages(tmp_path_factory.mktemp("package"))
