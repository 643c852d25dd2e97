"""What every step of ours needs: the call, the site's configuration, the downstream, and where to report."""

import os
from dataclasses import dataclass, field
from typing import Any

from grit_runtime import __version__
from grit_runtime.config import Config
from grit_runtime.downstream import Downstream
from grit_runtime.host import workspace
from grit_runtime.oci.argv import Invocation
from grit_runtime.oci.log import Log
from grit_runtime.workflow.operations import Record

MARKER = "GRIT_RUNTIME_CALL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One call on one container."""

    invocation: Invocation
    config: Config
    downstream: Downstream
    log: Log
    container: str
    record: Record = field(default_factory=Record, compare=False, repr=False)
    """What the call does, and when."""

    @property
    def workspace_path(self) -> str:
        """Where the container's workspace is or would be."""
        return workspace.path_of(self.config.state_dir, self.invocation.root, self.container)

    def header(self, operation: str) -> dict[str, Any]:
        """The first line of a journal: what a later process needs to take over."""
        return {
            "version": __version__,
            "operation": operation,
            "container": self.container,
            "program": self.downstream.program,
            "options": list(self.downstream.options),
            "root": self.downstream.root,
            "pid": os.getpid(),
            "timeout": self.config.timeouts.command,
        }


def new_marker() -> str:
    """An environment entry by which the programs of one call are found again."""
    return f"{MARKER}={os.urandom(16).hex()}"
