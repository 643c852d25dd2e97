"""The small interface that both back ends have, and the choice between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from grit_runtime import names
from grit_runtime.cuda.gpus import Node
from grit_runtime.cuda.states import CudaError, NoCudaError, Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What CUDA said of one process. `code` is a CUresult; `value` a CUprocessState or a thread id."""

    pid: int
    code: int
    value: int = -1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What an operation takes beside the process."""

    lock_timeout: float = 0
    """Seconds that a lock gives to work which is on the GPU."""
    device_map: tuple[tuple[str, str], ...] = ()
    """For a restore, old to new GPU UUIDs; it must name every GPU of the checkpoint, or none."""


class Api(Protocol):
    """CUDA's process checkpoint API, used from outside of the processes."""

    name: str
    """The mode that it is, as the configuration spells it."""

    def each(
        self, operation: Operation, pids: Sequence[int], *, timeout: float, arguments: Arguments = ...
    ) -> list[Outcome]:
        """Do one operation on several processes side by side.

        A call may hang for as long as the process is frozen or stopped, whatever its own timeout says (measured, driver
        580): it is given up after `timeout` seconds.

        Returns:
            What became of each, in the order of `pids`.

        Raises:
            CudaError: no answer in time, or none that can be read. What was begun may still end by itself.
        """

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How CUDA is reached (config.schema.json, `cuda`)."""

    mode: str = names.CUDA_AUTO
    library_path: tuple[str, ...] = ()
    program: str = "cuda-checkpoint"
    timeout: float = 30
    """Seconds for a question that needs no work on the GPU."""


def connect(settings: Settings) -> Api:
    """The back end that the mode names; by `auto`, the driver's library if it has the API, else the program.

    Raises:
        NoCudaError: it isn't there, or too old.
    """
    from grit_runtime.cuda import driver, program

    if settings.mode == names.CUDA_PROGRAM:
        return program.connect(settings)
    try:
        return driver.connect(settings)
    except NoCudaError as err:
        if settings.mode == names.CUDA_DRIVER:
            raise
        try:
            return program.connect(settings)
        except NoCudaError as other:
            raise NoCudaError(f"{err}; {other}") from None


def survey(settings: Settings, api: Api | None = None) -> Node | None:
    """What NVML says of this node; None where there is no NVML.

    Args:
        api: one that is connected, if there is one: the driver's knows.
    """
    from grit_runtime.cuda import driver

    helper = api if isinstance(api, driver.Helper) else driver.Helper(settings)
    try:
        if helper is not api:
            helper.hello(settings.timeout)
        return helper.node(settings.timeout)
    except CudaError:
        return None
    finally:
        if helper is not api:
            helper.close()
