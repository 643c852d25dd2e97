"""The words of CUDA's process checkpoint API (cuda.h 13.0; cuGetErrorName)."""

from enum import Enum, IntEnum

from grit_runtime.errors import GritError


class State(IntEnum):
    """CUprocessState: what CUDA can do in a process."""

    RUNNING = 0
    LOCKED = 1
    """Every API call waits."""
    CHECKPOINTED = 2
    """Device memory is in the process' own memory; nothing is left on the GPU."""
    FAILED = 3
    CHECKPOINTING = 4
    RESTORING = 5


class Operation(Enum):
    """What can be asked for of a process; the value is the function's name behind `cuCheckpointProcess`."""

    STATE = "GetState"
    RESTORE_THREAD = "GetRestoreThreadId"
    LOCK = "Lock"
    CHECKPOINT = "Checkpoint"
    RESTORE = "Restore"
    UNLOCK = "Unlock"


SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3  # of a process: it has not called cuInit
OPERATING_SYSTEM = 304
ILLEGAL_STATE = 401
NOT_READY = 600  # of a lock: the time is over
NOT_SUPPORTED = 801
UNKNOWN = 999

_NAMES = {
    INVALID_VALUE: "CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: "CUDA_ERROR_OUT_OF_MEMORY",
    NOT_INITIALIZED: "CUDA_ERROR_NOT_INITIALIZED",
    100: "CUDA_ERROR_NO_DEVICE",
    OPERATING_SYSTEM: "CUDA_ERROR_OPERATING_SYSTEM",
    ILLEGAL_STATE: "CUDA_ERROR_ILLEGAL_STATE",
    NOT_READY: "CUDA_ERROR_NOT_READY",
    800: "CUDA_ERROR_NOT_PERMITTED",
    NOT_SUPPORTED: "CUDA_ERROR_NOT_SUPPORTED",
    UNKNOWN: "CUDA_ERROR_UNKNOWN",
}


def error_name(code: int) -> str:
    """The error as people look it up, such as `CUDA_ERROR_OPERATING_SYSTEM (304)`."""
    return f"{_NAMES.get(code, 'CUDA error')} ({code})"


class CudaError(GritError):
    """CUDA's checkpoint API is missing, did not answer, or answered something that isn't in its documentation."""


class NoCudaError(CudaError):
    """Nothing here can checkpoint CUDA: no library, or none that is new enough."""
