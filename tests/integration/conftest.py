"""Every integration test gets a machine, and proves that it leaves nothing behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A place for containers; after the test no mount, journal or temporary file of ours may be there."""
    before = Path("/proc/self/mountinfo").read_text()
    made = Machine(tmp_path)
    yield made
    made.clean()
    assert made.leftovers() == []
    assert Path("/proc/self/mountinfo").read_text() == before
