"""The back end of NVIDIA's program `cuda-checkpoint`, for a node where the driver's library cannot be loaded by us.

Its arguments and output are those of 555 and newer (`cuda-checkpoint --help`); before that it knew only `--toggle`,
which cannot be told which way to go.
"""

import re
import subprocess
import time
from collections.abc import Sequence

from grit_runtime import names
from grit_runtime.cuda import driver, states
from grit_runtime.cuda.api import Api, Arguments, Outcome, Settings
from grit_runtime.cuda.states import CudaError, NoCudaError, Operation, State
from grit_runtime.host import run

# cuGetErrorString, which is all that the program says of an error.
_CODES = {
    "invalid argument": states.INVALID_VALUE,
    "out of memory": states.OUT_OF_MEMORY,
    "initialization error": states.NOT_INITIALIZED,
    "no cuda-capable device": 100,
    "os call failed": states.OPERATING_SYSTEM,
    "present state": states.ILLEGAL_STATE,
    "illegal state": states.ILLEGAL_STATE,
    "not ready": states.NOT_READY,
    "operation not permitted": 800,
    "operation not supported": states.NOT_SUPPORTED,
}


class Program(Api):
    """Runs the program once for each process and operation."""

    name = names.CUDA_PROGRAM

    def __init__(self, path: str, settings: Settings) -> None:
        self._path = path
        self._env = dict(driver.environment(settings))

    def each(
        self,
        operation: Operation,
        pids: Sequence[int],
        *,
        timeout: float,
        arguments: Arguments = Arguments(),  # noqa: B008 - immutable
    ) -> list[Outcome]:
        """See `Api.each`."""
        begun = time.monotonic()
        running = [self._start(operation, pid, arguments) for pid in pids]
        outcomes, pid = [], 0
        try:
            for pid, process in zip(pids, running, strict=True):
                left = max(0.0, begun + timeout - time.monotonic())
                out, err = process.communicate(timeout=left)
                outcomes.append(_outcome(operation, pid, process.returncode, out, err, time.monotonic() - begun))
        except subprocess.TimeoutExpired:
            raise CudaError(f"`{self._path}` {operation.value} of process {pid} did not return in time") from None
        finally:
            for process in running:
                run.end(process)
        return outcomes

    def close(self) -> None:
        """Nothing is held."""

    def _start(self, operation: Operation, pid: int, arguments: Arguments) -> subprocess.Popen[str]:
        argv = [self._path, *_WORDS[operation], "--pid", str(pid)]
        if operation is Operation.LOCK:
            argv += ["--timeout", str(max(1, int(arguments.lock_timeout * 1000)))]
        if operation is Operation.RESTORE and arguments.device_map:
            argv += ["--device-map", ",".join(f"{old}={new}" for old, new in arguments.device_map)]
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._env,
            text=True,
            errors="replace",
        )


_WORDS = {
    Operation.STATE: ("--get-state",),
    Operation.RESTORE_THREAD: ("--get-restore-tid",),
    Operation.LOCK: ("--action", "lock"),
    Operation.CHECKPOINT: ("--action", "checkpoint"),
    Operation.RESTORE: ("--action", "restore"),
    Operation.UNLOCK: ("--action", "unlock"),
}


def connect(settings: Settings) -> Program:
    """Find the program.

    Raises:
        NoCudaError: it isn't there, or too old to be told what to do.
    """
    path = run.find_program(settings.program, run.caller_environment())
    if path is None:
        raise NoCudaError(f"no {settings.program} in PATH")
    try:
        said = run.run([path, "-h"], timeout=settings.timeout, env=driver.environment(settings))
    except OSError as err:
        raise NoCudaError(f"{path} cannot be executed: {err.strerror}") from None
    if "--action" not in said.out + said.err:
        raise NoCudaError(f"{path} is older than 555: it has no --action")
    return Program(path, settings)


def _outcome(operation: Operation, pid: int, code: int, out: str, err: str, seconds: float) -> Outcome:
    if code:
        return Outcome(pid=pid, code=_code(f"{out}\n{err}"), seconds=seconds)
    value = -1
    if operation is Operation.STATE:
        word = out.strip().lower()
        known = {state.name.lower(): state for state in State}
        if word not in known:
            raise CudaError(f"cuda-checkpoint said an unknown state of process {pid}: {word[:80]!r}")
        value = known[word]
    elif operation is Operation.RESTORE_THREAD:
        number = re.search(r"\d+", out)
        if number is None:
            raise CudaError(f"cuda-checkpoint named no restore thread of process {pid}: {out[:80]!r}")
        value = int(number[0])
    return Outcome(pid=pid, code=0, value=value, seconds=seconds)


def _code(said: str) -> int:
    lowered = said.lower()
    return next((code for words, code in _CODES.items() if words in lowered), states.UNKNOWN)
