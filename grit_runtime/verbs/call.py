"""A call as the launcher handed it to us, and passing it on to the downstream as if we had never been there."""

from dataclasses import dataclass
from typing import NoReturn

from grit_runtime import downstream as runtime
from grit_runtime.config import Config
from grit_runtime.errors import DownstreamError
from grit_runtime.host import run, workspace
from grit_runtime.oci.argv import Invocation
from grit_runtime.oci.log import Log
from grit_runtime.workflow.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One execution of the program."""

    argv: tuple[str, ...]
    """The caller's arguments without the program's name, untouched."""
    ignored_signals: frozenset[str]
    """Which of `pipe` and `xfsz` the caller had ignored."""
    invocation: Invocation
    config: Config
    log: Log

    def context(self, container: str) -> Context:
        """What the workflow needs. Raises DownstreamError if there is no downstream."""
        downstream = runtime.find(self.config.downstream, self.invocation)
        return Context(
            invocation=self.invocation, config=self.config, downstream=downstream, log=self.log, container=container
        )

    def workspace_path(self, container: str) -> str:
        """Where the container's workspace is or would be."""
        return workspace.path_of(self.config.state_dir, self.invocation.root, container)


def pass_through(config: Config, argv: tuple[str, ...], ignored_signals: frozenset[str]) -> NoReturn:
    """Become the downstream.

    Raises:
        DownstreamError: it can't be executed.
    """
    program = runtime.resolve(config.downstream)
    try:
        run.execute(program, [program, *argv], ignored_signals)
    except OSError as err:
        raise runtime.missing(program, err.strerror) from None
    raise DownstreamError(f"{program} was not executed")
