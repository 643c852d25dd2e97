"""The sequences: several processes into memory, and back. All are locked before the first is checkpointed, and all are
restored before the first is unlocked, so that none runs on while another one that it shares work with is half there.
"""

import time
from collections.abc import Mapping, Sequence

from grit_runtime.cuda import states
from grit_runtime.cuda.api import Api, Arguments
from grit_runtime.cuda.states import CudaError, Operation, State, error_name

_MARGIN = 30.0  # seconds that a call gets beyond the time that it was told
_POLL = 0.05
_UNDER_WAY = frozenset({State.CHECKPOINTING, State.RESTORING})


class ProcessError(CudaError):
    """CUDA said no of one process.

    Args:
        operation: what was asked for.
        pid: of which process, as the host sees it.
        code: the CUresult.
    """

    def __init__(self, operation: Operation, pid: int, code: int) -> None:
        super().__init__(f"cuCheckpointProcess{operation.value} of process {pid}: {error_name(code)}")
        self.operation, self.pid, self.code = operation, pid, code


def restore_threads(api: Api, pids: Sequence[int], *, timeout: float) -> dict[int, int]:
    """The processes that have initialised CUDA, each with the thread in which the driver restores it.

    Raises:
        ProcessError: one cannot be asked.
    """
    found = {}
    for outcome in api.each(Operation.RESTORE_THREAD, pids, timeout=timeout):
        if outcome.code == states.SUCCESS:
            found[outcome.pid] = outcome.value
        elif outcome.code != states.NOT_INITIALIZED:
            raise ProcessError(Operation.RESTORE_THREAD, outcome.pid, outcome.code)
    return found


def settled(api: Api, pids: Sequence[int], *, timeout: float) -> dict[int, State]:
    """Each process' state, once nothing is under way in it. What a killed caller had begun ends by itself.

    Raises:
        CudaError: it does not end in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = _states(api, pids, timeout=timeout)
        if not _UNDER_WAY & set(found.values()):
            return found
        if time.monotonic() > deadline:
            raise CudaError(f"{_listed(found, _UNDER_WAY)}: it does not end")
        time.sleep(_POLL)


def suspend(api: Api, initial: Mapping[int, State], *, lock_timeout: float, timeout: float) -> dict[str, float]:
    """Take the device memory of all processes into their own memory.

    Args:
        initial: what state each is in; what is done already is left out.
        lock_timeout: seconds that work on the GPU is given to end.
        timeout: seconds for moving the memory.

    Returns:
        How long `lock` and `checkpoint` took, in seconds.

    Raises:
        CudaError: one failed. What was done stays; see `resume`.
    """
    begun = time.monotonic()
    running = [pid for pid, state in initial.items() if state is State.RUNNING]
    _all(api, Operation.LOCK, running, lock_timeout + _MARGIN, Arguments(lock_timeout=lock_timeout))
    locked = time.monotonic()
    _all(api, Operation.CHECKPOINT, [pid for pid, s in initial.items() if s is not State.CHECKPOINTED], timeout)
    return {"lock": locked - begun, "checkpoint": time.monotonic() - locked}


def resume(
    api: Api,
    wanted: Mapping[int, State],
    *,
    timeout: float,
    device_map: tuple[tuple[str, str], ...] = (),
) -> dict[str, float]:
    """Bring processes back, from whatever state each is in, to the state that is wanted of it.

    A restore that failed is not tried again: after one that ran out of memory the driver answers with
    CUDA_ERROR_OPERATING_SYSTEM for ever, however much is free then (measured, driver 580).

    Returns:
        How long `restore` and `unlock` took, in seconds.

    Raises:
        CudaError: one failed, or is in a state from which nothing leads back.
    """
    begun = time.monotonic()
    now = settled(api, list(wanted), timeout=timeout)
    lost = [pid for pid, state in now.items() if state is State.FAILED]
    if lost:
        raise CudaError(f"{_listed(now, {State.FAILED})}: it cannot be brought back")
    down = [pid for pid, state in now.items() if state is State.CHECKPOINTED and wanted[pid] is not State.CHECKPOINTED]
    _all(api, Operation.RESTORE, down, timeout, Arguments(device_map=device_map))
    restored = time.monotonic()
    up = [pid for pid, state in now.items() if state is not State.RUNNING and wanted[pid] is State.RUNNING]
    _all(api, Operation.UNLOCK, up, timeout)
    after = _states(api, list(wanted), timeout=timeout)
    wrong = [pid for pid, state in after.items() if state is not wanted[pid]]
    if wrong:
        raise CudaError(f"{_listed({pid: after[pid] for pid in wrong}, set(State))} after it was brought back")
    return {"restore": restored - begun, "unlock": time.monotonic() - restored}


def _states(api: Api, pids: Sequence[int], *, timeout: float) -> dict[int, State]:
    found = {}
    for outcome in api.each(Operation.STATE, pids, timeout=timeout):
        if outcome.code:
            raise ProcessError(Operation.STATE, outcome.pid, outcome.code)
        try:
            found[outcome.pid] = State(outcome.value)
        except ValueError:
            raise CudaError(f"process {outcome.pid} is in an unknown CUDA state: {outcome.value}") from None
    return found


def _all(
    api: Api,
    operation: Operation,
    pids: list[int],
    timeout: float,
    arguments: Arguments = Arguments(),  # noqa: B008 - immutable
) -> None:
    if not pids:
        return
    for outcome in api.each(operation, pids, timeout=timeout, arguments=arguments):
        if outcome.code:
            raise ProcessError(operation, outcome.pid, outcome.code)


def _listed(found: Mapping[int, State], these: frozenset[State] | set[State]) -> str:
    return ", ".join(f"process {pid} is in CUDA state {s.name.lower()}" for pid, s in found.items() if s in these)
