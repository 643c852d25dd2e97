"""What recovery must know by itself."""

import importlib
import pkgutil

import grit_runtime
from grit_runtime.host import transaction
from grit_runtime.workflow import recover


def test_every_effect_that_a_journal_may_hold_is_known_to_recovery() -> None:
    for module in pkgutil.walk_packages(grit_runtime.__path__, "grit_runtime."):
        if not module.name.endswith((".__main__", ".helper")):
            importlib.import_module(module.name)
    known = {module.__name__ for module in recover.EFFECTS}
    assert {effect.__module__ for effect in transaction._KINDS.values()} <= known
