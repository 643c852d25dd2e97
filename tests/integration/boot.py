"""Runs grit-runtime from the source tree, with a kill at a chosen step: what the launcher would do, and a fault that is
injected, not slept.

A step is a journal line that is about to be written, the same line written, or a name in a file system that is about to
change. With GRIT_TEST_STEPS, the number of steps is written to that file at the end; with GRIT_TEST_KILL_AT=N, the
process kills itself at step N. GRIT_TEST_SLOW_FILL slows the filling of memory down, and GRIT_TEST_NO_USERFAULTFD
stands for a kernel without it. With GRIT_TEST_MODULES, what was imported is written to that file, a name and its file
a line. GRIT_TEST_SLOW_BEHIND slows the filling behind a running container down, by so many seconds for each MiB.
GRIT_TEST_SLOW_PROGRESS has what shows its progress take long enough to be seen.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from grit_runtime import __main__
from grit_runtime.host import inject, transaction, vm

_steps = 0


def _step() -> None:
    global _steps
    _steps += 1
    if os.environ.get("GRIT_TEST_STEPS"):
        Path(os.environ["GRIT_TEST_STEPS"]).write_text(str(_steps))
    if os.environ.get("GRIT_TEST_KILL_AT") == str(_steps):
        os.kill(os.getpid(), signal.SIGKILL)


def _counted(function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    def counting(*args: Any, **kwargs: Any) -> Any:
        _step()
        result = function(*args, **kwargs)
        if after:
            _step()
        return result

    return counting


if os.environ.get("GRIT_TEST_STEPS") or os.environ.get("GRIT_TEST_KILL_AT"):
    transaction.append = _counted(transaction.append, after=True)
    os.rename = _counted(os.rename, after=False)
    os.rmdir = _counted(os.rmdir, after=False)
    os.mkdir = _counted(os.mkdir, after=False)
    os.unlink = _counted(os.unlink, after=False)


def _slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    def waiting(*args: Any) -> Any:
        Path("filling").touch()
        time.sleep(0.05)
        return function(*args)

    return waiting


if os.environ.get("GRIT_TEST_SLOW_FILL"):
    vm.Userfault.copy = _slowly(vm.Userfault.copy)  # type: ignore[method-assign]
if os.environ.get("GRIT_TEST_SLOW_BEHIND"):
    from grit_runtime.criu.memory import behind

    _ready = behind.Filler._ready

    def _later(self: behind.Filler) -> Any:
        time.sleep(float(os.environ["GRIT_TEST_SLOW_BEHIND"]))
        return _ready(self)

    behind.Filler._ready = _later  # type: ignore[method-assign]
if os.environ.get("GRIT_TEST_NO_USERFAULTFD"):
    inject.is_supported = lambda: False

if os.environ.get("GRIT_TEST_SLOW_PROGRESS"):
    from contextlib import contextmanager

    from grit_runtime.commands import progress

    _shown = progress.shown

    @contextmanager
    def _longer(*arguments: Any) -> Any:
        with _shown(*arguments):
            time.sleep(0.5)
            yield

    progress.shown = _longer

code = __main__.main(["verb", "-", "grit-runtime", *sys.argv[1:]])
if os.environ.get("GRIT_TEST_MODULES"):
    found = [f"{name}\t{getattr(module, '__file__', None) or ''}\n" for name, module in sorted(sys.modules.items())]
    Path(os.environ["GRIT_TEST_MODULES"]).write_text("".join(found))
sys.exit(code)
