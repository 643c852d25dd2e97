"""`start ID` of a container that `create` restored: its tasks run, and the restore is committed."""

from grit_runtime import names
from grit_runtime.errors import DownstreamError
from grit_runtime.verbs.waiting import Waiting
from grit_runtime.workflow import restore


def run(waiting: Waiting) -> int:
    """Continue the tasks, but for those that were stopped at the dump."""
    context = waiting.context
    state = context.downstream.state(context.container, timeout=context.config.timeouts.command)
    if state.status != names.RUNNING:
        raise DownstreamError(f"cannot start container {context.container}: it is {state.status}")
    restore.release(context, waiting.record.header["stopped"])
    waiting.workspace.close(remove=True)
    return 0
