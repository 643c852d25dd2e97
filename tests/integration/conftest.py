"""Every integration test gets a machine, and proves that it leaves nothing behind."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.machine import Machine
from tests.simulated import driver
from tests.simulated.driver import SimulatedGpu


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A place for containers; after the test no mount, journal or temporary file of ours may be there."""
    before, elsewhere = _mounts(tmp_path), _elsewhere()
    made = Machine(tmp_path)
    yield made
    made.clean()
    assert made.leftovers() == []
    assert made.disturbed() == []
    assert _elsewhere() == elsewhere
    assert _mounts(tmp_path) == before


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated driver, compiled once."""
    path = tmp_path_factory.mktemp("simulated")
    driver.build(path)
    return path


@pytest.fixture
def gpu(machine: Machine, built: Path) -> Iterator[SimulatedGpu]:
    """A machine with a simulated GPU."""
    made = SimulatedGpu(machine, built)
    yield made
    made.faults()
    machine.clean()
    made.close()


def _elsewhere() -> list[str]:
    """What lies where only a machine-wide grit-runtime, runc or CRIU may have something."""
    places = ("/run/grit-runtime", "/var/log/grit-runtime", "/run/runc", "/etc/criu", "/etc/grit-runtime")
    return [str(path) for place in places for path in sorted(Path(place).rglob("*"))]


def _mounts(path: Path) -> list[str]:
    """The mount table, less what tests that run beside this one have mounted in their own temporary directories."""
    others = tempfile.gettempdir() + "/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if str(path) in line or others not in line]
