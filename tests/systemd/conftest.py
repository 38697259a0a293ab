"""A box with vllamad installed as a service, in front of the fake engine."""

from collections.abc import Iterator

import pytest

from tests.systemd.box import booted, why_not
from tests.systemd.service import Service


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
