"""The effect of taking CUDA into memory, and what every step with CUDA needs of the configuration."""

from dataclasses import dataclass
from typing import ClassVar

from grit_runtime import names
from grit_runtime.config import Config
from grit_runtime.cuda import processes
from grit_runtime.cuda.api import Settings, connect
from grit_runtime.cuda.states import State
from grit_runtime.host import hugepages, proc
from grit_runtime.host.hugepages import HugePages
from grit_runtime.host.transaction import Effect


def settings(config: Config) -> Settings:
    """How CUDA is reached. CRIU's plugin is no way of reaching it: what it left is looked at by whatever is there."""
    cuda = config.cuda
    return Settings(
        mode=names.CUDA_AUTO if cuda.mode == names.CUDA_PLUGIN else cuda.mode,
        library_path=cuda.library_path,
        program=cuda.program,
        timeout=config.timeouts.command,
    )


def huge_pages(config: Config) -> HugePages | None:
    """Huge pages for the memory that the driver moves device memory through, if they are to be had."""
    return None if config.cuda.huge_pages == names.HUGE_NEVER else hugepages.wanted()


@dataclass(frozen=True)
class CudaSuspended(Effect):
    """CUDA processes whose device memory goes into their own memory; undone by bringing each back to the state that it
    was found in, from whatever state a kill left it in.

    It is applied by the capture itself, which has the driver at hand, or by CRIU's plugin, whose own way back is none
    when its checkpoint failed, and which tells nobody when it fails itself (cuda_plugin.c, cuda_plugin_fini).
    """

    kind: ClassVar[str] = "cuda"
    mode: str
    library_path: list[str]
    program: str
    timeout: float
    """Seconds for a question."""
    move_timeout: float
    """Seconds for moving device memory."""
    targets: list[list[int]]
    """Of each process: the host pid, its start time (proc(5)), its CUDA state before."""

    def describe(self) -> str:
        return f"take CUDA of process {', '.join(str(pid) for pid, _, _ in self.targets)} into memory"

    def apply(self) -> None:
        return

    def undo(self) -> None:
        wanted = {
            pid: State(state)
            for pid, start, state in self.targets
            if proc.start_time(pid) == start and proc.is_running(pid)
        }
        if not wanted:
            return
        api = connect(
            Settings(mode=self.mode, library_path=tuple(self.library_path), program=self.program, timeout=self.timeout)
        )
        try:
            processes.resume(api, wanted, timeout=self.move_timeout)
        finally:
            api.close()
