"""`state ID` of a container that `create` restored: the downstream's answer, with the status that a container has
before `start`.
"""

import json
import sys

from grit_runtime import names
from grit_runtime.verbs.waiting import Waiting


def run(waiting: Waiting) -> int:
    """Print the state (OCI runtime spec, runtime.md, "State")."""
    context = waiting.context
    state = context.downstream.state(context.container, timeout=context.config.timeouts.command)
    answer = {**state.raw, "status": names.CREATED} if state.status == names.RUNNING else state.raw
    sys.stdout.write(json.dumps(answer, indent=2))
    return 0
