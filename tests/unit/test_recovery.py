"""What recovery must know by itself."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib, pkgutil, grit_runtime
from grit_runtime.host import transaction
from grit_runtime.workflow import recover
for define in transaction._more:
    define()
known = set(transaction._KINDS)
for module in pkgutil.walk_packages(grit_runtime.__path__, "grit_runtime."):
    if not module.name.endswith((".__main__", ".helper")):
        importlib.import_module(module.name)
print(sorted(set(transaction._KINDS) - known))
"""


def test_every_effect_that_a_journal_may_hold_is_known_to_recovery() -> None:
    argv = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
