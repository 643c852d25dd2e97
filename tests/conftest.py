"""Requirements: skipped on a laptop, failed in CI."""

import os
from functools import cache

import pytest

from tests import requirements

_missing = cache(requirements.missing)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look up what the test's `needs` marks name."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            why = _missing(name)
            if why is None:
                continue
            if os.environ.get("CI") and name not in requirements.MAY_BE_MISSING_IN_CI:
                pytest.fail(f"required here: {why}")
            pytest.skip(why)
